//! Decides which form a message has, and reads it in that form.
//!
//! [`Rows::read`] is the table of forms, in order of precedence. Each form has a module of its own,
//! which fills a [`Draft`](super::draft::Draft).

use std::borrow::Cow;

use super::attributes::Attributes;
use super::cloudevents::{self, MediaType};
use super::decoded::{Decoded, Malformed, malformed};
use super::draft::Arrival;
use super::form::Form;
use super::json::Json;
use super::message::{HeaderValue, Message};
use super::object::{Object, is_object_text};
use super::place::TypeFrom;
use super::{body, debezium, envelope};

/// Settings for reading a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// `UNSTALE_MAX_BODY_BYTES`: a larger body is malformed.
    pub max_body_bytes: usize,
    /// `UNSTALE_TYPE_FROM`.
    pub type_from: TypeFrom,
}

impl Default for Reading {
    fn default() -> Self {
        Self { max_body_bytes: 1 << 20, type_from: TypeFrom::Any }
    }
}

/// Reads a message as an event, in the first form that fits.
///
/// The order is that of [`Form::ALL`]. A republished message is read in the form of its first
/// arrival.
///
/// ```
/// use unstale::event::{Decoded, Form, Message, Reading, decode};
///
/// let message = Message {
///     exchange: "events",
///     routing_key: "user.updated",
///     body: br#"{"id":"e-1","type":"user.updated","data":{"id":42}}"#,
///     ..Message::default()
/// };
/// let Decoded::Event(event) = decode(&message, Reading::default())? else { panic!("an event") };
/// assert_eq!(event.event_type, "user.updated");
/// assert_eq!(event.form, Form::Envelope);
/// assert_eq!(event.data().text(), r#"{"id":42}"#);
///
/// let broken = Message { body: b"{", ..message.clone() };
/// assert!(decode(&broken, Reading::default()).is_err());
/// # Ok::<(), unstale::event::Malformed>(())
/// ```
///
/// # Errors
/// [`Malformed`] if the message is not an event and no later attempt can change that. The text
/// names fields and limits, never values.
pub fn decode<'a>(message: &'a Message<'a>, reading: Reading) -> Result<Decoded<'a>, Malformed> {
    let Reading { max_body_bytes, type_from } = reading;
    let body_bytes = message.body.len();
    if body_bytes > max_body_bytes {
        return Err(malformed(format!(
            "the body has {body_bytes} bytes, more than UNSTALE_MAX_BODY_BYTES allows ({max_body_bytes}): publish less, or raise it"
        )));
    }
    match body::of(message)? {
        Cow::Borrowed(body) => read(message, body, type_from, TEXTS_IN_TEXT),
        Cow::Owned(body) => Ok(read(message, &body, type_from, TEXTS_IN_TEXT)?.into_owned()),
    }
}

/// Maximum number of times that JSON text may contain JSON text: once in Kafka Connect's wrapper,
/// and once in a text that is the payload.
const TEXTS_IN_TEXT: u8 = 2;

