//! Why rules had no or other effects: what `plan` shows beside a resolution.

use super::effect::{Resolution, RuleId};
use super::model::Rule;
use crate::printable::printable;

/// Most notes of one event.
const MAX_NOTES: usize = 10_000;

/// What an event does, and why it does not do the rest: what `plan` shows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Explanation {
    /// What would be applied.
    pub resolution: Resolution,
    /// Why rules had no or other effects, in order.
    pub notes: Vec<Note>,
}

/// Why a rule had no effect, or another one than its verb says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The rule.
    pub rule: RuleId,
    /// How many effects of the resolution stand before it (before a limit took them away).
    pub at: u32,
    /// The element of `each`, from 0.
    pub item: Option<usize>,
    /// Paths and rules, never payload values.
    pub message: String,
}

/// Who is told why. The worker's does nothing, and costs nothing.
pub(super) trait Observer {
    fn note(
        &mut self,
        rule: &Rule,
        at: usize,
        item: Option<usize>,
        message: impl FnOnce() -> String,
    );
}

pub(super) struct Nobody;

impl Observer for Nobody {
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
