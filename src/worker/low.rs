//! The low watermark: from there the history is to be applied again, should Redis go back to what
//! it holds now.
//!
//! It must reach back to every event that is not applied now. An event may be applied a moment
//! later, and Redis may lose that with all that came after this moment. Then only the history has
//! the event, and a heal begins at the low watermark of this moment. So it does not matter that
//! an event is applied later anyway. It matters where the event is now:
//! - A worker has it in flight, read or unread, suspected or not: that worker holds it
//!   ([`Holding`]). What has just arrived is unread for a second at most ([`Unread`]).
//! - It waits in a queue, after its first publication: the look that last saw the queue empty is
//!   older.
//! - It waits in a queue, requeued or republished: the worker that let go of it covers it, until
//!   the queue was seen empty, and for [`OVERLAP`] more.
//!
//! [`Unread`]: super::unread::Unread
//!
//! At any moment somebody's mark covers every event that some queue or worker still holds: the one
//! that holds it, or the one that let go of it, until whoever has it next must have said so. When
//! an event arrived nobody tells us, so a bound stands for it: a time by our clock, and an offset
//! of the history, which no clock can spoil.
//! - The start of a look at the queue that saw nothing waiting: what comes to us first-hand after
//!   it arrived after it. Beside it, the end of the history as it was a minute before: what the
//!   queue gets later may already have been in the history.
//! - What a copy says of itself (`unstale-arrived-after`, `unstale-arrived-offset`).
//! - For what is redelivered, the lowest of all marks: whoever had it covers it there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::broker::{Delivery, LaneName};
use crate::cache::LowWatermark;
use crate::event::Provenance;

/// Time after the queue was seen empty, in which another worker has covered what it got from there.
/// It does so within seconds.
const OVERLAP: Duration = Duration::from_secs(120);

/// What the broker had delivered when it answered a look has arrived by then.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// An event may be in the history for so long before its queue has it.
const QUEUE_LAG: Duration = Duration::from_secs(60);

/// While events come, and for so long after, it is worth knowing where the history ends.
const SAMPLED_FOR: Duration = Duration::from_secs(90);

/// The bound of this worker, and all that makes it.
#[derive(Debug, Clone)]
pub(super) struct Low(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Told after each look that saw nothing waiting.
    looked: Notify,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// What comes first-hand arrived after this.
    quiet: LowWatermark,
    /// The start of a newer look that saw nothing waiting, and when it was answered; it counts once
    /// nothing delivered before is left unread.
    quieter: Option<(LowWatermark, Instant)>,
    /// The lowest of all marks, as of the last tick.
    lowest: LowWatermark,
    /// What the workers before this one left unapplied, where no heal has applied it since.
    inherited: Option<LowWatermark>,
    next: u64,
    in_hand: HashMap<u64, LowWatermark>,
    /// What we let go of, by the queue that it went to, and the second in which it is back from
    /// there at the latest.
    let_go: BTreeMap<(Queue, u64), LetGo>,
    /// Offsets close before the history's end, and when it was there, oldest first.
    samples: VecDeque<(Instant, u64)>,
    /// When deliveries were taken last.
    taken_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Queue {
    Main,
    Slow,
}

/// A look at the queues.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// When it began, by the clock.
    pub(super) began: SystemTime,
    /// Nothing waited in the main queue.
    pub(super) main_empty: bool,
    /// Nothing waited in the slow queue.
    pub(super) slow_empty: bool,
    /// Since then, nothing has waited in any retry queue, as far as one may believe that.
    pub(super) retries_empty_since: Option<Instant>,
}

#[derive(Debug)]
struct LetGo {
    bound: LowWatermark,
    /// When something was let go of last.
    since: Instant,
    /// When the queue was first seen empty after that second.
    seen_empty: Option<Instant>,
}

/// The bounds that hold for what was taken in hand at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    quiet: LowWatermark,
    lowest: LowWatermark,
}

impl Bounds {
    /// A bound for the arrival of one delivery.
    pub(super) fn of(&self, delivery: &Delivery) -> LowWatermark {
        // Only the default exchange has copies.
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
        if delivery.is_first_hand() && !delivery.redelivered() { self.quiet } else { self.lowest }
    }
}

/// Deliveries in hand. Dropped, they go back to their queue, unless they are settled.
#[derive(Debug)]
pub(super) struct Holding {
    low: Low,
    number: u64,
    bounds: Bounds,
}