fn read<'a>(
    message: &'a Message<'a>,
    bytes: &'a [u8],
    type_from: TypeFrom,
    texts: u8,
) -> Result<Decoded<'a>, Malformed> {
    let media_type = MediaType::of(message.properties.content_type);
    if media_type == MediaType::Batch {
        return Err(Malformed(Cow::Borrowed(
            "the content type is a batch of CloudEvents: publish one event a message",
        )));
    }
    let mut arrival = Arrival::of(message, type_from);
    // A republished message may have lost the publisher's headers.
    let is_republished_binary = arrival.form == Some(Form::Binary) && arrival.event_type.is_some();
    let binary = Attributes::in_headers(&message.headers)
        .or_else(|| is_republished_binary.then_some(Attributes::Headers(&message.headers)));
    if binary.is_none() && media_type == MediaType::OtherFormat {
        return Err(Malformed(Cow::Borrowed(
            "the content type is a CloudEvents format other than JSON: publish application/cloudevents+json",
        )));
    }
    let header_type = arrival.header_type();
    let is_plain = binary.is_none() && media_type != MediaType::Structured && header_type.is_none();
    if is_plain
        && debezium::is_tombstone(bytes)
        && arrival.property_type().is_none()
        && arrival.placed_type.is_none()
    {
        return Ok(match envelope::bare(&arrival, &Object::empty()) {
            Ok(Decoded::Event(event)) => Decoded::Bodiless(event),
            _ => Decoded::Tombstone,
        });
    }
    if texts > 0
        && let Some(text) = json_text(bytes)
    {
        return Ok(read(message, text.as_bytes(), type_from, texts - 1)?.into_owned());
    }
    let whole = if bytes.is_empty() {
        Object::empty()
    } else {
        Object::parse(bytes, "the body")
            .map_err(|problem| body::unreadable(message, bytes, problem))?
    };
    let wrapped;
    let body = match connect_payload(&whole) {
        None => &whole,
        Some(payload) => match (Object::of(payload), payload.as_str()) {
            (Some(payload), _) => {
                wrapped = payload;
                &wrapped
            }
            (None, Some(text)) if texts > 0 && is_object_text(&text) => {
                return Ok(read(message, text.as_bytes(), type_from, texts - 1)?.into_owned());
            }
            _ => &whole,
        },
    };
    if arrival.placed_type.is_none() {
        arrival.placed_type = type_from.in_body(body);
    }
    let rows = Rows {
        arrival: &arrival,
        binary,
        is_structured: media_type == MediaType::Structured,
        header_type,
        body,
    };
    if let Some(form) = arrival.form
        && let Some(decoded) = rows.read(Some(form))?
    {
        return Ok(decoded);
    }
    rows.read(None)?.ok_or(Malformed(Cow::Borrowed("no form of event fits the message")))
}

/// Returns the JSON object that a body contains as JSON text.
fn json_text(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.trim_ascii();
    if bytes.first() != Some(&b'"') {
        return None;
    }
    let text = Json::parse(std::str::from_utf8(bytes).ok()?).ok()?.as_str()?;
    is_object_text(&text).then(|| text.into_owned())
}

/// Returns the payload in the wrapper of Kafka Connect's JSON converter (`schemas.enable`): an
/// object of `schema` and `payload` alone.
fn connect_payload<'a>(body: &Object<'a>) -> Option<Json<'a>> {
    if body.members().len() != 2 {
        return None;
    }
    let (schema, payload) = (body.get("schema")?, body.get("payload")?);
    schema.get("type")?.as_str().map(|_| payload)
}

/// The table of forms for one message.
struct Rows<'m, 'a> {
    arrival: &'m Arrival<'a>,
    binary: Option<Attributes<'m, 'a>>,
    is_structured: bool,
    header_type: Option<&'a HeaderValue<'a>>,
    body: &'m Object<'a>,
}

impl<'a> Rows<'_, 'a> {
    /// Reads the first form that fits, or `only` that form. `None` if that one does not fit.
    fn read(&self, only: Option<Form>) -> Result<Option<Decoded<'a>>, Malformed> {
        let Self { arrival, body, .. } = *self;
        let is_allowed = |form| only.is_none_or(|only| only == form);
        if let Some(attributes) = self.binary
            && (is_allowed(Form::Binary) || is_allowed(Form::Debezium))
        {
            let decoded = cloudevents::binary(arrival, attributes, body, only)?;
            if decoded.is_some() {
                return Ok(decoded);
            }
        }
        let is_structured = self.is_structured || body.get("specversion").is_some();
        if is_structured && (is_allowed(Form::Structured) || is_allowed(Form::Debezium)) {
            let decoded = cloudevents::structured(arrival, body, only)?;
            if decoded.is_some() {
                return Ok(decoded);
            }
        }
        if is_allowed(Form::Debezium)
            && let Some(change) = debezium::Change::in_body(body)
        {
            return change.decode(arrival, debezium::CloudEventContext::default()).map(Some);
        }
        if is_allowed(Form::Header)
            && let Some(header_type) = self.header_type
        {
            return envelope::header(arrival, header_type, body).map(Some);
        }
        if is_allowed(Form::Envelope) {
            for envelope in [envelope::envelope, envelope::masstransit, envelope::nest] {
                if let Some(decoded) = envelope(arrival, body)? {
                    return Ok(Some(decoded));
                }
            }
        }
        if is_allowed(Form::Bare) { envelope::bare(arrival, body).map(Some) } else { Ok(None) }
    }
}
