//! The low watermark: the oldest event that may still be unapplied. If Redis loses data, a heal
//! applies the history again from here.
//!
//! The watermark of a moment covers every event that is unapplied at that moment. If Redis goes
//! back to the moment, it loses all events that were applied later. Only the history still has
//! them, and the heal begins at the watermark of the moment, which Redis still has.
//!
//! An event is covered according to its place at that moment:
//! - A worker has it in flight, read or unread, suspected or not. That worker holds it
//!   ([`Holding`]). A new arrival is held after a second at most ([`UnreadDeliveries`]).
//! - It waits in a queue after its first publication. The last look that saw the queue empty is
//!   older than the event.
//! - It waits in a queue after it was requeued or republished. The worker that let go of it covers
//!   it until the queue was seen empty, and for [`OVERLAP`](state::OVERLAP) more. By then, the
//!   worker that received it has recorded it.
//!
//! [`UnreadDeliveries`]: super::unread_deliveries::UnreadDeliveries
//!
//! The arrival time of an event is unknown, so the watermark uses a lower bound. A bound is a time
//! by the worker's clock, and an offset of the history, which no wrong clock can falsify. Its
//! sources are:
//! - For messages delivered for the first time: the start of a look that saw no message waiting in
//!   the queue, since they arrived later. The offset is the end of the history one minute before
//!   the look. A message may be in the history before it is in the queue.
//! - For a republished message: its headers `unstale-arrived-after` and `unstale-arrived-offset`.
//! - For a redelivered message: the lowest low watermark of all workers. It includes that of the
//!   worker that had the message before.

mod state;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use tokio::sync::Notify;

pub(super) use state::Look;

use crate::broker::{Delivery, LaneName};
use crate::cache::LowWatermark;
use crate::event::Provenance;
use crate::telemetry::Metrics;
use state::{Entry, Queue, State};

/// Time after the last delivery during which the end of the history is still sampled.
const SAMPLED_FOR: Duration = Duration::from_secs(90);

/// The low watermark of this worker, and everything that determines it.
#[derive(Debug, Clone)]
pub(super) struct Watermark(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Notified after each look that saw no message waiting in the main queue.
    looked: Notify,
    since: Instant,
    metrics: Metrics,
}

/// The bounds for deliveries that were taken at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    quiet: LowWatermark,
    lowest: LowWatermark,
}

impl Bounds {
    /// Returns a bound for the arrival of one delivery.
    pub(super) fn of(&self, delivery: &Delivery) -> LowWatermark {
        // Republished messages come only through the default exchange.
        if delivery.exchange().is_empty() {
            let message = delivery.message();
            if let Some(copy) = Provenance::of(&message) {
                let time = copy
                    .arrived_after
                    .or(copy.first_time)
                    .and_then(|time| time.parse::<Timestamp>().ok());
                let time_ms = time.and_then(|time| u64::try_from(time.as_millisecond()).ok());
                return time_ms.map_or(self.lowest, |time_ms| LowWatermark {
                    time_ms,
                    offset: copy.arrived_offset.or(self.lowest.offset),
                });
            }
        }
        if delivery.is_first_publication() && !delivery.redelivered() {
            self.quiet
        } else {
            self.lowest
        }
    }
}

/// Deliveries in flight. If it is dropped before they are settled, they count as back in a queue.
#[derive(Debug)]
pub(super) struct Holding {
    watermark: Watermark,
    number: u64,
    bounds: Bounds,
}

