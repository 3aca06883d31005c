//! The settlement of a batch: messages for everything that is unfinished, and the metrics.

use std::time::Duration;

use jiff::Timestamp;

use super::super::acknowledgement::JustSettled;
use super::super::republish::{self, Order, Publisher};
use super::{Applied, Contents, Settled, Unfinished};
use crate::broker::{Delivery, SessionEnded, Tag};
use crate::event::Reading;
use crate::plan::{EffectOutcome, EventOutcome, SettlePolicy, Settlement, settle};
use crate::registry::Matched;
use crate::telemetry::{EffectLog, Metrics};

/// Everything that the settlement of a lane's batches needs.
#[derive(Debug)]
pub(in super::super) struct Settler<'s> {
    pub(in super::super) policy: &'s SettlePolicy,
    pub(in super::super) publisher: &'s Publisher<'s>,
    pub(in super::super) metrics: &'s Metrics,
    pub(in super::super) reading: Reading,
}

impl Applied {
    /// Publishes messages for everything that is unfinished, waits for their confirmations, and
    /// updates the metrics.
    pub(in super::super) async fn settle(
        self,
        settler: &Settler<'_>,
    ) -> Result<Settled, SessionEnded> {
        let Self { contents, unfinished } = self;
        let mut orders = Vec::new();
        let mut outcomes = Vec::with_capacity(contents.requests.len());
        for (event, (request, delivery)) in
            (0_u32..).zip(contents.requests.iter().zip(&contents.taken.deliveries))
        {
            let rest = rest(&unfinished, event);
            let Settlement { republish: copies, outcome } = match &request.verdict {
                Some(verdict) => verdict.clone(),
                None => settle(
                    settler.policy,
                    &request.resolution,
                    request.only.as_deref(),
                    rest,
                    request.attempts_before,
                ),
            };
            outcomes.push(outcome);
            orders.extend(copies.into_iter().map(|order| Order {
                delivery,
                arrived_after: contents.taken.bound_of(delivery),
                is_unread: request.is_unread,
                is_unknown: request.verdict.is_none()
                    && request.resolution.matched == Matched::Unknown,
                order,
            }));
        }
        let has_republished = !orders.is_empty();
        if has_republished {
            settler.publisher.publish(&contents.live, &orders).await?;
        }
        drop(orders);
        contents.taken.settled();
        settler.count(&contents, &outcomes, &unfinished);
        Ok(Settled { contents, has_republished })
    }
}

impl Settler<'_> {
    fn count(&self, contents: &Contents, outcomes: &[EventOutcome], unfinished: &Unfinished) {
        let metrics = &contents.live.metrics;
        let now = Timestamp::now();
        let log = EffectLog::get(contents.live.registry.digest());
        for (event, (request, outcome)) in (0_u32..).zip(contents.requests.iter().zip(outcomes)) {
            metrics.event(request.resolution.matched, *outcome);
            let rest = rest(unfinished, event);
            for (position, effect) in (0_u32..).zip(&request.resolution.effects) {
                if request.asks_for(position)
                    && rest.binary_search_by_key(&position, |(position, _)| *position).is_err()
                {
                    metrics.effects(effect.rule, 1);
                    if let Some(log) = &log {
                        let message = contents.taken.deliveries[event as usize].message();
                        let read = republish::decoded(&message, self.reading);
                        let rule = &contents.live.registry.rules()[effect.rule.0 as usize].name;
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
                self.metrics.event_to_applied(lag);
            }
        }
    }
}

impl Settled {
    /// Returns the newest delivery's tag. Acknowledging through it acknowledges the batch.
    pub(in super::super) fn last_tag(&self) -> Option<Tag> {
        self.contents.taken.deliveries.last().map(Delivery::tag)
    }

    /// Returns the tag of each delivery.
    pub(in super::super) fn tags(&self) -> impl Iterator<Item = Tag> + '_ {
        self.contents.taken.deliveries.iter().map(Delivery::tag)
    }

    /// Returns what decides when it is acknowledged.
    pub(in super::super) fn summary(&self) -> JustSettled {
        JustSettled {
            through: self.last_tag(),
            deliveries: self.contents.taken.deliveries.len(),
            has_republished: self.has_republished,
        }
    }
}

/// Returns how long ago an event happened. Returns `None` if the publisher's clock is ahead and the
/// time is therefore unknown.
fn lag(happened_at: Timestamp, now: Timestamp) -> Option<Duration> {
    now.duration_since(happened_at).try_into().ok()
}

/// Returns the unfinished effects of an event, in order of position.
fn rest(unfinished: &Unfinished, event: u32) -> &[(u32, EffectOutcome)] {
    unfinished.get(&event).map_or(&[], Vec::as_slice)
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