impl Low {
    /// Nothing is known: what is in the queue may be as old as anything.
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            looked: Notify::new(),
            since: Instant::now(),
        }))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The earliest arrival of anything that is not applied yet, as far as this worker is to answer
    /// for it.
    pub(super) fn now(&self) -> LowWatermark {
        self.change(|state| state.lowest_bound(Instant::now()))
    }

    /// Returns whether all is settled, and nothing that this worker let go of waits anywhere.
    pub(super) fn is_all_settled(&self) -> bool {
        self.change(|state| {
            state.lowest_bound(Instant::now());
            state.in_hand.is_empty() && state.let_go.is_empty()
        })
    }

    /// What was found when this worker began: it answers for what those that are gone answered for.
    /// `is_alone`: no other worker lives.
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

    /// Returns the low watermark that this worker found when it began; `None` where nobody left
    /// one, where another worker lived, or where a heal has applied all of the history since.
    pub(super) fn inherited(&self) -> Option<LowWatermark> {
        self.change(|state| state.inherited)
    }

    /// Answers for what a worker that is gone answered for: copies of its own wait for so long at
    /// most.
    pub(super) fn take_over(&self, bound: LowWatermark, copies_wait: Duration) {
        let (now, back) = (self.second(Duration::ZERO), self.second(copies_wait));
        self.change(|state| {
            state.let_go(Queue::Main, back, bound);
            state.let_go(Queue::Slow, now, bound);
        });
    }

    /// Everything that arrived before that time and that offset is applied: there was no queue, or
    /// a heal has applied the history. What is in flight stays where it was: the history may get
    /// it later than its queue.
    ///
    /// `left_out` is the lowest offset that the heal did not apply. Its event may wait in any
    /// queue, as it arrived or as a republished message: all that covers it stays.
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

    /// The lowest of all marks is this.
    pub(super) fn set_lowest(&self, lowest: Option<LowWatermark>) {
        self.change(|state| state.lowest = lowest.unwrap_or_default());
    }

    /// Returns whether it is worth knowing where the history ends.
    pub(super) fn wants_sample(&self) -> bool {
        self.change(|state| {
            state.samples.is_empty() || state.taken_at.is_some_and(|at| at.elapsed() < SAMPLED_FOR)
        })
    }

    /// The history has a message of that offset, close before its end. Returns whether the stream
    /// is another one than before.
    pub(super) fn sampled(&self, offset: u64) -> bool {
        self.change(|state| state.sampled(Instant::now(), offset))
    }

    /// Returns the offset of the newest message of the history that is known.
    pub(super) fn newest_sample(&self) -> Option<u64> {
        self.change(|state| state.samples.back().map(|(_, offset)| *offset))
    }

    /// Takes deliveries in hand.
    pub(super) fn take<'d>(&self, deliveries: impl IntoIterator<Item = &'d Delivery>) -> Holding {
        let (number, bounds) = self.change(|state| {
            let bounds = Bounds { quiet: state.quiet, lowest: state.lowest };
            let bound = deliveries
                .into_iter()
                .map(|delivery| bounds.of(delivery))
                .reduce(LowWatermark::lower)
                .unwrap_or(bounds.quiet);
            state.taken_at = Some(Instant::now());
            state.next += 1;
            state.in_hand.insert(state.next, bound);
            (state.next, bounds)
        });
        Holding { low: self.clone(), number, bounds }
    }

    /// A copy went to a lane's queue, and comes back from wherever it waits before within `delay`.
    pub(super) fn copied(&self, lane: LaneName, delay: Duration, bound: LowWatermark) {
        let queue = match lane {
            LaneName::Main => Queue::Main,
            LaneName::Slow => Queue::Slow,
        };
        let back = self.second(delay);
        self.change(|state| state.let_go(queue, back, bound));
    }

    /// The session is over: what was delivered and not yet read goes back.
    pub(super) fn session_ended(&self) {
        let now = self.second(Duration::ZERO);
        self.change(|state| {
            state.quieter = None;
            // Republished and redelivered messages may be among it, in either queue.
            let bound = state.quiet.lower(state.lowest);
            for queue in [Queue::Main, Queue::Slow] {
                state.let_go(queue, now, bound);
            }
        });
    }

    /// Returns whether something that was let go of may still wait in a retry queue.
    pub(super) fn waits_for_retries(&self) -> bool {
        let second = self.second(Duration::ZERO);
        self.change(|state| {
            state
                .let_go
                .iter()
                .any(|((_, back), gone)| *back >= second && gone.seen_empty.is_none())
        })
    }

    /// Takes in a look at the queues.
    pub(super) fn looked(&self, look: Look) {
        let second = self.second(Duration::ZERO);
        self.change(|state| state.looked(look, second, Instant::now()));
        if look.main_empty {
            self.0.looked.notify_one();
        }
    }

    /// Waits until it is worth while to find out whether anything delivered is left unread.
    pub(super) async fn asks(&self) {
        self.0.looked.notified().await;
    }

    /// Nothing that was delivered to the main lane is left unread.
    pub(super) fn all_read(&self) {
        self.change(|state| state.all_read(Instant::now()));
    }

    fn second(&self, delay: Duration) -> u64 {
        (self.0.since.elapsed() + delay).as_secs()
    }
}

