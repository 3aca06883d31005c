//! Orders for copies → copies that the broker has confirmed.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Mutex;
use tracing::warn;

use super::suspects::Suspect;
use super::{Live, Shared};
use crate::broker::{self, CopyHeaders, DELIVERY_LIMIT, Delivery, LaneName, Names, Outgoing, PublishError, SessionEnded, copy_to};
use crate::event::{Decoded, Event, Provenance, decode};
use crate::plan::{CopyOrder, Destination};
use crate::reason::Reason;

/// Before what the broker could not store is tried again.
const NACKED_PAUSE: Duration = Duration::from_millis(500);

/// One lane's publisher: batches take their turns on it.
#[derive(Debug)]
pub(super) struct Publisher {
    channel: Mutex<broker::Publisher>,
    names: Names,
}

impl Publisher {
    pub(super) fn new(publisher: broker::Publisher, names: Names) -> Self {
        Self { channel: Mutex::new(publisher), names }
    }

    /// Publishes what is ordered, and waits until each copy is confirmed and not returned, through alarms of the broker and full queues.
    pub(super) async fn publish(&self, shared: &Shared, live: &Live, orders: &[(&Delivery, CopyOrder)]) -> Result<(), SessionEnded> {
        let mut channel = self.channel.lock().await;
        let now = Timestamp::now().to_string();
        let copies: Vec<Outgoing<'_>> = orders
            .iter()
            .map(|(delivery, order)| {
                let message = delivery.message();
                // Rare: what a copy says of its event is read once more from the delivery.
                let event = match decode(&message, shared.config.max_body_bytes) {
                    Ok(Decoded::Event(event)) => Some(event),
                    Ok(Decoded::Tombstone) | Err(_) => None,
                };
                let headers = headers(order, event.as_ref(), live.registry.digest(), &now);
                copy_to(self.queue(order.destination), delivery, &headers, channel.frame_max_bytes())
            })
            .collect();
        confirmed(&mut channel, copies).await?;
        for (_, order) in orders {
            match order.destination {
                Destination::Slow => {}
                Destination::Retry(_) => shared.metrics.retried(),
                Destination::Dead(reason) => shared.metrics.dead(reason),
            }
        }
        Ok(())
    }

    /// Publishes suspects, unread, to the end of the queue they came from; to the dead-letter queue what has had its deliveries. Waits as
    /// [`publish`](Self::publish) does.
    pub(super) async fn set_aside(&self, shared: &Shared, lane: LaneName, suspects: &[Suspect]) -> Result<(), SessionEnded> {
        let mut channel = self.channel.lock().await;
        let now = Timestamp::now().to_string();
        let mut copies = Vec::with_capacity(suspects.len());
        for Suspect { delivery: suspect, .. } in suspects {
            let message = suspect.message();
            let earlier = Provenance::of(&message);
            let in_vain = suspect.in_vain().unwrap_or_default();
            let given_up = in_vain >= u64::from(DELIVERY_LIMIT);
            let error = format!("delivered {in_vain} times in vain: it may be what ends workers");
            let headers = CopyHeaders {
                attempt: earlier.as_ref().map_or(0, |earlier| earlier.attempt),
                reason: given_up.then_some(Reason::DeliveryLimit),
                error: given_up.then_some(&error),
                effects: earlier.as_ref().and_then(|earlier| earlier.effects.as_deref()),
                registry: earlier.as_ref().and_then(|earlier| earlier.registry).unwrap_or_default(),
                redelivered: (!given_up).then_some(in_vain),
                time: &now,
                ..CopyHeaders::default()
            };
            let queue = match lane {
                _ if given_up => &self.names.dead,
                LaneName::Main => &self.names.main,
                LaneName::Slow => &self.names.slow,
            };
            if given_up {
                shared.metrics.dead(Reason::DeliveryLimit);
            }
            copies.push(copy_to(queue, suspect, &headers, channel.frame_max_bytes()));
        }
        confirmed(&mut channel, copies).await
    }

    fn queue(&self, destination: Destination) -> &str {
        match destination {
            Destination::Slow => &self.names.slow,
            Destination::Retry(rung) => self.names.retry.get(rung).map_or(&self.names.dead, |(_, name)| name),
            Destination::Dead(_) => &self.names.dead,
        }
    }
}

/// Publishes until each is confirmed and not returned, through alarms of the broker and full queues.
async fn confirmed(channel: &mut broker::Publisher, mut copies: Vec<Outgoing<'_>>) -> Result<(), SessionEnded> {
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
                // A queue of ours is gone, or not ours to write to: a new session finds or declares it, or says what is wrong.
                Err(error) => return Err(SessionEnded::new(error.to_string())),
            }
        }
        if again.is_empty() {
            return Ok(());
        }
        copies = again;
        if let Some(pause) = pause {
            warn!(copies = copies.len(), "RabbitMQ could not store copies (a queue is full or has lost its quorum): trying again");
            tokio::time::sleep(pause).await;
        }
        channel.unblocked().await;
    }
}

fn headers<'a>(order: &'a CopyOrder, event: Option<&'a Event<'_>>, registry: &'a str, time: &'a str) -> CopyHeaders<'a> {
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
        time,
    }
}
