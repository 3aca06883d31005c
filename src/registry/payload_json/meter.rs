//! What a validation costs. The JSON Schema library cannot be stopped from outside: every access to
//! the payload charges the event's budget, and unwinds out of the library when the budget is spent.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::super::budget::Budget;
use crate::event::Json;

/// Most bytes of the stack that a validation takes. A thread of the worker has 2 MiB.
const MAX_STACK_BYTES: usize = 1024 * 1024;

/// What parts of a payload cost, by the schema that reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Costs {
    /// For a member or an element: the more schemas apply to one value, the more.
    pub(in super::super) child: u64,
    /// For a byte of text, in sixteenths: regular expressions read each byte many times.
    pub(in super::super) sixteenths_per_byte: u64,
    /// For a byte of a member's name, in sixteenths: the patterns of `patternProperties`.
    pub(in super::super) sixteenths_per_name_byte: u64,
    /// Patterns of `patternProperties` that backtrack.
    pub(in super::super) backtracking_names: u64,
}

/// Units of work for a match that backtracks, beside those for the text's length.
pub(in super::super) const BACKTRACKING: u64 = 1_000;

/// How often a match of a member's name may backtrack.
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

/// Returns the units of work for a match that backtracks over that many bytes: each place of the
/// text may read all that follows it.
pub(in super::super) const fn backtracking_units(bytes: u64) -> u64 {
    BACKTRACKING.saturating_add(bytes.saturating_mul(bytes) / 16)
}

/// The account of one validation.
#[derive(Debug)]
pub(in super::super) struct Meter<'a> {
    budget: &'a Budget,
    pub(super) costs: Costs,
    /// Where the stack was when the validation began.
    stack_start: usize,
    /// Whether the place that fails is looked for: the validation ends as soon as it is known.
    is_search: bool,
    /// The first byte of the value that fails.
    failing: Cell<Option<usize>>,
}

/// The validation was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Stopped;

impl<'a> Meter<'a> {
    /// Returns the account of a validation that begins here.
    pub(in super::super) fn new(budget: &'a Budget, costs: Costs) -> Self {
        Self {
            budget,
            costs,
            stack_start: stack_address(),
            is_search: false,
            failing: Cell::new(None),
        }
    }

    /// Returns the account of a search for the value that fails. The budget is the search's own: it
    /// is spent when the value is found.
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

    /// Runs a search to its end. `None` where it was ended before: the value that fails is known
    /// then, or the budget is spent.
    pub(in super::super) fn search<T>(&self, search: impl FnOnce() -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(search)).ok()
    }

    /// Returns the first byte of the value that fails, where one was found.
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

    /// Ends a validation that is nested too deep: payloads have 100 levels, and a schema may apply
    /// many others to each.
    #[inline]
    pub(super) fn check_stack(&self) {
        if stack_address().abs_diff(self.stack_start) > MAX_STACK_BYTES {
            self.charge(u64::MAX);
        }
    }

    /// Notes the value that an error is made for. The library makes one only for a value that
    /// fails. What it reads after that is for the error of another value: those of the branches of
    /// `anyOf` and `oneOf` may grow in number with every level. So the next access ends the search.
    pub(super) fn fails_at(&self, json: Option<Json<'_>>) {
        if let (true, Some(json)) = (self.is_search, json) {
            self.failing.set(Some(json.text().as_ptr().addr()));
            let _ = self.budget.work(u64::MAX);
        }
    }
}

/// Unwinds without a message, as no panic does.
#[cold]
fn stop() -> ! {
    resume_unwind(Box::new(Stopped))
}

#[inline(never)]
fn stack_address() -> usize {
    let here = 0_u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}