impl State {
    fn lowest_bound(&mut self, now: Instant) -> LowWatermark {
        self.let_go.retain(|_, gone| {
            gone.seen_empty.is_none_or(|seen| now.duration_since(seen) < OVERLAP)
        });
        let others =
            self.in_hand.values().copied().chain(self.let_go.values().map(|gone| gone.bound));
        others.fold(self.quiet, LowWatermark::lower)
    }

    fn sampled(&mut self, now: Instant, offset: u64) -> bool {
        let is_another = self.samples.back().is_some_and(|(_, newest)| offset < *newest);
        if is_another {
            // The stream was deleted, and another one began: offsets of the old one say nothing.
            self.samples.clear();
            let held = self
                .in_hand
                .values_mut()
                .chain(self.let_go.values_mut().map(|gone| &mut gone.bound));
            held.chain([&mut self.quiet, &mut self.lowest])
                .for_each(|bound| bound.offset = Some(0));
            self.quieter = None;
        }
        self.samples.push_back((now, offset));
        // One that is old enough suffices.
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= QUEUE_LAG) {
            self.samples.pop_front();
        }
        is_another
    }

    /// Returns a lower bound of the offsets of events that reach the queue from now on.
    fn end_before_lag(&self, now: Instant) -> Option<u64> {
        let old = self.samples.iter().rev().find(|(at, _)| now.duration_since(*at) >= QUEUE_LAG);
        old.map(|(_, offset)| *offset).max(self.quiet.offset)
    }

    fn looked(&mut self, look: Look, second: u64, now: Instant) {
        let Look { began, main_empty, slow_empty, retries_empty_since } = look;
        let began_ms = began
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        if main_empty && self.quieter.is_none() {
            self.quieter =
                Some((LowWatermark { time_ms: began_ms, offset: self.end_before_lag(now) }, now));
        }
        for ((queue, back), gone) in &mut self.let_go {
            let empty = match queue {
                Queue::Main => main_empty,
                Queue::Slow => slow_empty,
            };
            // What has left the retry queues is in the others, or in somebody's hand.
            let is_back =
                *back < second || retries_empty_since.is_some_and(|since| gone.since < since);
            if empty && is_back {
                gone.seen_empty.get_or_insert(now);
            }
        }
    }

    fn all_read(&mut self, now: Instant) {
        if let Some((quiet, answered)) = self.quieter
            && now.duration_since(answered) >= UNDER_WAY
        {
            self.quiet = LowWatermark {
                time_ms: quiet.time_ms.max(self.quiet.time_ms),
                offset: quiet.offset.max(self.quiet.offset),
            };
            self.quieter = None;
        }
    }

    fn let_go(&mut self, queue: Queue, back: u64, bound: LowWatermark) {
        let now = Instant::now();
        let gone = self.let_go.entry((queue, back)).or_insert(LetGo {
            bound,
            since: now,
            seen_empty: None,
        });
        (gone.bound, gone.since) = (gone.bound.lower(bound), now);
        gone.seen_empty = None;
    }
}

impl Holding {
    /// A bound for the arrival of one of the deliveries.
    pub(super) fn bound_of(&self, delivery: &Delivery) -> LowWatermark {
        self.bounds.of(delivery)
    }

    /// Their effects hold, and their copies are covered.
    pub(super) fn settled(&self) {
        self.low.change(|state| state.in_hand.remove(&self.number));
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let now = self.low.second(Duration::ZERO);
        self.low.change(|state| {
            if let Some(bound) = state.in_hand.remove(&self.number) {
                for queue in [Queue::Main, Queue::Slow] {
                    state.let_go(queue, now, bound);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
