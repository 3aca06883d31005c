//! States of a system, and their findings.

use super::*;
use crate::cache::WorkerReport;

pub(crate) fn worker(name: &str) -> WorkerFacts {
    WorkerFacts {
        name: name.to_owned(),
        version: "0.1.0".to_owned(),
        digest: "aaaaaaaaaaaaaaaaaaaa".to_owned(),
        resolution_digest: "aaaaaaaaaaaaaaaaaaaa-1".to_owned(),
        refused_registry: None,
        changing_rules: None,
        retry_steps: vec!["1s".to_owned()],
        reported_s_ago: 2.0,
        in_flight: 0,
        oldest_unsettled_s: None,
        not_ready: vec![],
        history_fault: None,
    }
}

pub(crate) fn queue(name: &str, kind: QueueKind, ready: u32, consumers: u32) -> QueueFacts {
    QueueFacts { name: name.to_owned(), kind, exists: true, ready, consumers, unknown: None }
}

/// Returns a status without any finding.
pub(crate) fn healthy() -> Status {
    Status {
        time: "2026-11-25T03:00:00Z".parse().unwrap(),
        rabbitmq: Ok(BrokerFacts {
            node: "amqp://guest:***@127.0.0.1:5672/%2f".to_owned(),
            queues: vec![
                queue("unstale", QueueKind::Main, 12, 2),
                queue("unstale.slow", QueueKind::Slow, 0, 2),
                queue("unstale.retry.1s", QueueKind::RetryStep, 0, 0),
                queue("unstale.dead", QueueKind::Dead, 0, 0),
            ],
            oldest_dead_letter: None,
            history: HistoryFacts::Exists {
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
            lost_events: None,
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

/// Returns a status with nearly every problem.
pub(crate) fn troubled() -> Status {
    let mut status = healthy();
    let facts = broker(&mut status);
    facts.queues[0].consumers = 0;
    facts.queues.insert(3, queue("unstale.retry.5s", QueueKind::OtherRetryStep, 1, 0));
    facts.queues.insert(4, queue("unstale.retry.7s", QueueKind::OtherRetryStep, 0, 0));
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
    workers[0].in_flight = 17;
    workers[0].refused_registry = Some("schemas/user.yaml:3:7: unknown key `efects`".to_owned());
    workers[1].digest = "bbbbbbbbbbbbbbbbbbbb".to_owned();
    workers[1].not_ready = vec!["consuming: no session with RabbitMQ".to_owned()];
    status
}

/// Returns a status of two servers that do not answer.
pub(crate) fn unreachable() -> Status {
    let mut status = healthy();
    status.rabbitmq = Err("RabbitMQ cannot be reached: amqp://guest:***@127.0.0.1:5672/%2f: Connection refused (os error 111)".to_owned());
    status.redis = Err("Redis cannot be reached: connection refused".to_owned());
    status
}

fn problems(status: &Status) -> Vec<String> {
    judge(status).problems.into_iter().map(|finding| finding.what).collect()
}

#[test]
fn a_healthy_status_has_no_findings() {
    assert_eq!(judge(&healthy()), Findings::default());
}

#[test]
fn a_missing_consumer_is_a_note_if_a_worker_says_why_it_pauses() {
    let mut status = healthy();
    broker(&mut status).queues[0].consumers = 0;
    assert_eq!(problems(&status), ["no worker consumes `unstale`, 12 events waiting"]);
    redis(&mut status).workers[0].not_ready = vec!["redis: loading".to_owned()];
    assert_eq!(problems(&status), ["worker a:1 is not ready: redis: loading"]);
}

#[test]
fn a_worker_that_does_not_report_is_a_problem() {
    let mut status = healthy();
    redis(&mut status).workers[1].reported_s_ago = 17.0;
    assert_eq!(problems(&status), ["worker b:2 has not reported for 17s"]);
    redis(&mut status).workers.clear();
    assert_eq!(
        problems(&status),
        ["`unstale` has 2 consumers, and no worker has reported in the last 30 s"]
    );
    redis(&mut status).healing = true;
    assert_eq!(problems(&status), Vec::<String>::new(), "workers do not report during a heal");
}

#[test]
fn missing_queues_are_one_problem() {
    let mut status = healthy();
    broker(&mut status).queues[1].exists = false;
    assert_eq!(problems(&status), ["queues do not exist: unstale.slow"]);
    broker(&mut status).queues.iter_mut().for_each(|queue| queue.exists = false);
    broker(&mut status).history = HistoryFacts::Missing;
    assert_eq!(problems(&status), ["the queue `unstale` and its companions do not exist"]);
}

#[test]
fn lost_events_are_a_problem_and_a_complete_heal_does_not_hide_them() {
    let mut status = healthy();
    let time = |text: &str| Some(text.parse().unwrap());
    redis(&mut status).lost_events =
        Some(LostFacts { from: time("2026-11-25T01:00:00Z"), until: time("2026-11-25T02:00:00Z") });
    redis(&mut status).last_heal = Some(HealFacts {
        time: time("2026-11-25T02:58:00Z"),
        from: None,
        count: 1,
        complete: true,
        digests: vec![],
        passed_over: vec![],
    });
    let findings = judge(&status);
    assert_eq!(findings.problems[0].code, FindingCode::HistoryEventsLost);
    assert!(findings.problems[0].what.contains("between 2026-11-25T01:00:00Z and"));
    assert!(findings.notes[0].advice.starts_with("see the problem `history.events-lost`"));
}

#[test]
fn a_heal_is_shown_for_a_day_and_is_a_problem_if_it_was_incomplete() {
    let mut status = healthy();
    let mut heal = HealFacts {
        time: Some("2026-11-25T02:58:00Z".parse().unwrap()),
        from: None,
        count: 1,
        complete: true,
        digests: vec![],
        passed_over: vec![],
    };
    redis(&mut status).last_heal = Some(heal.clone());
    let counts = |status: &Status| (judge(status).problems.len(), judge(status).notes.len());
    assert_eq!(counts(&status), (0, 1));
    heal.complete = false;
    redis(&mut status).last_heal = Some(heal.clone());
    assert_eq!(counts(&status), (1, 0));
    heal.time = Some("2026-11-23T02:58:00Z".parse().unwrap());
    redis(&mut status).last_heal = Some(heal);
    redis(&mut status).healing = true;
    assert_eq!(counts(&status), (0, 1));
}

#[test]
fn a_heal_that_is_due_or_skipped_events_is_a_problem() {
    let mut status = healthy();
    redis(&mut status).owed_heal = Some(OwedFacts {
        since: None,
        from: "offset 7".into(),
        cause: "ACCESS_REFUSED".into(),
        refused: None,
    });
    assert_eq!(
        problems(&status),
        ["a heal from offset 7 of the history has been due, and could not be done: ACCESS_REFUSED"]
    );
    let refused = "Redis refused 2 effects, the first at offset 7: UNLINK: NOPERM";
    redis(&mut status).owed_heal = Some(OwedFacts {
        since: None,
        from: "offset 7".into(),
        cause: refused.into(),
        refused: Some(2),
    });
    let problem = judge(&status).problems.remove(0);
    assert!(
        problem.what.ends_with(refused) && problem.advice.contains("Redis user"),
        "{problem:?}"
    );
    let mut status = healthy();
    let time = Some("2026-11-25T02:58:00Z".parse().unwrap());
    let digests = vec![redis(&mut status).workers[0].resolution_digest.clone()];
    let heal =
        HealFacts { time, from: None, count: 1, complete: false, digests, passed_over: vec![5, 9] };
    redis(&mut status).last_heal = Some(heal);
    assert_eq!(problems(&status).len(), 1);
    assert!(
        problems(&status)[0].ends_with(
            "skipped events of the history, because heals died at them or could not resolve them in time: offsets 5, 9"
        )
    );
    redis(&mut status).workers[0].resolution_digest = "newer".into();
    let notes: Vec<String> = judge(&status).notes.into_iter().map(|note| note.what).collect();
    assert!(
        notes.contains(
            &"no heal has applied the rules and settings of a:1 since Redis lost writes, or may have".to_owned()
        ),
        "{notes:?}"
    );
    redis(&mut status).healing = true;
    redis(&mut status).heal_progress = Some(ProgressFacts { done: 3, of: 10, deaths: 1 });
    let notes: Vec<String> = judge(&status).notes.into_iter().map(|note| note.what).collect();
    assert!(
        notes.iter().any(|note| note
            .ends_with("lost writes or may have (3 of 10 messages, 1 heal died on the way)")),
        "{notes:?}"
    );
}

#[test]
fn a_report_of_another_version_is_read_as_far_as_it_is_known() {
    let report: WorkerReport = serde_json::from_str(r#"{"pid":7,"news":true}"#).unwrap();
    assert_eq!(report, WorkerReport { pid: 7, ..WorkerReport::default() });
}

#[test]
fn rule_files_that_change_all_the_time_are_one_note() {
    let mut status = healthy();
    for worker in &mut redis(&mut status).workers {
        worker.changing_rules = Some("schemas/user.yaml".to_owned());
    }
    let findings = judge(&status);
    let [note] = &findings.notes[..] else { panic!("{findings:?}") };
    assert_eq!(note.code, FindingCode::WorkerChangingRules);
    assert!(note.what.contains("schemas/user.yaml") && findings.problems.is_empty(), "{note:?}");
}
