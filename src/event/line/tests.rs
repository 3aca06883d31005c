use super::*;
use proptest::prelude::*;

#[test]
fn a_line_is_recognised_as_a_message_or_a_body() {
    let whole =
        OwnedMessage::from_line(r#"{"routing_key":"user.updated","body":{"id": 1},"properties":{"type":"t","timestamp":5}}"#).unwrap();
    assert_eq!(
        (whole.routing_key.as_str(), whole.body.as_slice()),
        ("user.updated", &br#"{"id": 1}"#[..])
    );
    assert_eq!(
        (whole.properties.event_type.as_deref(), whole.properties.timestamp_s),
        (Some("t"), Some(5))
    );
    assert_eq!(OwnedMessage::from_line(r#"{"body":"a\nb"}"#).unwrap().body, b"a\nb");
    assert_eq!(OwnedMessage::from_line(r#"{"body_base64":"/w=="}"#).unwrap().body, b"\xff");
    for line in [
        r#"{"body":"a","exchange":null,"routing_key":null,"headers":null,"properties":null}"#,
        r#"{"body":"a"}"#,
    ] {
        assert_eq!(
            OwnedMessage::from_line(line).unwrap(),
            OwnedMessage { body: b"a".to_vec(), ..OwnedMessage::default() }
        );
    }
    for body in [
        r#"{"body":"x","id":1}"#,
        r#"{"body":"x","routing_key":"k","type":"t","data":{}}"#,
        r#"{"routing_key":"k"}"#,
        "[1]",
        "not json",
        "{}",
        "",
    ] {
        let read = OwnedMessage::from_line(&format!(" {body}\r\n")).unwrap();
        assert_eq!(
            read,
            OwnedMessage { body: body.as_bytes().to_vec(), ..OwnedMessage::default() }
        );
    }
}

#[test]
fn header_values_in_a_line_keep_their_types() {
    let line = r#"{"headers":{"t":"x","i":-1,"d":1.0,"b":true,"n":null,"a":[1, {"k":2}],"at":{"$timestamp":7},"r":{"$base64":"/w=="},"m":{"k":[1.50]}},"body":""}"#;
    let read = OwnedMessage::from_line(line).unwrap();
    let values: Vec<_> = read.headers.iter().map(|(_, value)| value.clone()).collect();
    assert_eq!(
        values,
        [
            OwnedValue::Text("x".into()),
            OwnedValue::Integer(-1),
            OwnedValue::Double(1.0),
            OwnedValue::Bool(true),
            OwnedValue::Null,
            OwnedValue::Json("[1, {\"k\":2}]".into()),
            OwnedValue::Timestamp(7),
            OwnedValue::Bytes(vec![255]),
            OwnedValue::Json("{\"k\":[1.50]}".into()),
        ]
    );
    let nan = OwnedMessage {
        headers: vec![("d".into(), OwnedValue::Double(f64::NAN))],
        ..OwnedMessage::default()
    };
    let back = OwnedMessage::from_line(&nan.to_line()).unwrap();
    assert!(matches!(back.headers[0].1, OwnedValue::Double(double) if double.is_nan()));
}

#[test]
fn an_invalid_field_of_a_line_is_named() {
    for (line, message) in [
        (r#"{"body":1}"#, "`body` is not text, an object or an array"),
        (r#"{"body":"","body_base64":""}"#, "`body` and `body_base64` exclude each other"),
        (r#"{"body_base64":"?"}"#, "`body_base64` is not padded standard base64"),
        (r#"{"body":"","routing_key":1}"#, "`routing_key` is not text"),
        (
            r#"{"body":"{}","routing_key":"a","redelivered":true}"#,
            "`redelivered` is not part of a message: beside `body`, a line has only `exchange`, `routing_key`, `headers` and `properties`",
        ),
        (r#"{"body":"","headers":[]}"#, "`headers` is not an object"),
        (
            r#"{"body":"","headers":{"x":99999999999999999999}}"#,
            "`headers.x` is not a number that fits into 64 bits",
        ),
        (
            r#"{"body":"","properties":{"priority":256}}"#,
            "`properties.priority` is not an integer from 0 to 255",
        ),
        (r#"{"body":"","properties":{"message_id":7}}"#, "`properties.message_id` is not text"),
        (
            r#"{"body":"","properties":{"Type":"x"}}"#,
            "`properties.Type` is not an AMQP 0-9-1 property: put names of your own into `headers`",
        ),
    ] {
        assert_eq!(OwnedMessage::from_line(line).unwrap_err().to_string(), message);
    }
}

fn any_value() -> impl Strategy<Value = OwnedValue> {
    prop_oneof![
        any::<String>().prop_map(OwnedValue::Text),
        any::<i64>().prop_map(OwnedValue::Integer),
        any::<f64>().prop_map(OwnedValue::Double),
        prop_oneof![Just(f64::INFINITY), Just(f64::NEG_INFINITY)].prop_map(OwnedValue::Double),
        any::<bool>().prop_map(OwnedValue::Bool),
        any::<u64>().prop_map(OwnedValue::Timestamp),
        Just(OwnedValue::Null),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(OwnedValue::Bytes),
        prop::collection::vec(any::<i64>(), 0..4)
            .prop_map(|list| OwnedValue::Json(serde_json::to_string(&list).unwrap())),
        prop::collection::btree_map(any::<String>(), any::<String>(), 2..4)
            .prop_map(|table| OwnedValue::Json(serde_json::Value::from_iter(table).to_string()))
            // The output drops escapes that JSON allows and does not need.
            .prop_filter(
                "compact",
                |value| matches!(value, OwnedValue::Json(text) if !text.contains('\\'))
            ),
    ]
}

prop_compose! {
    fn any_properties()(
        texts in prop::collection::vec(prop::option::of(any::<String>()), 10),
        delivery_mode: Option<u8>,
        priority: Option<u8>,
        timestamp_s: Option<u64>,
    ) -> OwnedProperties {
        let mut texts = texts.into_iter();
        let mut next = || texts.next().flatten();
        OwnedProperties {
            content_type: next(), content_encoding: next(), correlation_id: next(), reply_to: next(), expiration: next(),
            message_id: next(), event_type: next(), user_id: next(), app_id: next(), cluster_id: next(),
            delivery_mode, priority, timestamp_s,
        }
    }
}

proptest! {
    #[test]
    fn a_written_line_reads_back_as_the_same_message(
        exchange: String,
        routing_key: String,
        headers in prop::collection::btree_map(any::<String>(), any_value(), 0..5),
        properties in any_properties(),
        body in prop_oneof![prop::collection::vec(any::<u8>(), 0..50), any::<String>().prop_map(String::into_bytes)],
    ) {
        let message = OwnedMessage { exchange, routing_key, headers: headers.into_iter().collect(), properties, body };
        let line = message.to_line();
        prop_assert!(!line.contains('\n'));
        prop_assert_eq!(OwnedMessage::from_line(&line).unwrap(), message);
    }

    #[test]
    fn no_line_panics(line: String) {
        if let Ok(message) = OwnedMessage::from_line(&line) {
            message.message();
        }
    }
}
