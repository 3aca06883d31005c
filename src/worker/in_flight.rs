//! Deliveries in flight: those that a lane handed out together, from then until they are settled or
//! requeued.
//!
//! The ledger of them is in `low_watermark.rs`, since each keeps the low watermark back. This file
//! counts them by lane, and notes in `survivors.rs` those that are dropped unsettled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use super::low_watermark::{Holding, Watermark};
use super::survivors::Survivors;
use crate::broker::{Delivery, LaneName};
use crate::cache::LowWatermark;
use crate::telemetry::Metrics;

/// Takes deliveries, and counts them.
#[derive(Debug)]
pub(super) struct InFlight {
    lanes: [AtomicUsize; 2],
    watermark: Watermark,
    survivors: Arc<Survivors>,
    metrics: Metrics,
}

/// Deliveries in order. Dropped before they are settled, they return to their queue.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) deliveries: Vec<Delivery>,
    holding: Holding,
    survivors: Arc<Survivors>,
    is_settled: AtomicBool,
}

impl InFlight {
    /// Returns a count over both lanes. `low` holds the ledger.
    pub(super) fn new(watermark: Watermark, metrics: Metrics) -> Self {
        Self {
            lanes: [AtomicUsize::new(0), AtomicUsize::new(0)],
            watermark,
            survivors: Arc::default(),
            metrics,
        }
    }

    /// Takes deliveries that a lane has just handed out.
    pub(super) fn take(&self, deliveries: Vec<Delivery>) -> Taken {
        Taken {
            holding: self.watermark.take(&deliveries),
            survivors: Arc::clone(&self.survivors),
            is_settled: AtomicBool::new(false),
            deliveries,
        }
    }

    /// Subtracts the redeliveries that this process survived from the redelivery counts.
    pub(super) fn forgive(&self, arrived: &mut [Delivery]) {
        self.survivors.forgive(arrived);
    }

    /// Notes deliveries that no lane will hand out, since the session ends.
    pub(super) fn drop_unread<'d>(&self, unread: impl IntoIterator<Item = &'d Delivery>) {
        self.survivors.note(unread);
    }

    /// Notes how many deliveries of a lane are in flight.
    pub(super) fn set(&self, lane: LaneName, deliveries: usize) {
        let place = match lane {
            LaneName::Main => 0,
            LaneName::Slow => 1,
        };
        if self.lanes[place].swap(deliveries, Ordering::Relaxed) != deliveries {
            self.metrics.set_in_flight(self.count());
        }
    }

    /// Notes that the session has ended, so that nothing is in flight.
    pub(super) fn session_ended(&self) {
        self.set(LaneName::Main, 0);
        self.set(LaneName::Slow, 0);
    }

    /// Notes whether the deliveries that the session dropped are forgiven: its connection was lost,
    /// or this worker requeued them.
    pub(super) fn forgive_dropped(&self, is_forgiven: bool) {
        self.survivors.session_ended(is_forgiven);
    }

    /// Returns how many deliveries are in flight, and when the oldest unsettled one arrived.
    pub(super) fn now(&self) -> (usize, Option<SystemTime>) {
        (self.count(), self.watermark.oldest_unsettled())
    }

    fn count(&self) -> usize {
        self.lanes.iter().map(|lane| lane.load(Ordering::Relaxed)).sum()
    }
}

impl Taken {
    /// Returns a bound for the arrival of one of the deliveries.
    pub(super) fn bound_of(&self, delivery: &Delivery) -> LowWatermark {
        self.holding.bound_of(delivery)
    }

    /// Returns the deliveries. The caller must hold them for the low watermark.
    pub(super) fn into_deliveries(mut self) -> Vec<Delivery> {
        self.settled();
        std::mem::take(&mut self.deliveries)
    }

    /// Notes that their effects are in Redis, and that the low watermark includes their republished
    /// messages.
    pub(super) fn settled(&self) {
        self.holding.settled();
        self.is_settled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.is_settled.load(Ordering::Relaxed) {
            self.survivors.note(&self.deliveries);
        }
    }
}
