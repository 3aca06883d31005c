//! The delays between attempts.

use std::time::Duration;

/// The retry steps of a failing event, shortest delay first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySchedule(pub Vec<Duration>);

impl RetrySchedule {
    /// Returns the retry step for an event after `attempts_made` attempts. `None` beyond the last
    /// step.
    ///
    /// The step waits at least `after`, or is the longest if none waits that long.
    pub fn step(&self, attempts_made: u32, after: Option<Duration>) -> Option<usize> {
        let next = usize::try_from(attempts_made).ok()?.checked_sub(1)?;
        if next >= self.0.len() {
            return None;
        }
        let long_enough = after.and_then(|after| self.0.iter().position(|delay| *delay >= after));
        let longest = after.map_or(next, |_| self.0.len() - 1);
        Some(next.max(long_enough.unwrap_or(longest)))
    }

    /// Returns the retry step for an event that was not tried this time: the step of its last
    /// attempt, or a longer one.
    pub(super) fn step_without_attempt(
        &self,
        attempts_before: u32,
        after: Option<Duration>,
    ) -> usize {
        let last = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.step(attempts_before.min(last).max(1), after).unwrap_or_default()
    }
}
