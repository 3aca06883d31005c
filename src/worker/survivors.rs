//! Remembers messages that were in flight when a connection was lost, without the death of this
//! process.
//!
//! The broker counts such a delivery like one whose worker has died. Only the second is a sign of
//! poison.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::broker::Delivery;

/// Minimum number of remembered messages. At most twice as many are remembered.
const REMEMBERED: usize = 16_384;

/// Maximum number of redeliveries that are forgiven per message. Beyond it, the message may be the
/// one that ends connections.
const FORGIVEN_AT_MOST: u64 = 8;

/// Counts by fingerprint how often this process survived each message. The hasher's key is random,
/// so two messages cannot be made to look alike.
#[derive(Debug, Default)]
pub(super) struct Survivors {
    hasher: RandomState,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Fingerprints of the messages in flight when the session ended that is being closed.
    ended: Vec<u64>,
    newer: HashMap<u64, u64>,
    older: HashMap<u64, u64>,
}

impl Survivors {
    /// Notes deliveries that are dropped unsettled.
    pub(super) fn note<'d>(&self, dropped: impl IntoIterator<Item = &'d Delivery>) {
        let fingerprints = dropped.into_iter().map(|delivery| delivery.fingerprint(&self.hasher));
        self.state().ended.extend(fingerprints);
    }

    /// Notes that the session of the dropped deliveries has ended. `is_forgiven`: its connection
    /// was lost, or this worker requeued its deliveries.
    pub(super) fn session_ended(&self, is_forgiven: bool) {
        let mut state = self.state();
        let ended = std::mem::take(&mut state.ended);
        if is_forgiven {
            ended.into_iter().for_each(|fingerprint| state.survived(fingerprint));
        }
    }

    /// Subtracts the survived redeliveries from the redelivery counts.
    pub(super) fn forgive(&self, arrived: &mut [Delivery]) {
        let is_counted =
            |delivery: &Delivery| delivery.redelivery_count().is_some_and(|count| count > 0);
        if !arrived.iter().any(|delivery| delivery.redelivered()) {
            return;
        }
        let state = self.state();
        for delivery in arrived.iter_mut().filter(|delivery| is_counted(delivery)) {
            let survived = state.times(delivery.fingerprint(&self.hasher));
            delivery.forgive(survived.min(FORGIVEN_AT_MOST));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn times(&self, fingerprint: u64) -> u64 {
        self.newer.get(&fingerprint).or_else(|| self.older.get(&fingerprint)).copied().unwrap_or(0)
    }

    fn survived(&mut self, fingerprint: u64) {
        let times = self.times(fingerprint) + 1;
        if self.newer.len() >= REMEMBERED {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(fingerprint, times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_flight_when_a_connection_was_lost_is_forgiven_and_nothing_else() {
        let survivors = Survivors::default();
        let (first, second) =
            (Delivery::of("events", "a", b"1"), Delivery::of("events", "a", b"2"));
        let times =
            |delivery: &Delivery| survivors.state().times(delivery.fingerprint(&survivors.hasher));
        survivors.note([&first]);
        survivors.session_ended(true);
        survivors.note([&first, &second]);
        survivors.session_ended(false);
        assert_eq!((times(&first), times(&second)), (1, 0));
        survivors.note([&first]);
        survivors.session_ended(true);
        assert_eq!(times(&first), 2);
    }

    #[test]
    fn many_messages_push_out_the_oldest() {
        let mut state = State::default();
        for fingerprint in 0..3 * REMEMBERED as u64 {
            state.survived(fingerprint);
        }
        assert!(state.newer.len() + state.older.len() <= 2 * REMEMBERED);
        assert_eq!((state.times(0), state.times(2 * REMEMBERED as u64)), (0, 1));
    }
}
