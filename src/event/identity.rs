//! Event ids: the publisher's, or a hash of the message that is computed on first use.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use super::message::Message;

/// An event's id, as text.
///
/// Without an id of the publisher's it is a hash of the whole message. Few events need it, so it is
/// computed when it is first read.
#[derive(Clone)]
pub struct EventId<'a>(Source<'a>);

#[derive(Clone)]
enum Source<'a> {
    Given(Cow<'a, str>),
    Made { message: &'a Message<'a>, routing_key: &'a str, id: OnceLock<String> },
}

impl<'a> EventId<'a> {
    /// Returns the id for a message without one. `routing_key` is that of the first arrival.
    pub(super) fn of(message: &'a Message<'a>, routing_key: &'a str) -> Self {
        Self(Source::Made { message, routing_key, id: OnceLock::new() })
    }

    /// Returns the text without a borrow of the message.
    pub fn into_owned(self) -> String {
        match self.0 {
            Source::Given(id) => id.into_owned(),
            Source::Made { message, routing_key, id } => {
                id.into_inner().unwrap_or_else(|| event_id(message, routing_key))
            }
        }
    }
}

impl Deref for EventId<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Source::Given(id) => id,
            Source::Made { message, routing_key, id } => {
                id.get_or_init(|| event_id(message, routing_key))
            }
        }
    }
}

impl<'a> From<Cow<'a, str>> for EventId<'a> {
    fn from(id: Cow<'a, str>) -> Self {
        Self(Source::Given(id))
    }
}

impl<'a> From<&'a str> for EventId<'a> {
    fn from(id: &'a str) -> Self {
        Cow::Borrowed(id).into()
    }
}

impl From<String> for EventId<'_> {
    fn from(id: String) -> Self {
        Cow::<str>::Owned(id).into()
    }
}

impl PartialEq for EventId<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for EventId<'_> {}

impl PartialEq<str> for EventId<'_> {
    fn eq(&self, other: &str) -> bool {
        **self == *other
    }
}

impl PartialEq<&str> for EventId<'_> {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

impl fmt::Debug for EventId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for EventId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// Returns a SHA-256 hash, in lower-case hex, over routing key, `type`, `content_type`, `timestamp`
/// (decimal digits) and body.
///
/// Each field is preceded by its length in bytes as a big-endian 64-bit integer. So no two lists of
/// fields give the same input. An absent property has length 0.
fn event_id(message: &Message<'_>, routing_key: &str) -> String {
    let timestamp_s =
        message.properties.timestamp_s.map(|seconds| seconds.to_string()).unwrap_or_default();
    let fields: [&[u8]; 5] = [
        routing_key.as_bytes(),
        message.properties.event_type.unwrap_or_default().as_bytes(),
        message.properties.content_type.unwrap_or_default().as_bytes(),
        timestamp_s.as_bytes(),
        message.body,
    ];
    let mut hasher = Sha256::new();
    for field in fields {
        hasher.update((field.len() as u64).to_be_bytes());
        hasher.update(field);
    }
    let mut hex = String::with_capacity(64);
    for byte in hasher.finalize() {
        for nibble in [byte >> 4, byte & 15] {
            hex.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::super::Properties;
    use super::*;

    #[test]
    fn event_ids_match_their_definition() {
        let message = Message { body: b"{}", ..Message::default() };
        // printf '\0\0\0\0\0\0\0\1k' and three empty fields, then '\0\0\0\0\0\0\0\2{}', through
        // sha256sum.
        assert_eq!(
            event_id(&message, "k"),
            "a613037e9329add0296bdc05dfc25f3ab80cf7990f119f9c08fdd38e65344fb8"
        );
        let properties = Properties {
            event_type: Some("t"),
            content_type: Some("c"),
            timestamp_s: Some(12),
            ..Properties::default()
        };
        assert_eq!(
            event_id(&Message { properties, ..message }, "k"),
            "4104b267b0109d521f7c1cce9693aff333b61c40915c58121202e120bffa43a1"
        );
    }

    #[test]
    fn an_event_id_is_the_publishers_or_computed_once() {
        let message = Message { body: b"{}", ..Message::default() };
        let made = EventId::of(&message, "k");
        assert_eq!(made, event_id(&message, "k").as_str());
        assert_eq!(made.as_ptr(), made.as_ptr(), "kept");
        assert_eq!(made.clone().into_owned(), *made);
        assert_eq!(EventId::from("e-1"), "e-1");
    }

    #[test]
    fn moving_bytes_between_fields_changes_the_event_id() {
        let id = |routing_key, body| event_id(&Message { body, ..Message::default() }, routing_key);
        assert_ne!(id("ab", b"c"), id("a", b"bc"));
        assert_eq!(id("ab", b"c"), id("ab", b"c"));
    }
}
