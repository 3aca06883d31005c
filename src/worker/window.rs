//! How many deliveries a session asks for at once: one at first, then few, then all, never more
//! than memory allows; more of a backlog.
//!
//! A message that kills the worker costs everything in hand a redelivery, and the broker's delivery
//! limit counts those. A session that follows such a death begins with little in hand, and goes on
//! by doubling where suspects were met. What has come in vain more than once is not for this
//! module: see [`suspects`](super::suspects).

use crate::broker::{Delivery, Prefetch};
use crate::config::AmqpConfig;

/// Between one at a time and all.
pub(super) const FEW: u16 = 16;

/// The prefetch of one session's lane, from its first consumer on.
#[derive(Debug)]
pub(super) struct Window {
    prefetch: Prefetch,
    /// Comes to all by doubling, not in one step.
    careful: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// So many at once, until so many new ones in a row; at none wanted, until the first delivery.
    Part { at_once: u16, new_wanted: u16 },
    /// As many as memory allows.
    Full,
}

impl Window {
    /// A window that may grow as far as the settings let it. `careful`: what it will meet may be a
    /// message that ended the last session since it cannot even be read, or suspects, of which the
    /// fewer should be in hand together the more there are.
    pub(super) fn new(config: &AmqpConfig, careful: bool) -> Self {
        Self::up_to(Prefetch::new(config.prefetch).rising_to(config.backlog_prefetch), careful)
    }

    fn up_to(prefetch: Prefetch, careful: bool) -> Self {
        let stage = Stage::Part { at_once: 1, new_wanted: if careful { FEW } else { 0 } };
        Self { prefetch, careful, stage }
    }

    /// What to consume with now.
    pub(super) fn prefetch(&self) -> u16 {
        match self.stage {
            Stage::Part { at_once, .. } => at_once.min(self.prefetch.current()),
            Stage::Full => self.prefetch.current(),
        }
    }

    /// Whether a backlog waited at the last look, so that more is likely to come.
    pub(super) fn has_backlog(&self) -> bool {
        self.prefetch.has_backlog()
    }

    /// Takes note of what arrived, and of how many were left in the queue at the last look. The
    /// prefetch to consume anew with, where it changes.
    pub(super) fn after(&mut self, deliveries: &[Delivery], waiting: u32) -> Option<u16> {
        let before = self.prefetch();
        for delivery in deliveries {
            self.note(delivery.body().len(), delivery.in_vain());
        }
        self.prefetch.note_waiting(waiting);
        self.prefetch.adapt();
        let now = self.prefetch();
        (now != before).then_some(now)
    }

    /// One delivery; `in_vain` is how often it came before, if it did.
    fn note(&mut self, body_bytes: usize, in_vain: Option<u64>) {
        self.prefetch.observe(body_bytes);
        let Stage::Part { at_once, new_wanted } = self.stage else { return };
        self.stage = match (new_wanted, in_vain) {
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

    fn up_to(full: u16, careful: bool) -> Window {
        Window::up_to(Prefetch::new(full), careful)
    }

    fn after(window: &mut Window, count: usize, in_vain: Option<u64>) -> u16 {
        for _ in 0..count {
            window.note(100, in_vain);
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
