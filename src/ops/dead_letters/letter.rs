//! The facts about one dead letter, without its body.

use jiff::Timestamp;
use serde_json::json;

use crate::broker::{DeadLetter, Tag};
use crate::cache::LowWatermark;
use crate::event::{Decoded, Origin, Provenance, Reading, decode, header};
use crate::reason::rule_of;

/// Maximum number of reasons that a replayed letter carries along, the newest ones.
const EARLIER_MAX: usize = 10;

/// Reason of a message that neither a worker nor the broker dead-lettered.
const NO_REASON: &str = "unknown";

/// Reason of an event that waits for a retry, and is not a dead letter yet.
const WAITING: &str = "waiting";

/// Maximum bytes of each text of a letter. Texts of publishers have any size, and letters are held
/// together. Texts of workers are shorter.
const TEXT_MAX_BYTES: usize = 4 << 10;

/// A dead letter without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Delivery tag by which the letter is taken.
    pub tag: Tag,
    /// Name of a [`Reason`](crate::reason::Reason), or another reason of the broker.
    pub reason: String,
    /// The error of the worker.
    pub error: Option<String>,
    /// The event's type, or the routing key of a message that is not an event.
    pub event_type: String,
    /// The event's id, if the message is an event.
    pub id: Option<String>,
    /// Time at which it was dead-lettered.
    pub time: Option<Timestamp>,
    /// Time at which the event was first handled, in RFC 3339.
    pub first_time: Option<String>,
    /// A time before which the event did not arrive, in RFC 3339.
    pub arrived_after: Option<String>,
    /// An offset of the history before which the event is not recorded, if known.
    pub arrived_offset: Option<u64>,
    /// Number of attempts before it was dead-lettered.
    pub attempts: u32,
    /// Exchange to which the event was published; empty for the default exchange.
    pub exchange: String,
    /// Routing key with which the event was published.
    pub routing_key: String,
    /// Positions of the effects still to do, and the digest of the registry that they refer to.
    /// `None` if all are still to do.
    pub effects: Option<(Vec<u32>, String)>,
    /// Digest of the worker's registry.
    pub registry: Option<String>,
    /// True if it has the headers of a republished message without a worker's signature. Its
    /// applied effects are then unknown.
    pub unsigned: bool,
    /// Reasons for which it was a dead letter before, as `reason@time`, the oldest first.
    pub earlier: Vec<String>,
    /// Size of the body.
    pub body_bytes: usize,
}

impl Letter {
    /// Reads a letter. A message that the broker dead-lettered has no headers of a worker, so it is
    /// decoded for its type and id.
    pub fn read(dead: &DeadLetter, reading: Reading) -> Self {
        let delivery = &dead.delivery;
        let message = delivery.message();
        let provenance = Provenance::of(&message);
        let headers = provenance.as_ref();
        let text = |value: Option<&str>| value.map(cut);
        let header_type =
            headers.and_then(|headers| headers.event_type).filter(|name| !name.is_empty());
        let header_id = headers.and_then(|headers| headers.event_id);
        let decoded = match (header_type, header_id) {
            (Some(event_type), Some(id)) => Some((cut(event_type), cut(id))),
            _ => event_of(dead, reading),
        };
        let (event_type, id) = decoded.unzip();
        let routing_key =
            cut(headers.map_or(delivery.routing_key(), |headers| headers.routing_key));
        let header_reason = headers.and_then(|headers| headers.reason);
        let reason = dead
            .death
            .as_ref()
            .map(|death| death.reason.as_str())
            .or(header_reason)
            .unwrap_or(NO_REASON);
        let death_time = dead
            .death
            .as_ref()
            .and_then(|death| Timestamp::from_second(i64::try_from(death.time_s?).ok()?).ok());
        let header_time = headers.and_then(|headers| headers.time?.parse().ok());
        let signed = headers.filter(|_| message.origin.is_republished());
        let earlier =
            signed.and_then(|_| message.headers.text(header::EARLIER_REASONS)).unwrap_or_default();
        Self {
            tag: delivery.tag(),
            reason: cut(reason),
            error: text(headers.and_then(|headers| headers.error)),
            event_type: event_type.or(text(header_type)).unwrap_or_else(|| routing_key.clone()),
            id: id.or(text(header_id)).or(text(message.properties.message_id)),
            // A republished message that was redelivered too often has both, and the broker's time
            // is the later one.
            time: death_time.or(header_time),
            first_time: text(headers.and_then(|headers| headers.first_time)),
            arrived_after: text(headers.and_then(|headers| headers.arrived_after)),
            arrived_offset: headers.and_then(|headers| headers.arrived_offset),
            attempts: headers.map_or(0, |headers| headers.attempt),
            exchange: cut(headers.map_or(delivery.exchange(), |headers| headers.exchange)),
            effects: headers
                .and_then(|headers| Some((headers.effects.clone()?, headers.registry?.to_owned()))),
            registry: text(headers.and_then(|headers| headers.registry)),
            unsigned: message.origin == Origin::Unsigned,
            earlier: earlier.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect(),
            routing_key,
            body_bytes: message.body.len(),
        }
    }

