//! Holds deliveries that have arrived in a lane and are unread, for the low watermark.
//!
//! Deliveries stay unread during an outage of Redis, a heavy event, or while the account is full.
//! Messages that are delivered for the first time arrived after the look that saw the queue empty.
//! Redelivered and republished messages may be older.

use super::low_watermark::{Holding, Watermark};
use crate::broker::Delivery;

/// The holdings of the deliveries that a lane has not handed out. Dropped, they return to their
/// queue.
#[derive(Debug, Default)]
pub(super) struct UnreadDeliveries(Vec<Holding>);

impl UnreadDeliveries {
    /// Holds exactly these deliveries from now on.
    pub(super) fn are_only<'d>(
        &mut self,
        watermark: &Watermark,
        deliveries: impl Iterator<Item = &'d Delivery>,
    ) {
        let mut deliveries = deliveries.peekable();
        // Takes the new holding first, so that the rest is held all the time.
        let covers = deliveries.peek().is_some().then(|| watermark.take_unread(deliveries));
        self.are_none();
        self.0.extend(covers);
    }

    /// Holds these deliveries too, which are put back.
    pub(super) fn put_back(&mut self, watermark: &Watermark, deliveries: &[Delivery]) {
        if !deliveries.is_empty() {
            self.0.push(watermark.take_unread(deliveries));
        }
    }

    /// Releases the holdings: everything is handed out, and others hold it.
    pub(super) fn are_none(&mut self) {
        self.0.drain(..).for_each(|holding| holding.settled());
    }

    /// Returns whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn what_waits_unread_holds_the_low_watermark_back_until_it_is_given_out() {
        let watermark = Watermark::new(Metrics::new());
        watermark.begin(UNIX_EPOCH + Duration::from_millis(900), 9, None);
        watermark.set_lowest(Some(300.into()));
        let new = Delivery::of("events", "a", b"{}");
        let redelivered = Delivery::of("events", "b", b"{}").redelivered_once();
        let mut unread = UnreadDeliveries::default();
        unread.are_only(&watermark, [&new].into_iter());
        assert_eq!(watermark.now().time_ms, 900, "the look that saw the queue empty covers it");
        unread.put_back(&watermark, std::slice::from_ref(&redelivered));
        assert_eq!(watermark.now().time_ms, 300);
        unread.are_only(&watermark, [&new, &redelivered].into_iter());
        assert_eq!(watermark.now().time_ms, 300);
        unread.are_only(&watermark, [&new].into_iter());
        assert_eq!(watermark.now().time_ms, 900, "a `Taken` holds the other one by now");
        unread.are_only(&watermark, [&redelivered].into_iter());
        unread.are_none();
        assert!(unread.is_empty() && watermark.is_all_settled());
        unread.are_only(&watermark, [&redelivered].into_iter());
        drop(unread);
        assert_eq!(watermark.now().time_ms, 300, "it went back to its queue");
    }
}
