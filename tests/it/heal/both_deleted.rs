//! The main queue and the history are deleted together. The events that waited are lost, and every
//! worker reports the loss.

use std::time::Duration;

use super::histories::declare_history;
use super::stops::age_marks;
use super::{heals, mark_fields, publish, readable, seed, stage, wait_gone, wait_marks};
use crate::end_to_end::stage::{SOON, Stage};
use crate::faults::away::declare_main;
use crate::faults::deleted::delete_queue;
use crate::status::json;
use crate::support::{Worker, wait_until};

const SOME: u32 = 20;

/// Maximum time until a worker has declared the objects and done the heal that it owes.
const MENDED: Duration = Duration::from_secs(60);

/// Deletes the main queue and the history, as the deletion of a virtual host does.
async fn delete_both(stage: &Stage) {
    let channel = stage.new_channel().await;
    delete_queue(&channel, &stage.queue).await;
    delete_queue(&channel, &format!("{}.history", stage.queue)).await;
}

/// Publishes an event whether or not a queue takes it.
async fn publish_one_more(stage: &Stage) {
    if let Ok(confirm) =
        stage.try_send(&stage.exchange, "user.updated", Default::default(), br#"{"id":9999}"#).await
    {
        let _ = confirm.await;
    }
}

/// Waits, while events go on to arrive, until status, metrics and log report lost events.
async fn wait_reported(stage: &Stage, worker: &Worker) {
    let reported = wait_until(MENDED, "status reports lost events", async || {
        publish_one_more(stage).await;
        let (code, status) = json(stage, &[]).await;
        let problems = status["problems"].as_array().unwrap().clone();
        let lost = problems.iter().find(|problem| problem["code"] == "history.events-lost");
        lost.is_some_and(|lost| {
            let words = lost.to_string();
            code == 1
                && words.contains("may be lost")
                && words.contains("publish the events of that time again")
        })
    });
    let in_time = tokio::time::timeout(MENDED * 2, reported).await;
    assert!(in_time.is_ok(), "{}", worker.stderr());
    wait_until(SOON, "the metric reports lost events", async || {
        worker.metrics().await.sum("unstale_events_lost", &[]) == 1.0
    })
    .await;
    let log = worker.stderr();
    assert!(log.contains("ERROR") && log.contains("may be lost"), "{log}");
}

/// Redis keeps what the lost events should have deleted.
async fn assert_stale(stage: &Stage) {
    assert_eq!(readable(&stage.redis).await, Some(SOME as usize), "nothing holds their events");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_events_that_are_lost_under_a_running_worker_are_reported() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    worker.signal("STOP");
    seed(&stage.redis, SOME).await;
    publish(&stage, SOME).await;
    delete_both(&stage).await;
    worker.signal("CONT");
    wait_reported(&stage, &worker).await;
    assert_stale(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_events_that_are_lost_after_a_stop_are_reported() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    assert!(worker.terminate().await.success());
    lost_without_a_worker(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_events_that_are_lost_after_a_kill_are_reported() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    worker.kill();
    lost_without_a_worker(&stage).await;
}

async fn lost_without_a_worker(stage: &Stage) {
    seed(&stage.redis, SOME).await;
    publish(stage, SOME).await;
    delete_both(stage).await;
    let worker = stage.worker(&[]).await;
    wait_reported(stage, &worker).await;
    assert_stale(stage).await;
    // The next worker reports the loss too.
    assert!(worker.terminate().await.success());
    let worker = stage.worker(&[]).await;
    wait_until(SOON, "the metric reports lost events", async || {
        worker.metrics().await.sum("unstale_events_lost", &[]) == 1.0
    })
    .await;
    assert_eq!(json(stage, &[]).await.0, 1);
}

/// The operator has done what `status` asks for, and need not wait for a day.
#[tokio::test(flavor = "multi_thread")]
async fn lost_events_that_are_acknowledged_are_no_problem_any_more() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    let acknowledge = async |code: &str| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
        command
            .args(["acknowledge", code, "--json"])
            .env_clear()
            .envs(stage.broker_settings())
            .env("UNSTALE_REDIS_URL", stage.redis.url());
        let output = command.output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let printed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(printed["code"], code);
        (output.status.code(), printed["acknowledged"].as_bool().unwrap())
    };
    assert_eq!(acknowledge("history.events-lost").await, (Some(1), false), "nothing is lost");
    worker.signal("STOP");
    publish(&stage, SOME).await;
    delete_both(&stage).await;
    worker.signal("CONT");
    wait_reported(&stage, &worker).await;
    assert_eq!(acknowledge("history.events-lost").await, (Some(0), true));
    // The worker, which remembers them, does not report them again.
    wait_until(SOON, "the metric is 0", async || {
        worker.metrics().await.sum("unstale_events_lost", &[]) == 0.0
    })
    .await;
    let (_, status) = json(&stage, &[]).await;
    assert!(!status["problems"].to_string().contains("history.events-lost"), "{status:#}");
    assert!(status["notes"].to_string().contains("history.events-lost"), "{status:#}");
    assert_eq!(acknowledge("history.events-lost").await, (Some(1), false), "it is done already");
}

/// Another client declares both anew, as an import of definitions does after the deletion of a
/// virtual host. The new queue and the new history hold the same events.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_events_that_are_lost_in_a_swap_while_no_worker_runs_are_reported() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    wait_until(SOON, "the history has its mark", async || {
        mark_fields(&stage).await.iter().any(|(field, _)| field == "history_mark")
    })
    .await;
    worker.kill();
    // For a worker that starts later, the killed one counts as dead.
    age_marks(&stage, Duration::from_secs(20)).await;
    seed(&stage.redis, SOME).await;
    publish(&stage, SOME).await;
    delete_both(&stage).await;
    let channel = stage.new_channel().await;
    declare_main(&stage, &channel).await;
    declare_history(&stage, &channel).await;
    for _ in 0..3 * SOME {
        publish_one_more(&stage).await;
    }
    let worker = stage.worker(&[]).await;
    wait_reported(&stage, &worker).await;
    assert_stale(&stage).await;
}

