//! Copy of a delivery as a whole message in our own types, which `dlq --json` prints and `plan`
//! reads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::convert::Delivery;
use crate::event::json::write_string;
use crate::event::{OwnedMessage, OwnedProperties, OwnedValue};

impl Delivery {
    /// Returns the message, independent of the broker.
    ///
    /// The exchange and the routing key are those of this delivery. Headers and properties are
    /// complete, and the body is copied.
    pub fn to_owned_message(&self) -> OwnedMessage {
        let from = self.properties();
        let text =
            |property: &Option<ShortString>| property.as_ref().map(|text| text.as_str().to_owned());
        let headers = from.headers().as_ref().map(FieldTable::inner);
        OwnedMessage {
            exchange: self.exchange().to_owned(),
            routing_key: self.routing_key().to_owned(),
            headers: headers
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.to_string(), owned(value)))
                .collect(),
            properties: OwnedProperties {
                content_type: text(from.content_type()),
                content_encoding: text(from.content_encoding()),
                delivery_mode: *from.delivery_mode(),
                priority: *from.priority(),
                correlation_id: text(from.correlation_id()),
                reply_to: text(from.reply_to()),
                expiration: text(from.expiration()),
                message_id: text(from.message_id()),
                timestamp_s: *from.timestamp(),
                event_type: text(from.kind()),
                user_id: text(from.user_id()),
                app_id: text(from.app_id()),
                cluster_id: text(from.cluster_id()),
            },
            body: self.body().to_vec(),
        }
    }
}

fn owned(value: &AMQPValue) -> OwnedValue {
    let bytes = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => OwnedValue::Text(text.to_owned()),
        Err(_) => OwnedValue::Bytes(bytes.to_vec()),
    };
    match value {
        AMQPValue::Boolean(value) => OwnedValue::Bool(*value),
        AMQPValue::ShortShortInt(value) => OwnedValue::Integer(i64::from(*value)),
        AMQPValue::ShortShortUInt(value) => OwnedValue::Integer(i64::from(*value)),
        AMQPValue::ShortInt(value) => OwnedValue::Integer(i64::from(*value)),
        AMQPValue::ShortUInt(value) => OwnedValue::Integer(i64::from(*value)),
        AMQPValue::LongInt(value) => OwnedValue::Integer(i64::from(*value)),
        AMQPValue::LongUInt(value) => OwnedValue::Integer(i64::from(*value)),
        AMQPValue::LongLongInt(value) => OwnedValue::Integer(*value),
        AMQPValue::Float(value) => OwnedValue::Double(f64::from(*value)),
        AMQPValue::Double(value) => OwnedValue::Double(*value),
        AMQPValue::DecimalValue(decimal) => {
            OwnedValue::Double(f64::from(decimal.value) / 10_f64.powi(i32::from(decimal.scale)))
        }
        AMQPValue::ShortString(text) => OwnedValue::Text(text.to_string()),
        AMQPValue::LongString(text) => bytes(text.as_bytes()),
        AMQPValue::ByteArray(array) => OwnedValue::Bytes(array.as_slice().to_vec()),
        AMQPValue::Timestamp(seconds) => OwnedValue::Timestamp(*seconds),
        AMQPValue::Void => OwnedValue::Null,
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) => {
            let mut json = String::new();
            write_json(value, &mut json);
            OwnedValue::Json(json)
        }
    }
}

/// Writes a value inside arrays and tables as JSON. Types that JSON lacks use the words of the line
/// format.
fn write_json(value: &AMQPValue, out: &mut String) {
    match value {
        AMQPValue::FieldArray(values) => {
            out.push('[');
            for (at, value) in values.as_slice().iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_json(value, out);
            }
            out.push(']');
        }
        AMQPValue::FieldTable(table) => {
            out.push('{');
            for (at, (name, value)) in table.inner().iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_string(name.as_str(), out);
                out.push(':');
                write_json(value, out);
            }
            out.push('}');
        }
        other => match owned(other) {
            OwnedValue::Text(text) => write_string(&text, out),
            OwnedValue::Integer(integer) => out.push_str(&integer.to_string()),
            OwnedValue::Double(double) if double.is_finite() => {
                out.push_str(&format!("{double:?}"))
            }
            OwnedValue::Double(double) => out.push_str(&format!("{{\"$double\":\"{double}\"}}")),
            OwnedValue::Bool(value) => out.push_str(if value { "true" } else { "false" }),
            OwnedValue::Timestamp(seconds) => {
                out.push_str(&format!("{{\"$timestamp\":{seconds}}}"))
            }
            OwnedValue::Bytes(bytes) => {
                out.push_str(&format!("{{\"$base64\":\"{}\"}}", BASE64.encode(bytes)))
            }
            OwnedValue::Null | OwnedValue::Json(_) => out.push_str("null"),
        },
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::super::convert::long;
    use super::super::convert::tests::{delivery, table};
    use super::*;

    #[test]
    fn a_delivery_becomes_a_line_that_is_read_back() {
        let death = table(&[
            ("queue", long("unstale")),
            ("count", AMQPValue::LongLongInt(1)),
            ("time", AMQPValue::Timestamp(7)),
        ]);
        let headers = table(&[
            ("bytes", long(vec![0xff])),
            ("double", AMQPValue::Double(0.5)),
            ("text", long("kä")),
            ("time", AMQPValue::Timestamp(12)),
            ("void", AMQPValue::Void),
            ("x-death", AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into())),
        ]);
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_message_id("m".into())
            .with_priority(3)
            .with_type("t".into());
        let owned = delivery("events", "a.b", properties, b"{\"id\":1}").to_owned_message();
        let line = owned.to_line();
        assert!(
            line.contains(r#""x-death":[{"count":1,"queue":"unstale","time":{"$timestamp":7}}]"#),
            "{line}"
        );
        assert_eq!(OwnedMessage::from_line(&line).unwrap(), owned);
    }
}
