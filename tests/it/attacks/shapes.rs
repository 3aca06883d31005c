//! Messages of every form that may confuse a decoder: bodies, headers, properties and types.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString};

use super::{Victim, list};

const RULES: &str = r#"
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  user.checked:
    data: { type: object, required: [id], properties: { id: { type: integer, minimum: 0, multipleOf: 1 } }, additionalProperties: { type: [integer, array, object, string] } }
    effects: [ { delete: "user:{id}" } ]
  user.versioned: { version: "{id}", effects: [ { write: "user:{id}", value: "{data}", ttl: 1h } ] }
  "shop.#": { effects: [ { delete: "shop:{id}" } ] }
"#;

fn with_headers(headers: BTreeMap<&str, AMQPValue>) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(name.into(), value);
    }
    BasicProperties::default().with_headers(table)
}

fn long(text: impl Into<LongString>) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    let wide = |depth: usize| {
        format!(
            "{}{}{}",
            r#"{"a":["#.repeat(depth),
            list(10_000, |n| n.to_string()),
            "]}".repeat(depth)
        )
    };
    let digits = "9".repeat(1_000_000);
    vec![
        ("no body", Vec::new()),
        ("a byte", vec![b'{']),
        ("no UTF-8", [br#"{"id":""#.as_slice(), &[0xff; 100_000], br#""}"#].concat()),
        ("half a character", b"{\"id\":\"\xf0\x9f\x98\"}".to_vec()),
        ("an overlong character", b"{\"id\":\"\xc0\xaf\"}".to_vec()),
        ("a mark of byte order", b"\xef\xbb\xbf{\"id\":1}".to_vec()),
        ("UTF-16", r#"{"id":1}"#.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("compressed", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0]),
        ("a member twice, 100,000 times", format!(r#"{{{}"id":1}}"#, r#""id":"a","#.repeat(100_000)).into_bytes()),
        ("100,000 members", format!("{{{}\"id\":1}}", (0..100_000).map(|n| format!("\"m{n}\":{n},")).collect::<String>()).into_bytes()),
        ("deep and wide", format!(r#"{{"id":1,"x":{}}}"#, wide(45)).into_bytes()),
        ("too deep", format!(r#"{{"id":1,"x":{}1{}}}"#, "[".repeat(400_000), "]".repeat(400_000)).into_bytes()),
        ("deep and open", "[".repeat(900_000).into_bytes()),
        ("1,000,000 digits", format!(r#"{{"id":{digits}}}"#).into_bytes()),
        ("1,000,000 digits behind the point", format!(r#"{{"id":0.{digits}}}"#).into_bytes()),
        ("an exponent", br#"{"id":1e999999999}"#.to_vec()),
        ("an exponent of many digits", format!(r#"{{"id":1e{digits}}}"#).into_bytes()),
        ("a small exponent", format!(r#"{{"id":1{}e-999999}}"#, "0".repeat(900_000)).into_bytes()),
        ("many exponents", format!(r#"{{"id":1,"x":{}}}"#, list(50_000, |n| format!("1e{n}"))).into_bytes()),
        ("escapes", format!(r#"{{"id":"{}"}}"#, r"\u0061".repeat(150_000)).into_bytes()),
        ("lone surrogates", format!(r#"{{"id":"{}"}}"#, r"\ud800".repeat(150_000)).into_bytes()),
        ("control characters", b"{\"id\":\"a\\u0000\\u001b[2J\\n20 ERROR forged\"}".to_vec()),
        ("forged lines in a name", "{\"id\":{\"a\\n2026-01-01T00:00:00Z ERROR forged\\u001b[31m\\u2028\\u202e\":1}}".as_bytes().to_vec()),
        ("a CloudEvent", br#"{"specversion":"1.0","id":"1","source":"s","type":"user.updated","data_base64":"eyJpZCI6MX0="}"#.to_vec()),
        (
            "a CloudEvent of much that is no base64",
            format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"user.updated","data_base64":"{}"}}"#, "!".repeat(900_000)).into_bytes(),
        ),
        (
            "a CloudEvent within a CloudEvent",
            format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"user.updated","data":{}}}"#, wide(40)).into_bytes(),
        ),
        ("a batch of CloudEvents", list(5_000, |n| format!(r#"{{"specversion":"1.0","id":"{n}","source":"s","type":"user.updated","data":{{"id":{n}}}}}"#)).into_bytes()),
        (
            "a row of Debezium",
            format!(
                r#"{{"op":"u","source":{{"name":"shop","db":"d","table":"t"}},"before":{{"id":1,"x":"{0}"}},"after":{{"id":1,"x":"{0}"}}}}"#,
                "y".repeat(450_000)
            )
            .into_bytes(),
        ),
        (
            "a row of Debezium with unavailable values",
            format!(
                r#"{{"op":"u","source":{{"name":"shop","db":"d","table":"t"}},"before":{0},"after":{0}}}"#,
                format_args!("{{{}\"id\":1}}", (0..9_000).map(|n| format!("\"c{n}\":\"__debezium_unavailable_value\",")).collect::<String>())
            )
            .into_bytes(),
        ),
        ("an envelope", format!(r#"{{"type":"{}","data":{{"id":1}}}}"#, "user.".repeat(100_000)).into_bytes()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_any_form_costs_little() {
    let victim = Victim::new(
        &[("rules.yaml", RULES)],
        &[("UNSTALE_MAX_BODY_BYTES", "2MiB"), ("UNSTALE_LOG", "unstale=debug")],
    )
    .await;
    let mut verdicts = Vec::new();
    for (name, body) in bodies() {
        for routing_key in ["user.updated", "user.checked", "user.versioned"] {
            let name = format!("{name} as {routing_key}");
            let cost = victim.suffers(&name, routing_key, BasicProperties::default(), &body).await;
            verdicts.extend(cost.verdict(&name).err());
        }
        victim.dead_letters().await;
    }
    assert!(verdicts.is_empty(), "out of bounds:\n{}", verdicts.join("\n"));
    victim.survived().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_properties_of_any_form_cost_little() {
    let victim = Victim::new(&[("rules.yaml", RULES)], &[("UNSTALE_LOG", "unstale=debug")]).await;
    let text = "x".repeat(100_000);
    let mut nested = AMQPValue::Void;
    for _ in 0..60 {
        let mut array = FieldArray::default();
        array.push(nested);
        nested = AMQPValue::FieldArray(array);
    }
    let escape = "a\n2026-01-01T00:00:00Z ERROR forged \u{1b}[2J\u{2028}\u{202e}";
    let properties = BasicProperties::default;
    let attacks: Vec<(&str, BasicProperties)> = vec![
        ("a header of 100 KB", with_headers([("x", long(text.as_str()))].into())),
        ("a trace of 100 KB", with_headers([("traceparent", long(text.as_str()))].into())),
        ("nested arrays", with_headers([("x", nested)].into())),
        (
            "a CloudEvent's headers",
            with_headers(
                [
                    ("ce-type", long("user.updated")),
                    ("ce-id", long("x".repeat(50_000))),
                    ("ce-previous", long(&text[..50_000])),
                ]
                .into(),
            ),
        ),
        (
            "a CloudEvent's type of no text",
            with_headers([("ce-type", AMQPValue::LongLongInt(7))].into()),
        ),
        ("a type that forges", with_headers([("unstale-event-type", long(escape))].into())),
        ("an id that forges", properties().with_message_id("m\n20 ERROR\u{1b}[2J".into())),
        ("a type property that forges", properties().with_type("t\n20 ERROR\u{1b}[2J".into())),
        (
            "a header that is no UTF-8",
            with_headers([("unstale-event-type", long(vec![0xff; 1_000]))].into()),
        ),
        (
            "forged headers of ours",
            with_headers(
                [
                    ("unstale-attempt", AMQPValue::LongInt(99)),
                    ("unstale-effects", long("0")),
                    ("unstale-redelivered", AMQPValue::LongLongInt(40)),
                    ("unstale-routing-key", long("user.updated")),
                    ("x-delivery-count", AMQPValue::LongLongInt(40)),
                    ("x-acquired-count", AMQPValue::LongLongInt(40)),
                ]
                .into(),
            ),
        ),
    ];
    let mut verdicts = Vec::new();
    for (name, properties) in attacks {
        victim.stage.set("user:1", "old").await;
        let cost = victim.suffers(name, "user.updated", properties, br#"{"id":1}"#).await;
        verdicts.extend(cost.verdict(name).err());
        let letters = victim.dead_letters().await;
        assert!(
            !letters.is_empty() || !victim.stage.exists("user:1").await,
            "{name} was neither applied nor dead-lettered"
        );
    }
    assert!(verdicts.is_empty(), "out of bounds:\n{}", verdicts.join("\n"));
    victim.survived().await;
}

/// The publisher chooses types: 10,000 of them must not fill the worker's memory or its metrics.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_types_cost_little() {
    let victim = Victim::new(&[("rules.yaml", RULES)], &[]).await;
    let publish = async |n: usize| {
        let routing_key = format!("shop.{n}.{}", "t".repeat(n % 150));
        let body = format!(r#"{{"id":{n}}}"#);
        let stage = &victim.stage;
        stage
            .send(&stage.exchange, &routing_key, BasicProperties::default(), body.as_bytes())
            .await
            .await
            .unwrap();
    };
    futures_util::future::join_all((0..10_000).map(publish)).await;
    let cost = victim
        .suffers("the last type", "shop.last", BasicProperties::default(), br#"{"id":1}"#)
        .await;
    assert!(cost.bytes < super::MEMORY_BYTES, "{cost:?}");
    let (_, metrics) = victim.worker.get("/metrics").await.unwrap();
    assert!(metrics.len() < 64 << 10, "{} bytes of metrics", metrics.len());
    assert_eq!(victim.dead_letters().await.len(), 0);
    victim.survived().await;
}
