//! How many deliveries a session asks for at once: one at first, then few, then all, never more than memory allows.
//!
//! A message that kills the worker costs everything in hand a redelivery, and the broker's delivery limit counts those. A session that
//! follows such a death begins with little in hand. What has come in vain more than once is not for this module: see
//! [`suspects`](super::suspects).

use crate::broker::{Delivery, Prefetch};

/// Between one at a time and all.
const FEW: u16 = 16;

/// The prefetch of one session's lane, from its first consumer on.
#[derive(Debug)]
pub(super) struct Window {
    prefetch: Prefetch,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// One at a time: until the first delivery or, after a session that a message ended, until [`FEW`] new ones in a row.
    Alone { new_wanted: u16 },
    /// Until [`FEW`] new ones in a row.
    Few { new_wanted: u16 },
    /// As many as memory allows.
    Full,
}

impl Window {
    /// A window that may grow to `full`. `careful`: the last session ended by a message that cannot even be read.
    pub(super) fn new(full: u16, careful: bool) -> Self {
        Self { prefetch: Prefetch::new(full), stage: Stage::Alone { new_wanted: if careful { FEW } else { 0 } } }
    }

    /// What to consume with now.
    pub(super) fn prefetch(&self) -> u16 {
        match self.stage {
            Stage::Alone { .. } => 1,
            Stage::Few { .. } => FEW.min(self.prefetch.current()),
            Stage::Full => self.prefetch.current(),
        }
    }

    /// Takes note of what arrived. The prefetch to consume anew with, where it changes.
    pub(super) fn after(&mut self, deliveries: &[Delivery]) -> Option<u16> {
        let before = self.prefetch();
        for delivery in deliveries {
            self.note(delivery.body().len(), delivery.in_vain());
        }
        self.prefetch.adapt();
        let now = self.prefetch();
        (now != before).then_some(now)
    }

    /// One delivery; `in_vain` is how often it came before, if it did.
    fn note(&mut self, body_bytes: usize, in_vain: Option<u64>) {
        self.prefetch.observe(body_bytes);
        self.stage = match (self.stage, in_vain) {
            (Stage::Alone { new_wanted: 0 }, _) => Stage::Few { new_wanted: FEW },
            (Stage::Alone { new_wanted: 1 }, None) | (Stage::Few { new_wanted: 1 }, None) | (Stage::Full, _) => Stage::Full,
            (Stage::Alone { new_wanted }, None) => Stage::Alone { new_wanted: new_wanted - 1 },
            (Stage::Few { new_wanted }, None) => Stage::Few { new_wanted: new_wanted - 1 },
            (Stage::Alone { .. }, Some(_)) => Stage::Alone { new_wanted: FEW },
            (Stage::Few { .. }, Some(_)) => Stage::Few { new_wanted: FEW },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(window: &mut Window, count: usize, in_vain: Option<u64>) -> u16 {
        for _ in 0..count {
            window.note(100, in_vain);
        }
        window.prefetch()
    }

    #[test]
    fn grows_from_one_by_few_to_all() {
        let mut window = Window::new(1_000, false);
        assert_eq!(window.prefetch(), 1);
        assert_eq!(after(&mut window, 1, None), 16);
        assert_eq!(after(&mut window, 15, None), 16);
        assert_eq!(after(&mut window, 1, Some(1)), 16, "not while deliveries come again");
        assert_eq!(after(&mut window, 15, None), 16);
        assert_eq!(after(&mut window, 1, None), 1_000);
        assert_eq!(after(&mut window, 1, Some(1)), 1_000);
        assert_eq!(Window::new(4, false).prefetch(), 1);
        assert_eq!(after(&mut Window::new(4, false), 1, None), 4);
    }

    #[test]
    fn careful_waits_for_many_new_ones() {
        let mut window = Window::new(1_000, true);
        assert_eq!(after(&mut window, 15, None), 1);
        assert_eq!(after(&mut window, 1, Some(0)), 1);
        assert_eq!(after(&mut window, 16, None), 1_000);
    }
}
