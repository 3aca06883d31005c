//! The progress of a replay, for one that takes over, and the offsets at which earlier replays
//! died.

use std::ops::Range;

use crate::cache::RefusedEffects;

/// Number of deaths at one offset after which it is skipped.
pub const DEATHS_MAX: u32 = 3;

/// Maximum number of steps in which a range with a death is applied. In a range of at most so many
/// messages, each is a step.
const STEPS: u64 = 1_000;

/// The progress of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The first offset of the span.
    pub first: u64,
    /// The offset behind the history, as it was at the start.
    pub end: u64,
    /// The offset before which all events are applied.
    pub applied_to: u64,
    /// Offsets that are read, resolved or applied next.
    pub in_work: Range<u64>,
    /// Offsets that were skipped.
    pub passed_over: Vec<u64>,
    /// Offsets before `applied_to` of events that could not be resolved, or applied, in time.
    pub undone: Vec<u64>,
    /// Effects that Redis refused, and that it may permit later.
    pub refused: RefusedEffects,
}

/// State that a replay takes over from earlier ones that did not finish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TakenOver {
    /// The offset before which they applied all events.
    pub applied_to: Option<u64>,
    /// The offset behind the history at that time. A stream that ends before it is another one.
    pub end: Option<u64>,
    /// The range of offsets in which they died.
    pub died: Option<Died>,
    /// Offsets that they skipped.
    pub passed_over: Vec<u64>,
    /// Offsets before `applied_to` that they could not resolve, or apply, in time.
    pub undone: Vec<u64>,
    /// Effects that Redis refused, and that it may permit later.
    pub refused: RefusedEffects,
}

/// A range of offsets in which replays died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Died {
    /// The offsets.
    pub range: Range<u64>,
    /// Number of replays that died there, or in a wider range around it.
    pub deaths: u32,
}

/// The next step at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Reads all available messages, about up to `to`, and none from `barrier` on.
    Normally { to: u64, barrier: u64 },
    /// Reads the messages up to that offset, and applies them before others are read.
    Carefully { to: u64 },
    /// Skips the message.
    PassOver,
}

impl TakenOver {
    /// Returns the next step at that offset. `batch` is the maximum number of messages read at
    /// once.
    pub(super) fn next(&self, offset: u64, batch: u64) -> Next {
        if self.passed_over.contains(&offset) {
            return Next::PassOver;
        }
        let barrier =
            self.passed_over.iter().copied().filter(|at| *at > offset).min().unwrap_or(u64::MAX);
        let to = offset.saturating_add(batch).min(barrier);
        let Some(Died { range, deaths }) = &self.died else {
            return Next::Normally { to, barrier };
        };
        if offset < range.start {
            return Next::Normally { to: to.min(range.start), barrier: barrier.min(range.start) };
        }
        if offset >= range.end {
            return Next::Normally { to, barrier };
        }
        let length = range.end - range.start;
        if length == 1 && *deaths >= DEATHS_MAX {
            return Next::PassOver;
        }
        let step = length.div_ceil(STEPS).clamp(1, batch.max(1));
        Next::Carefully { to: (offset + step).min(range.end).min(barrier) }
    }

    /// Returns true if the next try at that offset is the last before it is skipped.
    pub(super) fn is_last_try(&self, offset: u64) -> bool {
        self.died
            .as_ref()
            .is_some_and(|died| died.range == (offset..offset + 1) && died.deaths + 1 == DEATHS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn died(range: Range<u64>, deaths: u32) -> TakenOver {
        TakenOver { died: Some(Died { range, deaths }), ..TakenOver::default() }
    }

    #[test]
    fn messages_before_a_death_are_applied_first_and_the_rest_one_at_a_time() {
        let taken = died(100..200, 1);
        assert_eq!(taken.next(0, 50), Next::Normally { to: 50, barrier: 100 });
        assert_eq!(taken.next(80, 50), Next::Normally { to: 100, barrier: 100 });
        assert_eq!(taken.next(100, 50), Next::Carefully { to: 101 });
        assert_eq!(taken.next(199, 50), Next::Carefully { to: 200 });
        assert_eq!(taken.next(200, 50), Next::Normally { to: 250, barrier: u64::MAX });
        assert_eq!(TakenOver::default().next(7, 50), Next::Normally { to: 57, barrier: u64::MAX });
    }

    #[test]
    fn an_offset_that_was_skipped_once_is_skipped_again() {
        let taken = TakenOver { passed_over: vec![7, 150], ..died(100..200, 1) };
        assert_eq!(taken.next(0, 50), Next::Normally { to: 7, barrier: 7 });
        assert_eq!(taken.next(7, 50), Next::PassOver);
        assert_eq!(taken.next(8, 50), Next::Normally { to: 58, barrier: 100 });
        assert_eq!(taken.next(149, 50), Next::Carefully { to: 150 });
        assert_eq!(taken.next(150, 50), Next::PassOver);
        assert_eq!(taken.next(200, 50), Next::Normally { to: 250, barrier: u64::MAX });
    }

    #[test]
    fn a_wide_range_with_a_death_is_narrowed_in_steps() {
        assert_eq!(died(0..1_000_000, 1).next(0, 1_000), Next::Carefully { to: 1_000 });
        assert_eq!(died(0..3_000, 1).next(2_999, 1_000), Next::Carefully { to: 3_000 });
        assert_eq!(
            died(0..3_000, 9).next(0, 1_000),
            Next::Carefully { to: 3 },
            "only a single message is skipped"
        );
    }

    #[test]
    fn a_message_is_skipped_after_the_third_death() {
        assert_eq!(died(5..6, 2).next(5, 9), Next::Carefully { to: 6 });
        assert!(
            died(5..6, 2).is_last_try(5)
                && !died(5..6, 1).is_last_try(5)
                && !died(5..7, 2).is_last_try(5)
        );
        assert_eq!(died(5..6, 3).next(5, 9), Next::PassOver);
        assert_eq!(died(5..6, 3).next(6, 9), Next::Normally { to: 15, barrier: u64::MAX });
    }
}
