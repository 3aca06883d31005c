//! Folds resolved messages of the history into the effects that must still be applied.

use std::ops::Range;

use super::resolver::ResolvedMessage;
use super::{Replay, ReplayReport};
use crate::config::UnknownPolicy;
use crate::plan::Fold;
use crate::reason::Reason;
use crate::registry::{Failure, Matched, Resolution};

/// Collects the messages of the history that were read so far.
pub(super) struct Intake<'r> {
    replay: &'r Replay,
    /// The offsets of the events to apply.
    span: Range<u64>,
    /// First offset whose event certainly still has its fences.
    fenced_from: u64,
    pub(super) fold: Fold,
}

impl<'r> Intake<'r> {
    pub(super) fn new(replay: &'r Replay, span: Range<u64>, fenced_from: u64) -> Self {
        Self { replay, span, fenced_from, fold: Fold::new(&replay.tag_prefix) }
    }

    /// Returns true if messages from that offset on cannot change the result, because they
    /// supersede nothing.
    pub(super) fn is_done_at(&self, offset: u64) -> bool {
        offset >= self.span.end && (self.fold.is_empty() || !self.replay.gives_way)
    }

    /// Adds the next message of the history.
    pub(super) fn take(
        &mut self,
        offset: u64,
        message: ResolvedMessage,
        report: &mut ReplayReport,
    ) {
        let in_span = self.span.contains(&offset);
        match message {
            ResolvedMessage::Event { resolution, is_of_type, is_out_of_time, is_letter }
                if in_span && is_of_type =>
            {
                if is_out_of_time {
                    report.is_undone(offset);
                }
                self.choose(offset, resolution, is_letter, report);
            }
            ResolvedMessage::Event { .. } if !in_span && !self.replay.gives_way => {}
            ResolvedMessage::Event { resolution, is_letter: true, .. } => {
                resolution.effects.iter().for_each(|effect| self.fold.doubt(offset, effect));
            }
            ResolvedMessage::Event { resolution, .. } => {
                for effect in &resolution.effects {
                    if in_span {
                        self.fold.skip(offset, effect)
                    } else {
                        self.fold.supersede(offset, effect)
                    }
                }
            }
            ResolvedMessage::Record => {}
            // A message whose type is unknown is ignored if only some types are selected.
            ResolvedMessage::Tombstone
            | ResolvedMessage::Unreadable(..)
            | ResolvedMessage::Hangs(_)
                if !in_span || !self.replay.types.is_empty() => {}
            ResolvedMessage::Tombstone => report.events += 1,
            ResolvedMessage::Hangs(message) => {
                report.events += 1;
                report.is_undone(offset);
                report.problem(Reason::Unresolvable, 1, offset, || message);
            }
            ResolvedMessage::Unreadable(reason, message) => {
                report.events += 1;
                report.problem(reason, 1, offset, || message);
            }
        }
    }

    fn choose(
        &mut self,
        offset: u64,
        resolution: Resolution,
        is_letter: bool,
        report: &mut ReplayReport,
    ) {
        report.events += 1;
        let Resolution { matched, effects, failure, .. } = resolution;
        match matched {
            Matched::Retired(_) => report.retired += 1,
            Matched::Unknown if self.replay.unknown != UnknownPolicy::Drop => {
                report.problem(Reason::UnknownEvent, 1, offset, || {
                    "no event definition matches this event's type".into()
                });
            }
            Matched::Unknown | Matched::Definition(_) => {}
        }
        if let Some(Failure { reason, message, .. }) = failure {
            report.problem(reason, 1, offset, || message);
        }
        // The age of a letter's event is unknown.
        let fenced = offset >= self.fenced_from && !is_letter;
        for effect in effects {
            report.had(&effect);
            self.fold.choose(offset, effect, fenced);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::replay::{Span, TakenOver};

    fn replay() -> Replay {
        Replay {
            span: Span { since: crate::broker::Place::Offset(0), until: None },
            gives_way: true,
            records_before: None,
            types: Vec::new(),
            only_rules: Vec::new(),
            rate: None,
            tag_prefix: "cache_tag:".into(),
            reading: crate::event::Reading::default(),
            unknown: UnknownPolicy::Retry,
            fence_ttl: std::time::Duration::from_secs(86_400),
            limits: crate::plan::FoldLimits::default(),
            apply_every: None,
            patience: None,
            taken_over: TakenOver::default(),
        }
    }

    #[test]
    fn a_replay_is_incomplete_after_a_timeout_but_not_after_a_permanent_failure() {
        let replay = replay();
        let event = |is_out_of_time| {
            let failure =
                Some(Failure { reason: Reason::Unresolvable, message: "why".into(), at: 0 });
            let resolution =
                Resolution { matched: Matched::Unknown, failure, ..Resolution::default() };
            ResolvedMessage::Event {
                resolution,
                is_of_type: true,
                is_out_of_time,
                is_letter: false,
            }
        };
        for (message, undone) in [
            (event(true), &[7][..]),
            (ResolvedMessage::Hangs("hangs".into()), &[7]),
            (event(false), &[]),
            (ResolvedMessage::Unreadable(Reason::Malformed, "no JSON".into()), &[]),
        ] {
            let mut report = ReplayReport::new(0, 0, 10, 10);
            Intake::new(&replay, 0..10, 0).take(7, message, &mut report);
            assert_eq!(
                (report.events, &report.undone[..], report.is_complete()),
                (1, undone, undone.is_empty())
            );
            assert!(!report.problems.is_empty());
        }
    }
}
