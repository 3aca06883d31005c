//! The budget of one event: units of work, and bytes that are built for it.
//!
//! Code that reads, compares, copies or builds something in proportion to the event charges the
//! budget first.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::reason::Reason;

/// Maximum units of work for one event. A unit takes about ten nanoseconds.
pub const WORK_PER_EVENT: u64 = 10_000_000;

/// Maximum bytes that are built for one event: keys, tags, values, URLs and results of expressions.
pub const BYTES_PER_EVENT: u64 = 16 * 1024 * 1024;

/// Units of work between two looks at the clock and the stop flag.
const WORK_BETWEEN_CHECKS: u64 = 8192;

/// Budget of one event.
///
/// A spent budget stays spent: every further charge of one or more fails.
#[derive(Debug)]
pub struct Budget {
    /// Work that may be done before the next look at the clock and the stop flag.
    work_until_check: Cell<u64>,
    /// Work that is left after that.
    work_left: Cell<u64>,
    bytes_left: Cell<u64>,
    work_limit: u64,
    bytes_limit: u64,
    deadline: Option<Instant>,
    stop: Option<Arc<AtomicBool>>,
    spent: Cell<Option<Spent>>,
}

/// Part of a budget that ran out. The caller stops at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// The units of work.
    Work,
    /// The bytes.
    Bytes,
    /// The time: the deadline has passed, or the stop flag is set.
    Time,
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Work => "the event's budget of work is spent",
            Self::Bytes => "the event's budget of bytes is spent",
            Self::Time => "the event's time is up",
        })
    }
}

impl std::error::Error for Spent {}

impl Budget {
    /// Returns the full budget of an event.
    pub const fn for_event() -> Self {
        Self::with_limits(WORK_PER_EVENT, BYTES_PER_EVENT)
    }

    /// Returns the full budget of an event with that many bytes. A larger body costs more to read.
    pub const fn for_bytes(bytes: usize) -> Self {
        let bytes = bytes as u64;
        Self::with_limits(
            WORK_PER_EVENT.saturating_add(4 * bytes),
            BYTES_PER_EVENT.saturating_add(2 * bytes),
        )
    }

    /// Returns a budget of that much work and that many bytes.
    pub const fn with_limits(work: u64, bytes: u64) -> Self {
        Self {
            work_until_check: Cell::new(0),
            work_left: Cell::new(work),
            bytes_left: Cell::new(bytes),
            work_limit: work,
            bytes_limit: bytes,
            deadline: None,
            stop: None,
            spent: Cell::new(None),
        }
    }

