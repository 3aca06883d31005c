//! A message as one line of JSON: the input of `plan` and `publish --file`, and the output of `dlq
//! --json`.
//!
//! `{"exchange": …, "routing_key": …, "headers": {…}, "properties": {…}, "body": …}`
//!
//! A body that is not UTF-8 is in `body_base64` instead. Header values without a JSON equivalent
//! are objects of one member: `{"$timestamp": seconds}`, `{"$base64": …}` for bytes that are not
//! UTF-8, `{"$double": "NaN"}` (also `inf`, `-inf`). A member `dead_letter` is ignored.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::json::{Json, JsonKind, write_string};
use super::message::{HeaderValue, Headers, Message, Origin, Properties};

/// One complete message that borrows nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OwnedMessage {
    /// The exchange. Empty for the default exchange, and if the line names none.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// The header table, in order.
    pub headers: Vec<(String, OwnedValue)>,
    /// The AMQP basic properties.
    pub properties: OwnedProperties,
    /// The body, byte for byte.
    pub body: Vec<u8>,
}

/// A header's value, complete.
#[derive(Debug, Clone, PartialEq)]
pub enum OwnedValue {
    /// Valid UTF-8.
    Text(String),
    /// Any integer of up to 64 bits.
    Integer(i64),
    /// A float or a double.
    Double(f64),
    /// A boolean.
    Bool(bool),
    /// In seconds since the Unix epoch.
    Timestamp(u64),
    /// Void.
    Null,
    /// Bytes that are not UTF-8.
    Bytes(Vec<u8>),
    /// An array or a table, as the text of a JSON array or object.
    Json(String),
}

/// The AMQP 0-9-1 basic properties except the header table (section 1.8.3 of the specification).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnedProperties {
    /// `content_type`
    pub content_type: Option<String>,
    /// `content_encoding`
    pub content_encoding: Option<String>,
    /// `delivery_mode`: 1 transient, 2 persistent.
    pub delivery_mode: Option<u8>,
    /// `priority`
    pub priority: Option<u8>,
    /// `correlation_id`
    pub correlation_id: Option<String>,
    /// `reply_to`
    pub reply_to: Option<String>,
    /// `expiration`: milliseconds, as text.
    pub expiration: Option<String>,
    /// `message_id`
    pub message_id: Option<String>,
    /// `timestamp`, in seconds since the Unix epoch.
    pub timestamp_s: Option<u64>,
    /// `type`
    pub event_type: Option<String>,
    /// `user_id`
    pub user_id: Option<String>,
    /// `app_id`
    pub app_id: Option<String>,
    /// `cluster_id`
    pub cluster_id: Option<String>,
}

/// Error in a line that has the members of a complete message. It names fields, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// A field has a value of the wrong kind.
    #[error("`{field}` is not {expected}")]
    Field {
        /// Path of the field, such as `properties.priority`.
        field: String,
        /// The kind of value that the field takes.
        expected: &'static str,
    },
    /// A property that AMQP 0-9-1 does not define.
    #[error("`properties.{0}` is not an AMQP 0-9-1 property: put names of your own into `headers`")]
    UnknownProperty(String),
    /// A member that a message does not have.
    #[error(
        "`{0}` is not part of a message: beside `body`, a line has only `exchange`, `routing_key`, `headers` and `properties`"
    )]
    UnknownMember(String),
    /// A line with both bodies.
    #[error("`body` and `body_base64` exclude each other")]
    TwoBodies,
}

