//! What one dead letter says of itself, without its body.

use jiff::Timestamp;
use serde_json::json;

use crate::broker::{DeadLetter, Tag};
use crate::cache::LowWatermark;
use crate::event::{Decoded, Origin, Provenance, Reading, decode, header};
use crate::reason::rule_of;

/// How many earlier reasons a letter carries along: the newest.
const EARLIER_MAX: usize = 10;

/// What stands for a reason where nobody gave one: a message that neither we nor the broker put
/// there.
const NO_REASON: &str = "unknown";

/// Most bytes of a text that a letter keeps: those of publishers have any size, and letters are held
/// together. Texts of workers are shorter.
const TEXT_MAX_BYTES: usize = 4 << 10;

/// A dead letter without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// What to take it by.
    pub tag: Tag,
    /// Why: a [`Reason`](crate::reason::Reason)'s name, or another word of the broker's.
    pub reason: String,
    /// The reason in words.
    pub error: Option<String>,
    /// The event's type; of what is no event, the routing key.
    pub event_type: String,
    /// The event's id, where it is one.
    pub id: Option<String>,
    /// When it was dead-lettered.
    pub time: Option<Timestamp>,
    /// When the event was first handled: RFC 3339.
    pub first_time: Option<String>,
    /// A time before which the event did not arrive: RFC 3339.
    pub arrived_after: Option<String>,
    /// An offset of the history before which it does not hold the event, where that is known.
    pub arrived_offset: Option<u64>,
    /// Attempts made before it was dead-lettered.
    pub attempts: u32,
    /// The exchange it first came through; empty for the default exchange.
    pub exchange: String,
    /// The routing key it first came with.
    pub routing_key: String,
    /// Positions of the effects still to do, where not all, and the registry that counts so.
    pub effects: Option<(Vec<u32>, String)>,
    /// The registry's digest.
    pub registry: Option<String>,
    /// Whether it claims to be republished, and no worker signed it: what was done before is not
    /// known.
    pub unsigned: bool,
    /// Why it was here before: `reason@time`, oldest first.
    pub earlier: Vec<String>,
    /// The size of the body.
    pub body_bytes: usize,
}

impl Letter {
    /// Reads a letter. What no worker has read (the broker dead-lettered it) is decoded for its
    /// type and id.
    pub fn read(dead: &DeadLetter, reading: Reading) -> Self {
        let delivery = &dead.delivery;
        let message = delivery.message();
        let provenance = Provenance::of(&message);
        let copy = provenance.as_ref();
        let text = |value: Option<&str>| value.map(cut);
        let told_type = copy.and_then(|copy| copy.event_type).filter(|name| !name.is_empty());
        let told_id = copy.and_then(|copy| copy.event_id);
        let decoded = match (told_type, told_id) {
            (Some(event_type), Some(id)) => Some((cut(event_type), cut(id))),
            _ => event_of(dead, reading),
        };
        let (event_type, id) = decoded.unzip();
        let routing_key = cut(copy.map_or(delivery.routing_key(), |copy| copy.routing_key));
        let told_reason = copy.and_then(|copy| copy.reason);
        let reason = dead
            .death
            .as_ref()
            .map(|death| death.reason.as_str())
            .or(told_reason)
            .unwrap_or(NO_REASON);
        let death_time = dead
            .death
            .as_ref()
            .and_then(|death| Timestamp::from_second(i64::try_from(death.time_s?).ok()?).ok());
        let told_time = copy.and_then(|copy| copy.time?.parse().ok());
        let signed = copy.filter(|_| message.origin == Origin::Worker);
        let earlier =
            signed.and_then(|_| message.headers.text(header::EARLIER_REASONS)).unwrap_or_default();
        Self {
            tag: delivery.tag(),
            reason: cut(reason),
            error: text(copy.and_then(|copy| copy.error)),
            event_type: event_type.or(text(told_type)).unwrap_or_else(|| routing_key.clone()),
            id: id.or(text(told_id)).or(text(message.properties.message_id)),
            // The broker's is the later one where there are both: a copy that was redelivered too
            // often.
            time: death_time.or(told_time),
            first_time: text(copy.and_then(|copy| copy.first_time)),
            arrived_after: text(copy.and_then(|copy| copy.arrived_after)),
            arrived_offset: copy.and_then(|copy| copy.arrived_offset),
            attempts: copy.map_or(0, |copy| copy.attempt),
            exchange: cut(copy.map_or(delivery.exchange(), |copy| copy.exchange)),
            effects: copy.and_then(|copy| Some((copy.effects.clone()?, copy.registry?.to_owned()))),
            registry: text(copy.and_then(|copy| copy.registry)),
            unsigned: message.origin == Origin::Unsigned,
            earlier: earlier.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect(),
            routing_key,
            body_bytes: message.body.len(),
        }
    }

    /// The history that a replayed copy carries along: this reason after the earlier ones.
    pub fn history(&self) -> String {
        let mut all = self.earlier.clone();
        all.push(match self.time {
            Some(time) => format!("{}@{time}", self.reason),
            None => self.reason.clone(),
        });
        all.drain(..all.len().saturating_sub(EARLIER_MAX));
        all.join(",")
    }

    /// Returns a lower bound of the event's arrival.
    pub fn low(&self) -> LowWatermark {
        let told = self
            .arrived_after
            .as_deref()
            .or(self.first_time.as_deref())
            .and_then(|time| time.parse::<Timestamp>().ok());
        let time_ms = told.and_then(|time| u64::try_from(time.as_millisecond()).ok()).unwrap_or(0);
        LowWatermark { time_ms, offset: self.arrived_offset }
    }

    /// Returns the rule that it failed by, where its error names one.
    pub fn rule(&self) -> Option<&str> {
        self.error.as_deref().and_then(rule_of)
    }

    /// Returns what it says of itself, for programs.
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

    /// When it was dead-lettered, as text.
    pub fn time_text(&self) -> String {
        self.time.map_or_else(|| "-".to_owned(), |time| time.to_string())
    }
}

/// Returns the beginning of a text, with a sign that it goes on where it does.
fn cut(text: &str) -> String {
    if text.len() <= TEXT_MAX_BYTES {
        return text.to_owned();
    }
    let end = (0..=TEXT_MAX_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// Type and id of the event. A letter may be here because reading it panics: then it has neither.
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
