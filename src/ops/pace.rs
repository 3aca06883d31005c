//! A maximum rate, spread evenly.

use std::time::{Duration, Instant};

use crate::quantity::Rate;

/// Maximum time that one step may be worth at the rate.
const STEP: Duration = Duration::from_millis(100);

/// A maximum rate, as steps that are evenly spread in time.
#[derive(Debug)]
pub struct Pace {
    rate: Option<Rate>,
    due: Option<Instant>,
}

impl Pace {
    /// Creates a pace of that rate. Without a rate, nothing ever waits.
    pub fn new(rate: Option<Rate>) -> Self {
        Self { rate, due: None }
    }

    /// Returns how many items may go in one step. It is a tenth of the rate per second, but at
    /// least one and at most `max`.
    pub fn step(&self, max: usize) -> usize {
        let Some(rate) = self.rate else { return max };
        let worth = STEP.as_nanos() / rate.interval().as_nanos().max(1);
        usize::try_from(worth).unwrap_or(max).clamp(1, max)
    }

    /// Returns the time at which the next step may go. `None` means at once.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Records that `count` items went.
    pub fn went(&mut self, count: usize, now: Instant) {
        if let Some(rate) = self.rate {
            // Unused time allows no burst later.
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
    fn a_pace_spreads_its_steps_evenly_and_allows_no_burst() {
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
    fn a_pace_without_a_rate_never_waits() {
        let mut pace = Pace::new(None);
        pace.went(1_000_000, Instant::now());
        assert_eq!((pace.due(), pace.step(256)), (None, 256));
    }

    #[test]
    fn the_slowest_pace_allows_one_item_in_a_step() {
        assert_eq!(pace("1/h").step(256), 1);
    }
}
