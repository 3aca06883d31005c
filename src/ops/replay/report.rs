//! What a replay came to.

use std::collections::BTreeMap;

use crate::reason::Reason;
use crate::registry::{Effect, RuleId, Verb};

/// Maximum number of offsets that are named.
const UNDONE_MAX: usize = 1_000;

/// What a replay did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The first offset of the span.
    pub from: u64,
    /// The offset behind the span.
    pub to: u64,
    /// The offset behind the history, as it was at the start.
    pub end: u64,
    /// The history begins at this offset only: what the span asked for before it is gone.
    pub cut: Option<u64>,
    /// Messages that were gone before they could be read: the history's retention moved on
    /// meanwhile.
    pub missing: u64,
    /// Offsets that were passed over, since replays died there.
    pub passed_over: Vec<u64>,
    /// Offsets of events that could not be resolved, or applied, in time: another try may do it.
    /// The first 1,000 of them.
    pub undone: Vec<u64>,
    /// Offsets that the broker could not read: from, and the one behind. They are among `missing`.
    pub unreadable: Vec<(u64, u64)>,
    /// Events of the span, of the types asked for.
    pub events: u64,
    /// Of these, events whose entry is retired.
    pub retired: u64,
    /// Effects that gave way to later events, or to newer versions, that are not applied.
    pub gave_way: u64,
    /// The effects that the events had one by one, by [`RuleId`].
    pub effects: Vec<u64>,
    /// What they folded into, which went to Redis unless it is a dry run: by rule, and by the verb
    /// that it came to.
    pub sent: BTreeMap<(RuleId, Verb), u64>,
    /// What could not be applied.
    pub problems: BTreeMap<Reason, Problem>,
    /// Where it ended, if not at the end.
    pub rest: Option<Rest>,
}

/// What could not be applied, for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Events, or effects where Redis refused them.
    pub count: u64,
    /// The first one's offset.
    pub offset: u64,
    /// What was said of the first one: paths and rules, never payload values, and no control
    /// characters.
    pub message: String,
}

/// What is left to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// A replay from this offset does it.
    pub since: u64,
    /// Why it is left.
    pub cause: String,
}

impl Report {
    pub(super) fn new(rules: usize, from: u64, to: u64, end: u64) -> Self {
        Self { from, to, end, effects: vec![0; rules], ..Self::default() }
    }

    /// The effects that the events had one by one.
    pub fn effects(&self) -> u64 {
        self.effects.iter().sum()
    }

    /// The effects that they folded into.
    pub fn sent(&self) -> u64 {
        self.sent.values().sum()
    }

    /// Whether all of it is done.
    pub fn is_whole(&self) -> bool {
        self.rest.is_none() && self.problems.is_empty() && self.is_complete()
    }

    /// Returns whether all of the span was read and tried that the history still has. An event that
    /// can never be applied was tried.
    pub fn is_complete(&self) -> bool {
        self.passed_over.is_empty() && self.undone.is_empty() && self.unreadable.is_empty()
    }

    /// Returns the offsets of events that were passed over or are undone, in order.
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

    /// Notes an event that could not be resolved, or applied, in time.
    pub(super) fn is_undone(&mut self, offset: u64) {
        if self.undone.len() < UNDONE_MAX && !self.undone.contains(&offset) {
            self.undone.push(offset);
        }
    }

    /// Notes offsets that the broker could not read.
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
        let problem = self.problems.entry(reason).or_insert_with(|| Problem {
            count: 0,
            offset,
            message: printable(&message()),
        });
        problem.count += count;
    }
}

/// With control characters escaped: names in payloads must not reach a log or a terminal as they
/// are.
fn printable(text: &str) -> String {
    if !text.contains(is_unprintable) {
        return text.to_owned();
    }
    text.chars()
        .flat_map(
            |c| if is_unprintable(c) { c.escape_unicode().collect::<Vec<_>>() } else { vec![c] },
        )
        .collect()
}

/// Controls, and what turns the direction of text.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let mut report = Report::new(0, 0, 1, 1);
        report.problem(Reason::Malformed, 1, 0, || "a\n\u{1b}[31mb \u{202e}ä".into());
        assert_eq!(report.problems[&Reason::Malformed].message, "a\\u{a}\\u{1b}[31mb \\u{202e}ä");
    }
}
