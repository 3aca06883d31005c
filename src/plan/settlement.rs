//! Decides how a delivery is settled: which messages must be republished and confirmed before it is
//! acknowledged.

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::outcome::{EffectOutcome, EventOutcome};
use super::retry_schedule::RetrySchedule;
use crate::config::UnknownPolicy;
use crate::reason::Reason;
use crate::registry::{Failure, Matched, Resolution};

/// Destination of a republished message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The slow lane.
    Slow,
    /// The retry step with this index.
    Retry(usize),
    /// The dead-letter queue.
    Dead(Reason),
}

/// A message to republish. It must be confirmed before the delivery is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepublishOrder {
    /// Its destination.
    pub destination: Destination,
    /// Number of attempts so far, with this one if it failed.
    pub attempt: u32,
    /// Effects that are still to do, as positions in the resolution. `None` for all of them.
    pub effects: Option<Vec<u32>>,
    /// Error text: rules and codes, never payload values.
    pub error: Option<String>,
}

/// The decision about a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Messages to republish and confirm first. Usually none.
    pub republish: Vec<RepublishOrder>,
    /// The outcome for the metrics.
    pub outcome: EventOutcome,
}

impl Settlement {
    /// Returns a settlement that only acknowledges.
    pub const fn clean(outcome: EventOutcome) -> Self {
        Self { republish: Vec::new(), outcome }
    }

    /// Returns a settlement that moves the whole message to the dead-letter queue.
    pub fn dead(reason: Reason, error: String, attempts_before: u32) -> Self {
        let order = RepublishOrder {
            destination: Destination::Dead(reason),
            attempt: attempts_before + 1,
            effects: None,
            error: Some(error),
        };
        Self { republish: vec![order], outcome: EventOutcome::Dead }
    }
}

/// Settings that a settlement depends on.
#[derive(Debug, Clone)]
pub struct SettlePolicy {
    /// The delays of retries.
    pub retry_schedule: RetrySchedule,
    /// Treatment of unknown events.
    pub unknown: UnknownPolicy,
}

/// Settles an event after Redis has answered for its effects.
///
/// `only` lists the positions that this delivery had to do, from the header `unstale-effects`. A
/// failure to resolve was then settled by the delivery that was republished. `unsettled` lists the
/// effects that are not applied, in order of position.
pub fn settle(
    policy: &SettlePolicy,
    resolution: &Resolution,
    only: Option<&[u32]>,
    unsettled: &[(u32, EffectOutcome)],
    attempts_before: u32,
) -> Settlement {
    match resolution.matched {
        Matched::Retired(_) => return Settlement::clean(EventOutcome::Retired),
        Matched::Unknown => return settle_unknown(policy, attempts_before),
        Matched::Definition(_) => {}
    }
    let failure = if only.is_some() { None } else { resolution.failure.as_ref() };
    if failure.is_none() && unsettled.is_empty() {
        return Settlement::clean(EventOutcome::Applied);
    }
    let mut sorted = Sorted::default();
    for (position, outcome) in unsettled {
        match outcome {
            EffectOutcome::Slow => sorted.slow.push(*position),
            EffectOutcome::Retry { message, after } => sorted.retry(*position, message, *after),
            EffectOutcome::NotTried { message, after } => {
                sorted.not_tried(*position, message, *after)
            }
            EffectOutcome::Dead { reason, message, .. } => sorted.dead(*position, *reason, message),
        }
    }
    sorted.into_settlement(policy, resolution, failure, attempts_before)
}

/// Returns the positions to list in a republished message, or `None` if they are the whole event.
/// Beside a failure they are always listed. Otherwise the republished message would repeat that
/// failure.
fn spelled_out(positions: Vec<u32>, resolution: &Resolution) -> Option<Vec<u32>> {
    let all = positions.len() == resolution.effects.len() && resolution.failure.is_none();
    (!all).then_some(positions)
}

fn settle_unknown(policy: &SettlePolicy, attempts_before: u32) -> Settlement {
    let attempt = attempts_before + 1;
    let message = || "no event definition matches this event's type".to_owned();
    let step = match policy.unknown {
        UnknownPolicy::Drop => return Settlement::clean(EventOutcome::Dropped),
        UnknownPolicy::Dead => None,
        UnknownPolicy::Retry => policy.retry_schedule.step(attempt, None),
    };
    let Some(step) = step else {
        return Settlement::dead(Reason::UnknownEvent, message(), attempts_before);
    };
    let order = RepublishOrder {
        destination: Destination::Retry(step),
        attempt,
        effects: None,
        error: Some(message()),
    };
    Settlement { republish: vec![order], outcome: EventOutcome::Retried }
}

