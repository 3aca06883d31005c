//! The broker's failures to read a message of the history.

/// Failures at one offset before it counts as unreadable.
const FAILURES_MAX: u32 = 3;

/// Number of the broker's failures at one offset.
#[derive(Debug, Default)]
pub(super) struct Failures {
    at: u64,
    count: u32,
}

impl Failures {
    /// Notes a failure of the broker.
    pub(super) fn note(&mut self, at: u64) {
        self.count = if self.at == at { self.count + 1 } else { 1 };
        self.at = at;
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
        for (at, many) in [(7, false), (7, false), (8, false), (8, false), (8, true)] {
            failures.note(at);
            assert_eq!(failures.are_many_at(at), many, "{at}");
        }
        failures.forget();
        assert!(!failures.are_many_at(8));
    }
}
