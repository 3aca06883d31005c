//! Turns a delivery into a request: decodes and resolves it, and turns each failure into a
//! settlement.

use std::panic::{AssertUnwindSafe, catch_unwind};

use jiff::Timestamp;
use tracing::debug;

use super::closers::given_up::Closers;
use super::live::Live;
use crate::broker::{DELIVERIES_AT_MOST, Delivery, LaneName};
use crate::event::{Decoded, Event, Provenance, Reading, decode};
use crate::plan::{EventOutcome, Settlement};
use crate::reason::Reason;
use crate::registry::{Budget, Resolution};

/// The result of reading one delivery.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// The effects to apply. Empty if `verdict` is set.
    pub(super) resolution: Resolution,
    /// The positions of the effects that this delivery asks for, in order; `None` means all.
    pub(super) only: Option<Vec<u32>>,
    /// True if the event may have been tried before. A key that it deletes may be gone for that
    /// reason.
    pub(super) was_tried: bool,
    /// Number of earlier attempts at the event.
    pub(super) attempts_before: u32,
    /// When the event happened, if the event states it.
    pub(super) happened_at: Option<Timestamp>,
    /// The settlement of a message that needs no Redis.
    pub(super) verdict: Option<Settlement>,
    /// True if the message is not even decoded for its dead letter.
    pub(super) is_unread: bool,
    /// In the slow lane: the event's identity, which loads send to their loaders.
    pub(super) identity: Option<Box<Identity>>,
    /// Set if the event is the one of its batch at which Redis closes the connection.
    pub(super) closers: Option<Box<Closers>>,
}

/// The identity of an event, which loads send to their loaders.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    pub(super) event_id: String,
    pub(super) traceparent: Option<String>,
}

impl Request {
    /// Reads a delivery with the current registry, as far as the budget allows. Never panics: a
    /// panic inside makes a dead letter of this message.
    ///
    /// A message that has reached its delivery limit is not read, since it may be the one that ends
    /// workers.
    pub(super) fn of(
        delivery: &Delivery,
        live: &Live,
        reading: Reading,
        lane: LaneName,
        budget: &Budget,
    ) -> Self {
        let count = delivery.redelivery_count().unwrap_or(0);
        if count >= DELIVERIES_AT_MOST {
            let error = format!(
                "delivered {count} times before without an acknowledgement: it may kill workers; look for crashes in their logs before you replay it"
            );
            return Self::unread(delivery, Reason::DeliveryLimit, error);
        }
        Self::or_dead_letter(|| Self::read(delivery, live, reading, lane, budget))
    }

    /// Returns a request that dead-letters a delivery without a look at its body.
    pub(super) fn unread(delivery: &Delivery, reason: Reason, error: String) -> Self {
        let attempts_before =
            Provenance::of(&delivery.message()).map_or(0, |provenance| provenance.attempt);
        Self {
            attempts_before,
            verdict: Some(Settlement::dead(reason, error, attempts_before)),
            is_unread: true,
            ..Self::default()
        }
    }

    /// Replaces the effects of the request by a dead letter.
    pub(super) fn give_up(&mut self, reason: Reason, error: String) {
        self.verdict = Some(Settlement::dead(reason, error, self.attempts_before));
        (self.resolution, self.only) =
            (Resolution { matched: self.resolution.matched, ..Resolution::default() }, None);
        self.closers = None;
    }

    fn or_dead_letter(read: impl FnOnce() -> Self) -> Self {
        // The closure shares nothing with the rest: a half-made request is dropped.
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
            let error = "decoding or resolving the event panicked: please report it, with the event's shape".to_owned();
            Self { verdict: Some(Settlement::dead(Reason::Panicked, error, 0)), ..Self::default() }
        })
    }

    fn read(
        delivery: &Delivery,
        live: &Live,
        reading: Reading,
        lane: LaneName,
        budget: &Budget,
    ) -> Self {
        let message = delivery.message();
        let provenance = Provenance::of(&message);
        let was_tried = provenance.is_some() || delivery.redelivered();
        let attempts_before = provenance.as_ref().map_or(0, |provenance| provenance.attempt);
        let decoded = decode(&message, reading);
        // Events are large, so this one is borrowed.
        let event = match &decoded {
            Ok(Decoded::Event(event)) => event,
            Ok(Decoded::Bodiless(event)) if live.registry.knows_bodiless(&event.event_type) => {
                event
            }
            Ok(Decoded::Tombstone | Decoded::Bodiless(_)) => {
                return Self {
                    verdict: Some(Settlement::clean(EventOutcome::Tombstone)),
                    attempts_before,
                    ..Self::default()
                };
            }
            Err(malformed) => {
                let verdict = Some(Settlement::dead(
                    Reason::Malformed,
                    malformed.to_string(),
                    attempts_before,
                ));
                return Self { verdict, attempts_before, ..Self::default() };
            }
        };
        let resolution = live.registry.resolve_within(event, budget);
        let only = provenance.and_then(|provenance| {
            provenance.effects_by(live.registry.digest(), resolution.effects.len())
        });
        if !budget.is_spent() {
            debug!(id = %event.id, event_type = %event.event_type, effects = resolution.effects.len(), "resolved");
        }
        let happened_at = happened_at(event);
        let identity = (lane == LaneName::Slow).then(|| {
            let traceparent = event.traceparent.as_deref().map(str::to_owned);
            Box::new(Identity { event_id: event.id.to_string(), traceparent })
        });
        Self {
            resolution,
            only,
            was_tried,
            attempts_before,
            happened_at,
            identity,
            ..Self::default()
        }
    }

    /// Returns true if this delivery asks for the effect at that position.
    pub(super) fn asks_for(&self, position: u32) -> bool {
        self.only.as_ref().is_none_or(|only| only.binary_search(&position).is_ok())
    }
}

fn happened_at(event: &Event<'_>) -> Option<Timestamp> {
    event.time.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Destination;

    #[test]
    fn a_panic_dead_letters_its_own_event_alone() {
        let request = Request::or_dead_letter(|| panic!("a bug"));
        let Some(Settlement { republish: copies, outcome: EventOutcome::Dead }) = request.verdict
        else {
            panic!("{:?}", request.verdict)
        };
        assert_eq!(copies.len(), 1);
        assert_eq!(copies[0].destination, Destination::Dead(Reason::Panicked));
        assert!(request.resolution.effects.is_empty(), "nothing of it is applied");
    }
}
