//! Deliveries that were taken from a lane together, from their arrival until they are settled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Shared;
use super::in_flight::Held;
use super::low::Holding;
use super::survivors::Survivors;
use crate::broker::Delivery;
use crate::cache::LowWatermark;

/// Deliveries in order. Dropped before they are settled, they return to their queue.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) deliveries: Vec<Delivery>,
    _held: Held,
    holding: Holding,
    survivors: Arc<Survivors>,
    is_settled: AtomicBool,
}

impl Taken {
    pub(super) fn new(shared: &Shared, deliveries: Vec<Delivery>) -> Self {
        Self {
            _held: shared.in_flight.hold(),
            holding: shared.low.take(&deliveries),
            survivors: Arc::clone(&shared.survivors),
            is_settled: AtomicBool::new(false),
            deliveries,
        }
    }

    /// Returns a bound for the arrival of one of the deliveries.
    pub(super) fn bound_of(&self, delivery: &Delivery) -> LowWatermark {
        self.holding.bound_of(delivery)
    }

    /// Returns the deliveries to a caller that covers them.
    pub(super) fn into_deliveries(mut self) -> Vec<Delivery> {
        self.settled();
        std::mem::take(&mut self.deliveries)
    }

    /// Notes that their effects are in Redis, and their republished messages are covered.
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
