//! A history that was deleted and declared again holds nothing from before. A heal from there
//! reports that.

use std::time::Duration;

use lapin::Channel;
use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::{heals, mark_fields, publish, readable, seed, stage, wait_gone, wait_marks};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{RabbitMq, Worker, wait_until};

const SOME: u32 = 20;

/// Maximum time until a worker has fixed the objects; it checks them every 10 to 20 s.
const MENDED: Duration = Duration::from_secs(60);

/// Deletes the history under a worker that declares it again.
async fn delete_history(stage: &Stage, worker: &Worker) {
    let history = format!("{}.history", stage.queue);
    stage
        .new_channel()
        .await
        .queue_delete(history.as_str().into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    wait_until(MENDED, "the history is declared again", async || {
        worker.stderr().contains("objects in RabbitMQ were missing")
    })
    .await;
}

/// Deletes the history under a worker that declares nothing; an operator declares it again.
async fn replace_history(stage: &Stage, worker: &Worker) {
    let history = format!("{}.history", stage.queue);
    let channel = stage.new_channel().await;
    channel.queue_delete(history.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    wait_until(MENDED, "the worker misses the history", async || {
        worker.stderr().contains("the history cannot be used")
    })
    .await;
    declare_history(stage, &channel).await;
    wait_until(MENDED, "the worker finds a history again", async || {
        worker.stderr().contains("the history can be used again")
    })
    .await;
}

/// Declares and binds the history as an operator does.
pub(super) async fn declare_history(stage: &Stage, channel: &Channel) {
    let history = format!("{}.history", stage.queue);
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(history.as_str().into(), durable, arguments).await.unwrap();
    channel
        .queue_bind(
            history.as_str().into(),
            stage.exchange.as_str().into(),
            "user.updated".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
}

/// Returns whether the last heal is reported as complete.
async fn is_complete(stage: &Stage) -> bool {
    let (_, heal) =
        mark_fields(stage).await.into_iter().find(|(field, _)| field == "heal").unwrap();
    heal.ends_with(":1")
}

async fn status(stage: &Stage) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
    command
        .arg("status")
        .env_clear()
        .envs(stage.broker_settings())
        .env("UNSTALE_REDIS_URL", stage.redis.url());
    String::from_utf8(command.output().await.unwrap().stdout).unwrap()
}

/// Restores a Redis from before the history was declared again, and before `later` events arrived
/// in it.
async fn a_heal_from_before_the_history(later: u32, declared_by_worker: bool) {
    let stage = stage().await;
    let mut worker = stage.worker(&[]).await;
    if !declared_by_worker {
        worker.terminate().await;
        worker = stage.worker(&[("UNSTALE_DECLARE", "none")]).await;
    }
    wait_marks(&stage, 1).await;
    publish(&stage, 3).await;
    stage.wait_settled(&[&worker]).await;
    seed(&stage.redis, SOME).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&worker]).await;
    if declared_by_worker {
        delete_history(&stage, &worker).await;
    } else {
        replace_history(&stage, &worker).await;
    }
    for _ in 0..later {
        stage.publish("user.updated", r#"{"id":9999}"#).await;
    }
    stage.wait_settled(&[&worker]).await;
    stage.redis.restore(&snapshot).await;
    wait_until(SOON, "it has healed", async || heals(&worker).await == 1.0).await;
    assert_eq!(
        readable(&stage.redis).await,
        Some(SOME as usize),
        "nothing holds their events any more"
    );
    assert!(!is_complete(&stage).await, "{}", worker.stderr());
    assert!(
        worker.stderr().contains("the history does not hold all events of the heal"),
        "{}",
        worker.stderr()
    );
    let shown = status(&stage).await;
    assert!(shown.contains("delete keys that must be correct"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heal_over_a_history_that_is_empty_since_is_not_complete() {
    a_heal_from_before_the_history(0, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heal_over_a_history_that_has_grown_again_is_not_complete() {
    a_heal_from_before_the_history(50, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heal_over_a_history_that_an_operator_declared_anew_is_not_complete() {
    a_heal_from_before_the_history(50, false).await;
}

/// The worker that declared the history is gone.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_worker_knows_that_the_history_was_declared_anew() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    publish(&stage, 3).await;
    stage.wait_settled(&[&worker]).await;
    delete_history(&stage, &worker).await;
    wait_until(SOON, "Redis holds it", async || {
        mark_fields(&stage).await.iter().any(|(field, _)| field == "history_born")
    })
    .await;
    publish(&stage, 3).await;
    stage.wait_settled(&[&worker]).await;
    worker.kill();
    // The low watermark of the checkpoint includes an event of an hour ago.
    let (field, mark) =
        mark_fields(&stage).await.into_iter().find(|(field, _)| field.len() == 32).unwrap();
    let parts: Vec<&str> = mark.split(':').collect();
    let an_hour_ago = parts[2].parse::<u64>().unwrap() - 3_600_000;
    let marks = format!("unstale:mark:{}", stage.queue);
    let covers = format!("{}:{an_hour_ago}:{}", parts[0], parts[2]);
    let _: () = redis::AsyncCommands::hset(&mut stage.connection().await, marks, field, covers)
        .await
        .unwrap();
    let snapshot = stage.redis.snapshot().await;
    stage.redis.restore(&snapshot).await;
    let next = stage.worker(&[]).await;
    wait_until(SOON, "it has healed", async || heals(&next).await == 1.0).await;
    assert!(!is_complete(&stage).await, "{}", next.stderr());
}

/// Deletes the history and declares it again at once, as an operator's script does, and waits until
/// it holds more events than before.
async fn swap_history(stage: &Stage) {
    let channel = stage.new_channel().await;
    let history = format!("{}.history", stage.queue);
    channel.queue_delete(history.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    declare_history(stage, &channel).await;
    for _ in 0..3 * SOME {
        stage.publish("user.updated", r#"{"id":9999}"#).await;
    }
}

/// Seeds users, takes a snapshot, and applies their events.
async fn applied_since_a_snapshot(stage: &Stage, worker: &Worker) -> Vec<u8> {
    wait_marks(stage, 1).await;
    wait_until(SOON, "the history has its mark", async || {
        mark_fields(stage).await.iter().any(|(field, _)| field == "history_mark")
    })
    .await;
    publish(stage, 3).await;
    stage.wait_settled(&[worker]).await;
    seed(&stage.redis, SOME).await;
    let snapshot = stage.redis.snapshot().await;
    publish(stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[worker]).await;
    snapshot
}

async fn assert_healed_in_part(stage: &Stage, worker: &Worker) {
    wait_until(SOON, "it has healed", async || heals(worker).await >= 1.0).await;
    assert_eq!(readable(&stage.redis).await, Some(SOME as usize), "nothing holds their events");
    assert!(!is_complete(stage).await, "{}", worker.stderr());
}

/// No worker looks at the history between the deletion and the declaration.
#[tokio::test(flavor = "multi_thread")]
async fn a_heal_over_a_history_that_was_swapped_at_once_is_not_complete() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    let snapshot = applied_since_a_snapshot(&stage, &worker).await;
    swap_history(&stage).await;
    stage.wait_settled(&[&worker]).await;
    stage.redis.restore(&snapshot).await;
    assert_healed_in_part(&stage, &worker).await;
}

/// A worker has noticed the new history since, and has given it a new mark.
#[tokio::test(flavor = "multi_thread")]
async fn a_heal_long_after_the_history_was_swapped_is_not_complete() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    let snapshot = applied_since_a_snapshot(&stage, &worker).await;
    swap_history(&stage).await;
    wait_until(MENDED, "the worker notices", async || {
        worker.stderr().contains("the history was deleted and declared anew")
    })
    .await;
    stage.wait_settled(&[&worker]).await;
    stage.redis.restore(&snapshot).await;
    assert_healed_in_part(&stage, &worker).await;
}

/// The worker declares nothing: another one has made the mark.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_declares_nothing_notices_a_swapped_history() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_until(SOON, "the history has its mark", async || {
        mark_fields(&stage).await.iter().any(|(field, _)| field == "history_mark")
    })
    .await;
    assert!(worker.terminate().await.success());
    let worker = stage.worker(&[("UNSTALE_DECLARE", "none")]).await;
    let snapshot = applied_since_a_snapshot(&stage, &worker).await;
    swap_history(&stage).await;
    stage.wait_settled(&[&worker]).await;
    stage.redis.restore(&snapshot).await;
    assert_healed_in_part(&stage, &worker).await;
}

/// No worker runs meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_was_swapped_while_no_worker_ran_is_noticed() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    let snapshot = applied_since_a_snapshot(&stage, &worker).await;
    worker.kill();
    swap_history(&stage).await;
    stage.redis.restore(&snapshot).await;
    let worker = stage.worker(&[]).await;
    assert_healed_in_part(&stage, &worker).await;
}

/// The broker keeps the mark over a restart, so a heal afterwards is complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_outlived_a_restart_of_the_broker_is_the_same() {
    let broker = RabbitMq::start().await;
    let mut stage = Stage::on_broker(&broker, &[("users.yaml", super::USERS)]).await;
    let worker = stage.worker(&[]).await;
    let snapshot = applied_since_a_snapshot(&stage, &worker).await;
    broker.kill();
    broker.restart().await;
    stage.reconnect().await;
    stage.publish("user.updated", r#"{"id":9999}"#).await;
    stage.wait_settled(&[&worker]).await;
    stage.redis.restore(&snapshot).await;
    wait_until(SOON, "it has healed", async || heals(&worker).await >= 1.0).await;
    wait_gone(&stage.redis, SOON).await;
    assert!(is_complete(&stage).await, "{}", worker.stderr());
    assert!(!worker.stderr().contains("declared anew"), "{}", worker.stderr());
}
