//! A batch: deliveries that arrived together, from their requests to their settlement.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, error};

use super::account::Charge;
use super::copies::{self, Order};
use super::intake::Request;
use super::taken::Taken;
use super::{Live, Shared};
use crate::broker::{Delivery, SessionEnded, Tag};
use crate::cache::Outage;
use crate::causes::Explain;
use crate::plan::{self, EffectOutcome, EffectRef, EventOutcome, Settlement, settle};
use crate::reason::Reason;
use crate::registry::Matched;
use crate::telemetry::EffectLog;

/// Number of broken checkpoints in a row after which a batch is applied one delivery at a time.
const SUSPECTED_AFTER: u32 = 2;

/// Deliveries that arrived together, in order; never empty.
#[derive(Debug)]
pub(super) struct Batch {
    taken: Taken,
    pub(super) requests: Vec<Request>,
    /// The registry that resolved them.
    pub(super) live: Arc<Live>,
    _charge: Charge,
    /// How many times in a row the checkpoint behind the batch was broken.
    broke_checkpoint: u32,
    /// True if keys that the batch deletes may be gone, though nothing of the batch counts as
    /// applied.
    was_tried: bool,
}

/// The unfinished effects, by event, in order of position.
pub(super) type Unsettled = BTreeMap<u32, Vec<(u32, EffectOutcome)>>;

impl Batch {
    /// Returns a batch of deliveries, with one request for each of them.
    pub(super) fn new(
        taken: Taken,
        requests: Vec<Request>,
        live: Arc<Live>,
        charge: Charge,
    ) -> Self {
        Self { taken, requests, live, _charge: charge, broke_checkpoint: 0, was_tried: false }
    }

    pub(super) fn deliveries(&self) -> &[Delivery] {
        &self.taken.deliveries
    }

    /// Returns the newest delivery's tag. Acknowledging through it settles the batch.
    pub(super) fn last_tag(&self) -> Option<Tag> {
        self.deliveries().last().map(Delivery::tag)
    }

    /// Applies everything that one round trip can do. Returns the unfinished effects.
    ///
    /// # Errors
    /// Returns the outage. It is then unknown which effects were applied.
    pub(super) async fn apply(&mut self, shared: &Shared) -> Result<Unsettled, Outage> {
        if self.is_suspected() {
            self.apply_one_by_one(shared).await
        } else {
            self.apply_events(shared, 0..self.requests.len()).await
        }
    }

    /// Notes the outage that kept the batch from being applied.
    pub(super) fn not_applied(&mut self, outage: &Outage) {
        self.note_tried();
        self.broke_checkpoint = if outage.broke_checkpoint { self.broke_checkpoint + 1 } else { 0 };
    }

    /// Returns true if one of its deliveries may be the one that breaks the checkpoint. Such a
    /// batch must be applied alone.
    pub(super) fn is_suspected(&self) -> bool {
        self.broke_checkpoint >= SUSPECTED_AFTER
    }

    /// Applies each delivery by itself. A delivery that still breaks the checkpoint is
    /// dead-lettered, and skipped the next time.
    async fn apply_one_by_one(&mut self, shared: &Shared) -> Result<Unsettled, Outage> {
        let mut unsettled = Unsettled::new();
        for event in 0..self.requests.len() {
            // An earlier break is not attributed to this event. Other workers may have such a
            // delivery too.
            shared.cache.confirm_checkpoint().await?;
            match self.apply_events(shared, event..event + 1).await {
                Ok(of_event) => unsettled.extend(of_event),
                Err(outage) => {
                    if outage.broke_checkpoint {
                        self.give_up(event);
                    }
                    return Err(outage);
                }
            }
        }
        Ok(unsettled)
    }

    /// Dead-letters one event, which breaks the checkpoint when applied alone.
    pub(super) fn give_up(&mut self, event: usize) {
        if self.requests[event].verdict.is_some() {
            return;
        }
        let routing_key = self.deliveries()[event].routing_key();
        error!(
            ?routing_key,
            "an event is dead-lettered: applied alone, it changes the checkpoint by which this worker notices lost writes"
        );
        let error = "applied alone, the event breaks unstale's own checkpoint in Redis (`unstale:mark:*`) each time: look for own keys \
                     among its targets and among the members of its tags";
        self.requests[event].give_up(Reason::Unresolvable, error.to_owned());
    }

    /// Notes that keys of the batch may be deleted, though nothing of it counts as applied. The
    /// batch then always warms its keys, since it is unknown which had a value.
    pub(super) fn note_tried(&mut self) {
        self.was_tried = true;
    }

    /// Deletes the keys that the batch deletes, while Redis refuses everything that needs memory.
    /// The batch must still be applied. Returns true if Redis accepted the deletions.
    pub(super) async fn delete_now(&mut self, shared: &Shared) -> bool {
        self.note_tried();
        let deleted =
            shared.cache.delete_now(&self.collect(shared, 0..self.requests.len()).finish()).await;
        if let Err(outage) = &deleted {
            debug!(cause = outage.in_full(), "deletions wait too");
        }
        deleted.is_ok()
    }

    async fn apply_events(
        &self,
        shared: &Shared,
        events: Range<usize>,
    ) -> Result<Unsettled, Outage> {
        let applied = shared.cache.apply(&self.collect(shared, events).finish()).await?;
        for hits in applied.hits {
            self.live.metrics.keys(hits.rule, hits.yes, hits.no);
        }
        let mut unsettled = Unsettled::new();
        for (slot, outcome) in applied.unsettled {
            let outcome = self.named(slot, outcome);
            unsettled.entry(slot.event).or_default().push((slot.position, outcome));
        }
        unsettled
            .values_mut()
            .for_each(|effects| effects.sort_unstable_by_key(|(position, _)| *position));
        Ok(unsettled)
    }

