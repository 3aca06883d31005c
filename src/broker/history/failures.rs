//! The broker's failures to read a message of the history.

use super::super::reply_text::is_internal_error;

/// Failures at one offset before it counts as unreadable.
const FAILURES_MAX: u32 = 3;

/// Number of the broker's failures at one offset.
#[derive(Debug, Default)]
pub(super) struct Failures {
    at: u64,
    count: u32,
}

impl Failures {
    /// Notes the end of a connection if the broker failed. Returns whether it did.
    pub(super) fn note(&mut self, at: u64, cause: &str) -> bool {
        let failed = is_internal_error(cause);
        if failed {
            self.count = if self.at == at { self.count + 1 } else { 1 };
            self.at = at;
        }
        failed
    }

    pub(super) fn are_many_at(&self, at: u64) -> bool {
        self.at == at && self.count >= FAILURES_MAX
    }

    pub(super) fn forget(&mut self) {
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_of_the_broker_at_one_offset_are_many() {
        let mut failures = Failures::default();
        for (at, cause, failed, many) in [
            (7, "connection reset", false, false),
            (7, "INTERNAL_ERROR", true, false),
            (7, "INTERNAL_ERROR", true, false),
            (8, "INTERNAL_ERROR", true, false),
            (8, "INTERNAL_ERROR", true, false),
            (8, "INTERNAL_ERROR", true, true),
        ] {
            assert_eq!(
                (failures.note(at, cause), failures.are_many_at(at)),
                (failed, many),
                "{at} {cause}"
            );
        }
        failures.forget();
        assert!(!failures.are_many_at(8));
    }
}
