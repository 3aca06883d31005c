//! A stalled worker: it reports the stall, other events continue, and it stops when asked to.

use std::time::{Duration, Instant};

use crate::end_to_end::stage::{SOON, Stage};
use crate::status::json;
use crate::support::{Worker, wait_until};

const USERS: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// Number of events, each one log line at `debug`, so that they fill a pipe that no program reads.
const EVENTS: u32 = 3_000;

/// Starts a worker whose only working thread is blocked for good by a line of its log, with
/// unsettled deliveries. A worker that is blocked between two batches is replaced by another one.
async fn stalled(stage: &Stage, grace: &str) -> Worker {
    let settings = [("UNSTALE_LOG", "debug"), ("UNSTALE_SHUTDOWN_GRACE", grace)];
    for _ in 0..8 {
        let worker = stage.start_unread_worker(&settings);
        wait_until(SOON, "it stalls", async || {
            let Some((_, causes)) = worker.get("/readyz").await else { return false };
            causes.contains("stalled: ")
        })
        .await;
        let metrics = worker.metrics().await;
        let oldest_s = metrics.sum("unstale_oldest_unsettled_seconds", &[]);
        if metrics.sum("unstale_in_flight", &[]) >= 1.0 && oldest_s > 3.0 {
            return worker;
        }
        worker.kill();
    }
    panic!("no worker stalls with unsettled deliveries");
}

async fn stage() -> Stage {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    assert_eq!(stage.worker(&[]).await.terminate().await.code(), Some(0), "it declared the queues");
    let mut confirms = Vec::new();
    for id in 0..EVENTS {
        confirms.push(
            stage
                .send(
                    &stage.exchange,
                    "user.updated",
                    Default::default(),
                    format!(r#"{{"id":{id}}}"#).as_bytes(),
                )
                .await,
        );
    }
    for confirm in confirms {
        assert!(matches!(confirm.await, Ok(lapin::Confirmation::Ack(None))));
    }
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn readyz_metrics_and_status_show_a_stalled_worker_which_ends_after_its_grace_period() {
    let stage = stage().await;
    let mut worker = stalled(&stage, "1s").await;
    assert!(
        matches!(worker.get("/readyz").await, Some((503, causes)) if causes.contains("stalled: "))
    );
    let age = async || worker.metrics().await.sum("unstale_oldest_unsettled_seconds", &[]);
    let before = age().await;
    wait_until(SOON, "the oldest delivery ages", async || age().await > before + 1.0).await;
    wait_until(SOON, "`unstale status` names it", async || {
        let (code, status) = json(&stage, &[]).await;
        let problems = status["problems"].as_array().unwrap();
        code == 1
            && problems.iter().any(|problem| {
                problem["what"].as_str().is_some_and(|what| what.contains("has not reported for"))
            })
    })
    .await;
    wait_until(Duration::from_secs(60), "it does so when the report is forgotten", async || {
        let (code, status) = json(&stage, &[]).await;
        let problems = status["problems"].as_array().unwrap();
        code == 1
            && problems.iter().any(|problem| {
                problem["what"].as_str().is_some_and(|what| what.contains("no worker has reported"))
            })
    })
    .await;
    worker.signal("TERM");
    assert_eq!(worker.wait_exit(Duration::from_secs(5)).await.code(), Some(75));
    wait_until(SOON, "what was in flight is back", async || {
        stage.consumers(&stage.queue).await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_stalled_worker_at_once() {
    let stage = stage().await;
    let mut worker = stalled(&stage, "10m").await;
    worker.signal("TERM");
    worker.signal("INT");
    assert_eq!(worker.wait_exit(Duration::from_secs(5)).await.code(), Some(75));
}

/// An event that needs far more work than its budget, or whose work is not counted. Other events
/// wait for its deadline at most.
#[tokio::test(flavor = "multi_thread")]
async fn a_heavy_event_does_not_hold_its_neighbours_nor_the_end() {
    let rules = r#"
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  s: { effects: [ { each: "data.xs.filter(p, p > 0)", delete: "k:{item}" } ] }
"#;
    let stage = Stage::new(&[("rules.yaml", rules)]).await;
    let worker = stage.worker(&[]).await;
    for id in 0..20 {
        stage.set(&format!("user:{id}"), "old").await;
    }
    let numbers: Vec<String> = (1..=130_000).map(|number| number.to_string()).collect();
    let heavy = format!(r#"{{"xs":[{}]}}"#, numbers.join(","));
    let user = async |id: u32| stage.publish("user.updated", &format!(r#"{{"id":{id}}}"#)).await;
    for id in 0..10 {
        user(id).await;
    }
    let began = Instant::now();
    stage.publish("s", &heavy).await;
    for id in 10..20 {
        user(id).await;
    }
    let unready = async {
        loop {
            let ready = worker.get("/readyz").await;
            if !matches!(ready, Some((200, _))) {
                return ready;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let all_gone = async {
        for id in 0..20 {
            stage.wait_gone(&format!("user:{id}")).await;
        }
    };
    tokio::select! {
        unready = unready => panic!("not ready: {unready:?}"),
        () = all_gone => {}
    }
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "its neighbours waited {:?}",
        began.elapsed()
    );
    let letter = stage.dead_letters(1).await.pop().unwrap();
    let reason = letter.header("unstale-reason").unwrap();
    assert!(
        ["unresolvable", "blast_radius"].contains(&reason.as_str()),
        "{reason}: {:?}",
        letter.header("unstale-error")
    );
    // Once more, with a signal in the middle of it.
    stage.publish("s", &heavy).await;
    wait_until(SOON, "it has it", async || {
        worker.metrics().await.sum("unstale_in_flight", &[]) >= 1.0
            || stage.ready(".dead").await == 1
    })
    .await;
    let told = Instant::now();
    assert_eq!(worker.terminate().await.code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(15), "it took {:?} to end", told.elapsed());
    assert_eq!((stage.ready("").await, stage.ready(".dead").await), (0, 1));
}

/// The whole process is suspended for longer than an event may take. This happens on a machine
/// without CPU time, or in a paused virtual machine. The event is applied as usual.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_resolution_is_suspended_beyond_its_deadline_is_applied() {
    const EVENTS: u32 = 12;
    let rules = r#"events: { s: { effects: [ { each: "data.xs.filter(p, p > 9)", delete: "k:{id}:{item}" } ] } }"#;
    let stage = Stage::new(&[("rules.yaml", rules)]).await;
    let worker = stage.worker(&[]).await;
    // Beyond 256 KiB, an event is resolved on a separate thread.
    let padding = "x".repeat(300_000);
    let numbers = vec!["1"; 60_000].join(",");
    for id in 0..EVENTS {
        stage.set(&format!("k:{id}:10"), "old").await;
        stage
            .publish("s", &format!(r#"{{"id":{id},"xs":[{numbers},10],"padding":"{padding}"}}"#))
            .await;
    }
    wait_until(SOON, "some are applied, and others wait", async || !stage.exists("k:1:10").await)
        .await;
    assert!(
        stage.exists(&format!("k:{}:10", EVENTS - 1)).await,
        "nothing is left to be suspended in"
    );
    worker.signal("STOP");
    tokio::time::sleep(Duration::from_secs(6)).await;
    worker.signal("CONT");
    for id in 0..EVENTS {
        stage.wait_gone(&format!("k:{id}:10")).await;
    }
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0, "{}", worker.stderr());
}