    /// Returns the effects of some events that must still be applied.
    fn collect<'b>(&'b self, shared: &'b Shared, events: Range<usize>) -> plan::Batch<'b> {
        let effects = self.requests[events.clone()]
            .iter()
            .map(|request| request.resolution.effects.len())
            .sum();
        let mut batch = plan::Batch::new(shared.cache.tag_prefix(), effects);
        let first = u32::try_from(events.start).unwrap_or(u32::MAX);
        for (event, request) in (first..).zip(&self.requests[events]) {
            for (position, effect) in (0_u32..).zip(&request.resolution.effects) {
                let slot = EffectRef { event, position };
                match (request.asks_for(position), self.was_tried || request.was_tried) {
                    (false, _) => {}
                    (true, false) => batch.push(slot, effect),
                    (true, true) => batch.push_retried(slot, effect),
                }
            }
        }
        batch
    }

    /// Returns the outcome, with the name of the effect's rule in its message.
    pub(super) fn named(&self, slot: EffectRef, mut outcome: EffectOutcome) -> EffectOutcome {
        if let EffectOutcome::Retry { message, .. }
        | EffectOutcome::NotTried { message, .. }
        | EffectOutcome::Dead { message, .. } = &mut outcome
        {
            let rule =
                self.requests[slot.event as usize].resolution.effects[slot.position as usize].rule;
            *message = format!("{}: {message}", self.live.registry.rules()[rule.0 as usize].name);
        }
        outcome
    }

    /// Publishes a message for everything that is unsettled, waits for the confirmations, and
    /// counts. Afterwards the batch may be acknowledged. Returns true if messages were republished:
    /// without the acknowledgement they would be published twice.
    pub(super) async fn settle(
        &self,
        shared: &Shared,
        publisher: &copies::Publisher,
        unsettled: &Unsettled,
    ) -> Result<bool, SessionEnded> {
        let mut orders = Vec::new();
        let mut outcomes = Vec::with_capacity(self.requests.len());
        for (event, (request, delivery)) in
            (0_u32..).zip(self.requests.iter().zip(self.deliveries()))
        {
            let rest = rest(unsettled, event);
            let Settlement { republish: copies, outcome } = match &request.verdict {
                Some(verdict) => verdict.clone(),
                None => settle(
                    &shared.policy,
                    &request.resolution,
                    request.only.as_deref(),
                    rest,
                    request.attempts_before,
                ),
            };
            outcomes.push(outcome);
            orders.extend(copies.into_iter().map(|order| Order {
                delivery,
                arrived_after: self.taken.bound_of(delivery),
                is_unread: request.is_unread,
                is_unknown: request.verdict.is_none()
                    && request.resolution.matched == Matched::Unknown,
                order,
            }));
        }
        if !orders.is_empty() {
            publisher.publish(shared, &self.live, &orders).await?;
        }
        self.taken.settled();
        self.count(shared, &outcomes, unsettled);
        Ok(!orders.is_empty())
    }

    fn count(&self, shared: &Shared, outcomes: &[EventOutcome], unsettled: &Unsettled) {
        let metrics = &self.live.metrics;
        let now = Timestamp::now();
        let log = EffectLog::get(self.live.registry.digest());
        for (event, (request, outcome)) in (0_u32..).zip(self.requests.iter().zip(outcomes)) {
            metrics.event(request.resolution.matched, *outcome);
            let rest = rest(unsettled, event);
            for (position, effect) in (0_u32..).zip(&request.resolution.effects) {
                if request.asks_for(position)
                    && rest.binary_search_by_key(&position, |(position, _)| *position).is_err()
                {
                    metrics.effects(effect.rule, 1);
                    if let Some(log) = &log {
                        let message = self.deliveries()[event as usize].message();
                        let read = copies::decoded(&message, shared.config.reading);
                        let rule = &self.live.registry.rules()[effect.rule.0 as usize].name;
                        log.took_effect(effect, rule, read.as_ref().map(|event| &*event.id));
                    }
                }
            }
            if request.resolution.violations > 0 {
                metrics.violations(request.resolution.matched, request.resolution.violations);
            }
            if *outcome == EventOutcome::Applied
                && let Some(lag) = request.happened_at.and_then(|happened_at| lag(happened_at, now))
            {
                shared.metrics.event_to_applied(lag);
            }
        }
    }
}

/// Returns how long ago an event happened. Returns `None` if the publisher's clock is ahead and the
/// time is therefore unknown.
fn lag(happened_at: Timestamp, now: Timestamp) -> Option<Duration> {
    now.duration_since(happened_at).try_into().ok()
}

/// Returns the unfinished effects of an event, in order of position.
fn rest(unsettled: &Unsettled, event: u32) -> &[(u32, EffectOutcome)] {
    unsettled.get(&event).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_from_the_future_has_no_lag() {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        assert_eq!(lag(at(1_000), at(3_500)), Some(Duration::from_millis(2_500)));
        assert_eq!(lag(at(1_000), at(1_000)), Some(Duration::ZERO));
        assert_eq!(lag(at(1_001), at(1_000)), None);
        assert_eq!(lag(Timestamp::MAX, Timestamp::MIN), None);
    }
}