impl OwnedMessage {
    /// Reads a line as a complete message or as a body.
    ///
    /// A line is a complete message if it has `body` or `body_base64`, and beside it only
    /// `exchange`, `routing_key`, `headers` and `properties`. Any other line, JSON or not, is a
    /// body with an empty routing key.
    ///
    /// # Errors
    /// [`LineError`] if a complete message has an invalid field.
    pub fn from_line(line: &str) -> Result<Self, LineError> {
        let line = line.trim();
        let bare = || Self { body: line.as_bytes().to_vec(), ..Self::default() };
        let Ok((_, members)) = Json::parse_members(line) else { return Ok(bare()) };
        let mut message = Self::default();
        let (mut body, mut body_base64) = (None, None);
        let (mut headers, mut properties) = (None, None);
        let (mut exchange, mut routing_key) = (None, None);
        let mut unknown = None;
        for (name, value) in members {
            *match name.as_ref() {
                "body" => &mut body,
                "body_base64" => &mut body_base64,
                "exchange" => &mut exchange,
                "routing_key" => &mut routing_key,
                "headers" => &mut headers,
                "properties" => &mut properties,
                // `dlq list --json` adds this member for other programs.
                "dead_letter" => continue,
                _ => {
                    unknown.get_or_insert_with(|| name.into_owned());
                    continue;
                }
            } = Some(value);
        }
        let is_of_events =
            |name: &str| matches!(name, "type" | "specversion" | "op" | "data" | "payload");
        if let Some(unknown) = unknown {
            // With a body and a routing key, the line is meant as a complete message. A payload may
            // have members of these names too.
            let is_meant = (body.is_some() || body_base64.is_some())
                && routing_key.is_some()
                && !is_of_events(&unknown);
            return if is_meant { Err(LineError::UnknownMember(unknown)) } else { Ok(bare()) };
        }
        message.body = match (body, body_base64) {
            (None, None) => return Ok(bare()),
            (Some(_), Some(_)) => return Err(LineError::TwoBodies),
            (Some(body), None) => match body.kind() {
                JsonKind::String => text(body, "body")?.into_bytes(),
                JsonKind::Object | JsonKind::Array => body.text().as_bytes().to_vec(),
                _ => return Err(field("body", "text, an object or an array")),
            },
            (None, Some(encoded)) => {
                bytes(encoded).ok_or_else(|| field("body_base64", "padded standard base64"))?
            }
        };
        let name =
            |value: Option<Json<'_>>, name: &str| match value.filter(|value| !value.is_null()) {
                Some(value) => text(value, name),
                None => Ok(String::new()),
            };
        message.exchange = name(exchange, "exchange")?;
        message.routing_key = name(routing_key, "routing_key")?;
        for (name, value) in table(headers, "headers")? {
            let value = OwnedValue::from_json(value, &name)?;
            message.headers.push((name, value));
        }
        for (name, value) in table(properties, "properties")? {
            message.properties.set(&name, value)?;
        }
        Ok(message)
    }

    /// Writes the line, without a line feed. Empty and absent fields are left out, except
    /// `routing_key` and the body.
    pub fn to_line(&self) -> String {
        let mut out = String::with_capacity(self.body.len() + 256);
        out.push('{');
        if !self.exchange.is_empty() {
            out.push_str("\"exchange\":");
            write_string(&self.exchange, &mut out);
            out.push(',');
        }
        out.push_str("\"routing_key\":");
        write_string(&self.routing_key, &mut out);
        if !self.headers.is_empty() {
            out.push_str(",\"headers\":{");
            for (at, (name, value)) in self.headers.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_string(name, &mut out);
                out.push(':');
                value.write(&mut out);
            }
            out.push('}');
        }
        if self.properties != OwnedProperties::default() {
            out.push_str(",\"properties\":");
            self.properties.write(&mut out);
        }
        match std::str::from_utf8(&self.body) {
            Ok(text) => {
                out.push_str(",\"body\":");
                write_string(text, &mut out);
            }
            Err(_) => {
                out.push_str(",\"body_base64\":");
                write_string(&BASE64.encode(&self.body), &mut out);
            }
        }
        out.push('}');
        out
    }

    /// Returns the message in the decoder's type.
    pub fn message(&self) -> Message<'_> {
        let properties = &self.properties;
        Message {
            exchange: &self.exchange,
            routing_key: &self.routing_key,
            properties: Properties {
                content_type: properties.content_type.as_deref(),
                content_encoding: properties.content_encoding.as_deref(),
                message_id: properties.message_id.as_deref(),
                event_type: properties.event_type.as_deref(),
                timestamp_s: properties.timestamp_s,
            },
            headers: Headers(
                self.headers
                    .iter()
                    .map(|(name, value)| (Cow::Borrowed(name.as_str()), value.borrowed()))
                    .collect(),
            ),
            body: &self.body,
            // The line lacks the bytes that a signature covers. Unsigned headers suffice for
            // reading the event.
            origin: if self.exchange.is_empty() { Origin::Unsigned } else { Origin::Publisher },
        }
    }
}

