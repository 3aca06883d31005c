//! How long to wait between two tries: the only back-off of readers and of the worker.
//!
//! Pure: the caller passes the random number, and sleeps. Readers use it for looks at a lease. The
//! worker uses it for connections, probes and open circuit breakers. The module is not part of the
//! public API: any release may change it.

use std::time::Duration;

/// Pauses that double from the first to the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubling {
    /// The first pause.
    pub first: Duration,
    /// The longest pause, which all later ones have.
    pub longest: Duration,
}

impl Doubling {
    /// Returns the pause after that many doublings.
    pub fn nth(self, doublings: u32) -> Duration {
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// Returns the pause that follows this one.
    pub fn after(self, pause: Duration) -> Duration {
        pause.saturating_mul(2).min(self.longest)
    }
}

/// Counts failures, and returns the wait after each. The waits double and are jittered, so that
/// many waiters do not come back at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    pauses: Doubling,
    failures: u32,
}

impl Backoff {
    /// Returns a back-off without a failure yet.
    pub const fn new(pauses: Doubling) -> Self {
        Self { pauses, failures: 0 }
    }

    /// Counts one more failure and returns the wait after it: a point in the upper half of the
    /// pause. `jitter` is uniform in `[0, 1)` and chooses the point.
    pub fn next_delay(&mut self, jitter: f64) -> Duration {
        let pause = self.pauses.nth(self.failures);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// Forgets the failures: the next wait is the first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAUSES: Doubling =
        Doubling { first: Duration::from_millis(500), longest: Duration::from_secs(30) };

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(PAUSES);
        let upper: Vec<u128> = (0..9).map(|_| backoff.next_delay(1.0).as_millis()).collect();
        assert_eq!(upper, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.next_delay(0.0), PAUSES.first / 2);
    }

    proptest! {
        #[test]
        fn a_wait_is_in_the_upper_half_of_its_pause(
            failures in any::<u32>(),
            jitter in -1.0_f64..2.0,
        ) {
            let pause = PAUSES.nth(failures);
            let delay = Backoff { pauses: PAUSES, failures }.next_delay(jitter);
            prop_assert!((pause / 2..=pause).contains(&delay));
            prop_assert!((PAUSES.first..=PAUSES.longest).contains(&pause));
        }

        #[test]
        fn the_pause_that_follows_is_the_next_doubling(doublings in 0_u32..100) {
            prop_assert_eq!(PAUSES.after(PAUSES.nth(doublings)), PAUSES.nth(doublings + 1));
        }
    }
}
