use lapin::types::{DecimalValue, FieldArray};

use super::*;

/// Returns a delivery as lapin would hand it over.
pub(in super::super) fn delivery(
    exchange: &str,
    routing_key: &str,
    properties: BasicProperties,
    body: &[u8],
) -> Delivery {
    let mut raw = lapin::message::Delivery::mock(
        7,
        exchange.into(),
        routing_key.into(),
        false,
        body.to_vec(),
    );
    raw.properties = properties;
    Delivery::new(1, raw)
}

pub(in super::super) fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

#[test]
fn a_delivery_is_read_as_a_message() {
    let headers = table(&[
        ("array", AMQPValue::FieldArray(FieldArray::default())),
        ("bool", AMQPValue::Boolean(true)),
        ("bytes", AMQPValue::ByteArray(vec![0xff].into())),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 })),
        ("double", AMQPValue::Double(1.5)),
        ("float", AMQPValue::Float(0.5)),
        ("int", AMQPValue::ShortShortInt(-1)),
        ("not text", AMQPValue::LongString(vec![0xc3].into())),
        ("text", long("kä")),
        ("time", AMQPValue::Timestamp(12)),
        ("uint", AMQPValue::LongUInt(u32::MAX)),
        ("void", AMQPValue::Void),
    ]);
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_message_id("m-1".into())
        .with_type("user.updated".into())
        .with_timestamp(99)
        .with_headers(headers);
    let delivery = delivery("events", "user.updated", properties, b"{}");
    let message = delivery.message();
    assert_eq!(
        (message.exchange, message.routing_key, message.body),
        ("events", "user.updated", &b"{}"[..])
    );
    let properties = message.properties;
    assert_eq!(
        (properties.content_type, properties.message_id),
        (Some("application/json"), Some("m-1"))
    );
    assert_eq!((properties.event_type, properties.timestamp_s), (Some("user.updated"), Some(99)));
    let values: Vec<&HeaderValue<'_>> = message.headers.0.iter().map(|(_, value)| value).collect();
    use HeaderValue::{Bool, Double, Integer, Opaque, Text, Timestamp};
    let expected = [
        &Opaque,
        &Bool(true),
        &Opaque,
        &Opaque,
        &Double(1.5),
        &Double(0.5),
        &Integer(-1),
        &Opaque,
        &Text("kä".into()),
        &Timestamp(12),
        &Integer(i128::from(u32::MAX)),
        &Opaque,
    ];
    assert_eq!(values, expected);
}

#[test]
fn a_line_of_json_is_published_as_it_says() {
    let line = r#"{"routing_key":"k","headers":{"a":[1,"x",null,{"b":true}],"n":1.5},"properties":{"content_type":"t"},"body":"{}"}"#;
    let message = OwnedMessage::from_line(line).unwrap();
    let made = properties_of(&message).unwrap();
    assert_eq!((made.content_type(), made.delivery_mode()), (&Some("t".into()), &Some(2)));
    let inner = AMQPValue::FieldTable(table(&[("b", AMQPValue::Boolean(true))]));
    let array = AMQPValue::FieldArray(
        vec![AMQPValue::LongLongInt(1), long("x"), AMQPValue::Void, inner].into(),
    );
    assert_eq!(made.headers(), &Some(table(&[("a", array), ("n", AMQPValue::Double(1.5))])));
    let long_id = OwnedMessage {
        headers: vec![("h".repeat(256), OwnedValue::Null)],
        ..OwnedMessage::default()
    };
    assert!(
        matches!(properties_of(&long_id), Err(PublishError::Unsendable(_))),
        "lapin would send it broken"
    );
}

fn counted(redelivered: bool, headers: &[(&str, AMQPValue)]) -> Delivery {
    let properties = BasicProperties::default().with_headers(table(headers));
    let delivery = delivery("events", "k", properties, b"");
    if redelivered { delivery.redelivered_once() } else { delivery }
}

#[test]
fn the_delivery_count_is_read_whatever_its_integer_type() {
    for (value, count) in [
        (AMQPValue::LongLongInt(3), 3),
        (AMQPValue::ShortShortUInt(4), 4),
        (long("5"), 0),
        (AMQPValue::LongInt(-1), 0),
    ] {
        assert_eq!(counted(true, &[(DELIVERY_COUNT, value)]).delivery_count(), count);
    }
    assert_eq!(counted(true, &[]).delivery_count(), 0);
}

#[test]
fn a_publishers_own_counts_are_not_believed() {
    let claims = [
        (DELIVERY_COUNT, AMQPValue::LongLongInt(25)),
        (ACQUIRED_COUNT, AMQPValue::LongLongInt(30)),
    ];
    let fresh = counted(false, &claims);
    assert_eq!(
        (fresh.delivery_count(), fresh.counted_redeliveries()),
        (0, None),
        "what was never delivered cannot have failed"
    );
    // RabbitMQ 4.3 after a requeue that counts no failure: it sets only the acquired count.
    let requeued = counted(
        true,
        &[
            (DELIVERY_COUNT, AMQPValue::LongLongInt(25)),
            (ACQUIRED_COUNT, AMQPValue::LongLongInt(1)),
        ],
    );
    assert_eq!(requeued.counted_redeliveries(), Some(1));
}