    /// Returns the facts about an event in a retry queue, which waits and is not a dead letter.
    #[must_use]
    pub fn waiting(self) -> Self {
        Self { reason: WAITING.to_owned(), ..self }
    }

    /// Returns the reasons that a replayed letter carries along: the earlier ones, and then its
    /// own.
    pub fn reasons(&self) -> String {
        let mut all = self.earlier.clone();
        all.push(match self.time {
            Some(time) => format!("{}@{time}", self.reason),
            None => self.reason.clone(),
        });
        all.drain(..all.len().saturating_sub(EARLIER_MAX));
        all.join(",")
    }

    /// Returns a lower bound of the event's arrival.
    pub fn low_watermark(&self) -> LowWatermark {
        let time = self
            .arrived_after
            .as_deref()
            .or(self.first_time.as_deref())
            .and_then(|time| time.parse::<Timestamp>().ok());
        let time_ms = time.and_then(|time| u64::try_from(time.as_millisecond()).ok()).unwrap_or(0);
        LowWatermark { time_ms, offset: self.arrived_offset }
    }

    /// Returns the rule in which the event failed, if the error names one.
    pub fn rule(&self) -> Option<&str> {
        self.error.as_deref().and_then(rule_of)
    }

    /// Returns the facts as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "reason": self.reason,
            "type": self.event_type,
            "id": self.id,
            "time": self.time.map(|time| time.to_string()),
            "rule": self.rule(),
            "error": self.error,
            "attempts": self.attempts,
        })
    }

    /// Returns the time at which it was dead-lettered, as text.
    pub fn time_text(&self) -> String {
        self.time.map_or_else(|| "-".to_owned(), |time| time.to_string())
    }
}

/// Returns the text, or its beginning and `…` if it is too long.
fn cut(text: &str) -> String {
    if text.len() <= TEXT_MAX_BYTES {
        return text.to_owned();
    }
    let end = (0..=TEXT_MAX_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// Returns type and id of the event. Returns `None` if decoding it panics, which may be why it is a
/// dead letter.
fn event_of(dead: &DeadLetter, reading: Reading) -> Option<(String, String)> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        match decode(&dead.delivery.message(), reading) {
            Ok(Decoded::Event(event) | Decoded::Bodiless(event)) => {
                Some((cut(&event.event_type), cut(&event.id)))
            }
            Ok(Decoded::Tombstone) | Err(_) => None,
        }
    }))
    .ok()
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        let most = "é".repeat(TEXT_MAX_BYTES / 2);
        assert_eq!(cut(&most), most);
        assert_eq!(cut(&format!("a{most}")), format!("a{}…", &most[2..]));
    }
}