/// Unsettled effects of one event, by destination.
#[derive(Default)]
struct Sorted {
    slow: Vec<u32>,
    retry: Vec<u32>,
    retry_message: Option<String>,
    retry_after: Option<Duration>,
    not_tried: Vec<u32>,
    not_tried_message: Option<String>,
    not_tried_after: Option<Duration>,
    dead: Vec<u32>,
    dead_first: Option<(Reason, String)>,
}

impl Sorted {
    fn retry(&mut self, position: u32, message: &str, after: Option<Duration>) {
        self.retry.push(position);
        self.retry_message.get_or_insert_with(|| message.to_owned());
        self.retry_after = self.retry_after.max(after);
    }

    fn not_tried(&mut self, position: u32, message: &str, after: Duration) {
        self.not_tried.push(position);
        self.not_tried_message.get_or_insert_with(|| message.to_owned());
        self.not_tried_after = self.not_tried_after.max(Some(after));
    }

    fn dead(&mut self, position: u32, reason: Reason, message: &str) {
        self.dead.push(position);
        self.dead_first.get_or_insert_with(|| (reason, message.to_owned()));
    }

    fn into_settlement(
        mut self,
        policy: &SettlePolicy,
        resolution: &Resolution,
        failure: Option<&Failure>,
        attempts_before: u32,
    ) -> Settlement {
        let attempt = attempts_before + 1;
        let mut republish = Vec::new();
        let mut outcome = EventOutcome::Applied;
        if !self.slow.is_empty() {
            outcome = EventOutcome::Slow;
            // The positions are listed even if they are all. Otherwise the slow lane would repeat
            // effects that are applied in the main lane.
            republish.push(RepublishOrder {
                destination: Destination::Slow,
                attempt: attempts_before,
                effects: Some(std::mem::take(&mut self.slow)),
                error: None,
            });
        }
        if !self.retry.is_empty() {
            let message = self.retry_message.take().unwrap_or_default();
            if let Some(step) = policy.retry_schedule.step(attempt, self.retry_after) {
                outcome = EventOutcome::Retried;
                let effects = spelled_out(std::mem::take(&mut self.retry), resolution);
                republish.push(RepublishOrder {
                    destination: Destination::Retry(step),
                    attempt,
                    effects,
                    error: Some(message),
                });
            } else {
                for position in std::mem::take(&mut self.retry) {
                    self.exhaust(position, &message);
                }
            }
        }
        if !self.not_tried.is_empty() {
            outcome = EventOutcome::Retried;
            let effects = spelled_out(std::mem::take(&mut self.not_tried), resolution);
            let destination = Destination::Retry(
                policy.retry_schedule.step_without_attempt(attempts_before, self.not_tried_after),
            );
            republish.push(RepublishOrder {
                destination,
                attempt: attempts_before,
                effects,
                error: self.not_tried_message.take(),
            });
        }
        if let Some(order) = self.dead_letter(resolution, failure, attempt) {
            outcome = EventOutcome::Dead;
            republish.push(order);
        }
        Settlement { republish, outcome }
    }

    /// Adds an effect that failed in the last retry step to the dead ones, in order of position.
    fn exhaust(&mut self, position: u32, message: &str) {
        let at = self.dead.partition_point(|dead| *dead < position);
        self.dead.insert(at, position);
        if at == 0 {
            self.dead_first = Some((Reason::AttemptsExhausted, message.to_owned()));
        }
    }

    /// Returns the dead letter of the event, if an effect is dead or the event did not resolve.
    fn dead_letter(
        self,
        resolution: &Resolution,
        failure: Option<&Failure>,
        attempt: u32,
    ) -> Option<RepublishOrder> {
        let first = self.dead_first.filter(|_| {
            failure.is_none_or(|failure| self.dead.first().is_some_and(|at| *at < failure.at))
        });
        let (reason, message) = match (first, failure) {
            (Some(first), _) => first,
            (None, Some(failure)) => (failure.reason, failure.message.clone()),
            (None, None) => return None,
        };
        // A failure to resolve has no position, so such a dead letter concerns the whole event.
        let effects = if failure.is_some() { None } else { spelled_out(self.dead, resolution) };
        Some(RepublishOrder {
            destination: Destination::Dead(reason),
            attempt,
            effects,
            error: Some(message),
        })
    }
}