impl OwnedValue {
    /// Returns the value in the decoder's type.
    pub fn borrowed(&self) -> HeaderValue<'_> {
        match self {
            Self::Text(text) => HeaderValue::Text(Cow::Borrowed(text)),
            Self::Integer(integer) => HeaderValue::Integer(i128::from(*integer)),
            Self::Double(double) => HeaderValue::Double(*double),
            Self::Bool(bool) => HeaderValue::Bool(*bool),
            Self::Timestamp(seconds) => HeaderValue::Timestamp(*seconds),
            Self::Null | Self::Bytes(_) | Self::Json(_) => HeaderValue::Opaque,
        }
    }

    fn from_json(value: Json<'_>, header: &str) -> Result<Self, LineError> {
        Ok(match value.kind() {
            JsonKind::Null => Self::Null,
            JsonKind::Bool => Self::Bool(value.as_bool() == Some(true)),
            JsonKind::String => Self::Text(value.as_str().unwrap_or_default().into_owned()),
            JsonKind::Number => match value.text().parse() {
                Ok(integer) => Self::Integer(integer),
                Err(_) if value.text().contains(['.', 'e', 'E']) => Self::Double(
                    value
                        .text()
                        .parse()
                        .ok()
                        .filter(|double: &f64| double.is_finite())
                        .ok_or_else(|| header_field(header))?,
                ),
                Err(_) => return Err(header_field(header)),
            },
            JsonKind::Array => Self::Json(value.text().to_owned()),
            JsonKind::Object => {
                Self::tagged(value).unwrap_or_else(|| Self::Json(value.text().to_owned()))
            }
        })
    }

    /// Returns the header value that an object of one member represents.
    fn tagged(object: Json<'_>) -> Option<Self> {
        let members = object.members();
        let [(tag, value)] = members.as_slice() else { return None };
        match tag.as_ref() {
            "$timestamp" => value.as_u64().map(Self::Timestamp),
            "$base64" => bytes(*value).map(Self::Bytes),
            "$double" => match value.as_str()?.as_ref() {
                "NaN" => Some(Self::Double(f64::NAN)),
                "inf" => Some(Self::Double(f64::INFINITY)),
                "-inf" => Some(Self::Double(f64::NEG_INFINITY)),
                _ => None,
            },
            _ => None,
        }
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Text(text) => write_string(text, out),
            Self::Integer(integer) => out.push_str(&integer.to_string()),
            // `{:?}` keeps the point or the exponent that distinguishes a double from an integer.
            Self::Double(double) if double.is_finite() => out.push_str(&format!("{double:?}")),
            Self::Double(double) => out.push_str(&format!("{{\"$double\":\"{double}\"}}")),
            Self::Bool(bool) => out.push_str(if *bool { "true" } else { "false" }),
            Self::Timestamp(seconds) => out.push_str(&format!("{{\"$timestamp\":{seconds}}}")),
            Self::Null => out.push_str("null"),
            Self::Bytes(bytes) => {
                out.push_str(&format!("{{\"$base64\":\"{}\"}}", BASE64.encode(bytes)))
            }
            // The compact form has no line feed, so the output stays one line.
            Self::Json(text) => match Json::parse(text) {
                Ok(json) => json.write_compact(out),
                Err(_) => write_string(text, out),
            },
        }
    }
}

