//! Events that went to the history alone while no worker ran, because the main queue was replaced,
//! unbound or purged.

use std::time::Duration;

use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};

use super::deleted::{RULES, all_applied, delete_queue, publish, seeded};
use crate::end_to_end::stage::{SOON, Stage};
use crate::heal::stops::age_marks;
use crate::support::{Worker, wait_until};

/// Declares the main queue with the documented arguments, as Terraform or an import of definitions
/// does.
pub(crate) async fn declare_main(stage: &Stage, channel: &Channel) {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut arguments = FieldTable::default();
    for (name, value) in [
        ("x-queue-type", text("quorum")),
        ("x-overflow", text("reject-publish")),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&format!("{}.dead", stage.queue))),
        ("x-delivery-limit", AMQPValue::LongLongInt(20)),
    ] {
        arguments.insert(name.into(), value);
    }
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(stage.queue.as_str().into(), durable, arguments).await.unwrap();
    let (queue, exchange) = (stage.queue.as_str(), stage.exchange.as_str());
    channel
        .queue_bind(
            queue.into(),
            exchange.into(),
            "user.updated".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
}

/// Returns a stage whose worker applied something and stopped cleanly. Users 0 to 19 become stale
/// once their events are published.
async fn stopped() -> Stage {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    publish(&stage, 0..3).await;
    stage.wait_settled(&[&worker]).await;
    assert!(worker.terminate().await.success());
    seeded(&stage, 0..20).await;
    stage
}

/// If workers end together, one of them leaves the count, and no other worker's checkpoint hides
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_purged_after_all_workers_ended_at_once_loses_nothing() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let workers = [stage.worker(&[]).await, stage.worker(&[]).await, stage.worker(&[]).await];
    publish(&stage, 0..3).await;
    stage.wait_settled(&[&workers[0], &workers[1], &workers[2]]).await;
    workers.iter().for_each(|worker| worker.signal("TERM"));
    for mut worker in workers {
        assert!(worker.wait_exit(SOON).await.success());
    }
    seeded(&stage, 0..20).await;
    publish(&stage, 0..20).await;
    wait_until(SOON, "they wait", async || stage.ready("").await == 20).await;
    stage
        .new_channel()
        .await
        .queue_purge(stage.queue.as_str().into(), QueuePurgeOptions::default())
        .await
        .unwrap();
    start_and_make_up(&stage).await;
}

