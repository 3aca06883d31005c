//! Messages of the history → what they still mean, with today's registry.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Replay, Report};
use crate::broker::Delivery;
use crate::config::UnknownPolicy;
use crate::event::{Decoded, decode};
use crate::plan::Fold;
use crate::reason::Reason;
use crate::registry::{Failure, Matched, Registry, Resolution};

/// What is known of the history so far.
pub(super) struct Intake<'r> {
    replay: &'r Replay,
    registry: &'r Registry,
    /// The offsets of the events to be applied.
    span: Range<u64>,
    /// Events from here on have fences that surely stand.
    fenced_from: u64,
    pub(super) fold: Fold,
}

/// What a message turned out to be.
enum Message {
    Event {
        resolution: Resolution,
        is_of_type: bool,
    },
    Tombstone,
    /// Nobody knows its type.
    Unreadable(Reason, String),
}

impl<'r> Intake<'r> {
    pub(super) fn new(replay: &'r Replay, registry: &'r Registry, span: Range<u64>, fenced_from: u64) -> Self {
        Self { replay, registry, span, fenced_from, fold: Fold::new(&replay.tag_prefix) }
    }

    /// Takes in the next message of the history.
    pub(super) fn take(&mut self, offset: u64, delivery: &Delivery, report: &mut Report) {
        let in_span = self.span.contains(&offset);
        if !in_span && self.fold.is_empty() {
            // Nothing could give way to it.
            return;
        }
        // Nothing is shared with what may panic: the message alone is lost.
        let message = catch_unwind(AssertUnwindSafe(|| self.read(delivery))).unwrap_or_else(|_| {
            Message::Unreadable(
                Reason::Panicked,
                "decoding or resolving the event panicked: please report it, with the event's shape".into(),
            )
        });
        match message {
            Message::Event { resolution, is_of_type } if in_span && is_of_type => self.choose(offset, resolution, report),
            Message::Event { resolution, .. } => {
                for effect in &resolution.effects {
                    if in_span { self.fold.pass_over(offset, effect) } else { self.fold.give_way(offset, effect) }
                }
            }
            // One that might be of another type is not asked for.
            Message::Tombstone | Message::Unreadable(..) if !in_span || !self.replay.types.is_empty() => {}
            Message::Tombstone => report.events += 1,
            Message::Unreadable(reason, message) => {
                report.events += 1;
                report.problem(reason, 1, offset, || message);
            }
        }
    }

    fn read(&self, delivery: &Delivery) -> Message {
        match decode(&delivery.message(), self.replay.reading) {
            Ok(Decoded::Event(event)) => {
                let types = &self.replay.types;
                let is_of_type = types.is_empty() || types.iter().any(|pattern| pattern.matches(&event.event_type));
                Message::Event { resolution: self.registry.resolve(&event), is_of_type }
            }
            Ok(Decoded::Tombstone) => Message::Tombstone,
            Err(malformed) => Message::Unreadable(Reason::Malformed, malformed.to_string()),
        }
    }

    fn choose(&mut self, offset: u64, resolution: Resolution, report: &mut Report) {
        report.events += 1;
        let Resolution { matched, effects, failure, .. } = resolution;
        match matched {
            Matched::Retired(_) => report.retired += 1,
            Matched::Unknown if self.replay.unknown != UnknownPolicy::Drop => {
                report.problem(Reason::UnknownEvent, 1, offset, || "no entry of the registry knows this event's type".into());
            }
            Matched::Unknown | Matched::Entry(_) => {}
        }
        if let Some(Failure { reason, message, .. }) = failure {
            report.problem(reason, 1, offset, || message);
        }
        let fenced = offset >= self.fenced_from;
        for effect in effects {
            report.had(&effect);
            self.fold.choose(offset, effect, fenced);
        }
    }
}
