//! A message as a broker delivers it, independent of any AMQP library.

use std::borrow::Cow;

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
