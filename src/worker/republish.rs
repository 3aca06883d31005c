//! Publishes retry messages, slow-lane messages and dead letters, and waits for the broker's
//! confirmations.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Mutex;
use tracing::warn;

use super::live::Live;
use super::low_watermark::Watermark;
use crate::broker::{
    self, CopyHeaders, Delivery, LaneName, Names, Outgoing, PublishError, SessionEnded, Signer,
    copy_to,
};
use crate::cache::LowWatermark;
use crate::causes::Cause;
use crate::event::{Decoded, Event, Message, Provenance, Reading, decode};
use crate::http::Readiness;
use crate::plan::{Destination, RepublishOrder};
use crate::telemetry::{EventLog, Metrics, Republished};

/// Time before messages that the broker could not store are published again.
const NACKED_PAUSE: Duration = Duration::from_millis(500);

/// Number of failed attempts in a row after which the worker is not ready.
const REFUSED_AFTER: u32 = 4;

/// Time between two log lines for a queue that does not take messages.
const LOGGED_AGAIN: Duration = Duration::from_secs(60);

/// Number of failed attempts in a row after which the channel is renewed. It may be the channel
/// that fails: see [`broker::Publisher::renew`].
const NACKED_TRIES: u32 = 6;

/// One message to republish for a delivery.
#[derive(Debug)]
pub(super) struct Order<'d> {
    pub(super) delivery: &'d Delivery,
    /// A bound for the arrival of its event.
    pub(super) arrived_after: LowWatermark,
    /// True if its body must not be decoded.
    pub(super) is_unread: bool,
    /// True if no event definition has its type.
    pub(super) is_unknown: bool,
    pub(super) order: RepublishOrder,
}

/// One lane's publisher. Batches take turns on it.
#[derive(Debug)]
pub(super) struct Publisher<'s> {
    channel: Mutex<broker::Publisher>,
    names: Names,
    republishing: Republishing<'s>,
}

/// Where each republished message is noted, and how it is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Republishing<'s> {
    pub(super) reading: Reading,
    pub(super) signer: &'s Signer,
    pub(super) watermark: &'s Watermark,
    pub(super) metrics: &'s Metrics,
    pub(super) readiness: &'s Readiness,
    pub(super) event_log: &'s EventLog,
}

impl<'s> Publisher<'s> {
    pub(super) fn new(
        publisher: broker::Publisher,
        names: Names,
        republishing: Republishing<'s>,
    ) -> Self {
        Self { channel: Mutex::new(publisher), names, republishing }
    }

