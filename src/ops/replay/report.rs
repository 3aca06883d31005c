//! The report of a replay.

use std::collections::BTreeMap;

use crate::cache::RefusedEffects;
use crate::printable::shown;
use crate::reason::Reason;
use crate::registry::{Effect, RuleId, Verb};

/// Cause of a replay that was asked to stop.
pub(super) const INTERRUPTED: &str = "interrupted";

/// Maximum number of undone offsets that a report lists.
const UNDONE_MAX: usize = 1_000;

/// The outcome of a replay, or of a dry run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplayReport {
    /// The first offset of the span.
    pub from: u64,
    /// The offset behind the span.
    pub to: u64,
    /// The offset behind the history, as it was at the start.
    pub end: u64,
    /// The first offset of the history, if the span begins before it and older events are gone.
    pub cut: Option<u64>,
    /// Number of messages that retention removed before they could be read.
    pub missing: u64,
    /// Offsets that were skipped, because replays died there.
    pub passed_over: Vec<u64>,
    /// The first 1,000 offsets of events that could not be resolved or applied in time. Another try
    /// may apply them.
    pub undone: Vec<u64>,
    /// Effects that Redis refused, and that it may permit later. The problems count them too.
    pub refused: RefusedEffects,
    /// Ranges of offsets that the broker could not read: the first, and the one behind the last.
    /// `missing` counts them too.
    pub unreadable: Vec<(u64, u64)>,
    /// Number of events of the span and of the selected types.
    pub events: u64,
    /// Number of these events whose event definition is retired.
    pub retired: u64,
    /// Number of effects superseded by later events, or by newer versions, that are not applied.
    pub gave_way: u64,
    /// Number of the effects of single events, by [`RuleId`].
    pub effects: Vec<u64>,
    /// Number of the effects into which these were folded, by rule and by the resulting verb. They
    /// went to Redis, unless it was a dry run.
    pub sent: BTreeMap<(RuleId, Verb), u64>,
    /// Events and effects that could not be applied.
    pub problems: BTreeMap<Reason, ReplayProblem>,
    /// The offset at which a recorded replay began, if that ended this one.
    pub earlier_replay: Option<u64>,
    /// The part that is left to do, if the replay did not finish.
    pub rest: Option<Rest>,
}

/// Events or effects that could not be applied for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayProblem {
    /// Number of events, or of effects that Redis refused.
    pub count: u64,
    /// Offset of the first one.
    pub offset: u64,
    /// Error of the first one. It has paths and rules, but no payload values and no control
    /// characters.
    pub message: String,
}

/// The part of a replay that is left to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// Offset from which on a new replay does the rest.
    pub since: u64,
    /// Reason why the replay did not finish.
    pub cause: String,
}

impl ReplayReport {
    pub(super) fn new(rules: usize, from: u64, to: u64, end: u64) -> Self {
        Self { from, to, end, effects: vec![0; rules], ..Self::default() }
    }

    /// Returns the number of the effects of single events.
    pub fn effects(&self) -> u64 {
        self.effects.iter().sum()
    }

    /// Returns the number of the folded effects.
    pub fn sent(&self) -> u64 {
        self.sent.values().sum()
    }

    /// Returns true if every event of the span was applied.
    pub fn is_whole(&self) -> bool {
        self.rest.is_none() && self.problems.is_empty() && self.is_complete()
    }

    /// Returns true if all events of the span that the history still holds were read and tried. An
    /// event that can never be applied counts as tried.
    pub fn is_complete(&self) -> bool {
        self.passed_over.is_empty() && self.undone.is_empty() && self.unreadable.is_empty()
    }

    /// Returns the offsets of events that were skipped or are undone, in order.
    pub fn left_out(&self) -> Vec<u64> {
        let mut offsets = [&self.passed_over[..], &self.undone[..]].concat();
        offsets.sort_unstable();
        offsets.dedup();
        offsets
    }

    pub(super) fn had(&mut self, effect: &Effect) {
        if let Some(count) = self.effects.get_mut(effect.rule.0 as usize) {
            *count += 1;
        }
    }

    pub(super) fn sends(&mut self, effect: &Effect) {
        *self.sent.entry((effect.rule, effect.action.verb())).or_default() += 1;
    }

    /// Records an event that could not be resolved or applied in time.
    pub(super) fn is_undone(&mut self, offset: u64) {
        if self.undone.len() < UNDONE_MAX && !self.undone.contains(&offset) {
            self.undone.push(offset);
        }
    }

    /// Records offsets that the broker could not read.
    pub(super) fn cannot_read(&mut self, offsets: std::ops::Range<u64>) {
        self.missing += offsets.end - offsets.start;
        self.unreadable.push((offsets.start, offsets.end));
    }

    pub(super) fn problem(
        &mut self,
        reason: Reason,
        count: u64,
        offset: u64,
        message: impl FnOnce() -> String,
    ) {
        let problem = self.problems.entry(reason).or_insert_with(|| ReplayProblem {
            count: 0,
            offset,
            message: shown(&message()),
        });
        problem.count += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_report_escapes_control_characters() {
        let mut report = ReplayReport::new(0, 0, 1, 1);
        report.problem(Reason::Malformed, 1, 0, || "a\n\u{1b}[31mb \u{202e}ä".into());
        assert_eq!(report.problems[&Reason::Malformed].message, "a\\n\\u{1b}[31mb \\u{202e}ä");
    }
}
