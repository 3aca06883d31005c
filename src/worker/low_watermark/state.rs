//! The state that determines the low watermark: deliveries, looks at the queues, and samples of the
//! history.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::cache::LowWatermark;

/// Time for which the previous holder still covers an event after the queue was seen empty. The
/// worker that received the event covers it within seconds.
pub(super) const OVERLAP: Duration = Duration::from_secs(120);

/// Maximum time after a look until every delivery that the broker sent before its answer is here.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// Maximum time by which an event may be in the history before it is in its queue.
const QUEUE_LAG: Duration = Duration::from_secs(60);

/// The deliveries of this worker, and what it knows about the queues and the history.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Bound for messages delivered for the first time: they arrived after it.
    pub(super) quiet: LowWatermark,
    /// The start of a newer look that saw no message waiting, and when it was answered. It replaces
    /// `quiet` once no earlier delivery is unread.
    pub(super) quieter: Option<(LowWatermark, Instant)>,
    /// The lowest low watermark of all workers, as of the last tick.
    pub(super) lowest: LowWatermark,
    /// The events that earlier workers left unapplied, unless a heal has applied them since.
    pub(super) inherited: Option<LowWatermark>,
    pub(super) next: u64,
    /// The ledger of the deliveries in flight, in order of arrival.
    pub(super) in_flight: BTreeMap<u64, Entry>,
    /// Deliveries that this worker let go of. The key is the queue that they went to, and the
    /// second by which they have left the retry queues.
    pub(super) let_go: BTreeMap<(Queue, u64), LetGo>,
    /// Offsets shortly before the history's end, and when they were sampled, oldest first.
    pub(super) samples: VecDeque<(Instant, u64)>,
    /// When deliveries were last taken.
    pub(super) taken_at: Option<Instant>,
}

/// Deliveries in flight that arrived together.
#[derive(Debug)]
pub(super) struct Entry {
    /// A bound for the arrival of the earliest event.
    pub(super) bound: LowWatermark,
    /// When a lane handed them out. `None` while they are unread.
    pub(super) arrived: Option<SystemTime>,
}

/// A queue that a delivery went back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Queue {
    Main,
    Slow,
}

/// A look at the queues.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Look {
    /// When it began, by the clock.
    pub(in super::super) began: SystemTime,
    /// True if nothing waited in the main queue.
    pub(in super::super) main_empty: bool,
    /// True if nothing waited in the slow queue.
    pub(in super::super) slow_empty: bool,
    /// Since when no retry queue has held a message, as far as that is reliable.
    pub(in super::super) retries_empty_since: Option<Instant>,
}

/// Deliveries that this worker let go of at about the same time.
#[derive(Debug)]
pub(super) struct LetGo {
    pub(super) bound: LowWatermark,
    /// When a delivery was last let go of.
    pub(super) since: Instant,
    /// When the queue was first seen empty after the deliveries had left the retry queues.
    pub(super) seen_empty: Option<Instant>,
}

impl State {
    pub(super) fn oldest_unsettled(&self) -> Option<SystemTime> {
        self.in_flight.values().find_map(|entry| entry.arrived)
    }

    pub(super) fn lowest_bound(&mut self, now: Instant) -> LowWatermark {
        self.let_go.retain(|_, gone| {
            gone.seen_empty.is_none_or(|seen| now.duration_since(seen) < OVERLAP)
        });
        let others = (self.in_flight.values().map(|entry| entry.bound))
            .chain(self.let_go.values().map(|gone| gone.bound));
        others.fold(self.quiet, LowWatermark::lower)
    }

    pub(super) fn sampled(&mut self, now: Instant, offset: u64) -> bool {
        let is_another = self.samples.back().is_some_and(|(_, newest)| offset < *newest);
        if is_another {
            // The stream was deleted and another one began: offsets of the old one have no meaning.
            self.samples.clear();
            let held = (self.in_flight.values_mut().map(|entry| &mut entry.bound))
                .chain(self.let_go.values_mut().map(|gone| &mut gone.bound));
            held.chain([&mut self.quiet, &mut self.lowest])
                .for_each(|bound| bound.offset = Some(0));
            self.quieter = None;
        }
        self.samples.push_back((now, offset));
        // One sample that is old enough suffices.
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

    pub(super) fn looked(&mut self, look: Look, second: u64, now: Instant) {
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
            // A message that has left the retry queues is in another queue, or in flight.
            let is_back =
                *back < second || retries_empty_since.is_some_and(|since| gone.since < since);
            if empty && is_back {
                gone.seen_empty.get_or_insert(now);
            }
        }
    }

    pub(super) fn all_read(&mut self, now: Instant) {
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

    pub(super) fn let_go(&mut self, queue: Queue, back: u64, bound: LowWatermark) {
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
