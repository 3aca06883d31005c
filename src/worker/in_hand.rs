//! What has been delivered and is not settled yet: how much, and since when.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::telemetry::Metrics;

/// Counts deliveries from their arrival until they are settled or given up.
#[derive(Debug, Clone)]
pub(super) struct InHand(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    batches: Mutex<Batches>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Batches {
    next: u64,
    /// In order of arrival: when, and how many deliveries.
    arrived: BTreeMap<u64, (SystemTime, usize)>,
    deliveries: usize,
}

/// Deliveries that arrived together; dropped, they are no longer in hand.
#[derive(Debug)]
pub(super) struct Held {
    in_hand: InHand,
    number: u64,
}

impl InHand {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Inner { batches: Mutex::default(), metrics }))
    }

    /// Takes deliveries in hand that have just arrived.
    pub(super) fn take(&self, deliveries: usize) -> Held {
        let number = self.change(|batches| {
            let number = batches.next;
            batches.next += 1;
            batches.arrived.insert(number, (SystemTime::now(), deliveries));
            batches.deliveries += deliveries;
            number
        });
        Held { in_hand: self.clone(), number }
    }

    /// How many deliveries are in hand, and when the oldest of them arrived.
    pub(super) fn now(&self) -> (usize, Option<SystemTime>) {
        let batches = self.0.batches.lock().unwrap_or_else(PoisonError::into_inner);
        (batches.deliveries, batches.arrived.values().next().map(|(arrived, _)| *arrived))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Batches) -> T) -> T {
        let mut batches = self.0.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut batches);
        self.0.metrics.set_in_flight(batches.deliveries);
        self.0.metrics.set_oldest_unsettled(batches.arrived.values().next().map(|(arrived, _)| *arrived));
        changed
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.in_hand.change(|batches| {
            if let Some((_, deliveries)) = batches.arrived.remove(&self.number) {
                batches.deliveries -= deliveries;
            }
        });
    }
}
