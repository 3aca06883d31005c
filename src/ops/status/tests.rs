//! How things may stand, and what is made of it.

use super::*;
use crate::cache::WorkerReport;

pub(crate) fn worker(name: &str) -> WorkerFacts {
    WorkerFacts {
        name: name.to_owned(),
        version: "0.1.0".to_owned(),
        digest: "aaaaaaaaaaaaaaaaaaaa".to_owned(),
        refused_registry: None,
        ladder: vec!["1s".to_owned()],
        reported_s_ago: 2.0,
        in_hand: 0,
        oldest_unsettled_s: None,
        not_ready: vec![],
        history_fault: None,
    }
}

pub(crate) fn queue(name: &str, kind: QueueKind, ready: u32, consumers: u32) -> QueueFacts {
    QueueFacts { name: name.to_owned(), kind, exists: true, ready, consumers, unknown: None }
}

/// All is well.
pub(crate) fn well() -> Status {
    Status {
        time: "2026-11-25T03:00:00Z".parse().unwrap(),
        rabbitmq: Ok(BrokerFacts {
            node: "amqp://guest:***@127.0.0.1:5672/%2f".to_owned(),
            queues: vec![
                queue("unstale", QueueKind::Main, 12, 2),
                queue("unstale.slow", QueueKind::Slow, 0, 2),
                queue("unstale.retry.1s", QueueKind::Rung, 0, 0),
                queue("unstale.dead", QueueKind::Dead, 0, 0),
            ],
            oldest_dead_letter: None,
            history: HistoryFacts::Stands {
                first: 0,
                last: 99_999,
                since: Some("2026-11-24T21:00:00Z".parse().unwrap()),
            },
        }),
        redis: Ok(RedisFacts {
            address: "redis://127.0.0.1:6379/0".to_owned(),
            software: "Redis",
            version: Some("7.0.15".to_owned()),
            role: Some("master".to_owned()),
            replicas: Some(1),
            healing: false,
            heal_progress: None,
            owed_heal: None,
            last_heal: None,
            workers: vec![worker("a:1"), worker("b:2")],
        }),
    }
}

fn broker(status: &mut Status) -> &mut BrokerFacts {
    status.rabbitmq.as_mut().unwrap()
}

fn redis(status: &mut Status) -> &mut RedisFacts {
    status.redis.as_mut().unwrap()
}

/// Nearly everything is wrong.
pub(crate) fn troubled() -> Status {
    let mut status = well();
    let facts = broker(&mut status);
    facts.queues[0].consumers = 0;
    facts.queues.insert(3, queue("unstale.retry.5s", QueueKind::LeftRung, 1, 0));
    facts.queues.insert(4, queue("unstale.retry.7s", QueueKind::LeftRung, 0, 0));
    facts.queues[5].ready = 3;
    facts.oldest_dead_letter = Some(OldestLetter {
        reason: "loader_refused".to_owned(),
        event_type: "product.updated".to_owned(),
        time: Some("2026-11-23T22:30:10Z".parse().unwrap()),
    });
    facts.history = HistoryFacts::Off;
    let heal = HealFacts {
        time: Some("2026-11-25T02:58:00Z".parse().unwrap()),
        from: None,
        count: 1,
        complete: false,
        digests: vec![],
        passed_over: vec![],
    };
    redis(&mut status).last_heal = Some(heal);
    let workers = &mut redis(&mut status).workers;
    workers[0].oldest_unsettled_s = Some(260.0);
    workers[0].in_hand = 17;
    workers[0].refused_registry = Some("schemas/user.yaml:3:7: unknown key `efects`".to_owned());
    workers[1].digest = "bbbbbbbbbbbbbbbbbbbb".to_owned();
    workers[1].not_ready = vec!["consuming: no session with RabbitMQ".to_owned()];
    status
}

/// Neither server answers.
pub(crate) fn dark() -> Status {
    let mut status = well();
    status.rabbitmq = Err("RabbitMQ cannot be reached: amqp://guest:***@127.0.0.1:5672/%2f: Connection refused (os error 111)".to_owned());
    status.redis = Err("Redis cannot be reached: connection refused".to_owned());
    status
}

fn problems(status: &Status) -> Vec<String> {
    judge(status).problems.into_iter().map(|finding| finding.what).collect()
}

#[test]
fn what_is_well_needs_nobody() {
    assert_eq!(judge(&well()), Findings::default());
}

