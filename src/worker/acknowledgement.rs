//! Decides when the main lane acknowledges settled deliveries.
//!
//! A delivery is settled once Redis has answered for each of its effects, and RabbitMQ has
//! confirmed each message that was republished for it. The main lane acknowledges no delivery
//! before. One `basic.ack` with `multiple` acknowledges all settled deliveries, at the first of
//! these moments:
//! - At once, if the batch has republished messages. Until then a crash would publish them twice.
//! - At once, if as many are settled as the prefetch divided by [`ACKNOWLEDGED_PART`].
//! - If nothing else is in flight: at once, or with a backlog after [`MORE_COMES`] without a new
//!   batch.
//! - After [`ACKNOWLEDGED_WITHIN`], even if other batches are still in flight.
//!
//! While the lane holds suspected poison messages, each delivery is acknowledged alone. The tags of
//! these messages are between those of settled deliveries, so `multiple` would acknowledge them.
//!
//! `main_lane.rs` acknowledges as decided here. The slow lane and `suspected_poison.rs` acknowledge
//! each delivery alone, as soon as it is settled. A suspected poison message that
//! `suspected_poison.rs` sets aside is not settled. It is acknowledged when the broker has
//! confirmed its republished message.

use std::time::{Duration, Instant};

use crate::broker::Tag;

/// Divisor of the prefetch. Settled deliveries are acknowledged once there are as many as the
/// quotient. Each acknowledgement is an entry in the quorum queue's log, so fewer, larger ones are
/// cheaper.
const ACKNOWLEDGED_PART: u16 = 8;

/// Maximum time settled deliveries wait for more during a backlog, with nothing else in flight.
const MORE_COMES: Duration = Duration::from_millis(2);

/// Maximum time settled deliveries wait for their acknowledgement while others are in flight. The
/// others may take long: Redis may not answer, and the broker may confirm no republished message.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(100);

/// The settled deliveries that are not acknowledged.
#[derive(Debug)]
pub(super) struct Unacknowledged<T = Tag> {
    /// The newest of them. All earlier deliveries are settled or acknowledged.
    through: Option<T>,
    /// When the first of them was settled.
    since: Option<Instant>,
    deliveries: usize,
}

/// A batch that has just been settled. All batches before it are settled too.
#[derive(Debug, Clone, Copy)]
pub(super) struct JustSettled<T = Tag> {
    /// The tag of its newest delivery.
    pub(super) through: Option<T>,
    pub(super) deliveries: usize,
    /// True if messages were republished for it.
    pub(super) has_republished: bool,
}

/// The state of the lane, as far as an acknowledgement depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct LaneState {
    /// The prefetch that the lane consumes with. During an outage of Redis it is 0, so that each
    /// batch is acknowledged at once.
    pub(super) prefetch: u16,
    /// True if the lane holds suspected poison messages.
    pub(super) has_suspects: bool,
}

/// The acknowledgement that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acknowledge<T = Tag> {
    /// Nothing yet.
    Later,
    /// Everything up to this delivery.
    Through(T),
    /// Everything up to `before` in one acknowledgement, then each delivery of the batch alone.
    EachAlone {
        /// The newest delivery that was settled before the batch.
        before: Option<T>,
    },
}

impl<T> Default for Unacknowledged<T> {
    fn default() -> Self {
        Self { through: None, since: None, deliveries: 0 }
    }
}

impl<T: Copy> Unacknowledged<T> {
    /// Returns true if any delivery is settled and not acknowledged.
    pub(super) fn any(&self) -> bool {
        self.through.is_some()
    }

    /// Adds a batch, and returns what must be acknowledged at once.
    pub(super) fn add(
        &mut self,
        batch: JustSettled<T>,
        lane: LaneState,
        now: impl FnOnce() -> Instant,
    ) -> Acknowledge<T> {
        if lane.has_suspects {
            return Acknowledge::EachAlone { before: self.take() };
        }
        self.through = batch.through;
        self.since.get_or_insert_with(now);
        self.deliveries += batch.deliveries;
        let enough = usize::from(lane.prefetch / ACKNOWLEDGED_PART);
        if batch.has_republished || self.deliveries >= enough {
            self.take().map_or(Acknowledge::Later, Acknowledge::Through)
        } else {
            Acknowledge::Later
        }
    }

