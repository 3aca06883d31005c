//! Samples of messages that other tools publish, with the events that they must become.
//!
//! `tests/events/<form>/<name>.json` is the message, in the form that `unstale plan` reads.
//! `<name>.expect.json` is the event.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};
use unstale::event::json::JsonKind;
use unstale::event::{
    Decoded, Event, Form, HeaderValue, Headers, Json, Malformed, Message, Origin, OwnedMessage,
    OwnedValue, Properties, Provenance,
};
use unstale::event::{Reading, TypeFrom, decode, header};

fn samples() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/events");
    let mut samples = Vec::new();
    for form in fs::read_dir(root).unwrap() {
        for file in fs::read_dir(form.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if !path.to_string_lossy().ends_with(".expect.json") {
                samples.push(path);
            }
        }
    }
    samples.sort();
    samples
}

fn shown(decoded: &Result<Decoded<'_>, Malformed>) -> Value {
    match decoded {
        Ok(Decoded::Event(event)) => {
            let mut shown = json!({
                "form": event.form.as_str(),
                "id": &*event.id,
                "type": event.event_type,
                "time": event.time,
                "source": event.source,
                "subject": event.subject,
                "position": event.position,
                "traceparent": event.traceparent,
                "data": event.data().to_value(),
                "previous": event.previous().map(Json::to_value),
            });
            shown.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            shown
        }
        Ok(Decoded::Bodiless(event)) => json!({ "bodiless": event.event_type }),
        Ok(Decoded::Tombstone) => json!("tombstone"),
        Err(Malformed(message)) => json!({ "malformed": message }),
    }
}

