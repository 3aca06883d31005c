//! Bounds the cost of a validation.
//!
//! The JSON Schema library cannot be stopped from outside. Every access to the payload charges the
//! event's budget, and unwinds out of the library if the budget is spent.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::super::budget::Budget;
use crate::event::Json;

/// Maximum stack size of a validation, in bytes. A thread of the worker has 2 MiB.
const MAX_STACK_BYTES: usize = 1024 * 1024;

/// Costs of accesses to a payload, which depend on the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Costs {
    /// Units for a member or an element. They grow with the number of schemas that apply to one
    /// value.
    pub(in super::super) child: u64,
    /// Sixteenths of a unit for a byte of text, which regular expressions read many times.
    pub(in super::super) sixteenths_per_byte: u64,
    /// Sixteenths of a unit for a byte of a member's name, which `patternProperties` matches.
    pub(in super::super) sixteenths_per_name_byte: u64,
    /// Number of patterns in `patternProperties` that backtrack.
    pub(in super::super) backtracking_names: u64,
}

/// Units of work for a match that backtracks, beside those for the text's length.
pub(in super::super) const WORK_PER_BACKTRACKING_MATCH: u64 = 1_000;

/// Maximum number of backtracks in a match of a member's name.
pub(in super::super) const NAME_BACKTRACK_LIMIT: usize = 500;

impl Default for Costs {
    fn default() -> Self {
        Self {
            child: 1,
            sixteenths_per_byte: 1,
            sixteenths_per_name_byte: 1,
            backtracking_names: 0,
        }
    }
}

impl Costs {
    pub(super) fn of_name(&self, name: &str) -> u64 {
        let bytes = name.len() as u64;
        let linear = self.child + bytes * self.sixteenths_per_name_byte / 16;
        if self.backtracking_names == 0 {
            linear
        } else {
            linear + self.backtracking_names * backtracking_units(bytes)
        }
    }
}

/// Returns the units of work for a match that backtracks over that many bytes. Each position may
/// read the rest of the text.
pub(in super::super) const fn backtracking_units(bytes: u64) -> u64 {
    WORK_PER_BACKTRACKING_MATCH.saturating_add(bytes.saturating_mul(bytes) / 16)
}

/// Meter of one validation.
#[derive(Debug)]
pub(in super::super) struct Meter<'a> {
    budget: &'a Budget,
    pub(super) costs: Costs,
    /// Address of the stack when the validation began.
    stack_start: usize,
    /// True in a search for the failing value, which ends as soon as the value is known.
    is_search: bool,
    /// Address of the failing value's first byte.
    failing: Cell<Option<usize>>,
}

/// The validation was ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Stopped;

impl<'a> Meter<'a> {
    /// Returns the meter of a validation that begins here.
    pub(in super::super) fn new(budget: &'a Budget, costs: Costs) -> Self {
        Self {
            budget,
            costs,
            stack_start: stack_address(),
            is_search: false,
            failing: Cell::new(None),
        }
    }

    /// Returns the meter of a search for the failing value. Finding the value spends the budget,
    /// which belongs to the search.
    pub(in super::super) fn of_search(budget: &'a Budget, costs: Costs) -> Self {
        Self { is_search: true, ..Self::new(budget, costs) }
    }

    /// Runs a validation to its end, or until the budget is spent.
    pub(in super::super) fn run<T>(&self, validation: impl FnOnce() -> T) -> Result<T, Stopped> {
        catch_unwind(AssertUnwindSafe(validation)).map_err(|panic| {
            match panic.downcast::<Stopped>() {
                Ok(stopped) => *stopped,
                Err(panic) => resume_unwind(panic),
            }
        })
    }

    /// Runs a search. Returns `None` if it ended early: the failing value is known, or the budget
    /// is spent.
    pub(in super::super) fn search<T>(&self, search: impl FnOnce() -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(search)).ok()
    }

    /// Returns the address of the failing value's first byte, if one was found.
    pub(in super::super) fn failing(&self) -> Option<usize> {
        self.failing.get()
    }

    /// Charges for an access.
    #[inline]
    pub(super) fn charge(&self, units: u64) {
        if self.budget.work(units).is_err() {
            stop();
        }
    }

    /// Ends a validation whose stack is too deep. Payloads have 100 levels, and a schema may apply
    /// many others to each.
    #[inline]
    pub(super) fn check_stack(&self) {
        if stack_address().abs_diff(self.stack_start) > MAX_STACK_BYTES {
            self.charge(u64::MAX);
        }
    }

    /// Records the value for which an error is made, and ends the search at the next access.
    ///
    /// The library makes errors for failing values only. Later accesses serve errors of other
    /// values: those of the branches of `anyOf` and `oneOf` may multiply with every level.
    pub(super) fn fails_at(&self, json: Option<Json<'_>>) {
        if let (true, Some(json)) = (self.is_search, json) {
            self.failing.set(Some(json.text().as_ptr().addr()));
            let _ = self.budget.work(u64::MAX);
        }
    }
}

/// Unwinds without the message of a panic.
#[cold]
fn stop() -> ! {
    resume_unwind(Box::new(Stopped))
}

#[inline(never)]
fn stack_address() -> usize {
    let here = 0_u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}
