//! Size of lapin's values on the wire, in bytes.
//!
//! Source: AMQP 0-9-1, section 4.2, with RabbitMQ's field types.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// Fixed bytes of a content header frame.
///
/// Frame type, channel, payload size and end octet (7 + 1), class, weight and body size (2 + 2 +
/// 8), property flags (2).
const CONTENT_HEADER_OVERHEAD: usize = 8 + 12 + 2;

/// Returns the size of the content header frame, which cannot be split.
///
/// RabbitMQ closes a connection (501) that sends more than its `frame_max`.
pub(super) fn content_header_bytes(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts: usize = texts.into_iter().flatten().map(short_string_bytes).sum();
    let octets = usize::from(properties.delivery_mode().is_some())
        + usize::from(properties.priority().is_some());
    let timestamp = if properties.timestamp().is_some() { 8 } else { 0 };
    CONTENT_HEADER_OVERHEAD
        + texts
        + octets
        + timestamp
        + properties.headers().as_ref().map_or(0, table_bytes)
}

fn short_string_bytes(text: &ShortString) -> usize {
    1 + text.as_str().len()
}

fn table_bytes(table: &FieldTable) -> usize {
    4 + table
        .inner()
        .iter()
        .map(|(name, value)| short_string_bytes(name) + value_bytes(value))
        .sum::<usize>()
}

fn value_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => short_string_bytes(text),
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(values) => {
            4 + values.as_slice().iter().map(value_bytes).sum::<usize>()
        }
        AMQPValue::FieldTable(table) => table_bytes(table),
    }
}
