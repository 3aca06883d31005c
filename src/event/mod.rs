//! Reads messages as events: bytes → [`Event`].
//!
//! A message has one of several forms. [`decode`] chooses the form and reads it. Files in reading
//! order:
//!
//! - `decode`: the table of forms.
//! - `draft`: the fields that all forms have in common.
//! - `cloudevents` (with `attributes`), `debezium`, `envelope`: one file for each family of forms.
//! - `provenance`, `header`: the headers of a republished message, and their names.
//! - `body`, `amqp10`: the bytes of a body.
//! - `object`, `json`: the JSON of a body.
//! - `place`, `identity`, `time`: where the type is, the event's id, and times as text.
//! - `line`: a message as a line of JSON.
//!
//! There is no socket, no clock and no runtime here. Validation against a schema is in `registry`.

mod amqp10;
mod attributes;
mod body;
mod cloudevents;
mod debezium;
mod decode;
mod draft;
mod envelope;
pub mod header;
mod identity;
pub mod json;
pub mod line;
mod object;
mod place;
mod provenance;
mod time;

use std::borrow::Cow;

pub use decode::{Reading, decode};
pub use identity::EventId;
pub use json::Json;
pub use line::{LineError, OwnedMessage, OwnedProperties, OwnedValue};
pub use object::Parsed;
pub use place::TypeFrom;
pub use provenance::Provenance;

/// One message from a broker, independent of any AMQP library.
#[derive(Debug, Clone, Default)]
pub struct Message<'a> {
    /// The exchange of the publication; empty for the default exchange.
    pub exchange: &'a str,
    /// The routing key of the publication.
    pub routing_key: &'a str,
    /// The AMQP properties that describe the event.
    pub properties: Properties<'a>,
    /// The header table, in the broker's order.
    pub headers: Headers<'a>,
    /// The body, byte for byte.
    pub body: &'a [u8],
    /// The origin of the message, which decides which of our headers count.
    pub origin: Origin,
}

/// The origin of a message, as far as it is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// A publisher. The only header of ours that counts is `unstale-event-type`.
    #[default]
    Publisher,
    /// The default exchange, without a valid signature. Our headers define how the event is read.
    /// They do not define which effects or attempts were made before.
    Unsigned,
    /// A worker or `dlq replay`, with a valid signature. All our headers count.
    Worker,
}

impl Origin {
    /// Returns whether a worker or `dlq replay` published the message, so that all our headers
    /// count.
    pub fn is_republished(self) -> bool {
        self == Self::Worker
    }

    /// Returns whether our headers define how the event is read.
    pub fn says_how_to_read(self) -> bool {
        self != Self::Publisher
    }
}

/// The AMQP 0-9-1 basic properties that describe the event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Properties<'a> {
    /// `content-type`
    pub content_type: Option<&'a str>,
    /// `content-encoding`
    pub content_encoding: Option<&'a str>,
    /// `message-id`
    pub message_id: Option<&'a str>,
    /// `type`
    pub event_type: Option<&'a str>,
    /// `timestamp`, in seconds since the Unix epoch.
    pub timestamp_s: Option<u64>,
}

/// A header table.
#[derive(Debug, Clone, Default)]
pub struct Headers<'a>(pub Vec<(Cow<'a, str>, HeaderValue<'a>)>);

impl Headers<'_> {
    /// Returns the header of exactly that name.
    pub fn get(&self, name: &str) -> Option<&HeaderValue<'_>> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Returns the header of exactly that name if it is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(HeaderValue::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// A header's value, as far as an event needs it.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderValue<'a> {
    /// Valid UTF-8.
    Text(Cow<'a, str>),
    /// Any integer.
    Integer(i128),
    /// A float or a double.
    Double(f64),
    /// A boolean.
    Bool(bool),
    /// In seconds since the Unix epoch.
    Timestamp(u64),
    /// Void, an array, a table, a decimal, or bytes that are not UTF-8. An attribute cannot have
    /// such a value.
    Opaque,
}

/// The form of an event. A republished message is read in the same form again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// A CloudEvent with its attributes in headers.
    Binary,
    /// A CloudEvent with its attributes beside the data.
    Structured,
    /// A change event of Debezium.
    Debezium,
    /// The type is in the header `unstale-event-type`, and the body is the data.
    Header,
    /// The body has `type` and `data`, or the names that frameworks use for them.
    Envelope,
    /// The body is the data.
    Bare,
}

impl Form {
    /// All forms, in order of precedence.
    pub const ALL: [Self; 6] =
        [Self::Binary, Self::Structured, Self::Debezium, Self::Header, Self::Envelope, Self::Bare];

    /// Returns the name in the header `unstale-form`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Structured => "structured",
            Self::Debezium => "debezium",
            Self::Header => "header",
            Self::Envelope => "envelope",
            Self::Bare => "bare",
        }
    }

    /// Returns the form of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.as_str() == name)
    }
}

