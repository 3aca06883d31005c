//! No more than so many per second.

use std::time::{Duration, Instant};

use crate::quantity::Rate;

/// How much of a second one step may be.
const STEP: Duration = Duration::from_millis(100);

/// Evenly spread steps.
#[derive(Debug)]
pub struct Pace {
    rate: Option<Rate>,
    due: Option<Instant>,
}

impl Pace {
    /// At that rate; without one, as fast as it goes.
    pub fn new(rate: Option<Rate>) -> Self {
        Self { rate, due: None }
    }

    /// How many may go at once, `max` at most: a tenth of a second's worth, and one at least.
    pub fn step(&self, max: usize) -> usize {
        let Some(rate) = self.rate else { return max };
        let worth = STEP.as_nanos() / rate.interval().as_nanos().max(1);
        usize::try_from(worth).unwrap_or(max).clamp(1, max)
    }

    /// When the next step may go; `None` is at once.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// So many went.
    pub fn went(&mut self, count: usize, now: Instant) {
        if let Some(rate) = self.rate {
            // Time that went by unused is not made up for.
            let from = self.due.map_or(now, |due| due.max(now));
            self.due = Some(from + rate.interval() * u32::try_from(count).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(rate: &str) -> Pace {
        Pace::new(Some(Rate::parse(rate).unwrap()))
    }

    #[test]
    fn steps_are_spread_evenly() {
        let mut pace = pace("50/s");
        assert_eq!((pace.step(256), pace.step(3), pace.due()), (5, 3, None));
        let start = Instant::now();
        for _ in 0..10 {
            pace.went(5, pace.due().unwrap_or(start));
        }
        assert_eq!(pace.due(), Some(start + Duration::from_secs(1)));
        let late = start + Duration::from_secs(60);
        pace.went(5, late);
        assert_eq!(pace.due(), Some(late + Duration::from_millis(100)), "no burst after a pause");
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut pace = Pace::new(None);
        pace.went(1_000_000, Instant::now());
        assert_eq!((pace.due(), pace.step(256)), (None, 256));
    }

    #[test]
    fn the_slowest_rate_still_goes_one_at_a_time() {
        assert_eq!(pace("1/h").step(256), 1);
    }
}
