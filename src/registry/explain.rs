//! Explanations for `plan`: why a rule had no effect, or another one than its verb.

use super::effect::{Resolution, RuleId};
use super::model::Rule;
use crate::printable::printable;

/// Maximum number of notes for one event.
const MAX_NOTES: usize = 10_000;

/// Effects of an event, with notes on the rules that had none.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Explanation {
    /// Effects that would be applied.
    pub resolution: Resolution,
    /// Notes in the order of the rules.
    pub notes: Vec<Note>,
}

/// Explanation of one rule that had no effect, or another one than its verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The rule.
    pub rule: RuleId,
    /// Number of effects that precede the note, before a limit removed effects.
    pub at: u32,
    /// Index of the element of `each`.
    pub item: Option<usize>,
    /// Names of paths and rules, never values of the payload.
    pub message: String,
}

/// Receiver of notes. The worker's implementation does nothing and costs nothing.
pub(super) trait Observer {
    fn note(
        &mut self,
        rule: &Rule,
        at: usize,
        item: Option<usize>,
        message: impl FnOnce() -> String,
    );
}

pub(super) struct NoObserver;

impl Observer for NoObserver {
    fn note(&mut self, _: &Rule, _: usize, _: Option<usize>, _: impl FnOnce() -> String) {}
}

impl Observer for Vec<Note> {
    fn note(
        &mut self,
        rule: &Rule,
        at: usize,
        item: Option<usize>,
        message: impl FnOnce() -> String,
    ) {
        if self.len() < MAX_NOTES {
            self.push(Note {
                rule: rule.id,
                at: u32::try_from(at).unwrap_or(u32::MAX),
                item,
                message: printable(&message()).into_owned(),
            });
        }
    }
}
