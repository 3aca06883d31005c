//! A delivery → what it asks for: decoded and resolved, with whatever goes wrong turned into a
//! settlement.

use std::panic::{AssertUnwindSafe, catch_unwind};

use jiff::Timestamp;
use tracing::debug;

use super::Live;
use crate::broker::{DELIVERIES_AT_MOST, Delivery, LaneName};
use crate::event::{Decoded, Event, Provenance, Reading, decode};
use crate::plan::{EventOutcome, Settlement};
use crate::reason::Reason;
use crate::registry::{Budget, Resolution};

/// What a delivery asks for.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// What to apply. Empty where `verdict` is set.
    pub(super) resolution: Resolution,
    /// The positions that this delivery is to do, in order; `None` is all.
    pub(super) only: Option<Vec<u32>>,
    /// The event may have been tried before: a key that it deletes may be gone for that reason.
    pub(super) was_tried: bool,
    /// How often the event was tried before.
    pub(super) attempts_before: u32,
    /// When it happened, where the event says so.
    pub(super) happened_at: Option<Timestamp>,
    /// The message is settled without Redis.
    pub(super) verdict: Option<Settlement>,
    /// The message is not decoded for its dead letter either.
    pub(super) is_unread: bool,
    /// In the slow lane: what loads say of the event that they are for.
    pub(super) identity: Option<Box<Identity>>,
}

/// What loads say of the event that they are for.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    pub(super) event_id: String,
    pub(super) traceparent: Option<String>,
}

impl Request {
    /// Reads a delivery with today's registry, as far as the budget allows. Never panics: a panic
    /// inside is this message's own dead letter.
    ///
    /// A message that has been delivered as often as it may is not read: it may be what ends
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
                "delivered {count} times before without an acknowledgement: it may be what ends workers; look for crashes in their logs before you replay it"
            );
            return Self::unread(delivery, Reason::DeliveryLimit, error);
        }
        Self::or_dead_letter(|| Self::read(delivery, live, reading, lane, budget))
    }

    /// Returns what dead-letters a delivery whose body is not looked at.
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

    /// Dead-letters what was to be applied.
    pub(super) fn give_up(&mut self, reason: Reason, error: String) {
        self.verdict = Some(Settlement::dead(reason, error, self.attempts_before));
        (self.resolution, self.only) =
            (Resolution { matched: self.resolution.matched, ..Resolution::default() }, None);
    }

    fn or_dead_letter(read: impl FnOnce() -> Self) -> Self {
        // Nothing is shared with what may panic: a half-made request is dropped.
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
        // An event is large: it is read where it is.
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
        let only = provenance
            .and_then(|provenance| heeded(provenance, live.registry.digest(), &resolution));
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

    /// Whether this delivery is to do the effect at that position.
    pub(super) fn asks_for(&self, position: u32) -> bool {
        self.only.as_ref().is_none_or(|only| only.binary_search(&position).is_ok())
    }
}

/// The positions a copy names, where they mean today what they meant when it was made.
fn heeded(provenance: Provenance<'_>, digest: &str, resolution: &Resolution) -> Option<Vec<u32>> {
    let mut positions = provenance.effects.filter(|_| provenance.registry == Some(digest))?;
    let all_exist =
        positions.iter().all(|position| (*position as usize) < resolution.effects.len());
    positions.sort_unstable();
    positions.dedup();
    all_exist.then_some(positions)
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
        let Some(Settlement { copies, outcome: EventOutcome::Dead }) = request.verdict else {
            panic!("{:?}", request.verdict)
        };
        assert_eq!(copies.len(), 1);
        assert_eq!(copies[0].destination, Destination::Dead(Reason::Panicked));
        assert!(request.resolution.effects.is_empty(), "nothing of it is applied");
    }
}