/// Starts a worker that applies the events that are in the history alone.
async fn start_and_make_up(stage: &Stage) {
    let worker = stage.worker(&[]).await;
    all_applied(stage, "what is in the history alone is applied").await;
    wait_until(SOON, "it says so", async || worker.stderr().contains("while no worker ran")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_another_client_declares_anew_while_no_worker_runs_loses_nothing() {
    let stage = stopped().await;
    let channel = stage.new_channel().await;
    delete_queue(&channel, &stage.queue).await;
    publish(&stage, 0..20).await;
    declare_main(&stage, &channel).await;
    start_and_make_up(&stage).await;
}

/// Only the operator who deleted the objects may declare any.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_declared_anew_for_workers_that_declare_nothing_loses_nothing() {
    let stage = stopped().await;
    let channel = stage.new_channel().await;
    delete_queue(&channel, &stage.queue).await;
    publish(&stage, 0..20).await;
    declare_main(&stage, &channel).await;
    let _worker = stage.worker(&[("UNSTALE_DECLARE", "none")]).await;
    all_applied(&stage, "what is in the history alone is applied").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_purged_while_no_worker_runs_loses_nothing() {
    let stage = stopped().await;
    publish(&stage, 0..20).await;
    wait_until(SOON, "they wait", async || stage.ready("").await == 20).await;
    stage
        .new_channel()
        .await
        .queue_purge(stage.queue.as_str().into(), QueuePurgeOptions::default())
        .await
        .unwrap();
    start_and_make_up(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_unbound_while_no_worker_runs_loses_nothing() {
    let stage = stopped().await;
    let (queue, exchange) = (stage.queue.as_str(), stage.exchange.as_str());
    let channel = stage.new_channel().await;
    channel
        .queue_unbind(queue.into(), exchange.into(), "user.updated".into(), FieldTable::default())
        .await
        .unwrap();
    publish(&stage, 0..20).await;
    start_and_make_up(&stage).await;
}

/// The schedule changes while an event waits for a step that no worker uses any more. The event
/// returns to its queue, and the checkpoints record how long it may wait.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_on_a_retry_schedule_that_is_gone_comes_back() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[("UNSTALE_RETRY_DELAYS", "9s")]).await;
    let properties = BasicProperties::default().with_type("user.unknown".into());
    stage.set("other:1", "old").await;
    stage.publish_with("user.updated", properties, br#"{"id":1}"#).await;
    let retry = ".retry.9s";
    wait_until(SOON, "it waits for its retry", async || stage.ready(retry).await == 1).await;
    assert!(worker.terminate().await.success());
    let other = r#"events: { user.unknown: { effects: [ { delete: "other:{id}" } ] } }"#;
    stage.write_schema("other.yaml", other);
    let worker = stage.worker(&[("UNSTALE_RETRY_DELAYS", "50ms,1m")]).await;
    let marks = format!("unstale:mark:{}", stage.queue);
    wait_until(SOON, "both schedules are known", async || {
        let noted: Vec<Option<u64>> = redis::cmd("HMGET")
            .arg(&[marks.as_str(), "retry_step:9000", "retry_step:50", "retry_step:60000"])
            .query_async(&mut stage.connection().await)
            .await
            .unwrap();
        noted.iter().all(Option::is_some)
    })
    .await;
    stage.wait_gone("other:1").await;
    stage.wait_settled(&[&worker]).await;
    wait_until(SOON, "nothing waits", async || stage.ready(retry).await == 0).await;
    assert_eq!(stage.ready(".dead").await, 0, "{}", worker.stderr());
    assert!(!worker.stderr().contains("while no worker ran"), "{}", worker.stderr());
}

/// Maximum time until stopped workers count as dead, which is after 10 s.
const NOBODY_LIVES: Duration = Duration::from_secs(20);

/// Returns a stage whose workers were killed at once, so that none left a count. Users 0 to 19
/// become stale once their events are published.
async fn killed() -> Stage {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let workers = [stage.worker(&[]).await, stage.worker(&[]).await];
    publish(&stage, 0..3).await;
    stage.wait_settled(&[&workers[0], &workers[1]]).await;
    workers.into_iter().for_each(Worker::kill);
    wait_until(SOON, "they are gone", async || stage.consumers(&stage.queue).await == 0).await;
    seeded(&stage, 0..20).await;
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_declared_anew_after_all_workers_were_killed_loses_nothing() {
    let stage = killed().await;
    let channel = stage.new_channel().await;
    delete_queue(&channel, &stage.queue).await;
    publish(&stage, 0..20).await;
    declare_main(&stage, &channel).await;
    age_marks(&stage, NOBODY_LIVES).await;
    start_and_make_up(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_purged_after_all_workers_were_killed_loses_nothing() {
    let stage = killed().await;
    publish(&stage, 0..10).await;
    wait_until(SOON, "they wait", async || stage.ready("").await == 10).await;
    stage
        .new_channel()
        .await
        .queue_purge(stage.queue.as_str().into(), QueuePurgeOptions::default())
        .await
        .unwrap();
    publish(&stage, 10..20).await;
    age_marks(&stage, NOBODY_LIVES).await;
    start_and_make_up(&stage).await;
}

/// Events wait in the main queue, one on the retry schedule, and one dead letter is replayed.
/// Nothing is missing, and nothing is healed.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_wait_while_no_worker_runs_are_not_healed() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let settings = [("UNSTALE_RETRY_DELAYS", "5s")];
    let worker = stage.worker(&settings).await;
    stage.publish("user.updated", "no event").await;
    publish(&stage, 0..3).await;
    wait_until(SOON, "a dead letter", async || stage.ready(".dead").await == 1).await;
    stage.wait_settled(&[&worker]).await;
    // An event of an unknown type goes on the retry schedule.
    let properties = BasicProperties::default().with_type("user.unknown".into());
    stage.publish_with("user.updated", properties, br#"{"id":1}"#).await;
    wait_until(SOON, "it is on the retry schedule", async || stage.ready(".retry.5s").await == 1)
        .await;
    assert!(worker.terminate().await.success());
    seeded(&stage, 0..300).await;
    publish(&stage, 0..300).await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
    command
        .args(["dlq", "replay"])
        .env_clear()
        .envs(stage.broker_settings())
        .env("UNSTALE_REDIS_URL", stage.redis.url());
    let replayed = command.output().await.unwrap();
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    wait_until(SOON, "the retry message is back", async || stage.ready("").await == 302).await;
    let worker = stage.worker(&settings).await;
    all_applied(&stage, "what waited is applied").await;
    assert_eq!(worker.metrics().await.sum("unstale_heals_total", &[]), 0.0, "{}", worker.stderr());
    assert!(!worker.stderr().contains("while no worker ran"), "{}", worker.stderr());
    let counted: Option<String> = redis::AsyncCommands::hget(
        &mut stage.connection().await,
        format!("unstale:mark:{}", stage.queue),
        "census",
    )
    .await
    .unwrap();
    assert_eq!(counted, None, "it holds for the first worker alone");
}
