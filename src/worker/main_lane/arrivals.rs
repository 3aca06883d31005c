//! Reads the deliveries that arrive in the main lane. It puts back those that do not fit into the
//! batch.

use crate::broker::{Delivery, Lane, LaneName, SessionEnded};
use crate::http::Readiness;
use crate::worker::low_watermark::Watermark;
use crate::worker::pipeline::Pipeline;
use crate::worker::resolver::{FirstLook, Heavy};
use crate::worker::suspected_poison::SuspectedPoison;
use crate::worker::unread_deliveries::UnreadDeliveries;

/// The lane, with the deliveries that it has not handed out. The low watermark includes them.
pub(super) struct Arrivals<'l> {
    pub(super) lane: &'l mut Lane,
    pipeline: Pipeline<'l>,
    watermark: &'l Watermark,
    readiness: &'l Readiness,
    unread: UnreadDeliveries,
}

impl<'l> Arrivals<'l> {
    /// Returns the arrivals of a lane.
    pub(super) fn new(
        lane: &'l mut Lane,
        pipeline: Pipeline<'l>,
        watermark: &'l Watermark,
        readiness: &'l Readiness,
    ) -> Self {
        Self { lane, pipeline, watermark, readiness, unread: UnreadDeliveries::default() }
    }

    /// Reports that the loop runs. Counts the deliveries in the connection's buffer, and holds them
    /// for the low watermark.
    pub(super) fn beat(&mut self) -> Result<(), SessionEnded> {
        self.readiness.beat();
        self.lane.take_in()?;
        self.unread.are_only(self.watermark, self.lane.not_given_out());
        self.count();
        Ok(())
    }

    /// Counts the deliveries in flight and returns their number.
    pub(super) fn count(&self) -> usize {
        let in_flight = self.lane.in_flight();
        self.pipeline.in_flight.set(LaneName::Main, in_flight);
        in_flight
    }

    /// Releases the holding of unread deliveries once all of them are handed out.
    pub(super) fn uncover(&mut self) {
        if !self.unread.is_empty() && !self.lane.has_left_over() {
            self.unread.are_none();
        }
    }

    /// Reads arrived deliveries, as many as the loop may read for one batch. Puts the rest back.
    /// Returns `None` if all of them are suspected poison messages.
    pub(super) fn read(
        &mut self,
        suspects: &mut SuspectedPoison<'_>,
        mut arrived: Vec<Delivery>,
    ) -> Option<FirstLook> {
        self.count();
        let Pipeline { in_flight, resolver, registry, .. } = self.pipeline;
        suspects.take_from(in_flight, &mut arrived);
        if arrived.is_empty() {
            return None;
        }
        let (read, left) = resolver.read(registry.load_full(), in_flight.take(arrived));
        self.unread.put_back(self.watermark, &left);
        self.lane.put_back(left);
        Some(read)
    }

    /// Puts back a delivery that must not be read now. The lane hands it out again before all
    /// others.
    pub(super) fn put_back(&mut self, heavy: Heavy) {
        // The new holding begins before the old one ends.
        self.unread.put_back(self.watermark, heavy.deliveries());
        self.lane.put_back(heavy.into_deliveries());
    }

    /// Waits for the next deliveries if `takes` is true, otherwise for the end of the session.
    pub(super) async fn next_or_end(
        &mut self,
        takes: bool,
        max: usize,
    ) -> Result<Vec<Delivery>, SessionEnded> {
        if takes {
            self.lane.next_batch_of(|_| true, max).await
        } else {
            Err(self.lane.end().await)
        }
    }

    /// Notifies the low watermark if no delivery is left unread.
    pub(super) fn note_if_all_read(&mut self) -> Result<(), SessionEnded> {
        if self.lane.all_read()? {
            self.watermark.all_read();
        }
        Ok(())
    }
}