#[test]
fn a_worker_that_says_why_it_pauses_stands_for_the_missing_consumer() {
    let mut status = well();
    broker(&mut status).queues[0].consumers = 0;
    assert_eq!(problems(&status), ["nobody consumes `unstale`: 12 events waiting"]);
    redis(&mut status).workers[0].not_ready = vec!["redis: loading".to_owned()];
    assert_eq!(problems(&status), ["worker a:1 is not ready: redis: loading"]);
}

#[test]
fn a_worker_that_does_not_report_needs_a_person() {
    let mut status = well();
    redis(&mut status).workers[1].reported_s_ago = 17.0;
    assert_eq!(problems(&status), ["worker b:2 has not reported for 17s"]);
    redis(&mut status).workers.clear();
    assert_eq!(
        problems(&status),
        ["`unstale` has 2 consumers, and no worker has reported within 30 s"]
    );
    redis(&mut status).healing = true;
    assert_eq!(
        problems(&status),
        Vec::<String>::new(),
        "workers do not report while the history is applied again"
    );
}

#[test]
fn queues_that_are_not_there_are_told_once() {
    let mut status = well();
    broker(&mut status).queues[1].exists = false;
    assert_eq!(problems(&status), ["missing: unstale.slow"]);
    broker(&mut status).queues.iter_mut().for_each(|queue| queue.exists = false);
    broker(&mut status).history = HistoryFacts::Missing;
    assert_eq!(problems(&status), ["there is no queue `unstale` nor any beside it"]);
}

#[test]
fn a_heal_is_told_for_a_day_and_needs_a_person_where_it_was_not_whole() {
    let mut status = well();
    let mut heal = HealFacts {
        time: Some("2026-11-25T02:58:00Z".parse().unwrap()),
        from: None,
        count: 1,
        complete: true,
        digests: vec![],
        passed_over: vec![],
    };
    redis(&mut status).last_heal = Some(heal.clone());
    let told = |status: &Status| (judge(status).problems.len(), judge(status).notes.len());
    assert_eq!(told(&status), (0, 1));
    heal.complete = false;
    redis(&mut status).last_heal = Some(heal.clone());
    assert_eq!(told(&status), (1, 0));
    heal.time = Some("2026-11-23T02:58:00Z".parse().unwrap());
    redis(&mut status).last_heal = Some(heal);
    redis(&mut status).healing = true;
    assert_eq!(told(&status), (0, 1));
}

#[test]
fn a_heal_that_is_owed_or_left_something_out_says_what_to_do() {
    let mut status = well();
    redis(&mut status).owed_heal =
        Some(OwedFacts { since: None, from: "offset 7".into(), cause: "ACCESS_REFUSED".into() });
    assert_eq!(
        problems(&status),
        ["the history from offset 7 on is to be applied again, and has not been: ACCESS_REFUSED"]
    );
    let mut status = well();
    let time = Some("2026-11-25T02:58:00Z".parse().unwrap());
    let digests = vec![redis(&mut status).workers[0].digest.clone()];
    let heal =
        HealFacts { time, from: None, count: 1, complete: false, digests, passed_over: vec![5, 9] };
    redis(&mut status).last_heal = Some(heal);
    assert_eq!(problems(&status).len(), 1);
    assert!(
        problems(&status)[0].ends_with(
            "left out the events at these offsets of the history, since heals died there or could not resolve them in time: 5, 9"
        )
    );
    redis(&mut status).workers[0].digest = "newer".into();
    let notes: Vec<String> = judge(&status).notes.into_iter().map(|note| note.what).collect();
    assert!(
        notes.contains(
            &"no heal has applied the rules of a:1 since Redis lost writes, or may have".to_owned()
        ),
        "{notes:?}"
    );
    redis(&mut status).healing = true;
    redis(&mut status).heal_progress = Some(ProgressFacts { done: 3, of: 10, deaths: 1 });
    let notes: Vec<String> = judge(&status).notes.into_iter().map(|note| note.what).collect();
    assert!(
        notes.iter().any(|note| note
            .ends_with("is being applied again (3 of 10 messages, 1 heal died on the way)")),
        "{notes:?}"
    );
}

#[test]
fn spans_are_told_in_two_units() {
    let spans = [0.2, 59.0, 60.0, 61.0, 3_600.0, 3_725.0, 90_000.0];
    assert_eq!(spans.map(judge::seconds), ["0s", "59s", "1m", "1m 1s", "1h", "1h 2m", "1d 1h"]);
}

#[test]
fn reports_of_other_versions_are_read_as_far_as_they_go() {
    let report: WorkerReport = serde_json::from_str(r#"{"pid":7,"news":true}"#).unwrap();
    assert_eq!(report, WorkerReport { pid: 7, ..WorkerReport::default() });
}