    /// Publishes the ordered messages. Waits until each is confirmed and not returned, even through
    /// alarms of the broker and full queues.
    pub(super) async fn publish(
        &self,
        live: &Live,
        orders: &[Order<'_>],
    ) -> Result<(), SessionEnded> {
        let Republishing { reading, signer, watermark, metrics, .. } = self.republishing;
        let mut channel = self.channel.lock().await;
        let now = Timestamp::now().to_string();
        let mut named = Vec::with_capacity(orders.len());
        let copies: Vec<Outgoing<'_>> = orders
            .iter()
            .map(|Order { delivery, arrived_after, is_unread, is_unknown: _, order }| {
                let message = delivery.message();
                // This is rare. The event's details for the republished message are read once more
                // from the delivery.
                let event = if *is_unread { None } else { decoded(&message, reading) };
                named.push(
                    (order.destination != Destination::Slow)
                        .then(|| Named::of(event.as_ref(), &message)),
                );
                let arrived_offset = arrived_after.offset;
                let arrived_after = text(arrived_after.time_ms);
                let headers = CopyHeaders {
                    arrived_offset,
                    redelivered: redelivered_so_far(delivery, order.destination),
                    ..headers(
                        order,
                        event.as_ref(),
                        live.registry.digest(),
                        arrived_after.as_deref(),
                        &now,
                    )
                };
                copy_to(
                    self.queue(order.destination),
                    delivery,
                    &headers,
                    channel.frame_max_bytes(),
                    signer,
                )
            })
            .collect();
        self.republishing.confirmed(&mut channel, copies).await?;
        for (Order { arrived_after, is_unknown, order, .. }, named) in orders.iter().zip(&named) {
            if let Some(event) = named.as_ref().map(|named| named.republished(order)) {
                self.log_failed(live, order.destination, *is_unknown, event);
            }
            match order.destination {
                Destination::Slow => {
                    watermark.copied(LaneName::Slow, Duration::ZERO, *arrived_after)
                }
                Destination::Retry(step) => {
                    watermark.copied(LaneName::Main, self.delay(step), *arrived_after);
                    metrics.retried();
                }
                // A replay of the dead letter records it in the history.
                Destination::Dead(reason) => metrics.dead(reason),
            }
        }
        Ok(())
    }

    /// Publishes deliveries, unread, to the end of a lane's queue. Each has a bound for the arrival
    /// of its event. Waits as [`publish`](Self::publish) does.
    pub(super) async fn publish_to_end(
        &self,
        lane: LaneName,
        deliveries: &[(&Delivery, LowWatermark)],
    ) -> Result<(), SessionEnded> {
        let mut channel = self.channel.lock().await;
        let now = Timestamp::now().to_string();
        let mut copies = Vec::with_capacity(deliveries.len());
        for (delivery, bound) in deliveries {
            let arrived_after = text(bound.time_ms);
            let message = delivery.message();
            let earlier = Provenance::of(&message);
            let redeliveries = delivery.counted_redeliveries().unwrap_or_default();
            let headers = CopyHeaders {
                attempt: earlier.as_ref().map_or(0, |earlier| earlier.attempt),
                effects: earlier.as_ref().and_then(|earlier| earlier.effects.as_deref()),
                registry: earlier.as_ref().and_then(|earlier| earlier.registry).unwrap_or_default(),
                redelivered: Some(redeliveries),
                arrived_after: arrived_after.as_deref(),
                arrived_offset: bound.offset,
                time: &now,
                ..CopyHeaders::default()
            };
            let queue = match lane {
                LaneName::Main => &self.names.main,
                LaneName::Slow => &self.names.slow,
            };
            let frame_max_bytes = channel.frame_max_bytes();
            copies.push(copy_to(
                queue,
                delivery,
                &headers,
                frame_max_bytes,
                self.republishing.signer,
            ));
        }
        self.republishing.confirmed(&mut channel, copies).await?;
        for (_, bound) in deliveries {
            self.republishing.watermark.copied(lane, Duration::ZERO, *bound);
        }
        Ok(())
    }

    /// Logs an event that goes to the retry schedule or to the dead-letter queue.
    fn log_failed(
        &self,
        live: &Live,
        destination: Destination,
        is_unknown: bool,
        event: Republished<'_>,
    ) {
        let log = self.republishing.event_log;
        if is_unknown && event.attempt <= 1 {
            log.unknown(event, || live.registry.nearest_type(event.event_type));
        }
        match destination {
            Destination::Retry(step) if !is_unknown => log.waits(event, self.delay(step)),
            Destination::Dead(reason) => log.dead(reason, event),
            Destination::Retry(_) | Destination::Slow => {}
        }
    }

    /// Returns the delay of a retry step.
    fn delay(&self, step: usize) -> Duration {
        self.names.retry.get(step).map_or(Duration::ZERO, |(delay, _)| *delay)
    }

    fn queue(&self, destination: Destination) -> &str {
        match destination {
            Destination::Slow => &self.names.slow,
            Destination::Retry(step) => {
                self.names.retry.get(step).map_or(&self.names.dead, |(_, name)| name)
            }
            Destination::Dead(_) => &self.names.dead,
        }
    }
}

/// The type and id by which the log names an event.
struct Named {
    event_type: String,
    id: Option<String>,
}

impl Named {
    /// Returns the names of the event. If the event cannot be read, returns the names from its
    /// message.
    fn of(event: Option<&Event<'_>>, message: &Message<'_>) -> Self {
        if let Some(event) = event {
            return Self {
                event_type: event.event_type.to_string(),
                id: Some(event.id.to_string()),
            };
        }
        let earlier = Provenance::of(message);
        let (event_type, id) = match &earlier {
            Some(earlier) => (earlier.event_type.unwrap_or(earlier.routing_key), earlier.event_id),
            None => (message.routing_key, None),
        };
        Self {
            event_type: event_type.to_owned(),
            id: id.or(message.properties.message_id).map(str::to_owned),
        }
    }

