//! How many deliveries a session asks for at once: few at first, then all, never more than memory allows.

use crate::broker::{Delivery, Prefetch};

/// A session starts with so few: a message that kills the worker costs no more neighbours than that a redelivery each.
const FIRST: u16 = 16;

/// The prefetch of one session's lane, from its first consumer on.
#[derive(Debug)]
pub(super) struct Window {
    prefetch: Prefetch,
    /// While the session is young: the prefetch, and how many deliveries in a row were new.
    young: Option<(u16, u16)>,
}

impl Window {
    /// A window that may grow to `full`. `careful` starts with one delivery at a time: the last session ended by a message.
    pub(super) fn new(full: u16, careful: bool) -> Self {
        let first = if careful { 1 } else { FIRST.min(full) };
        Self { prefetch: Prefetch::new(full), young: Some((first, 0)) }
    }

    /// What to consume with now.
    pub(super) fn prefetch(&self) -> u16 {
        self.young.map_or(self.prefetch.current(), |(first, _)| first)
    }

    /// Takes note of what arrived. The prefetch to consume anew with, where it changes.
    pub(super) fn after(&mut self, deliveries: &[Delivery]) -> Option<u16> {
        for delivery in deliveries {
            self.prefetch.observe(delivery.body().len());
            if let Some((_, new_in_a_row)) = &mut self.young {
                *new_in_a_row = if delivery.redelivered() { 0 } else { *new_in_a_row + 1 };
            }
        }
        let adapted = self.prefetch.adapt();
        match self.young {
            None => adapted,
            Some((_, new_in_a_row)) if new_in_a_row < FIRST => None,
            Some((first, _)) => {
                self.young = None;
                (self.prefetch.current() != first).then(|| self.prefetch.current())
            }
        }
    }
}