impl Watermark {
    /// Returns a low watermark that knows nothing: a message in the queue may have any age.
    pub(super) fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            looked: Notify::new(),
            since: Instant::now(),
            metrics,
        }))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the earliest arrival of any unapplied event that this worker must cover.
    pub(super) fn now(&self) -> LowWatermark {
        self.change(|state| state.lowest_bound(Instant::now()))
    }

    /// Returns whether all is settled, and nothing that this worker let go of waits anywhere.
    pub(super) fn is_all_settled(&self) -> bool {
        self.change(|state| {
            state.lowest_bound(Instant::now());
            state.in_flight.is_empty() && state.let_go.is_empty()
        })
    }

    /// Takes over the low watermark that this worker found at its start, and covers what stopped
    /// workers covered. `is_alone`: no other worker lives.
    pub(super) fn inherit(
        &self,
        lowest: Option<LowWatermark>,
        copies_wait: Duration,
        is_alone: bool,
    ) {
        let Some(lowest) = lowest else { return };
        self.change(|state| {
            if state.quiet.time_ms < lowest.time_ms {
                state.quiet = LowWatermark {
                    time_ms: lowest.time_ms,
                    offset: lowest.offset.or(state.quiet.offset),
                };
            }
            (state.lowest, state.inherited) = (lowest, is_alone.then_some(lowest));
        });
        self.take_over(lowest, copies_wait);
    }

    /// Returns the low watermark that this worker found at its start. Returns `None` if no worker
    /// left one, another worker lived, or a heal has applied all of the history since.
    pub(super) fn inherited(&self) -> Option<LowWatermark> {
        self.change(|state| state.inherited)
    }

    /// Covers the events that a stopped worker covered. Its republished messages wait for
    /// `copies_wait` at most.
    pub(super) fn take_over(&self, bound: LowWatermark, copies_wait: Duration) {
        let (now, back) = (self.second(Duration::ZERO), self.second(copies_wait));
        self.change(|state| {
            state.let_go(Queue::Main, back, bound);
            state.let_go(Queue::Slow, now, bound);
        });
    }

    /// Notes that everything before `at` and `offset` is applied: there was no queue, or a heal has
    /// applied the history. Deliveries in flight keep their bounds, since an event may be in its
    /// queue before it is in the history.
    ///
    /// `left_out` is the lowest offset that the heal did not apply. Its event may wait in any
    /// queue, as it arrived or as a republished message. So everything that covers it stays.
    pub(super) fn begin(&self, at: SystemTime, offset: u64, left_out: Option<u64>) {
        let time_ms = at
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        self.change(|state| {
            let offset = left_out.map_or(offset, |left_out| left_out.min(offset));
            state.quiet =
                LowWatermark { time_ms: time_ms.max(state.quiet.time_ms), offset: Some(offset) };
            if left_out.is_none() {
                state.let_go.clear();
                state.inherited = None;
            }
            state.quieter = None;
            state.lowest = state.lowest_bound(Instant::now());
        });
    }

    /// Sets the lowest low watermark of all workers.
    pub(super) fn set_lowest(&self, lowest: Option<LowWatermark>) {
        self.change(|state| state.lowest = lowest.unwrap_or_default());
    }

    /// Returns whether the end of the history is worth a sample.
    pub(super) fn wants_sample(&self) -> bool {
        self.change(|state| {
            state.samples.is_empty() || state.taken_at.is_some_and(|at| at.elapsed() < SAMPLED_FOR)
        })
    }

    /// Notes that the history has a message of that offset, shortly before its end. Returns whether
    /// the stream was replaced by another one.
    pub(super) fn sampled(&self, offset: u64) -> bool {
        self.change(|state| state.sampled(Instant::now(), offset))
    }

    /// Returns the offset of the newest known message of the history.
    pub(super) fn newest_sample(&self) -> Option<u64> {
        self.change(|state| state.samples.back().map(|(_, offset)| *offset))
    }

    /// Enters deliveries that a lane has just handed out, and covers them.
    pub(super) fn take<'d>(&self, deliveries: impl IntoIterator<Item = &'d Delivery>) -> Holding {
        self.enter(deliveries, Some(SystemTime::now()))
    }

    /// Enters deliveries that are unread, and covers them.
    pub(super) fn take_unread<'d>(
        &self,
        deliveries: impl IntoIterator<Item = &'d Delivery>,
    ) -> Holding {
        self.enter(deliveries, None)
    }

    fn enter<'d>(
        &self,
        deliveries: impl IntoIterator<Item = &'d Delivery>,
        arrived: Option<SystemTime>,
    ) -> Holding {
        let (number, bounds) = self.change_in_flight(|state| {
            let bounds = Bounds { quiet: state.quiet, lowest: state.lowest };
            let bound = deliveries
                .into_iter()
                .map(|delivery| bounds.of(delivery))
                .reduce(LowWatermark::lower)
                .unwrap_or(bounds.quiet);
            state.taken_at = Some(Instant::now());
            state.next += 1;
            state.in_flight.insert(state.next, Entry { bound, arrived });
            (state.next, bounds)
        });
        Holding { watermark: self.clone(), number, bounds }
    }

    /// Returns when the oldest delivery arrived that is read and not settled.
    pub(super) fn oldest_unsettled(&self) -> Option<SystemTime> {
        self.change(|state| state.oldest_unsettled())
    }

    fn change_in_flight<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        self.change(|state| {
            let changed = change(state);
            self.0.metrics.set_oldest_unsettled(state.oldest_unsettled());
            changed
        })
    }

    /// Notes that a message was republished for a lane. It leaves the retry queue, if it waits in
    /// one, within `delay`.
    pub(super) fn copied(&self, lane: LaneName, delay: Duration, bound: LowWatermark) {
        let queue = match lane {
            LaneName::Main => Queue::Main,
            LaneName::Slow => Queue::Slow,
        };
        let back = self.second(delay);
        self.change(|state| state.let_go(queue, back, bound));
    }

    /// Notes that the session has ended, so that unread deliveries return to their queues.
    pub(super) fn session_ended(&self) {
        let now = self.second(Duration::ZERO);
        self.change(|state| {
            state.quieter = None;
            // Republished and redelivered messages may be among them, in either queue.
            let bound = state.quiet.lower(state.lowest);
            for queue in [Queue::Main, Queue::Slow] {
                state.let_go(queue, now, bound);
            }
        });
    }

    /// Returns whether something that this worker let go of may still wait in a retry queue.
    pub(super) fn waits_for_retries(&self) -> bool {
        let second = self.second(Duration::ZERO);
        self.change(|state| {
            state
                .let_go
                .iter()
                .any(|((_, back), gone)| *back >= second && gone.seen_empty.is_none())
        })
    }

    /// Evaluates a look at the queues.
    pub(super) fn looked(&self, look: Look) {
        let second = self.second(Duration::ZERO);
        self.change(|state| state.looked(look, second, Instant::now()));
        if look.main_empty {
            self.0.looked.notify_one();
        }
    }

    /// Waits for a look that saw the main queue empty. The main lane then checks whether any
    /// delivery is unread.
    pub(super) async fn asks(&self) {
        self.0.looked.notified().await;
    }

    /// Notes that no delivery to the main lane is unread.
    pub(super) fn all_read(&self) {
        self.change(|state| state.all_read(Instant::now()));
    }

    fn second(&self, delay: Duration) -> u64 {
        (self.0.since.elapsed() + delay).as_secs()
    }
}

impl Holding {
    /// Returns a bound for the arrival of a delivery, which must be one of these.
    pub(super) fn bound_of(&self, delivery: &Delivery) -> LowWatermark {
        self.bounds.of(delivery)
    }

    /// Notes that their effects are in Redis, and their republished messages are covered.
    pub(super) fn settled(&self) {
        self.watermark.change_in_flight(|state| state.in_flight.remove(&self.number));
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let now = self.watermark.second(Duration::ZERO);
        self.watermark.change_in_flight(|state| {
            if let Some(Entry { bound, .. }) = state.in_flight.remove(&self.number) {
                for queue in [Queue::Main, Queue::Slow] {
                    state.let_go(queue, now, bound);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