    /// Returns when the settled deliveries must be acknowledged, even if they are few. `None` means
    /// at once.
    pub(super) fn due(
        &self,
        nothing_else_in_flight: bool,
        more_comes: bool,
        now: impl FnOnce() -> Instant,
    ) -> Option<Instant> {
        let latest = self.since.map(|since| since + ACKNOWLEDGED_WITHIN);
        match (nothing_else_in_flight, more_comes) {
            (true, false) => None,
            (true, true) => latest.map(|latest| latest.min(now() + MORE_COMES)),
            (false, _) => latest,
        }
    }

    /// Returns the delivery up to which everything must be acknowledged, if any, and counts it as
    /// acknowledged.
    pub(super) fn take(&mut self) -> Option<T> {
        self.since = None;
        self.deliveries = 0;
        self.through.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFETCH: u16 = 80;

    fn settled(through: u64, deliveries: usize) -> JustSettled<u64> {
        JustSettled { through: Some(through), deliveries, has_republished: false }
    }

    #[test]
    fn a_batch_is_acknowledged_at_once_if_it_republished_or_if_enough_is_settled() {
        let republished = |batch| JustSettled { has_republished: true, ..batch };
        // The deliveries settled before, the batch, the prefetch, suspected poison messages, and
        // what is acknowledged.
        let cases = [
            (0, settled(1, 1), PREFETCH, false, Acknowledge::Later),
            (0, settled(9, 9), PREFETCH, false, Acknowledge::Later),
            (0, settled(10, 10), PREFETCH, false, Acknowledge::Through(10)),
            (9, settled(10, 1), PREFETCH, false, Acknowledge::Through(10)),
            (8, settled(9, 1), PREFETCH, false, Acknowledge::Later),
            (0, republished(settled(1, 1)), PREFETCH, false, Acknowledge::Through(1)),
            (8, republished(settled(9, 1)), PREFETCH, false, Acknowledge::Through(9)),
            (0, settled(1, 1), 0, false, Acknowledge::Through(1)),
            (0, settled(1, 1), PREFETCH, true, Acknowledge::EachAlone { before: None }),
            (8, settled(9, 1), PREFETCH, true, Acknowledge::EachAlone { before: Some(8) }),
        ];
        for (before, batch, prefetch, has_suspects, expected) in cases {
            let (mut unacknowledged, now) = (Unacknowledged::default(), Instant::now());
            let lane = LaneState { prefetch: PREFETCH, has_suspects: false };
            if before > 0 {
                let before = settled(before, usize::try_from(before).unwrap());
                assert_eq!(unacknowledged.add(before, lane, || now), Acknowledge::Later);
            }
            let found = unacknowledged.add(batch, LaneState { prefetch, has_suspects }, || now);
            assert_eq!(found, expected, "{before} before {batch:?}");
            assert_eq!(unacknowledged.any(), expected == Acknowledge::Later);
        }
    }

    #[test]
    fn few_settled_deliveries_wait_for_others_and_not_for_long() {
        let now = Instant::now();
        let later = now + Duration::from_millis(99);
        // Nothing else in flight, a backlog, the time, and when the acknowledgement is due.
        let cases = [
            (true, false, now, None),
            (true, true, now, Some(now + MORE_COMES)),
            (true, true, later, Some(now + ACKNOWLEDGED_WITHIN)),
            (false, false, now, Some(now + ACKNOWLEDGED_WITHIN)),
            (false, true, later, Some(now + ACKNOWLEDGED_WITHIN)),
        ];
        let mut unacknowledged = Unacknowledged::default();
        let lane = LaneState { prefetch: PREFETCH, has_suspects: false };
        unacknowledged.add(settled(1, 1), lane, || now);
        unacknowledged.add(settled(2, 1), lane, || later);
        for (nothing_else, more_comes, at, expected) in cases {
            assert_eq!(unacknowledged.due(nothing_else, more_comes, || at), expected);
        }
        assert_eq!(unacknowledged.take(), Some(2));
        assert_eq!((unacknowledged.take(), unacknowledged.any()), (None, false));
    }
}
