//! Resolved messages of the history → what they still mean.

use std::ops::Range;

use super::resolver::Message;
use super::{Replay, Report};
use crate::config::UnknownPolicy;
use crate::plan::Fold;
use crate::reason::Reason;
use crate::registry::{Failure, Matched, Resolution};

/// What is known of the history so far.
pub(super) struct Intake<'r> {
    replay: &'r Replay,
    /// The offsets of the events to be applied.
    span: Range<u64>,
    /// Events from here on have fences that are certainly still there.
    fenced_from: u64,
    pub(super) fold: Fold,
}

impl<'r> Intake<'r> {
    pub(super) fn new(replay: &'r Replay, span: Range<u64>, fenced_from: u64) -> Self {
        Self { replay, span, fenced_from, fold: Fold::new(&replay.tag_prefix) }
    }

    /// Returns whether messages from that offset on change nothing: nothing could give way.
    pub(super) fn is_done_at(&self, offset: u64) -> bool {
        offset >= self.span.end && self.fold.is_empty()
    }

    /// Takes in the next message of the history.
    pub(super) fn take(&mut self, offset: u64, message: Message, report: &mut Report) {
        let in_span = self.span.contains(&offset);
        match message {
            Message::Event { resolution, is_of_type } if in_span && is_of_type => self.choose(offset, resolution, report),
            Message::Event { resolution, .. } => {
                for effect in &resolution.effects {
                    if in_span { self.fold.pass_over(offset, effect) } else { self.fold.give_way(offset, effect) }
                }
            }
            Message::Late(_) if !in_span => {}
            // What it does, and of what type it is, is not known.
            Message::Late(message) => {
                report.events += 1;
                report.unresolved += 1;
                report.problem(Reason::Unresolvable, 1, offset, || message);
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
