//! A batch: deliveries that arrived together, from what they ask for to their acknowledgement.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::in_hand::Held;
use super::intake::Request;
use super::low::Holding;
use super::{Live, Shared, copies};
use crate::broker::{Delivery, SessionEnded, Tag};
use crate::cache::Outage;
use crate::plan::{self, EffectOutcome, EventOutcome, Settlement, Slot, settle};

/// Deliveries that arrived together, in order; never empty.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) deliveries: Vec<Delivery>,
    pub(super) requests: Vec<Request>,
    /// The registry they were resolved with.
    pub(super) live: Arc<Live>,
    _held: Held,
    holding: Holding,
}

/// The effects that are not done, by event, in order of position.
pub(super) type Unsettled = BTreeMap<u32, Vec<(u32, EffectOutcome)>>;

impl Batch {
    /// Reads what deliveries ask for.
    pub(super) fn read(shared: &Shared, deliveries: Vec<Delivery>) -> Self {
        let live = shared.live.load_full();
        let requests = deliveries.iter().map(|delivery| Request::of(delivery, &live, shared.config.reading)).collect();
        Self { _held: shared.in_hand.take(deliveries.len()), holding: shared.low.take(&deliveries), deliveries, requests, live }
    }

    /// The newest delivery's tag: acknowledging through it settles the batch.
    pub(super) fn last_tag(&self) -> Option<Tag> {
        self.deliveries.last().map(Delivery::tag)
    }

    /// Applies what one round trip can do. The effects that are not done; or the outage, and nothing is known.
    pub(super) async fn apply(&self, shared: &Shared) -> Result<Unsettled, Outage> {
        let effects = self.requests.iter().map(|request| request.resolution.effects.len()).sum();
        let mut batch = plan::Batch::new(shared.cache.tag_prefix(), effects);
        for (event, request) in (0_u32..).zip(&self.requests) {
            for (position, effect) in (0_u32..).zip(&request.resolution.effects) {
                let slot = Slot { event, position };
                match (request.asks_for(position), request.is_copy) {
                    (false, _) => {}
                    (true, false) => batch.push(slot, effect),
                    (true, true) => batch.push_again(slot, effect),
                }
            }
        }
        let applied = shared.cache.apply(&batch.finish()).await?;
        for hits in applied.hits {
            self.live.metrics.keys(hits.rule, hits.yes, hits.no);
        }
        let mut unsettled = Unsettled::new();
        for (slot, outcome) in applied.unsettled {
            let outcome = self.named(slot, outcome);
            unsettled.entry(slot.event).or_default().push((slot.position, outcome));
        }
        unsettled.values_mut().for_each(|effects| effects.sort_unstable_by_key(|(position, _)| *position));
        Ok(unsettled)
    }

    /// The outcome with the name of the effect's rule in what it says.
    pub(super) fn named(&self, slot: Slot, mut outcome: EffectOutcome) -> EffectOutcome {
        if let EffectOutcome::Retry { message, .. } | EffectOutcome::NotTried { message, .. } | EffectOutcome::Dead { message, .. } =
            &mut outcome
        {
            let rule = self.requests[slot.event as usize].resolution.effects[slot.position as usize].rule;
            *message = format!("{}: {message}", self.live.registry.rules()[rule.0 as usize].name);
        }
        outcome
    }

    /// Has every copy of what is unsettled confirmed, then counts. After that the batch may be acknowledged; whether there are copies, which
    /// would be made twice if it never were.
    pub(super) async fn settle(&self, shared: &Shared, publisher: &copies::Publisher, unsettled: &Unsettled) -> Result<bool, SessionEnded> {
        let mut orders = Vec::new();
        let mut outcomes = Vec::with_capacity(self.requests.len());
        for (event, (request, delivery)) in (0_u32..).zip(self.requests.iter().zip(&self.deliveries)) {
            let rest = rest(unsettled, event);
            let Settlement { copies, outcome } = match &request.verdict {
                Some(verdict) => verdict.clone(),
                None => settle(&shared.policy, &request.resolution, request.only.as_deref(), rest, request.attempts_before),
            };
            outcomes.push(outcome);
            orders.extend(copies.into_iter().map(|order| (delivery, self.holding.bound_of(delivery), order)));
        }
        if !orders.is_empty() {
            publisher.publish(shared, &self.live, &orders).await?;
        }
        self.holding.settled();
        self.count(shared, &outcomes, unsettled);
        Ok(!orders.is_empty())
    }

    fn count(&self, shared: &Shared, outcomes: &[EventOutcome], unsettled: &Unsettled) {
        let metrics = &self.live.metrics;
        let now = Timestamp::now();
        for (event, (request, outcome)) in (0_u32..).zip(self.requests.iter().zip(outcomes)) {
            metrics.event(request.resolution.matched, *outcome);
            let rest = rest(unsettled, event);
            for (position, effect) in (0_u32..).zip(&request.resolution.effects) {
                if request.asks_for(position) && rest.binary_search_by_key(&position, |(position, _)| *position).is_err() {
                    metrics.effects(effect.rule, 1);
                }
            }
            if request.resolution.violations > 0 {
                metrics.violations(request.resolution.matched, request.resolution.violations);
            }
            if let (Some(happened_at), EventOutcome::Applied) = (request.happened_at, outcome) {
                shared.metrics.event_to_applied(now.duration_since(happened_at).try_into().unwrap_or_default());
            }
        }
    }
}

/// What is left to do of an event, in order of position.
fn rest(unsettled: &Unsettled, event: u32) -> &[(u32, EffectOutcome)] {
    unsettled.get(&event).map_or(&[], Vec::as_slice)
}