    fn republished<'n>(&'n self, order: &'n RepublishOrder) -> Republished<'n> {
        Republished {
            event_type: &self.event_type,
            id: self.id.as_deref(),
            error: order.error.as_deref(),
            attempt: order.attempt,
        }
    }
}

/// Returns the event in a message, if there is one. A decoder that panicked before panics again,
/// which must not end the worker.
pub(super) fn decoded<'m>(message: &'m Message<'m>, reading: Reading) -> Option<Event<'m>> {
    match catch_unwind(AssertUnwindSafe(|| decode(message, reading))) {
        Ok(Ok(Decoded::Event(event) | Decoded::Bodiless(event))) => Some(event),
        Ok(Ok(Decoded::Tombstone) | Err(_)) | Err(_) => None,
    }
}

impl Republishing<'_> {
    /// Publishes until each message is confirmed and not returned, through alarms of the broker and
    /// full queues.
    async fn confirmed(
        self,
        channel: &mut broker::Publisher,
        mut copies: Vec<Outgoing<'_>>,
    ) -> Result<(), SessionEnded> {
        let mut refused = None;
        loop {
            let results = channel.publish_all(&copies).await;
            let mut again = Vec::new();
            let mut refused_now = None;
            for (copy, result) in copies.into_iter().zip(results) {
                match result {
                    Ok(()) => {}
                    Err(PublishError::Ended(ended)) => return Err(ended),
                    Err(PublishError::Blocked) => again.push(copy),
                    Err(PublishError::Nacked) => {
                        refused_now.get_or_insert_with(|| copy.routing_key().to_owned());
                        again.push(copy);
                    }
                    // A queue is missing or refuses this worker. A new session finds or declares
                    // it, or reports the fault.
                    Err(error) => return Err(SessionEnded::new(Cause::new(error))),
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            copies = again;
            if let Some(queue) = refused_now {
                let refused = refused.get_or_insert_with(|| Refused::new(self));
                refused.note(&queue, copies.len());
                tokio::time::sleep(NACKED_PAUSE).await;
                if refused.tries.is_multiple_of(NACKED_TRIES) {
                    channel.renew().await?;
                }
            }
            channel.unblocked().await;
        }
    }
}

/// A queue that does not take messages. While it lasts, the worker is not ready, and consuming is
/// paused as soon as the prefetch is used up.
#[derive(Debug)]
struct Refused<'s> {
    republishing: Republishing<'s>,
    tries: u32,
    logged_at: Option<Instant>,
}

impl<'s> Refused<'s> {
    const fn new(republishing: Republishing<'s>) -> Self {
        Self { republishing, tries: 0, logged_at: None }
    }

    /// Notes that the queue has refused once more. The log has a line at once, and then one a
    /// minute.
    fn note(&mut self, queue: &str, messages: usize) {
        self.tries += 1;
        if self.tries >= REFUSED_AFTER {
            self.republishing.metrics.set_paused("queue", true);
            let cause = format!(
                "the queue `{queue}` takes no messages: it is full (see its policies), or most of its replicas are down"
            );
            self.republishing.readiness.set_republishing(Err(cause.into()));
        }
        if self.logged_at.is_none_or(|at| at.elapsed() >= LOGGED_AGAIN) {
            self.logged_at = Some(Instant::now());
            warn!(
                queue,
                messages,
                "RabbitMQ stores no more messages in this queue: it is full (see its policies), or most of its replicas are down. \
                 They are published again until it does, and events after them wait once the prefetch is used up"
            );
        }
    }
}

impl Drop for Refused<'_> {
    fn drop(&mut self) {
        // If the other lane waits too, it notes that again within a moment.
        if self.tries >= REFUSED_AFTER {
            self.republishing.metrics.set_paused("queue", false);
            self.republishing.readiness.set_republishing(Ok(()));
        }
    }
}

/// Returns the redelivery count that a retry or slow-lane message carries on. Without it a poison
/// message, and each message around it, would begin again at zero.
fn redelivered_so_far(delivery: &Delivery, destination: Destination) -> Option<u64> {
    match destination {
        Destination::Slow | Destination::Retry(_) => {
            delivery.counted_redeliveries().filter(|times| *times > 0)
        }
        Destination::Dead(_) => None,
    }
}

/// Returns the time as text, or `None` if the time is unknown.
fn text(arrived_after_ms: u64) -> Option<String> {
    let millis = i64::try_from(arrived_after_ms).ok().filter(|millis| *millis > 0)?;
    Timestamp::from_millisecond(millis).ok().map(|time| time.to_string())
}

fn headers<'a>(
    order: &'a RepublishOrder,
    event: Option<&'a Event<'_>>,
    registry: &'a str,
    arrived_after: Option<&'a str>,
    time: &'a str,
) -> CopyHeaders<'a> {
    let reason = match order.destination {
        Destination::Dead(reason) => Some(reason),
        Destination::Slow | Destination::Retry(_) => None,
    };
    CopyHeaders {
        attempt: order.attempt,
        reason,
        error: order.error.as_deref(),
        event_type: event.map(|event| &*event.event_type),
        event_id: event.map(|event| &*event.id),
        form: event.map(|event| event.form),
        effects: order.effects.as_deref(),
        earlier_reasons: None,
        redelivered: None,
        registry,
        arrived_after,
        arrived_offset: None,
        time,
    }
}
