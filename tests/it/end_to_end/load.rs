//! Many events, some of them broken, over two workers: none is lost, and no dead letter is doubled.

use std::collections::BTreeMap;

use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use super::stage::{SOON, Stage};
use crate::support::wait_until;

const EVENTS: u32 = 20_000;

/// One event in this many is broken.
const BROKEN: u32 = 50;

const RULES: &str = r#"
defaults: { ttl: 1h }
events:
  user.updated:
    data: { type: object, required: [id], properties: { id: { type: integer }, email: { type: string } } }
    effects: [ { delete: "user:{id}" } ]
  order.paid:
    effects: [ { delete: ["order:{id}", "order:{id}:lines"] }, { invalidate_tags: "customer:{customer}" } ]
  price.changed:
    effects: [ { write: "price:{id}", value: { cents: "{cents}" } } ]
  stock.counted:
    max_keys: 3
    effects: [ { delete: "stock:{shelves[]}" }, { delete: "stock:total" } ]
  counter.bumped:
    effects: [ { bump_version: "{counter}" } ]
"#;

/// Message, and its effect on Redis or the reason of its dead letter.
struct Case {
    routing_key: &'static str,
    headers: Option<(&'static str, &'static str)>,
    body: String,
    fate: Fate,
}

enum Fate {
    Gone(String),
    Written(String, String),
    Dead(&'static str),
}

fn case(n: u32) -> Case {
    if n.is_multiple_of(BROKEN) {
        return broken(n);
    }
    let (routing_key, headers, body, fate) = match n % 5 {
        0 => (
            "user.updated",
            None,
            format!(r#"{{"id":{n},"email":"u{n}@example.org"}}"#),
            Fate::Gone(format!("user:{n}")),
        ),
        1 => (
            "user.updated",
            None,
            format!(r#"{{"id":"e{n}","type":"user.updated","data":{{"id":{n}}}}}"#),
            Fate::Gone(format!("user:{n}")),
        ),
        2 => (
            "order.paid",
            None,
            format!(r#"{{"id":{n},"customer":{n}}}"#),
            Fate::Gone(format!("basket:{n}")),
        ),
        3 => (
            "price.changed",
            None,
            format!(r#"{{"id":{n},"cents":{n}}}"#),
            Fate::Written(format!("price:{n}"), format!(r#"{{"cents":{n}}}"#)),
        ),
        _ => (
            "user.updated",
            Some(("ce-type", "user.updated")),
            format!(r#"{{"id":{n}}}"#),
            Fate::Gone(format!("user:{n}")),
        ),
    };
    Case { routing_key, headers, body, fate }
}

fn broken(n: u32) -> Case {
    let (routing_key, body, reason) = match n / BROKEN % 7 {
        0 => ("user.updated", format!("{{\"id\":{n}"), "malformed"),
        1 => ("user.updated", format!("[{n}]"), "malformed"),
        2 => ("user.updated", format!(r#"{{"id":"{n}"}}"#), "invalid_data"),
        3 => ("price.changed", format!(r#"{{"cents":{n}}}"#), "unresolvable"),
        4 => ("user.forgotten", format!(r#"{{"id":{n}}}"#), "unknown_event"),
        5 => ("stock.counted", format!(r#"{{"n":{n},"shelves":[1,2,3,4]}}"#), "blast_radius"),
        _ => ("counter.bumped", format!(r#"{{"n":{n},"counter":"no-counter"}}"#), "redis_refused"),
    };
    Case { routing_key, headers: None, body, fate: Fate::Dead(reason) }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_mixed_events_over_two_workers() {
    let stage = Stage::new(&[("mixed.yaml", RULES)]).await;
    let settings = [("UNSTALE_BIND", "user.forgotten"), ("UNSTALE_RETRY_DELAYS", "100ms,200ms")];
    let (one, two) = (stage.worker(&settings).await, stage.worker(&settings).await);
    let cases: Vec<Case> = (0..EVENTS).map(case).collect();
    seed(&stage, &cases).await;

    let mut confirms = FuturesUnordered::new();
    for case in &cases {
        let mut headers = FieldTable::default();
        if let Some((name, value)) = case.headers {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        let properties = BasicProperties::default().with_headers(headers);
        confirms.push(
            stage.send(&stage.exchange, case.routing_key, properties, case.body.as_bytes()).await,
        );
        if confirms.len() >= 500 {
            assert!(matches!(confirms.next().await, Some(Ok(lapin::Confirmation::Ack(None)))));
        }
    }
    while let Some(confirm) = confirms.next().await {
        assert!(matches!(confirm, Ok(lapin::Confirmation::Ack(None))));
    }

    let mut expected: BTreeMap<Vec<u8>, &str> = BTreeMap::new();
    for case in &cases {
        if let Fate::Dead(reason) = case.fate {
            expected.insert(case.body.clone().into_bytes(), reason);
        }
    }
    let letters = stage.dead_letters(u32::try_from(expected.len()).unwrap()).await;
    stage.wait_settled(&[&one, &two]).await;
    check_cache(&stage, &cases).await;

    let mut found: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    for letter in &letters {
        let reason = letter.header("unstale-reason").unwrap();
        let before = found.insert(letter.body.clone(), reason);
        assert!(before.is_none(), "{} stands there twice", String::from_utf8_lossy(&letter.body));
    }
    let found: BTreeMap<Vec<u8>, &str> =
        found.iter().map(|(body, reason)| (body.clone(), reason.as_str())).collect();
    assert_eq!(found, expected);
    assert_eq!(stage.ready(".dead").await, 0, "nothing came later");
    let shares =
        [&one, &two].map(async |worker| worker.metrics().await.sum("unstale_events_total", &[]));
    for share in shares {
        assert!(share.await > 0.0, "both workers took part");
    }
}

async fn seed(stage: &Stage, cases: &[Case]) {
    let mut redis = stage.connection().await;
    for chunk in cases.chunks(1_000) {
        let mut pipe = redis::pipe();
        for case in chunk {
            match &case.fate {
                Fate::Gone(key) => {
                    pipe.set(key, "old").ignore();
                    if let Some(customer) = key.strip_prefix("basket:") {
                        pipe.sadd(format!("cache_tag:customer:{customer}"), key).ignore();
                    }
                }
                Fate::Written(key, _) => {
                    pipe.set(key, "old").ignore();
                }
                Fate::Dead(_) => {}
            }
        }
        let _: () = pipe.query_async(&mut redis).await.unwrap();
    }
    stage.set("no-counter", "text").await;
}

async fn check_cache(stage: &Stage, cases: &[Case]) {
    let mut redis = stage.connection().await;
    let mut wrong = Vec::new();
    for chunk in cases.chunks(1_000) {
        let kept: Vec<(&str, Option<&str>)> = chunk
            .iter()
            .filter_map(|case| match &case.fate {
                Fate::Gone(key) => Some((key.as_str(), None)),
                Fate::Written(key, value) => Some((key.as_str(), Some(value.as_str()))),
                Fate::Dead(_) => None,
            })
            .collect();
        let mut pipe = redis::pipe();
        for (key, _) in &kept {
            pipe.get(*key);
        }
        let values: Vec<Option<String>> = pipe.query_async(&mut redis).await.unwrap();
        wrong.extend(
            kept.iter()
                .zip(values)
                .filter(|((_, wanted), found)| *wanted != found.as_deref())
                .map(|((key, _), _)| (*key).to_owned()),
        );
    }
    assert!(
        wrong.is_empty(),
        "{} keys are not as told, such as {:?}",
        wrong.len(),
        &wrong[..wrong.len().min(5)]
    );
    wait_until(SOON, "no set of a tag is left", async || {
        let tags: Vec<String> = redis::cmd("KEYS")
            .arg("cache_tag:*")
            .query_async(&mut stage.connection().await)
            .await
            .unwrap();
        tags.is_empty()
    })
    .await;
}
