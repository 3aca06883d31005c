//! Collects settled deliveries and acknowledges several of them at once.

use std::time::{Duration, Instant};

use super::SettledBatch;
use crate::broker::{Lane, SessionEnded, Tag};
use crate::worker::suspects::Suspects;

/// Maximum time settled deliveries wait for more during a backlog, with nothing else in flight.
const MORE_COMES: Duration = Duration::from_millis(2);

/// Maximum time settled deliveries wait for their acknowledgement while others are in flight. Redis
/// may not answer, and the broker may accept no republished messages.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(100);

/// The settled deliveries that are not acknowledged, as the tag up to which all are settled.
#[derive(Debug, Default)]
pub(super) struct Settled {
    through: Option<Tag>,
    /// When the first of them was settled.
    since: Option<Instant>,
    deliveries: usize,
}

impl Settled {
    pub(super) fn any(&self) -> bool {
        self.through.is_some()
    }

    /// Adds one batch; all batches before it are settled. Acknowledges them once they reach
    /// `at_once` deliveries.
    pub(super) fn note(
        &mut self,
        lane: &Lane,
        (batch, copied): &SettledBatch,
        suspects: &Suspects<'_>,
        at_once: u16,
    ) -> Result<(), SessionEnded> {
        if suspects.any() {
            // Suspected poison messages have tags between the settled ones, and are not settled.
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

    /// Waits until the settled deliveries must be acknowledged, even if they are few.
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
