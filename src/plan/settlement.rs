//! What became of an event's effects → the copies that must be confirmed before its delivery is
//! acknowledged.

use std::time::Duration;

use super::outcome::{EffectOutcome, EventOutcome};
use crate::config::UnknownPolicy;
use crate::reason::Reason;
use crate::registry::{Failure, Matched, Resolution};

/// The rungs that a failing event climbs, shortest wait first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder(pub Vec<Duration>);

impl Ladder {
    /// The rung for an event that was tried `attempts_made` times, waiting at least `after` where a
    /// rung is as long; `None` beyond the last.
    pub fn rung(&self, attempts_made: u32, after: Option<Duration>) -> Option<usize> {
        let climbed = usize::try_from(attempts_made).ok()?.checked_sub(1)?;
        if climbed >= self.0.len() {
            return None;
        }
        let patient = after.and_then(|after| self.0.iter().position(|delay| *delay >= after));
        let longest = after.map_or(climbed, |_| self.0.len() - 1);
        Some(climbed.max(patient.unwrap_or(longest)))
    }

    /// Where an event waits that was not tried this time: at the step of its last attempt, or at a
    /// longer one.
    fn same_rung(&self, attempts_before: u32, after: Option<Duration>) -> Destination {
        let last = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        Destination::Retry(self.rung(attempts_before.min(last).max(1), after).unwrap_or_default())
    }
}

/// Where a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The slow lane.
    Slow,
    /// The ladder's rung, from 0.
    Retry(usize),
    /// The dead-letter queue.
    Dead(Reason),
}

/// A copy that must be confirmed before the delivery is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOrder {
    /// Where it goes.
    pub destination: Destination,
    /// Attempts made so far, this one included where it failed.
    pub attempt: u32,
    /// What is still to do, as positions in the resolution; `None` is all of it.
    pub effects: Option<Vec<u32>>,
    /// What went wrong: rules and codes, never payload values.
    pub error: Option<String>,
}

/// How a delivery is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// To be confirmed first; mostly none.
    pub copies: Vec<CopyOrder>,
    /// What is counted.
    pub outcome: EventOutcome,
}

impl Settlement {
    /// Nothing left to do.
    pub const fn clean(outcome: EventOutcome) -> Self {
        Self { copies: Vec::new(), outcome }
    }

    /// The whole message to the dead-letter queue.
    pub fn dead(reason: Reason, error: String, attempts_before: u32) -> Self {
        let copy = CopyOrder {
            destination: Destination::Dead(reason),
            attempt: attempts_before + 1,
            effects: None,
            error: Some(error),
        };
        Self { copies: vec![copy], outcome: EventOutcome::Dead }
    }
}

/// What decides beside the event itself.
#[derive(Debug, Clone)]
pub struct SettlePolicy {
    /// Where failures wait.
    pub ladder: Ladder,
    /// What becomes of unknown events.
    pub unknown: UnknownPolicy,
}

/// Settles an event whose effects Redis has answered.
///
/// `only` are the positions that this delivery was to do (`unstale-effects`, where heeded): what
/// could not be resolved was settled by the delivery that made the copy. `unsettled` are the
/// effects among them that are not done, in order of position.
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
            EffectOutcome::Dead { reason, message } => sorted.dead(*position, *reason, message),
        }
    }
    sorted.into_settlement(policy, resolution, failure, attempts_before)
}

/// The positions a copy must spell out: none where they are all there is to the event. Beside a
/// failure they always are, or the copy would meet that failure again.
fn spelled_out(positions: Vec<u32>, resolution: &Resolution) -> Option<Vec<u32>> {
    let all = positions.len() == resolution.effects.len() && resolution.failure.is_none();
    (!all).then_some(positions)
}

fn settle_unknown(policy: &SettlePolicy, attempts_before: u32) -> Settlement {
    let attempt = attempts_before + 1;
    let message = || "no entry of the registry knows this event's type".to_owned();
    let rung = match policy.unknown {
        UnknownPolicy::Drop => return Settlement::clean(EventOutcome::Dropped),
        UnknownPolicy::Dead => None,
        UnknownPolicy::Retry => policy.ladder.rung(attempt, None),
    };
    let Some(rung) = rung else {
        return Settlement::dead(Reason::UnknownEvent, message(), attempts_before);
    };
    let copy = CopyOrder {
        destination: Destination::Retry(rung),
        attempt,
        effects: None,
        error: Some(message()),
    };
    Settlement { copies: vec![copy], outcome: EventOutcome::Retried }
}

