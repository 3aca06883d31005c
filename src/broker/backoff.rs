//! How long to wait between two tries at the broker.

use std::time::Duration;

/// The shortest wait.
const SHORTEST: Duration = Duration::from_millis(250);

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(30);

/// Doubling waits from 250 ms to 30 s, without end, jittered so that workers do not come back in
/// step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// No failure yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The wait after one more failure. `jitter` is uniform in `[0, 1)`: where in the upper half of
    /// the step the wait falls.
    pub fn next_delay(&mut self, jitter: f64) -> Duration {
        let ceiling = (SHORTEST * 2)
            .saturating_mul(1_u32.checked_shl(self.failures.min(16)).unwrap_or(u32::MAX))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let floor = (ceiling / 2).max(SHORTEST);
        floor + (ceiling - floor).mul_f64(jitter.clamp(0.0, 1.0))
    }

    /// It worked: the next failure starts anew.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn doubles_up_to_its_longest() {
        let mut backoff = Backoff::new();
        let upper: Vec<u128> = (0..9).map(|_| backoff.next_delay(1.0).as_millis()).collect();
        assert_eq!(upper, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.next_delay(0.0), SHORTEST);
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(failures in 0_u32..100_000, jitter in 0.0_f64..1.0) {
            let delay = Backoff { failures }.next_delay(jitter);
            prop_assert!((SHORTEST..=LONGEST).contains(&delay));
        }
    }
}
