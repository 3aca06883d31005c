//! Determines how many deliveries a session asks for at once. It begins with one, then few, then as
//! many as memory allows, and more during a backlog.
//!
//! When a message kills the worker, everything in flight is redelivered, and the broker's delivery
//! limit counts that. So the next session begins with little in flight. It grows by doubling if
//! suspected poison messages were found.
//!
//! Messages that were redelivered more than once are handled in
//! [`suspected_poison`](super::suspected_poison).

use crate::broker::{Delivery, Prefetch};
use crate::config::AmqpConfig;

/// Number of deliveries at once in the step between one and all.
pub(super) const FEW: u16 = 16;

/// The prefetch of one session's lane, from its first consumer on.
#[derive(Debug)]
pub(super) struct PrefetchRamp {
    prefetch: Prefetch,
    /// True if the prefetch grows to the full value by doubling instead of in one step.
    careful: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// `at_once` deliveries at once, until `new_wanted` new ones arrive in a row. If none are
    /// wanted, until the first delivery.
    Part { at_once: u16, new_wanted: u16 },
    /// As many as memory allows.
    Full,
}

impl PrefetchRamp {
    /// Returns a window that may grow as far as the settings allow. `careful`: the session may meet
    /// a message that ended the last session since it cannot be read. Or it may meet suspected
    /// poison messages, of which few should be in flight together.
    pub(super) fn new(config: &AmqpConfig, careful: bool) -> Self {
        Self::up_to(Prefetch::new(config.prefetch).rising_to(config.backlog_prefetch), careful)
    }

    fn up_to(prefetch: Prefetch, careful: bool) -> Self {
        let stage = Stage::Part { at_once: 1, new_wanted: if careful { FEW } else { 0 } };
        Self { prefetch, careful, stage }
    }

    /// Returns the prefetch to consume with now.
    pub(super) fn prefetch(&self) -> u16 {
        match self.stage {
            Stage::Part { at_once, .. } => at_once.min(self.prefetch.current()),
            Stage::Full => self.prefetch.current(),
        }
    }

    /// Returns true if a backlog waited at the last look, so that more is likely to arrive.
    pub(super) fn has_backlog(&self) -> bool {
        self.prefetch.has_backlog()
    }

    /// Notes the arrived deliveries, and how many messages waited at the last look. Returns the new
    /// prefetch if it changes.
    pub(super) fn after(&mut self, deliveries: &[Delivery], waiting: u32) -> Option<u16> {
        let before = self.prefetch();
        for delivery in deliveries {
            self.note(delivery.body().len(), delivery.counted_redeliveries());
        }
        self.prefetch.note_waiting(waiting);
        self.prefetch.adapt();
        let now = self.prefetch();
        (now != before).then_some(now)
    }

    /// Notes one delivery. `redeliveries` is its redelivery count, if it has one.
    fn note(&mut self, body_bytes: usize, redeliveries: Option<u64>) {
        self.prefetch.observe(body_bytes);
        let Stage::Part { at_once, new_wanted } = self.stage else { return };
        self.stage = match (new_wanted, redeliveries) {
            (0, _) | (1, None) => self.next(at_once),
            (_, None) => Stage::Part { at_once, new_wanted: new_wanted - 1 },
            (_, Some(_)) => Stage::Part { at_once, new_wanted: at_once.max(FEW) },
        };
    }

    fn next(&self, at_once: u16) -> Stage {
        let grown = if at_once < FEW { FEW } else { at_once.saturating_mul(2) };
        if at_once >= FEW && (!self.careful || grown >= self.prefetch.current()) {
            return Stage::Full;
        }
        Stage::Part { at_once: grown, new_wanted: grown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up_to(full: u16, careful: bool) -> PrefetchRamp {
        PrefetchRamp::up_to(Prefetch::new(full), careful)
    }

    fn after(window: &mut PrefetchRamp, count: usize, redeliveries: Option<u64>) -> u16 {
        for _ in 0..count {
            window.note(100, redeliveries);
        }
        window.prefetch()
    }

    #[test]
    fn grows_from_one_by_few_to_all() {
        let mut window = up_to(1_000, false);
        assert_eq!(window.prefetch(), 1);
        assert_eq!(after(&mut window, 1, None), 16);
        assert_eq!(after(&mut window, 15, None), 16);
        assert_eq!(after(&mut window, 1, Some(1)), 16, "not while deliveries come again");
        assert_eq!(after(&mut window, 15, None), 16);
        assert_eq!(after(&mut window, 1, None), 1_000);
        assert_eq!(after(&mut window, 1, Some(1)), 1_000);
        assert_eq!(up_to(4, false).prefetch(), 1);
        assert_eq!(after(&mut up_to(4, false), 1, None), 4);
    }

    #[test]
    fn careful_waits_for_many_new_ones_and_doubles() {
        let mut window = up_to(1_000, true);
        assert_eq!(after(&mut window, 15, None), 1);
        assert_eq!(after(&mut window, 1, Some(0)), 1);
        assert_eq!(after(&mut window, 16, None), 16);
        assert_eq!(after(&mut window, 16, None), 32);
        assert_eq!(after(&mut window, 31, None), 32);
        assert_eq!(after(&mut window, 1, Some(1)), 32, "not while deliveries come again");
        assert_eq!(after(&mut window, 32 + 64 + 128 + 256, None), 512);
        assert_eq!(after(&mut window, 512, None), 1_000);
        assert_eq!(after(&mut up_to(16, true), 16 + 16, None), 16);
    }
}
