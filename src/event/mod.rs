//! Bytes → [`Event`]: what a message means, whoever published it. Knows no socket, clock or
//! runtime.

mod amqp10;
mod body;
mod cloudevents;
mod debezium;
mod decode;
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
pub use place::TypeFrom;
pub use provenance::Provenance;

/// One message as it came from a broker, in no AMQP library's types.
#[derive(Debug, Clone, Default)]
pub struct Message<'a> {
    /// The exchange it was published to; empty for the default exchange.
    pub exchange: &'a str,
    /// The routing key it was published with.
    pub routing_key: &'a str,
    /// The AMQP properties that say something about the event.
    pub properties: Properties<'a>,
    /// The header table, in the broker's order.
    pub headers: Headers<'a>,
    /// The body, byte for byte.
    pub body: &'a [u8],
    /// Where it comes from: which of the headers that are ours are believed.
    pub origin: Origin,
}

/// Where a message comes from, as far as that is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// A publisher. Only the header `unstale-event-type` of ours has a meaning.
    #[default]
    Publisher,
    /// The default exchange, without a valid signature. Headers of ours say how the event is read,
    /// and nothing else: neither what was done before nor how often.
    Unsigned,
    /// A worker or `dlq replay`, which signed it. Every header of ours is believed.
    Worker,
}

impl Origin {
    /// Returns whether a worker or `dlq replay` made the message, so that every header of ours in
    /// it is believed.
    pub fn is_republished(self) -> bool {
        self == Self::Worker
    }

    /// Returns whether headers of ours say how the event in the message is read.
    pub fn says_how_to_read(self) -> bool {
        self != Self::Publisher
    }
}

/// The AMQP 0-9-1 basic properties that say something about the event.
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
    /// The header of exactly that name.
    pub fn get(&self, name: &str) -> Option<&HeaderValue<'_>> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The header of exactly that name, where it is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(HeaderValue::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// A header's value, as far as an event is made of it.
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
    /// Void, an array, a table, a decimal, or bytes that are no UTF-8: nothing an attribute can be.
    Opaque,
}

/// How the event was read: it is read the same way when a copy of ours brings it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// CloudEvents, attributes in headers.
    Binary,
    /// CloudEvents, attributes beside the data.
    Structured,
    /// A change event of Debezium's.
    Debezium,
    /// The type in the header `unstale-event-type`, the body is the data.
    Header,
    /// `type` and `data` in the body, or what frameworks call them.
    Envelope,
    /// The body is the data.
    Bare,
}

impl Form {
    /// Every form, in order of precedence.
    pub const ALL: [Self; 6] =
        [Self::Binary, Self::Structured, Self::Debezium, Self::Header, Self::Envelope, Self::Bare];

    /// The name in the header `unstale-form`.
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

    /// The form of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.as_str() == name)
    }
}

/// What happened in an application, as far as a cache cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// Names the event and breaks ties of equal versions; never used to drop one.
    pub id: EventId<'a>,
    /// What happened, such as `user.updated`: what entries of the registry match.
    pub event_type: Cow<'a, str>,
    /// The payload: the text of a JSON object, checked. See [`Event::data`].
    pub data_text: Cow<'a, str>,
    /// The state before, checked like `data_text`, where the publisher gave it.
    pub previous_text: Option<Cow<'a, str>>,
    /// When it happened: RFC 3339, UTC.
    pub time: Option<Cow<'a, str>>,
    /// Who said so.
    pub source: Option<Cow<'a, str>>,
    /// What it is about.
    pub subject: Option<Cow<'a, str>>,
    /// An integer that orders the source's events (Debezium alone).
    pub position: Option<u64>,
    /// W3C trace context, passed on to loaders.
    pub traceparent: Option<Cow<'a, str>>,
    /// How it was read.
    pub form: Form,
    /// The exchange that it was published to; empty for the default exchange.
    pub exchange: Cow<'a, str>,
    /// The routing key that it was published with.
    pub routing_key: Cow<'a, str>,
    /// What else the publisher says of it: extension attributes of a CloudEvent, members of
    /// Debezium's `source`. Each name once.
    pub attributes: Vec<Attribute<'a>>,
}

/// An event of no type, with an empty payload.
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
        }
    }
}

/// A name and its value as text.
pub type Attribute<'a> = (Cow<'a, str>, Cow<'a, str>);

impl Event<'_> {
    /// The payload; always an object.
    pub fn data(&self) -> Json<'_> {
        Json::trusted(&self.data_text)
    }

    /// Returns what the publisher says of the event under that name.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// Returns how many bytes the payload and the state before have.
    pub fn bytes(&self) -> usize {
        self.data_text.len() + self.previous_text.as_deref().map_or(0, str::len)
    }

    /// The state before, where the publisher gave it.
    pub fn previous(&self) -> Option<Json<'_>> {
        self.previous_text.as_deref().map(Json::trusted)
    }

    /// The same event, free of the message it was read from.
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
        }
    }
}

/// What a message turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// An event.
    Event(Event<'a>),
    /// A message without a body. It is an event if rules know its type ([`Decoded::if_known`]), and
    /// a tombstone of Debezium otherwise.
    Bodiless(Event<'a>),
    /// Nothing to do, on purpose: acknowledged and counted.
    Tombstone,
}

impl Decoded<'_> {
    /// Decides about a message without a body: an event, or a tombstone if `is_known` denies its
    /// type.
    #[must_use]
    pub fn if_known(self, is_known: impl FnOnce(&str) -> bool) -> Self {
        match self {
            Self::Bodiless(event) if is_known(&event.event_type) => Self::Event(event),
            Self::Bodiless(_) => Self::Tombstone,
            decided => decided,
        }
    }

    /// The same, free of the message it was read from.
    pub fn into_owned(self) -> Decoded<'static> {
        match self {
            Self::Event(event) => Decoded::Event(event.into_owned()),
            Self::Bodiless(event) => Decoded::Bodiless(event.into_owned()),
            Self::Tombstone => Decoded::Tombstone,
        }
    }
}

/// Why a message is no event: the dead letter's `malformed`. Its text names fields and limits,
/// never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub Cow<'static, str>);

fn malformed(message: String) -> Malformed {
    Malformed(Cow::Owned(message))
}
