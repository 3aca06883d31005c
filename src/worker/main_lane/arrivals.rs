//! Deliveries that arrive in the main lane: read as far as a batch may take them, or put back.

use crate::broker::{Delivery, Lane, LaneName, SessionEnded};
use crate::worker::Shared;
use crate::worker::resolver::{FirstLook, Heavy};
use crate::worker::suspects::Suspects;
use crate::worker::unread::Unread;

/// The lane, and the cover of what it has not given out.
pub(super) struct Arrivals<'l> {
    pub(super) lane: &'l mut Lane,
    unread: Unread,
}

impl<'l> Arrivals<'l> {
    /// Returns those of a lane.
    pub(super) fn new(lane: &'l mut Lane) -> Self {
        Self { lane, unread: Unread::default() }
    }

    /// Shows that the loop runs, and counts and covers what waits in the connection's buffer.
    pub(super) fn beat(&mut self, shared: &Shared) -> Result<(), SessionEnded> {
        shared.readiness.beat();
        self.lane.take_in()?;
        self.unread.are_only(&shared.low, self.lane.not_given_out());
        self.count(shared);
        Ok(())
    }

    /// Counts what is in flight, and returns it.
    pub(super) fn count(&self, shared: &Shared) -> usize {
        let in_flight = self.lane.in_flight();
        shared.in_flight.set(LaneName::Main, in_flight);
        in_flight
    }

    /// Ends the cover of what waited unread, once all of it is given out.
    pub(super) fn uncover(&mut self) {
        if !self.unread.is_empty() && !self.lane.has_left_over() {
            self.unread.are_none();
        }
    }

    /// Reads what arrived, as much as a batch may take in the loop, and puts the rest back. `None`
    /// where all of it are suspected poison messages.
    pub(super) fn read(
        &mut self,
        shared: &Shared,
        suspects: &mut Suspects<'_>,
        mut arrived: Vec<Delivery>,
    ) -> Option<FirstLook> {
        self.count(shared);
        suspects.take_from(shared, &mut arrived);
        if arrived.is_empty() {
            return None;
        }
        let (read, left) = shared.main_resolver.read(shared, arrived);
        self.unread.put_back(&shared.low, &left);
        self.lane.put_back(left);
        Some(read)
    }

    /// Puts a delivery back that is not to be read now. The lane gives it out again before all
    /// others.
    pub(super) fn put_back(&mut self, shared: &Shared, heavy: Heavy) {
        // First, so that it is covered all the time.
        self.unread.put_back(&shared.low, heavy.deliveries());
        self.lane.put_back(heavy.into_deliveries());
    }

    /// Waits for the next deliveries where more may be taken, else for the end of the session.
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

    /// Tells the low watermark where nothing that was delivered is left unread.
    pub(super) fn note_if_all_read(&mut self, shared: &Shared) -> Result<(), SessionEnded> {
        if self.lane.all_read()? {
            shared.low.all_read();
        }
        Ok(())
    }
}