impl OwnedProperties {
    fn set(&mut self, name: &str, value: Json<'_>) -> Result<(), LineError> {
        let property = match name {
            "content_type" => &mut self.content_type,
            "content_encoding" => &mut self.content_encoding,
            "correlation_id" => &mut self.correlation_id,
            "reply_to" => &mut self.reply_to,
            "expiration" => &mut self.expiration,
            "message_id" => &mut self.message_id,
            "type" => &mut self.event_type,
            "user_id" => &mut self.user_id,
            "app_id" => &mut self.app_id,
            "cluster_id" => &mut self.cluster_id,
            "delivery_mode" | "priority" => {
                let number = number(value, name, "an integer from 0 to 255")?;
                *(if name == "priority" { &mut self.priority } else { &mut self.delivery_mode }) =
                    number;
                return Ok(());
            }
            "timestamp" => {
                self.timestamp_s =
                    number(value, name, "a whole number of seconds since the Unix epoch")?;
                return Ok(());
            }
            _ => return Err(LineError::UnknownProperty(name.to_owned())),
        };
        *property =
            if value.is_null() { None } else { Some(text(value, &format!("properties.{name}"))?) };
        Ok(())
    }

    fn write(&self, out: &mut String) {
        let numbers = [
            ("delivery_mode", self.delivery_mode.map(u64::from)),
            ("priority", self.priority.map(u64::from)),
            ("timestamp", self.timestamp_s),
        ];
        let texts = [
            ("content_type", &self.content_type),
            ("content_encoding", &self.content_encoding),
            ("correlation_id", &self.correlation_id),
            ("reply_to", &self.reply_to),
            ("expiration", &self.expiration),
            ("message_id", &self.message_id),
            ("type", &self.event_type),
            ("user_id", &self.user_id),
            ("app_id", &self.app_id),
            ("cluster_id", &self.cluster_id),
        ];
        let mut separator = '{';
        let mut name_of = |name: &str, out: &mut String| {
            out.push(std::mem::replace(&mut separator, ','));
            write_string(name, out);
            out.push(':');
        };
        for (name, number) in numbers {
            if let Some(number) = number {
                name_of(name, out);
                out.push_str(&number.to_string());
            }
        }
        for (name, text) in texts {
            if let Some(text) = text {
                name_of(name, out);
                write_string(text, out);
            }
        }
        if separator == '{' {
            out.push('{');
        }
        out.push('}');
    }
}

/// Returns the members of a table, in order.
fn table<'a>(value: Option<Json<'a>>, name: &str) -> Result<Vec<(String, Json<'a>)>, LineError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    if value.kind() != JsonKind::Object {
        return Err(field(name, "an object"));
    }
    Ok(value.members().into_iter().map(|(name, value)| (name.into_owned(), value)).collect())
}

fn text(value: Json<'_>, name: &str) -> Result<String, LineError> {
    value.as_str().map(Cow::into_owned).ok_or_else(|| field(name, "text"))
}

fn number<N: std::str::FromStr>(
    value: Json<'_>,
    property: &str,
    expected: &'static str,
) -> Result<Option<N>, LineError> {
    if value.is_null() {
        return Ok(None);
    }
    let number = value.as_number().and_then(|digits| digits.parse().ok());
    number.map(Some).ok_or_else(|| field(&format!("properties.{property}"), expected))
}

fn bytes(encoded: Json<'_>) -> Option<Vec<u8>> {
    BASE64.decode(encoded.as_str()?.as_bytes()).ok()
}

fn field(name: &str, expected: &'static str) -> LineError {
    LineError::Field { field: name.to_owned(), expected }
}

fn header_field(header: &str) -> LineError {
    field(&format!("headers.{header}"), "a number that fits into 64 bits")
}

#[cfg(test)]
mod tests;
