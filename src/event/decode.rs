//! Which form a message has, and what every form has in common.

use std::borrow::Cow;

use super::cloudevents::{self, Attributes, MediaType};
use super::json::Json;
use super::object::{Object, is_object_text};
use super::place::name_in;
use super::{
    Attribute, Decoded, Event, EventId, Form, HeaderValue, Malformed, Message, TypeFrom, amqp10,
    body, debezium, envelope, header, malformed, provenance,
};

/// The most bytes of a type: those of a routing key (a short string of AMQP 0-9-1, section
/// 4.2.5.3). Each pattern of the registry is compared with all of it.
const LONGEST_TYPE: usize = 255;

/// What the settings decide about reading a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// `UNSTALE_MAX_BODY_BYTES`: a larger body is malformed.
    pub max_body_bytes: usize,
    /// `UNSTALE_TYPE_FROM`
    pub type_from: TypeFrom,
}

impl Default for Reading {
    fn default() -> Self {
        Self { max_body_bytes: 1 << 20, type_from: TypeFrom::Any }
    }
}

/// Reads a message as an event: the first form that fits decides (CloudEvents in headers,
/// CloudEvents in the body, Debezium, the header `unstale-event-type`, an envelope, a bare
/// payload). A copy of ours is read as it was at first arrival.
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
/// [`Malformed`] when it is no event and never will be; the text names fields and limits, never
/// values.
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

/// How many times JSON may be inside JSON text: in the payload of Kafka Connect's wrapper, and in a
/// text that is the payload.
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
    // The headers of a copy may have been dropped.
    let is_binary_copy = arrival.form == Some(Form::Binary) && arrival.event_type.is_some();
    let binary = Attributes::in_headers(&message.headers)
        .or_else(|| is_binary_copy.then_some(Attributes::Headers(&message.headers)));
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

/// Returns the JSON of an object that a body holds as a JSON text.
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

/// The message as it was at first arrival.
#[derive(Debug)]
pub(super) struct Arrival<'a> {
    pub(super) message: &'a Message<'a>,
    type_from: TypeFrom,
    /// The type at the place that the setting names.
    placed_type: Option<Cow<'a, str>>,
    pub(super) exchange: &'a str,
    pub(super) routing_key: &'a str,
    /// A copy's: how it was read then.
    form: Option<Form>,
    /// A copy's: what it was read as then.
    event_type: Option<&'a str>,
    /// A copy's: the id that was made for it then.
    event_id: Option<&'a str>,
    /// Whether a header `unstale-event-type` is the publisher's. On a copy that was read it is
    /// ours; one that was malformed has no form and keeps the publisher's.
    has_publisher_type: bool,
}

impl<'a> Arrival<'a> {
    fn of(message: &'a Message<'a>, type_from: TypeFrom) -> Self {
        let Some(routing_key) = provenance::routing_key(message) else {
            return Self {
                message,
                type_from,
                placed_type: type_from.in_headers(&message.headers),
                exchange: message.exchange,
                routing_key: message.routing_key,
                form: None,
                event_type: None,
                event_id: None,
                has_publisher_type: true,
            };
        };
        let headers = &message.headers;
        let form = headers.get(header::FORM);
        Self {
            message,
            type_from,
            placed_type: type_from.in_headers(headers),
            exchange: headers.text(header::EXCHANGE).unwrap_or_default(),
            routing_key,
            form: headers.text(header::FORM).and_then(Form::from_name),
            event_type: headers
                .text(header::EVENT_TYPE)
                .filter(|event_type| !event_type.is_empty()),
            event_id: headers.text(header::EVENT_ID).filter(|id| !id.is_empty()),
            has_publisher_type: form.is_none(),
        }
    }

    /// Returns the name in the AMQP property `type`, where it is the publisher's.
    pub(super) fn property_type(&self) -> Option<&'a str> {
        let property =
            self.message.properties.event_type.filter(|event_type| *event_type != amqp10::MARK);
        property.map(name_in).filter(|name| !name.is_empty())
    }

    fn header_type(&self) -> Option<&'a HeaderValue<'a>> {
        if !self.has_publisher_type && self.form != Some(Form::Header) {
            return None;
        }
        self.message.headers.get(header::EVENT_TYPE)
    }

    /// The `traceparent` that instrumented publishers set beside the body.
    fn traceparent(&self) -> Option<Cow<'a, str>> {
        self.message.headers.text("traceparent").map(Cow::Borrowed)
    }

    /// What a copy was read as, for a form whose own type was lost on the way.
    pub(super) fn type_on_copy(&self) -> Option<Cow<'a, str>> {
        self.event_type.map(Cow::Borrowed)
    }
}

/// The table of forms, for one message.
struct Rows<'m, 'a> {
    arrival: &'m Arrival<'a>,
    binary: Option<Attributes<'m, 'a>>,
    is_structured: bool,
    header_type: Option<&'a HeaderValue<'a>>,
    body: &'m Object<'a>,
}