#[test]
fn every_sample_message_decodes_to_the_expected_event() {
    let samples = samples();
    assert!(samples.len() > 50, "the samples are missing");
    let mut wrong = String::new();
    for path in samples {
        let message = OwnedMessage::from_line(&fs::read_to_string(&path).unwrap()).unwrap();
        let read = shown(&decode(&message.message(), Reading::default()));
        let expected = fs::read_to_string(path.with_extension("expect.json")).unwrap_or_default();
        if serde_json::from_str::<Value>(&expected).ok().as_ref() != Some(&read) {
            wrong.push_str(&format!("{}:\nexpected {expected}\nread {read:#}\n", path.display()));
        }
        let form = path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        if let (Some(form), Some(read_as)) = (Form::from_name(&form), read.get("form")) {
            assert_eq!(read_as, form.as_str(), "{}", path.display());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_sample_republished_is_the_same_event() {
    for path in samples() {
        let message = OwnedMessage::from_line(&fs::read_to_string(&path).unwrap()).unwrap();
        let message = message.message();
        if let Ok(Decoded::Event(event)) = decode(&message, Reading::default()) {
            let republished = republish(&message, &event);
            assert_eq!(
                decode(&republished, Reading::default()),
                Ok(Decoded::Event(event.clone())),
                "{}",
                path.display()
            );
            let republished_twice = republish(&republished, &event);
            assert_eq!(
                decode(&republished_twice, Reading::default()),
                Ok(Decoded::Event(event)),
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn with_types_from_routing_keys_no_message_sets_its_own_type() {
    let reading = Reading { type_from: TypeFrom::RoutingKey, ..Reading::default() };
    let mut events = 0;
    for path in samples() {
        let owned = OwnedMessage::from_line(&fs::read_to_string(&path).unwrap()).unwrap();
        let any = decode(&owned.message(), Reading::default())
            .is_ok_and(|decoded| matches!(decoded, Decoded::Event(_)));
        if !any || Provenance::of(&owned.message()).is_some() {
            continue;
        }
        for routing_key in ["user.updated", ""] {
            let message = Message { exchange: "events", routing_key, ..owned.message() };
            match decode(&message, reading) {
                Ok(Decoded::Event(event)) => {
                    assert_eq!(event.event_type, "user.updated", "{}", path.display());
                    let republished = republish(&message, &event);
                    assert_eq!(
                        decode(&republished, reading),
                        Ok(Decoded::Event(event.clone())),
                        "{}",
                        path.display()
                    );
                    // A worker without the setting republished this message. The routing key of the
                    // first arrival still decides.
                    let Ok(Decoded::Event(lax)) = decode(&message, Reading::default()) else {
                        panic!("{}", path.display())
                    };
                    assert_eq!(
                        decode(&republish(&message, &lax), reading),
                        Ok(Decoded::Event(event)),
                        "{}",
                        path.display()
                    );
                    events += 1;
                }
                Ok(other) => panic!("{}: {other:?}", path.display()),
                Err(problem) => assert!(
                    routing_key.is_empty() && problem.to_string().contains("UNSTALE_TYPE_FROM"),
                    "{problem}"
                ),
            }
        }
    }
    assert!(events > 20, "{events}");
}

/// Returns the message as a retry brings it back.
fn republish<'a>(message: &Message<'a>, event: &Event<'_>) -> Message<'a> {
    let provenance = Provenance::of(message);
    let exchange = provenance.as_ref().map_or(message.exchange, |first| first.exchange).to_owned();
    let routing_key =
        provenance.as_ref().map_or(message.routing_key, |first| first.routing_key).to_owned();
    let mut headers = message.headers.clone();
    headers.0.retain(|(name, _)| !name.starts_with(header::PREFIX));
    for (name, text) in [
        (header::EXCHANGE, exchange),
        (header::ROUTING_KEY, routing_key),
        (header::FORM, event.form.as_str().to_owned()),
        (header::EVENT_TYPE, event.event_type.to_string()),
        (header::EVENT_ID, event.id.to_string()),
    ] {
        headers.0.push((name.into(), HeaderValue::Text(text.into())));
    }
    headers.0.push((header::ATTEMPT.into(), HeaderValue::Integer(1)));
    Message {
        exchange: "",
        routing_key: "unstale.retry.1s",
        headers,
        origin: Origin::Worker,
        ..message.clone()
    }
}

#[test]
fn a_usual_event_borrows_all_fields_from_its_message() {
    use std::borrow::Cow::Borrowed;
    let body =
        br#"{"id":"e-1","type":"user.updated","time":"2026-03-01T10:15:30Z","data":{"id":42}}"#;
    let message =
        Message { exchange: "events", routing_key: "user.updated", body, ..Message::default() };
    let Ok(Decoded::Event(event)) = decode(&message, Reading::default()) else {
        panic!("no event")
    };
    assert!(matches!(
        (&event.event_type, &event.data_text, &event.time),
        (Borrowed(_), Borrowed(_), Some(Borrowed(_)))
    ));
    assert!(body.as_ptr_range().contains(&event.id.as_ptr()));
}

#[test]
fn a_body_above_the_size_limit_is_malformed() {
    let message = Message {
        exchange: "events",
        routing_key: "user.updated",
        body: b"{\"id\":1}",
        ..Message::default()
    };
    assert!(decode(&message, Reading { max_body_bytes: 8, ..Reading::default() }).is_ok());
    let error = decode(&message, Reading { max_body_bytes: 7, ..Reading::default() })
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the body has 8 bytes, more than UNSTALE_MAX_BODY_BYTES allows (7): publish less, or raise it"
    );
}

/// Decodes the sample of that name, with a setting for the place of the type.
fn sample<R>(name: &str, type_from: &str, read: impl FnOnce(Event<'_>) -> R) -> R {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/events")
        .join(name)
        .with_extension("json");
    let owned = OwnedMessage::from_line(&fs::read_to_string(path).unwrap()).unwrap();
    let reading = Reading { type_from: TypeFrom::parse(type_from).unwrap(), ..Reading::default() };
    match decode(&owned.message(), reading) {
        Ok(Decoded::Event(event)) => read(event),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn extension_attributes_of_an_event_are_kept() {
    for (name, attribute, value) in [
        ("structured/dapr", "topic", Some("products")),
        ("structured/dapr", "pubsubname", Some("rabbitmq-pubsub")),
        ("structured/dapr", "id", None),
        ("structured/dapr", "data", None),
        ("binary/mqtt_without_a_prefix", "tenant", Some("acme")),
        ("binary/mqtt_without_a_prefix", "x-mqtt-publish-qos", None),
        ("binary/mqtt_without_a_prefix", "type", None),
        ("debezium/sqlserver_update", "db", Some("shopA")),
        ("debezium/sqlserver_update", "schema", Some("dbo")),
        ("debezium/sqlserver_cloudevent", "db", Some("shopB")),
        ("debezium/mongodb_create", "collection", Some("products")),
        ("debezium/vitess_create", "shard", Some("-80")),
    ] {
        sample(name, "any", |event| {
            assert_eq!(event.attribute(attribute), value, "{name} {attribute}")
        });
    }
    sample("envelope/masstransit", "any", |event| {
        assert_eq!((&*event.exchange, &*event.routing_key), ("Acme.Contracts:ProductUpdated", ""));
    });
}

#[test]
fn type_from_sets_the_place_of_the_event_type() {
    for (name, setting, event_type) in [
        ("binary/mqtt_without_a_prefix", "header:tenant", "acme"),
        ("binary/mqtt_without_a_prefix", "header:missing", "com.example.user.updated"),
        ("envelope/masstransit", "body:messageType", "ProductUpdated"),
        ("envelope/nest_command_in_a_topic", "body:pattern.cmd", "user.updated"),
        ("bare/pattern_and_data_of_an_application", "body:pattern", "stripes"),
        ("bare/pattern_and_data_of_an_application", "body:missing", "wallpaper.updated"),
        ("bare/outbox_payload_as_text", "body:status", "ASSIGNED"),
        ("structured/dapr", "body:topic", "products"),
    ] {
        sample(name, setting, |event| assert_eq!(event.event_type, event_type, "{name} {setting}"));
    }
    let message = Message {
        exchange: "commands",
        headers: Headers(vec![(
            "rbs2-msg-type".into(),
            HeaderValue::Text("Acme.ProductUpdated, Acme".into()),
        )]),
        body: b"{\"id\":1}",
        ..Message::default()
    };
    assert!(decode(&message, Reading::default()).is_err(), "no type anywhere else");
    let reading = Reading { type_from: TypeFrom::Header("rbs2-msg-type"), ..Reading::default() };
    let Ok(Decoded::Event(event)) = decode(&message, reading) else { panic!("no event") };
    assert_eq!(event.event_type, "Acme.ProductUpdated");
    let republished = republish(&message, &event);
    assert_eq!(decode(&republished, reading), Ok(Decoded::Event(event.clone())));
    // The publisher's headers may have been dropped, since they did not fit into a frame.
    let mut without = republished.clone();
    without.headers.0.retain(|(name, _)| name.starts_with(header::PREFIX));
    let Ok(Decoded::Event(again)) = decode(&without, reading) else { panic!("no event") };
    assert_eq!(again.event_type, "Acme.ProductUpdated");
}

#[test]
fn an_empty_body_is_an_event_if_rules_know_its_type() {
    let message = |body, properties| Message {
        exchange: "events",
        routing_key: "home.changed",
        body,
        properties,
        ..Message::default()
    };
    for body in [&b""[..], b"default", b"\x00\x53\x77\x40"] {
        let event_type = (body.len() == 4).then_some("amqp-1.0");
        let message = message(body, Properties { event_type, ..Properties::default() });
        let decoded = decode(&message, Reading::default()).unwrap();
        let Decoded::Event(event) =
            decoded.clone().if_known(|event_type| event_type == "home.changed")
        else {
            panic!("{body:?}")
        };
        assert_eq!((&*event.event_type, &*event.data_text), ("home.changed", "{}"));
        assert_eq!(decoded.if_known(|_| false), Decoded::Tombstone);
        let republished = republish(&message, &event);
        assert_eq!(decode(&republished, Reading::default()), Ok(Decoded::Bodiless(event)));
    }
    let typed = Properties { event_type: Some("home.changed"), ..Properties::default() };
    assert!(
        matches!(decode(&message(b"", typed), Reading::default()), Ok(Decoded::Event(_))),
        "Debezium sets no type"
    );
    let nameless = Message { exchange: "events", ..Message::default() };
    assert_eq!(decode(&nameless, Reading::default()), Ok(Decoded::Tombstone));
}

#[test]
fn an_event_id_is_computed_from_the_first_arrival() {
    let id = |exchange: &'static str, routing_key: &'static str, body: &'static [u8]| {
        let message = Message { exchange, routing_key, body, ..Message::default() };
        match decode(&message, Reading::default()) {
            Ok(Decoded::Event(event)) => event.id.into_owned(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(id("events", "a", b"{}"), id("other", "a", b"{}"));
    assert_ne!(id("events", "a", b"{}"), id("events", "b", b"{}"));
    assert_ne!(id("events", "a", b"{}"), id("events", "a", b"{ }"));
    assert_eq!(id("events", "a", b"{}").len(), 64);
}

/// Names that the decoder knows, so that random tests reach its branches.
fn any_name() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "ce-type",
        "ce_id",
        "cloudEvents:time",
        "cloudEvents_previous",
        "CE-SOURCE",
        "specversion",
        "type",
        "CE-Tenant",
        "ce-iodebeziumop",
        "traceparent",
        "unstale-event-type",
        "unstale-routing-key",
        "unstale-form",
        "unstale-event-id",
        "unstale-attempt",
        "unstale-effects",
    ];
    prop_oneof![4 => prop::sample::select(KNOWN).prop_map(str::to_owned), 1 => any::<String>()]
}

fn any_text() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "",
        "user.updated",
        "unstale.x",
        "io.debezium.connector.mysql.DataChangeEvent",
        "2026-03-01T10:15:30Z",
        "{\"a\":1}",
        "binary",
        "structured",
        "debezium",
        "header",
        "envelope",
        "bare",
        "c",
        "1,2",
        "amqp-1.0",
        "sqlserver",
        "urn:message:Acme:ProductUpdated",
    ];
    prop_oneof![4 => prop::sample::select(KNOWN).prop_map(str::to_owned), 1 => any::<String>()]
}

fn any_value() -> impl Strategy<Value = OwnedValue> {
    prop_oneof![
        6 => any_text().prop_map(OwnedValue::Text),
        1 => any::<i64>().prop_map(OwnedValue::Integer),
        1 => any::<f64>().prop_map(OwnedValue::Double),
        1 => any::<bool>().prop_map(OwnedValue::Bool),
        1 => any::<u64>().prop_map(OwnedValue::Timestamp),
        1 => Just(OwnedValue::Null),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    const MEMBERS: &[&str] = &[
        "type",
        "data",
        "data_base64",
        "id",
        "time",
        "previous",
        "source",
        "specversion",
        "op",
        "payload",
        "before",
        "after",
        "name",
        "db",
        "schema",
        "table",
        "lsn",
        "file",
        "pos",
        "ts_ms",
        "iodebeziumop",
        "traceparent",
        "collection",
        "keyspace",
        "connector",
        "pattern",
        "messageType",
        "message",
        "schema",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any_text().prop_map(Into::into),
        Just(json!("__debezium_unavailable_value")),
    ];
    leaf.prop_recursive(4, 40, 8, |inner| {
        let name = prop_oneof![5 => prop::sample::select(MEMBERS).prop_map(str::to_owned), 1 => any::<String>()];
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..3).prop_map(Into::into),
            4 => prop::collection::btree_map(name, inner, 0..8).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => any_json().prop_map(|value| value.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..100),
        1 => any::<String>().prop_map(String::into_bytes),
        1 => Just(b"default".to_vec()),
        1 => any_json().prop_map(|value| json!(value.to_string()).to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..30).prop_map(|rest| [&b"\x00\x53\x77"[..], &rest].concat()),
    ]
}

const CONTENT_TYPES: &[&str] =
    &["application/json", "application/cloudevents+json", "application/cloudevents-batch+json"];

proptest! {
    #[test]
    fn no_message_panics_and_every_republished_one_is_the_same_event(
        (exchange, origin) in prop::sample::select(vec![
            ("events", Origin::Publisher),
            ("", Origin::Publisher),
            ("", Origin::Unsigned),
            ("", Origin::Worker),
        ]),
        routing_key in any_text(),
        content_type in prop::option::of(prop::sample::select(CONTENT_TYPES)),
        message_id in prop::option::of(any_text()),
        event_type in prop::option::of(any_text()),
        timestamp_s: Option<u64>,
        headers in prop::collection::vec((any_name(), any_value()), 0..5),
        body in any_body(),
    ) {
        let message = Message {
            exchange,
            routing_key: &routing_key,
            properties: Properties {
                content_type,
                content_encoding: None,
                message_id: message_id.as_deref(),
                event_type: event_type.as_deref(),
                timestamp_s,
            },
            headers: Headers(headers.iter().map(|(name, value)| (name.as_str().into(), value.borrowed())).collect()),
            body: &body,
            origin,
        };
        Provenance::of(&message);
        if let Ok(Decoded::Event(event)) = decode(&message, Reading::default()) {
            prop_assert!(!event.event_type.is_empty() && !event.event_type.starts_with("unstale."));
            prop_assert!(!event.id.is_empty());
            prop_assert_eq!(event.data().kind(), JsonKind::Object);
            prop_assert!(event.previous().is_none_or(|previous| previous.kind() == JsonKind::Object));
            prop_assert!(event.time.as_ref().is_none_or(|time| time.ends_with('Z')));
            prop_assert_eq!(event.clone().into_owned(), event.clone());
            let republished = republish(&message, &event);
            prop_assert_eq!(decode(&republished, Reading::default()), Ok(Decoded::Event(event)));
        }
    }
}
