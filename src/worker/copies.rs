//! Publishes retry messages, slow-lane messages and dead letters, and waits for the broker's
//! confirmations.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Mutex;
use tracing::warn;

use super::suspects::Suspect;
use super::{Live, Shared};
use crate::broker::{
    self, CopyHeaders, Delivery, LaneName, Names, Outgoing, PublishError, SessionEnded, copy_to,
};
use crate::cache::LowWatermark;
use crate::causes::Cause;
use crate::event::{Decoded, Event, Message, Provenance, Reading, decode};
use crate::plan::{Destination, RepublishOrder};
use crate::telemetry::Republished;

/// Time before messages that the broker could not store are published again.
const NACKED_PAUSE: Duration = Duration::from_millis(500);

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
pub(super) struct Publisher {
    channel: Mutex<broker::Publisher>,
    names: Names,
}

impl Publisher {
    pub(super) fn new(publisher: broker::Publisher, names: Names) -> Self {
        Self { channel: Mutex::new(publisher), names }
    }

    /// Publishes the ordered messages. Waits until each is confirmed and not returned, even through
    /// alarms of the broker and full queues.
    pub(super) async fn publish(
        &self,
        shared: &Shared,
        live: &Live,
        orders: &[Order<'_>],
    ) -> Result<(), SessionEnded> {
        let mut channel = self.channel.lock().await;
        let now = Timestamp::now().to_string();
        let mut named = Vec::with_capacity(orders.len());
        let copies: Vec<Outgoing<'_>> = orders
            .iter()
            .map(|Order { delivery, arrived_after, is_unread, is_unknown: _, order }| {
                let message = delivery.message();
                // This is rare. The event's details for the republished message are read once more
                // from the delivery.
                let event =
                    if *is_unread { None } else { decoded(&message, shared.config.reading) };
                named.push(
                    (order.destination != Destination::Slow)
                        .then(|| Named::of(event.as_ref(), &message)),
                );
                let arrived_offset = arrived_after.offset;
                let arrived_after = text(arrived_after.time_ms);
                let headers = CopyHeaders {
                    arrived_offset,
                    redelivered: in_vain_so_far(delivery, order.destination),
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
                    &shared.signer,
                )
            })
            .collect();
        confirmed(&mut channel, copies).await?;
        for (Order { arrived_after, is_unknown, order, .. }, named) in orders.iter().zip(&named) {
            if let Some(event) = named.as_ref().map(|named| named.republished(order)) {
                event_failed(shared, live, order.destination, *is_unknown, event, &self.names);
            }
            match order.destination {
                Destination::Slow => {
                    shared.low.copied(LaneName::Slow, Duration::ZERO, *arrived_after)
                }
                Destination::Retry(rung) => {
                    let delay =
                        self.names.retry.get(rung).map_or(Duration::ZERO, |(delay, _)| *delay);
                    shared.low.copied(LaneName::Main, delay, *arrived_after);
                    shared.metrics.retried();
                }
                // The replay that applies it covers it.
                Destination::Dead(reason) => shared.metrics.dead(reason),
            }
        }
        Ok(())
    }

    /// Publishes suspected poison messages, unread, to the end of the queue they came from. Waits
    /// as [`publish`](Self::publish) does.
    pub(super) async fn set_aside(
        &self,
        shared: &Shared,
        lane: LaneName,
        suspects: &[Suspect],
    ) -> Result<(), SessionEnded> {
        let mut channel = self.channel.lock().await;
        let now = Timestamp::now().to_string();
        let mut copies = Vec::with_capacity(suspects.len());
        for suspect in suspects {
            let (suspect, bound) = (suspect.delivery(), suspect.bound());
            let arrived_after = text(bound.time_ms);
            let message = suspect.message();
            let earlier = Provenance::of(&message);
            let in_vain = suspect.in_vain().unwrap_or_default();
            let headers = CopyHeaders {
                attempt: earlier.as_ref().map_or(0, |earlier| earlier.attempt),
                effects: earlier.as_ref().and_then(|earlier| earlier.effects.as_deref()),
                registry: earlier.as_ref().and_then(|earlier| earlier.registry).unwrap_or_default(),
                redelivered: Some(in_vain),
                arrived_after: arrived_after.as_deref(),
                arrived_offset: bound.offset,
                time: &now,
                ..CopyHeaders::default()
            };
            let queue = match lane {
                LaneName::Main => &self.names.main,
                LaneName::Slow => &self.names.slow,
            };
            copies.push(copy_to(
                queue,
                suspect,
                &headers,
                channel.frame_max_bytes(),
                &shared.signer,
            ));
        }
        confirmed(&mut channel, copies).await?;
        for suspect in suspects {
            shared.low.copied(lane, Duration::ZERO, suspect.bound());
            suspect.settled();
        }
        Ok(())
    }

    fn queue(&self, destination: Destination) -> &str {
        match destination {
            Destination::Slow => &self.names.slow,
            Destination::Retry(rung) => {
                self.names.retry.get(rung).map_or(&self.names.dead, |(_, name)| name)
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

/// Logs an event that goes to the retry schedule or to the dead-letter queue.
fn event_failed(
    shared: &Shared,
    live: &Live,
    destination: Destination,
    is_unknown: bool,
    event: Republished<'_>,
    names: &Names,
) {
    if is_unknown && event.attempt <= 1 {
        shared.event_log.unknown(event, || live.registry.nearest_type(event.event_type));
    }
    match destination {
        Destination::Retry(rung) if !is_unknown => {
            shared
                .event_log
                .waits(event, names.retry.get(rung).map_or(Duration::ZERO, |(delay, _)| *delay));
        }
        Destination::Dead(reason) => shared.event_log.dead(reason, event),
        Destination::Retry(_) | Destination::Slow => {}
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

/// Publishes until each message is confirmed and not returned, through alarms of the broker and
/// full queues.
async fn confirmed(
    channel: &mut broker::Publisher,
    mut copies: Vec<Outgoing<'_>>,
) -> Result<(), SessionEnded> {
    let mut nacked_tries = 0;
    loop {
        let results = channel.publish_all(&copies).await;
        let mut again = Vec::new();
        let mut pause = None;
        for (copy, result) in copies.into_iter().zip(results) {
            match result {
                Ok(()) => {}
                Err(PublishError::Ended(ended)) => return Err(ended),
                Err(PublishError::Blocked) => again.push(copy),
                Err(PublishError::Nacked) => {
                    pause = Some(NACKED_PAUSE);
                    again.push(copy);
                }
                // A queue is missing or refuses this worker. A new session finds or declares it, or
                // reports the fault.
                Err(error) => return Err(SessionEnded::new(Cause::new(error))),
            }
        }
        if again.is_empty() {
            return Ok(());
        }
        copies = again;
        if let Some(pause) = pause {
            warn!(
                copies = copies.len(),
                "RabbitMQ could not store copies (a queue is full or has lost its quorum): trying again"
            );
            tokio::time::sleep(pause).await;
            nacked_tries += 1;
            if nacked_tries % NACKED_TRIES == 0 {
                channel.renew().await?;
            }
        }
        channel.unblocked().await;
    }
}

/// Returns the redelivery count that a retry or slow-lane message carries on. Without it a poison
/// message, and each message around it, would begin again at zero.
fn in_vain_so_far(delivery: &Delivery, destination: Destination) -> Option<u64> {
    match destination {
        Destination::Slow | Destination::Retry(_) => delivery.in_vain().filter(|times| *times > 0),
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