/// Without a history, nothing can be applied again.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_events_that_are_lost_without_a_history_are_reported() {
    let stage = stage().await;
    let off = [("UNSTALE_HISTORY", "off")];
    let worker = stage.worker(&off).await;
    wait_marks(&stage, 1).await;
    delete_queue(&stage.new_channel().await, &stage.queue).await;
    wait_until(MENDED, "status reports lost events", async || {
        let (_, status) = json(&stage, &off).await;
        status["problems"].to_string().contains("history.events-lost")
    })
    .await;
    assert!(worker.stderr().contains("may be lost"), "{}", worker.stderr());
}

/// A first start, on servers that hold nothing, loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_reports_no_lost_events() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    publish(&stage, SOME).await;
    stage.wait_settled(&[&worker]).await;
    assert!(worker.terminate().await.success());
    let worker = stage.worker(&[]).await;
    wait_until(SOON, "status is healthy", async || json(&stage, &[]).await.0 == 0).await;
    assert_eq!(worker.metrics().await.sum("unstale_events_lost", &[]), 0.0);
    assert!(!worker.stderr().contains("may be lost"), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heal_after_both_were_deleted_is_not_complete() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    publish(&stage, 3).await;
    stage.wait_settled(&[&worker]).await;
    seed(&stage.redis, SOME).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&worker]).await;
    delete_both(&stage).await;
    wait_until(MENDED, "the owed heal is done", async || {
        publish_one_more(&stage).await;
        worker.stderr().contains("healed beside the events that came")
    })
    .await;
    assert!(!worker.stderr().contains("complete=true"), "{}", worker.stderr());
    let before = heals(&worker).await;
    stage.redis.restore(&snapshot).await;
    wait_until(SOON, "it has healed", async || heals(&worker).await > before).await;
    assert_stale(&stage).await;
    assert!(!worker.stderr().contains("complete=true"), "{}", worker.stderr());
    let (code, status) = json(&stage, &[]).await;
    assert_eq!(code, 1);
    assert!(status["problems"].to_string().contains("heal.incomplete"), "{status:#}");
}