/// An event's unsettled effects by what becomes of them.
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
        let mut copies = Vec::new();
        let mut outcome = EventOutcome::Applied;
        if !self.slow.is_empty() {
            outcome = EventOutcome::Slow;
            // The positions are spelled out even where they are all: the slow lane must not do
            // again what is done inline.
            copies.push(CopyOrder {
                destination: Destination::Slow,
                attempt: attempts_before,
                effects: Some(std::mem::take(&mut self.slow)),
                error: None,
            });
        }
        if !self.retry.is_empty() {
            let message = self.retry_message.take().unwrap_or_default();
            if let Some(rung) = policy.ladder.rung(attempt, self.retry_after) {
                outcome = EventOutcome::Retried;
                let effects = spelled_out(std::mem::take(&mut self.retry), resolution);
                copies.push(CopyOrder {
                    destination: Destination::Retry(rung),
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
            let destination = policy.ladder.same_rung(attempts_before, self.not_tried_after);
            copies.push(CopyOrder {
                destination,
                attempt: attempts_before,
                effects,
                error: self.not_tried_message.take(),
            });
        }
        if let Some(copy) = self.dead_copy(resolution, failure, attempt) {
            outcome = EventOutcome::Dead;
            copies.push(copy);
        }
        Settlement { copies, outcome }
    }

    /// A failing effect that climbed the last rung, kept in order among the other dead ones.
    fn exhaust(&mut self, position: u32, message: &str) {
        let at = self.dead.partition_point(|dead| *dead < position);
        self.dead.insert(at, position);
        if at == 0 {
            self.dead_first = Some((Reason::AttemptsExhausted, message.to_owned()));
        }
    }

    fn dead_copy(
        self,
        resolution: &Resolution,
        failure: Option<&Failure>,
        attempt: u32,
    ) -> Option<CopyOrder> {
        let first = self.dead_first.filter(|_| {
            failure.is_none_or(|failure| self.dead.first().is_some_and(|at| *at < failure.at))
        });
        let (reason, message) = match (first, failure) {
            (Some(first), _) => first,
            (None, Some(failure)) => (failure.reason, failure.message.clone()),
            (None, None) => return None,
        };
        // What could not be resolved has no position: such a letter stands for the whole event.
        let effects = if failure.is_some() { None } else { spelled_out(self.dead, resolution) };
        Some(CopyOrder {
            destination: Destination::Dead(reason),
            attempt,
            effects,
            error: Some(message),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Action, Effect, RuleId};

    fn policy() -> SettlePolicy {
        SettlePolicy {
            ladder: Ladder([1, 10, 60].map(Duration::from_secs).to_vec()),
            unknown: UnknownPolicy::Retry,
        }
    }

    fn resolution(effects: usize, failure: Option<(Reason, u32)>) -> Resolution {
        let effects = (0..effects)
            .map(|n| Effect {
                rule: RuleId(0),
                target: format!("k{n}"),
                action: Action::Delete,
                version: None,
                again: None,
            })
            .collect();
        let failure = failure.map(|(reason, at)| Failure { reason, message: "rule".into(), at });
        Resolution { matched: Matched::Definition(0), effects, failure, violations: 0 }
    }

    fn retry() -> EffectOutcome {
        EffectOutcome::Retry { message: "loader answered 503".into(), after: None }
    }

    fn refused() -> EffectOutcome {
        EffectOutcome::Dead { reason: Reason::RedisRefused, message: "WRONGTYPE".into() }
    }

    fn summary(settlement: &Settlement) -> Vec<(Destination, u32, Option<&[u32]>)> {
        settlement
            .copies
            .iter()
            .map(|copy| (copy.destination, copy.attempt, copy.effects.as_deref()))
            .collect()
    }

    #[test]
    fn an_applied_event_needs_no_copy() {
        assert_eq!(
            settle(&policy(), &resolution(3, None), None, &[], 0),
            Settlement::clean(EventOutcome::Applied)
        );
        assert_eq!(
            settle(&policy(), &resolution(0, None), None, &[], 0),
            Settlement::clean(EventOutcome::Applied)
        );
    }

    #[test]
    fn each_kind_of_rest_has_its_own_copy() {
        let unsettled = [(0, EffectOutcome::Slow), (1, retry()), (3, refused())];
        let settlement = settle(&policy(), &resolution(4, None), None, &unsettled, 0);
        assert_eq!(
            summary(&settlement),
            [
                (Destination::Slow, 0, Some(&[0][..])),
                (Destination::Retry(0), 1, Some(&[1][..])),
                (Destination::Dead(Reason::RedisRefused), 1, Some(&[3][..])),
            ]
        );
        assert_eq!(settlement.outcome, EventOutcome::Dead);
    }

    #[test]
    fn a_copy_of_everything_names_no_positions() {
        let settlement =
            settle(&policy(), &resolution(2, None), None, &[(0, retry()), (1, retry())], 0);
        assert_eq!(summary(&settlement), [(Destination::Retry(0), 1, None)]);
        let settlement = settle(&policy(), &resolution(4, None), Some(&[2]), &[(2, refused())], 1);
        assert_eq!(
            summary(&settlement),
            [(Destination::Dead(Reason::RedisRefused), 2, Some(&[2][..]))]
        );
    }

    #[test]
    fn a_copy_that_was_to_do_a_part_never_grows_to_the_whole() {
        let settlement = settle(&policy(), &resolution(4, None), Some(&[2]), &[(2, retry())], 1);
        assert_eq!(summary(&settlement), [(Destination::Retry(1), 2, Some(&[2][..]))]);
    }

    #[test]
    fn the_first_failing_effect_gives_the_reason() {
        for (failure_at, dead_at, reason) in [
            (0, 0, Reason::Unresolvable),
            (1, 0, Reason::RedisRefused),
            (2, 1, Reason::RedisRefused),
        ] {
            let resolution = resolution(3, Some((Reason::Unresolvable, failure_at)));
            let settlement = settle(&policy(), &resolution, None, &[(dead_at, refused())], 0);
            assert_eq!(
                summary(&settlement),
                [(Destination::Dead(reason), 1, None)],
                "{failure_at} {dead_at}"
            );
        }
    }

    #[test]
    fn what_could_not_be_resolved_is_dead_lettered_once() {
        let resolution = resolution(2, Some((Reason::Unresolvable, 1)));
        let first =
            settle(&policy(), &resolution, None, &[(0, EffectOutcome::Slow), (1, retry())], 0);
        assert_eq!(
            summary(&first),
            [
                (Destination::Slow, 0, Some(&[0][..])),
                (Destination::Retry(0), 1, Some(&[1][..])),
                (Destination::Dead(Reason::Unresolvable), 1, None),
            ]
        );
        let slow_copy = settle(&policy(), &resolution, Some(&[0]), &[], 0);
        assert_eq!(slow_copy, Settlement::clean(EventOutcome::Applied));
    }

    #[test]
    fn what_was_not_tried_costs_no_attempt() {
        let not_tried = |after_s| EffectOutcome::NotTried {
            message: "not asked".into(),
            after: Duration::from_secs(after_s),
        };
        for (attempts_before, after_s, rung) in
            [(0, 1, 0), (0, 5, 1), (2, 1, 1), (3, 1, 2), (9, 1, 2), (1, 3_600, 2)]
        {
            let settlement = settle(
                &policy(),
                &resolution(1, None),
                None,
                &[(0, not_tried(after_s))],
                attempts_before,
            );
            assert_eq!(
                summary(&settlement),
                [(Destination::Retry(rung), attempts_before, None)],
                "{attempts_before} {after_s}"
            );
            assert_eq!(settlement.outcome, EventOutcome::Retried);
        }
        let beside = [(0, not_tried(5)), (1, retry()), (2, refused())];
        assert_eq!(
            summary(&settle(&policy(), &resolution(3, None), None, &beside, 1)),
            [
                (Destination::Retry(1), 2, Some(&[1][..])),
                (Destination::Retry(1), 1, Some(&[0][..])),
                (Destination::Dead(Reason::RedisRefused), 2, Some(&[2][..])),
            ]
        );
    }

    #[test]
    fn the_ladder_ends_in_the_dead_letter_queue() {
        for attempts_before in 0..3 {
            let settlement =
                settle(&policy(), &resolution(1, None), None, &[(0, retry())], attempts_before);
            let rung = usize::try_from(attempts_before).unwrap();
            assert_eq!(
                summary(&settlement),
                [(Destination::Retry(rung), attempts_before + 1, None)]
            );
        }
        let settlement =
            settle(&policy(), &resolution(2, None), None, &[(0, retry()), (1, refused())], 3);
        assert_eq!(summary(&settlement), [(Destination::Dead(Reason::AttemptsExhausted), 4, None)]);
        let settlement =
            settle(&policy(), &resolution(2, None), None, &[(0, refused()), (1, retry())], 3);
        assert_eq!(summary(&settlement), [(Destination::Dead(Reason::RedisRefused), 4, None)]);
    }

    #[test]
    fn a_named_wait_is_kept_as_far_as_the_ladder_reaches() {
        let ladder = policy().ladder;
        for (made, after_s, rung) in [
            (1, None, Some(0)),
            (1, Some(1), Some(0)),
            (1, Some(5), Some(1)),
            (3, Some(1), Some(2)),
            (1, Some(3_600), Some(2)),
            (4, Some(1), None),
        ] {
            assert_eq!(
                ladder.rung(made, after_s.map(Duration::from_secs)),
                rung,
                "{made} {after_s:?}"
            );
        }
    }

    #[test]
    fn an_unknown_event_follows_the_policy() {
        let unknown = Resolution::default();
        let with = |unknown| SettlePolicy { unknown, ..policy() };
        assert_eq!(
            summary(&settle(&with(UnknownPolicy::Retry), &unknown, None, &[], 0)),
            [(Destination::Retry(0), 1, None)]
        );
        let dead = [(Destination::Dead(Reason::UnknownEvent), 4, None)];
        assert_eq!(summary(&settle(&with(UnknownPolicy::Retry), &unknown, None, &[], 3)), dead);
        let dead = [(Destination::Dead(Reason::UnknownEvent), 1, None)];
        assert_eq!(summary(&settle(&with(UnknownPolicy::Dead), &unknown, None, &[], 0)), dead);
        assert_eq!(
            settle(&with(UnknownPolicy::Drop), &unknown, None, &[], 0),
            Settlement::clean(EventOutcome::Dropped)
        );
    }
}
