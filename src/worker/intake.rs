//! A delivery → what it asks for: decoded and resolved, with whatever goes wrong turned into a settlement.

use std::panic::{AssertUnwindSafe, catch_unwind};

use jiff::Timestamp;
use tracing::debug;

use super::Live;
use crate::broker::Delivery;
use crate::event::{Decoded, Event, Provenance, Reading, decode};
use crate::plan::{EventOutcome, Settlement};
use crate::reason::Reason;
use crate::registry::Resolution;

/// What a delivery asks for.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// What to apply. Empty where `verdict` is set.
    pub(super) resolution: Resolution,
    /// The positions that this delivery is to do, in order; `None` is all.
    pub(super) only: Option<Vec<u32>>,
    /// It is a copy of ours: some of the event took hold before.
    pub(super) is_copy: bool,
    /// How often the event was tried before.
    pub(super) attempts_before: u32,
    /// When it happened, where the event says so.
    pub(super) happened_at: Option<Timestamp>,
    /// The message is settled without Redis.
    pub(super) verdict: Option<Settlement>,
}

impl Request {
    /// Reads a delivery with today's registry. Never panics: a panic inside is this message's own dead letter.
    pub(super) fn of(delivery: &Delivery, live: &Live, reading: Reading) -> Self {
        Self::or_dead_letter(|| Self::read(delivery, live, reading))
    }

    fn or_dead_letter(read: impl FnOnce() -> Self) -> Self {
        // Nothing is shared with what may panic: a half-made request is dropped.
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
            let error = "decoding or resolving the event panicked: please report it, with the event's shape".to_owned();
            Self { verdict: Some(Settlement::dead(Reason::Panicked, error, 0)), ..Self::default() }
        })
    }

    fn read(delivery: &Delivery, live: &Live, reading: Reading) -> Self {
        let message = delivery.message();
        let provenance = Provenance::of(&message);
        let (is_copy, attempts_before) = (provenance.is_some(), provenance.as_ref().map_or(0, |provenance| provenance.attempt));
        let event = match decode(&message, reading) {
            Ok(Decoded::Event(event)) => event,
            Ok(Decoded::Tombstone) => {
                return Self { verdict: Some(Settlement::clean(EventOutcome::Tombstone)), attempts_before, ..Self::default() };
            }
            Err(malformed) => {
                let verdict = Some(Settlement::dead(Reason::Malformed, malformed.to_string(), attempts_before));
                return Self { verdict, attempts_before, ..Self::default() };
            }
        };
        let resolution = live.registry.resolve(&event);
        let only = provenance.and_then(|provenance| heeded(provenance, live.registry.digest(), &resolution));
        debug!(id = %event.id, event_type = %event.event_type, effects = resolution.effects.len(), "resolved");
        Self { resolution, only, is_copy, attempts_before, happened_at: happened_at(&event), verdict: None }
    }

    /// Whether this delivery is to do the effect at that position.
    pub(super) fn asks_for(&self, position: u32) -> bool {
        self.only.as_ref().is_none_or(|only| only.binary_search(&position).is_ok())
    }
}

/// The positions a copy names, where they mean today what they meant when it was made.
fn heeded(provenance: Provenance<'_>, digest: &str, resolution: &Resolution) -> Option<Vec<u32>> {
    let mut positions = provenance.effects.filter(|_| provenance.registry == Some(digest))?;
    let all_exist = positions.iter().all(|position| (*position as usize) < resolution.effects.len());
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
        let Some(Settlement { copies, outcome: EventOutcome::Dead }) = request.verdict else { panic!("{:?}", request.verdict) };
        assert_eq!(copies.len(), 1);
        assert_eq!(copies[0].destination, Destination::Dead(Reason::Panicked));
        assert!(request.resolution.effects.is_empty(), "nothing of it is applied");
    }
}