    /// Sets a deadline, at which the budget ends.
    #[must_use]
    pub fn until(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets a stop flag. The budget ends soon after the flag is set.
    #[must_use]
    pub fn stopped_by(mut self, stop: Arc<AtomicBool>) -> Self {
        self.stop = Some(stop);
        self
    }

    /// Charges units of work, before the work is done.
    ///
    /// # Errors
    /// The budget is spent.
    #[inline]
    pub fn work(&self, units: u64) -> Result<(), Spent> {
        match self.work_until_check.get().checked_sub(units) {
            Some(left) => {
                self.work_until_check.set(left);
                Ok(())
            }
            None => self.check(units),
        }
    }

    /// Charges bytes that are about to be built.
    ///
    /// # Errors
    /// The budget is spent.
    #[inline]
    pub fn bytes(&self, count: usize) -> Result<(), Spent> {
        match self.bytes_left.get().checked_sub(count as u64) {
            Some(left) => {
                self.bytes_left.set(left);
                Ok(())
            }
            None => Err(self.spend(Spent::Bytes)),
        }
    }

    /// Returns whether any part of the budget ran out.
    pub const fn is_spent(&self) -> bool {
        self.spent.get().is_some()
    }

    /// Returns the part of the budget that ran out first.
    pub const fn spent(&self) -> Option<Spent> {
        self.spent.get()
    }

    /// Returns the units of work done so far: all of them, once the budget is spent.
    pub const fn spent_work(&self) -> u64 {
        self.work_limit - self.work_left.get() - self.work_until_check.get()
    }

    /// Returns the bytes built so far: all of them, once the budget is spent.
    pub const fn spent_bytes(&self) -> u64 {
        self.bytes_limit - self.bytes_left.get()
    }

    /// Returns the units of work that the budget began with.
    pub const fn work_limit(&self) -> u64 {
        self.work_limit
    }

    /// Returns the bytes that the budget began with.
    pub const fn bytes_limit(&self) -> u64 {
        self.bytes_limit
    }

    /// Returns the reason and the message for an event that spent the budget.
    ///
    /// `place` names a rule, or the event definition whose schema was too costly.
    pub(super) fn complaint(&self, place: &str, is_schema: bool) -> (Reason, String) {
        let simpler = if is_schema {
            "give long texts a `maxLength`, and distinguish branches by a `const` or a `type`"
        } else {
            "avoid a loop within a loop"
        };
        let (reason, what, remedy) = match self.spent.get() {
            Some(Spent::Bytes) => (
                Reason::BlastRadius,
                format!(
                    "keys, tags, values and results take more than {} bytes, the budget of one event",
                    self.bytes_limit
                ),
                "name fewer keys or shorter fields",
            ),
            Some(Spent::Time) => {
                (Reason::Unresolvable, "the event takes too long to resolve".to_owned(), simpler)
            }
            Some(Spent::Work) | None => (
                Reason::Unresolvable,
                format!(
                    "the event needs more than {} units of work, the budget of one event",
                    self.work_limit
                ),
                simpler,
            ),
        };
        (reason, format!("{place}: {what}: publish smaller events, or {remedy}"))
    }

    /// Looks at the clock and the flag, then charges.
    #[cold]
    fn check(&self, units: u64) -> Result<(), Spent> {
        if let Some(spent) = self.spent.get() {
            return Err(spent);
        }
        let is_stopped = self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed));
        if is_stopped || self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(self.spend(Spent::Time));
        }
        let total = self.work_left.get() + self.work_until_check.get();
        let Some(left) = total.checked_sub(units) else { return Err(self.spend(Spent::Work)) };
        let until_look = left.min(WORK_BETWEEN_CHECKS);
        self.work_until_check.set(until_look);
        self.work_left.set(left - until_look);
        Ok(())
    }

    #[cold]
    fn spend(&self, spent: Spent) -> Spent {
        self.work_until_check.set(0);
        self.work_left.set(0);
        self.bytes_left.set(0);
        let first = self.spent.get().unwrap_or(spent);
        self.spent.set(Some(first));
        first
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use proptest::prelude::*;

    use super::{Budget, Spent, WORK_BETWEEN_CHECKS};

    #[test]
    fn a_spent_budget_stays_spent() {
        let budget = Budget::with_limits(10, 10);
        assert_eq!((budget.work(10), budget.bytes(10)), (Ok(()), Ok(())));
        assert!(!budget.is_spent());
        assert_eq!(budget.bytes(1), Err(Spent::Bytes));
        assert_eq!((budget.work(1), budget.bytes(1)), (Err(Spent::Bytes), Err(Spent::Bytes)));
        assert_eq!(budget.spent(), Some(Spent::Bytes));
    }

    #[test]
    fn a_deadline_and_a_stop_flag_end_a_budget_within_one_check() {
        let budget = Budget::for_event().until(Instant::now());
        assert_eq!(budget.work(1), Err(Spent::Time));
        let stop = Arc::new(AtomicBool::new(false));
        let budget = Budget::for_event().stopped_by(Arc::clone(&stop));
        assert_eq!(budget.work(1), Ok(()));
        stop.store(true, Ordering::Relaxed);
        assert_eq!((0..=WORK_BETWEEN_CHECKS).find_map(|_| budget.work(1).err()), Some(Spent::Time));
    }

    proptest! {
        #[test]
        fn budget_charges_add_up_to_the_limit_exactly(charges in prop::collection::vec(1..20_000_u64, 0..40), limit in 0..200_000_u64) {
            let budget = Budget::with_limits(limit, 0);
            let mut sum = 0;
            for charge in charges {
                let fits = !budget.is_spent() && sum + charge <= limit;
                prop_assert_eq!(budget.work(charge).is_ok(), fits);
                if fits {
                    sum += charge;
                    prop_assert_eq!(budget.spent_work(), sum);
                }
            }
        }
    }
}
