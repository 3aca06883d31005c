//! Outcome of decoding a message: an event, a tombstone, or nothing that can be read.

use std::borrow::Cow;

use super::form::Form;
use super::identity::EventId;
use super::json::Json;
use super::parsed::Parsed;

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

/// Reason why a message is not an event, for the dead letter `malformed`. The text names fields and
/// limits, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub Cow<'static, str>);

pub(super) fn malformed(message: String) -> Malformed {
    Malformed(Cow::Owned(message))
}
