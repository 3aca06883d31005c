//! Counts the deliveries in flight, and keeps the arrival time of the oldest unsettled one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::broker::LaneName;
use crate::telemetry::Metrics;

/// Counts the deliveries in flight by lane, and remembers when unsettled deliveries arrived.
#[derive(Debug, Clone)]
pub(super) struct InFlight(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lanes: [AtomicUsize; 2],
    unsettled: Mutex<Unsettled>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Unsettled {
    next: u64,
    /// In order of arrival.
    arrived: BTreeMap<u64, SystemTime>,
}

/// Deliveries that arrived together. Dropping it notes that they are settled or requeued.
#[derive(Debug)]
pub(super) struct Held {
    in_flight: InFlight,
    number: u64,
}

impl InFlight {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            lanes: [AtomicUsize::new(0), AtomicUsize::new(0)],
            unsettled: Mutex::default(),
            metrics,
        }))
    }

    /// Notes how many deliveries of a lane are in flight.
    pub(super) fn set(&self, lane: LaneName, deliveries: usize) {
        let place = match lane {
            LaneName::Main => 0,
            LaneName::Slow => 1,
        };
        if self.0.lanes[place].swap(deliveries, Ordering::Relaxed) != deliveries {
            self.0.metrics.set_in_flight(self.count());
        }
    }

    /// Notes that the session has ended, so that nothing is in flight.
    pub(super) fn session_ended(&self) {
        self.set(LaneName::Main, 0);
        self.set(LaneName::Slow, 0);
    }

    /// Notes that deliveries arrived just now.
    pub(super) fn hold(&self) -> Held {
        let number = self.change(|unsettled| {
            let number = unsettled.next;
            unsettled.next += 1;
            unsettled.arrived.insert(number, SystemTime::now());
            number
        });
        Held { in_flight: self.clone(), number }
    }

    /// Returns how many deliveries are in flight, and when the oldest unsettled one arrived.
    pub(super) fn now(&self) -> (usize, Option<SystemTime>) {
        let unsettled = self.0.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
        (self.count(), unsettled.arrived.values().next().copied())
    }

    fn count(&self) -> usize {
        self.0.lanes.iter().map(|lane| lane.load(Ordering::Relaxed)).sum()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Unsettled) -> T) -> T {
        let mut unsettled = self.0.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut unsettled);
        self.0.metrics.set_oldest_unsettled(unsettled.arrived.values().next().copied());
        changed
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.in_flight.change(|unsettled| unsettled.arrived.remove(&self.number));
    }
}
