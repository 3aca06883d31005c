//! Deliveries that are settled and wait for their acknowledgement: several are acknowledged at once.

use std::time::{Duration, Instant};

use super::SettledBatch;
use crate::broker::{Lane, SessionEnded, Tag};
use crate::worker::suspects::Suspects;

/// Of a backlog more is to come: with nothing in hand otherwise, what is settled waits so long for
/// it.
const MORE_COMES: Duration = Duration::from_millis(2);

/// Nor does it wait longer for what is in hand beside it: Redis may be silent, and the broker take
/// no copies.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(100);

/// What is settled and not acknowledged yet: all up to a tag.
#[derive(Debug, Default)]
pub(super) struct Settled {
    through: Option<Tag>,
    /// When the first of it was.
    since: Option<Instant>,
    deliveries: usize,
}

impl Settled {
    pub(super) fn any(&self) -> bool {
        self.through.is_some()
    }

    /// One more batch, and all before it are; acknowledges them once there are that many.
    pub(super) fn note(
        &mut self,
        lane: &Lane,
        (batch, copied): &SettledBatch,
        suspects: &Suspects<'_>,
        at_once: u16,
    ) -> Result<(), SessionEnded> {
        if suspects.any() {
            // Those stand among what is settled, and are not.
            self.acknowledge(lane)?;
            return batch.deliveries().iter().try_for_each(|delivery| lane.ack_one(delivery.tag()));
        }
        self.through = batch.last_tag();
        self.since.get_or_insert_with(Instant::now);
        self.deliveries += batch.deliveries().len();
        if *copied || self.deliveries >= usize::from(at_once) {
            self.acknowledge(lane)
        } else {
            Ok(())
        }
    }

    /// Waits until it is to be acknowledged, few as it may be.
    pub(super) fn due(
        &self,
        nothing_in_hand: bool,
        more_comes: bool,
    ) -> impl Future<Output = ()> + use<> {
        let latest = self.since.map(|since| since + ACKNOWLEDGED_WITHIN);
        let due = match (nothing_in_hand, more_comes) {
            (true, false) => None,
            (true, true) => latest.map(|latest| latest.min(Instant::now() + MORE_COMES)),
            (false, _) => latest,
        };
        async move {
            if let Some(due) = due {
                tokio::time::sleep_until(due.into()).await;
            }
        }
    }

    pub(super) fn acknowledge(&mut self, lane: &Lane) -> Result<(), SessionEnded> {
        self.since = None;
        self.deliveries = 0;
        self.through.take().map_or(Ok(()), |tag| lane.ack_through(tag))
    }
}
