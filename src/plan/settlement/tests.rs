use super::*;
use crate::registry::{Action, Effect, RuleId};

fn policy() -> SettlePolicy {
    SettlePolicy {
        retry_schedule: RetrySchedule([1, 10, 60].map(Duration::from_secs).to_vec()),
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
    EffectOutcome::Dead {
        reason: Reason::RedisRefused,
        message: "WRONGTYPE".into(),
        may_be_permitted: false,
    }
}

fn summary(settlement: &Settlement) -> Vec<(Destination, u32, Option<&[u32]>)> {
    settlement
        .republish
        .iter()
        .map(|order| (order.destination, order.attempt, order.effects.as_deref()))
        .collect()
}

#[test]
fn an_applied_event_is_only_acknowledged() {
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
fn each_kind_of_unsettled_effect_has_its_own_republished_message() {
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
fn a_republished_message_for_all_effects_lists_no_positions() {
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
fn a_republished_message_for_some_effects_never_grows_to_all() {
    let settlement = settle(&policy(), &resolution(4, None), Some(&[2]), &[(2, retry())], 1);
    assert_eq!(summary(&settlement), [(Destination::Retry(1), 2, Some(&[2][..]))]);
}

#[test]
fn the_first_failing_effect_gives_the_dead_letter_reason() {
    for (failure_at, dead_at, reason) in
        [(0, 0, Reason::Unresolvable), (1, 0, Reason::RedisRefused), (2, 1, Reason::RedisRefused)]
    {
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
fn a_failure_to_resolve_is_dead_lettered_once() {
    let resolution = resolution(2, Some((Reason::Unresolvable, 1)));
    let first = settle(&policy(), &resolution, None, &[(0, EffectOutcome::Slow), (1, retry())], 0);
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
fn an_effect_that_was_not_tried_costs_no_attempt() {
    let not_tried = |after_s| EffectOutcome::NotTried {
        message: "not asked".into(),
        after: Duration::from_secs(after_s),
    };
    for (attempts_before, after_s, step) in
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
            [(Destination::Retry(step), attempts_before, None)],
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
fn the_retry_schedule_ends_in_the_dead_letter_queue() {
    for attempts_before in 0..3 {
        let settlement =
            settle(&policy(), &resolution(1, None), None, &[(0, retry())], attempts_before);
        let step = usize::try_from(attempts_before).unwrap();
        assert_eq!(summary(&settlement), [(Destination::Retry(step), attempts_before + 1, None)]);
    }
    let settlement =
        settle(&policy(), &resolution(2, None), None, &[(0, retry()), (1, refused())], 3);
    assert_eq!(summary(&settlement), [(Destination::Dead(Reason::AttemptsExhausted), 4, None)]);
    let settlement =
        settle(&policy(), &resolution(2, None), None, &[(0, refused()), (1, retry())], 3);
    assert_eq!(summary(&settlement), [(Destination::Dead(Reason::RedisRefused), 4, None)]);
}

#[test]
fn a_minimum_delay_is_kept_within_the_retry_schedule() {
    let retry_schedule = policy().retry_schedule;
    for (made, after_s, step) in [
        (1, None, Some(0)),
        (1, Some(1), Some(0)),
        (1, Some(5), Some(1)),
        (3, Some(1), Some(2)),
        (1, Some(3_600), Some(2)),
        (4, Some(1), None),
    ] {
        assert_eq!(
            retry_schedule.step(made, after_s.map(Duration::from_secs)),
            step,
            "{made} {after_s:?}"
        );
    }
}

#[test]
fn an_unknown_event_is_settled_by_the_unknown_policy() {
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