impl<'a> Rows<'_, 'a> {
    /// The first form that fits, of all or of one; `None` when that one does not fit.
    fn read(&self, only: Option<Form>) -> Result<Option<Decoded<'a>>, Malformed> {
        let Self { arrival, body, .. } = *self;
        let may_be = |form| only.is_none_or(|only| only == form);
        if let Some(attributes) = self.binary
            && (may_be(Form::Binary) || may_be(Form::Debezium))
        {
            let decoded = cloudevents::binary(arrival, attributes, body, only)?;
            if decoded.is_some() {
                return Ok(decoded);
            }
        }
        let is_structured = self.is_structured || body.get("specversion").is_some();
        if is_structured && (may_be(Form::Structured) || may_be(Form::Debezium)) {
            let decoded = cloudevents::structured(arrival, body, only)?;
            if decoded.is_some() {
                return Ok(decoded);
            }
        }
        if may_be(Form::Debezium)
            && let Some(change) = debezium::Change::in_body(body)
        {
            return change.decode(arrival, debezium::Around::default()).map(Some);
        }
        if may_be(Form::Header)
            && let Some(header_type) = self.header_type
        {
            return envelope::header(arrival, header_type, body).map(Some);
        }
        if may_be(Form::Envelope) {
            for envelope in [envelope::envelope, envelope::masstransit, envelope::nest] {
                if let Some(decoded) = envelope(arrival, body)? {
                    return Ok(Some(decoded));
                }
            }
        }
        if may_be(Form::Bare) { envelope::bare(arrival, body).map(Some) } else { Ok(None) }
    }
}

/// An event but for what every form has in common.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) form: Form,
    pub(super) event_type: Cow<'a, str>,
    pub(super) data_text: Cow<'a, str>,
    pub(super) previous_text: Option<Cow<'a, str>>,
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) time: Option<Cow<'a, str>>,
    pub(super) source: Option<Cow<'a, str>>,
    pub(super) subject: Option<Cow<'a, str>>,
    pub(super) position: Option<u64>,
    pub(super) traceparent: Option<Cow<'a, str>>,
    pub(super) attributes: Vec<Attribute<'a>>,
}

impl<'a> Draft<'a> {
    pub(super) const fn new(form: Form, event_type: Cow<'a, str>, data_text: Cow<'a, str>) -> Self {
        Self {
            form,
            event_type,
            data_text,
            previous_text: None,
            id: None,
            time: None,
            source: None,
            subject: None,
            position: None,
            traceparent: None,
            attributes: Vec::new(),
        }
    }

    pub(super) fn finish(self, arrival: &Arrival<'a>) -> Result<Decoded<'a>, Malformed> {
        let event_type = match arrival.type_from {
            TypeFrom::Any => self.event_type,
            TypeFrom::RoutingKey => Cow::Borrowed(arrival.routing_key),
            TypeFrom::Header(_) | TypeFrom::Body(_) => match &arrival.placed_type {
                Some(placed_type) => placed_type.clone(),
                // The headers of a copy may have been dropped.
                None => arrival.type_on_copy().unwrap_or(self.event_type),
            },
        };
        if event_type.is_empty() {
            return Err(Malformed(Cow::Borrowed(match arrival.type_from {
                TypeFrom::Any | TypeFrom::Header(_) | TypeFrom::Body(_) => {
                    "the event has no type: publish with the type as routing key, or as AMQP property `type`, or with `type` and `data` in \
                     the body, or name its place in UNSTALE_TYPE_FROM"
                }
                TypeFrom::RoutingKey => {
                    "the event has no type: UNSTALE_TYPE_FROM=routing_key takes it from the routing key alone, which is empty: publish with \
                     the type as routing key"
                }
            })));
        }
        if event_type.len() > LONGEST_TYPE {
            return Err(Malformed(Cow::Owned(format!(
                "the type has {} bytes, more than the {LONGEST_TYPE} of a routing key: publish it with a shorter one",
                event_type.len()
            ))));
        }
        if event_type.starts_with("unstale.") {
            return Err(Malformed(Cow::Borrowed(
                "types under `unstale.` are reserved: name the event otherwise",
            )));
        }
        let id = self
            .id
            .filter(|id| !id.is_empty())
            .or(arrival.event_id.map(Cow::Borrowed))
            .map_or_else(|| EventId::of(arrival.message, arrival.routing_key), EventId::from);
        Ok(Decoded::Event(Event {
            id,
            event_type,
            data_text: self.data_text,
            previous_text: self.previous_text,
            time: self.time,
            source: self.source,
            subject: self.subject,
            position: self.position,
            traceparent: self
                .traceparent
                .filter(is_traceparent)
                .or_else(|| arrival.traceparent().filter(is_traceparent)),
            form: self.form,
            exchange: Cow::Borrowed(arrival.exchange),
            routing_key: Cow::Borrowed(arrival.routing_key),
            attributes: self.attributes,
        }))
    }
}

/// Whether loaders may be sent it: W3C Trace Context, section 3.2,
/// `version-trace_id-parent_id-flags` in lower-case hex, and what later versions add after another
/// dash.
#[expect(clippy::ptr_arg, reason = "a predicate for Option<Cow<str>>")]
fn is_traceparent(text: &Cow<'_, str>) -> bool {
    let bytes = text.as_bytes();
    let Some((known, later)) = bytes.split_at_checked(55) else { return false };
    let shaped = known.iter().zip(b"00-00000000000000000000000000000000-0000000000000000-00").all(
        |(byte, shape)| match shape {
            b'-' => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        },
    );
    shaped
        && (later.is_empty()
            || (later[0] == b'-' && later.len() <= 200 && later.iter().all(u8::is_ascii_graphic)))
}