/// One event of an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// Identifies the event, and decides between equal versions. It is never used to drop an event.
    pub id: EventId<'a>,
    /// The event's type, such as `user.updated`. Patterns of event definitions match it.
    pub event_type: Cow<'a, str>,
    /// The payload: the checked text of a JSON object. See [`Event::data`].
    pub data_text: Cow<'a, str>,
    /// The state before the event, checked like `data_text`, if the publisher sent it.
    pub previous_text: Option<Cow<'a, str>>,
    /// Time of the event in RFC 3339, UTC.
    pub time: Option<Cow<'a, str>>,
    /// The system that the event comes from.
    pub source: Option<Cow<'a, str>>,
    /// The entity that the event concerns.
    pub subject: Option<Cow<'a, str>>,
    /// An integer that orders the source's events. Only Debezium sets it.
    pub position: Option<u64>,
    /// W3C trace context, passed on to loaders.
    pub traceparent: Option<Cow<'a, str>>,
    /// The form in which the event was read.
    pub form: Form,
    /// The exchange of the publication; empty for the default exchange.
    pub exchange: Cow<'a, str>,
    /// The routing key of the publication.
    pub routing_key: Cow<'a, str>,
    /// Further attributes: extension attributes of a CloudEvent, or members of Debezium's `source`.
    /// Each name occurs once.
    pub attributes: Vec<Attribute<'a>>,
    /// The members of the payload, if they are parsed already. The default is right for any event.
    pub parsed: Parsed<'a>,
}

/// Returns an event without a type, with an empty payload.
impl Default for Event<'_> {
    fn default() -> Self {
        Self {
            id: "".into(),
            event_type: Cow::Borrowed(""),
            data_text: Cow::Borrowed("{}"),
            previous_text: None,
            time: None,
            source: None,
            subject: None,
            position: None,
            traceparent: None,
            form: Form::Bare,
            exchange: Cow::Borrowed(""),
            routing_key: Cow::Borrowed(""),
            attributes: Vec::new(),
            parsed: Parsed::default(),
        }
    }
}

/// A name and its value as text.
pub type Attribute<'a> = (Cow<'a, str>, Cow<'a, str>);

impl Event<'_> {
    /// Returns the payload, which is always an object.
    pub fn data(&self) -> Json<'_> {
        Json::trusted(&self.data_text)
    }

    /// Returns the attribute of that name.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// Returns the size of the payload and the state before, in bytes.
    pub fn bytes(&self) -> usize {
        self.data_text.len() + self.previous_text.as_deref().map_or(0, str::len)
    }

    /// Returns the state before, if the publisher sent it.
    pub fn previous(&self) -> Option<Json<'_>> {
        self.previous_text.as_deref().map(Json::trusted)
    }

    /// Returns the same event without a borrow of the message.
    pub fn into_owned(self) -> Event<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Event {
            id: Cow::<str>::Owned(self.id.into_owned()).into(),
            event_type: owned(self.event_type),
            data_text: owned(self.data_text),
            previous_text: self.previous_text.map(owned),
            time: self.time.map(owned),
            source: self.source.map(owned),
            subject: self.subject.map(owned),
            position: self.position,
            traceparent: self.traceparent.map(owned),
            form: self.form,
            exchange: owned(self.exchange),
            routing_key: owned(self.routing_key),
            attributes: self
                .attributes
                .into_iter()
                .map(|(name, value)| (owned(name), owned(value)))
                .collect(),
            parsed: Parsed::default(),
        }
    }
}

/// The result of decoding a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// An event.
    Event(Event<'a>),
    /// A message without a body. It is an event if rules know its type ([`Decoded::if_known`]), and
    /// a tombstone of Debezium otherwise.
    Bodiless(Event<'a>),
    /// A tombstone. There is nothing to do: it is acknowledged and counted.
    Tombstone,
}

impl Decoded<'_> {
    /// Turns a message without a body into an event if `is_known` accepts its type, and into a
    /// tombstone otherwise.
    #[must_use]
    pub fn if_known(self, is_known: impl FnOnce(&str) -> bool) -> Self {
        match self {
            Self::Bodiless(event) if is_known(&event.event_type) => Self::Event(event),
            Self::Bodiless(_) => Self::Tombstone,
            decided => decided,
        }
    }

    /// Returns the same result without a borrow of the message.
    pub fn into_owned(self) -> Decoded<'static> {
        match self {
            Self::Event(event) => Decoded::Event(event.into_owned()),
            Self::Bodiless(event) => Decoded::Bodiless(event.into_owned()),
            Self::Tombstone => Decoded::Tombstone,
        }
    }
}

/// Reason why a message is not an event, for the dead letter `malformed`. The text names fields and
/// limits, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub Cow<'static, str>);

fn malformed(message: String) -> Malformed {
    Malformed(Cow::Owned(message))
}
