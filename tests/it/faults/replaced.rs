//! Queues that somebody deletes and declares again in one step: no look finds them missing, and
//! RabbitMQ may leave the old consumers on the new queue.

use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use redis::AsyncCommands;

use super::away::declare_main;
use super::deleted::{RULES, all_applied, delete_queue, publish, seeded};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::wait_until;

/// Maximum time until workers have noticed it; they look every 10 to 20 s.
const NOTICED: Duration = Duration::from_secs(60);

/// Waits until workers have made the marks of all queues, and returns how often the mark of the
/// queue with that suffix was made.
async fn mark(stage: &Stage, suffix: &str) -> u64 {
    let marks = format!("unstale:mark:{}", stage.queue);
    let mark = async |queue: &str| {
        let field = format!("queue_mark:{queue}");
        let text: Option<String> = stage.connection().await.hget(&marks, field).await.unwrap();
        text.and_then(|text| text.split_once(':')?.0.parse::<u64>().ok())
    };
    let queue = format!("{}{suffix}", stage.queue);
    let last = format!("{}.slow", stage.queue);
    wait_until(SOON, "the queues have marks", async || {
        mark(&queue).await.is_some() && mark(&last).await.is_some()
    })
    .await;
    mark(&queue).await.unwrap()
}

/// Declares a queue that dead-letters to another one, as the contract says.
async fn declare(channel: &Channel, queue: &str, dead: &str, more: (&str, i64)) {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut arguments = FieldTable::default();
    for (name, value) in [
        ("x-queue-type", text("quorum")),
        ("x-overflow", text("reject-publish")),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(dead)),
        (more.0, AMQPValue::LongLongInt(more.1)),
    ] {
        arguments.insert(name.into(), value);
    }
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), durable, arguments).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_main_queue_that_is_replaced_under_running_workers_loses_nothing() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let workers = [stage.worker(&[]).await, stage.worker(&[]).await];
    let before = mark(&stage, "").await;
    seeded(&stage, 0..60).await;
    workers.iter().for_each(|worker| worker.signal("STOP"));
    publish(&stage, 0..20).await;
    let channel = stage.new_channel().await;
    delete_queue(&channel, &stage.queue).await;
    declare_main(&stage, &channel).await;
    publish(&stage, 20..40).await;
    workers.iter().for_each(|worker| worker.signal("CONT"));
    publish(&stage, 40..60).await;
    all_applied(&stage, "what was in the old queue, and what came since, is applied").await;
    wait_until(NOTICED, "the new queue has a mark", async || mark(&stage, "").await > before).await;
    // Both workers consume from the new queue.
    wait_until(NOTICED, "both consume", async || stage.consumers(&stage.queue).await == 2).await;
    seeded(&stage, 0..20).await;
    publish(&stage, 0..20).await;
    all_applied(&stage, "events that come later are applied").await;
}

/// No heal is due by the count of a worker that ended, and killed workers count as alive for 10 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_main_queue_that_is_replaced_right_after_a_kill_loses_nothing() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    mark(&stage, "").await;
    publish(&stage, 0..3).await;
    stage.wait_settled(&[&worker]).await;
    seeded(&stage, 0..20).await;
    worker.kill();
    publish(&stage, 0..20).await;
    let channel = stage.new_channel().await;
    delete_queue(&channel, &stage.queue).await;
    declare_main(&stage, &channel).await;
    let _worker = stage.worker(&[("UNSTALE_DECLARE", "none")]).await;
    all_applied(&stage, "what was in the old queue is applied").await;
}

const PAGES: &str = r#"
defaults: { ttl: 1h }
loaders: { pages: { url: "http://127.0.0.1:1" } }
events: { page.changed: { effects: [ { warm: "page:{id}", from: "pages:/{id}" } ] } }
"#;

/// A retry queue has no consumer that would notice it.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_queue_that_is_replaced_loses_nothing() {
    let stage = Stage::new(&[("pages.yaml", PAGES)]).await;
    let worker = stage.worker(&[("UNSTALE_RETRY_DELAYS", "1h")]).await;
    let before = mark(&stage, ".retry.1h").await;
    stage.publish("page.changed", r#"{"id":1}"#).await;
    wait_until(SOON, "the load is to be tried again", async || stage.ready(".retry.1h").await == 1)
        .await;
    stage.set("page:1", "old").await;
    let (channel, queue) = (stage.new_channel().await, format!("{}.retry.1h", stage.queue));
    delete_queue(&channel, &queue).await;
    declare(&channel, &queue, &stage.queue, ("x-message-ttl", 3_600_000)).await;
    wait_until(NOTICED, "the event is applied from the history", async || {
        !stage.exists("page:1").await
    })
    .await;
    wait_until(NOTICED, "the new queue has a mark", async || {
        mark(&stage, ".retry.1h").await > before
    })
    .await;
    assert!(worker.stderr().contains("deleted and declared again"), "{}", worker.stderr());
    assert!(!worker.stderr().contains("no session with RabbitMQ"), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_queue_that_is_replaced_loses_nothing() {
    let stage = Stage::new(&[("pages.yaml", PAGES)]).await;
    let worker = stage.worker(&[("UNSTALE_RETRY_DELAYS", "1h")]).await;
    let before = mark(&stage, ".slow").await;
    worker.signal("STOP");
    let (channel, queue) = (stage.new_channel().await, format!("{}.slow", stage.queue));
    delete_queue(&channel, &queue).await;
    declare(&channel, &queue, &format!("{}.dead", stage.queue), ("x-delivery-limit", 20)).await;
    stage.set("page:1", "old").await;
    worker.signal("CONT");
    wait_until(NOTICED, "the worker consumes from the new queue", async || {
        mark(&stage, ".slow").await > before && stage.consumers(&queue).await == 1
    })
    .await;
    stage.publish("page.changed", r#"{"id":1}"#).await;
    wait_until(SOON, "the load is to be tried again", async || stage.ready(".retry.1h").await == 1)
        .await;
    stage.wait_gone("page:1").await;
}

/// An exchange of another program may have the name of a queue. It is no mark, and nothing that is
/// published to it reaches the queue.
#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_of_another_program_with_the_name_of_a_queue_is_left_alone() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let channel = stage.new_channel().await;
    let durable = lapin::options::ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel
        .exchange_declare(
            stage.queue.as_str().into(),
            lapin::ExchangeKind::Fanout,
            durable,
            FieldTable::default(),
        )
        .await
        .unwrap();
    let worker = stage.worker(&[]).await;
    let marks = format!("unstale:mark:{}", stage.queue);
    wait_until(SOON, "the other queues have marks", async || {
        let field = format!("queue_mark:{}.slow", stage.queue);
        stage.connection().await.hexists::<_, _, bool>(&marks, field).await.unwrap()
    })
    .await;
    let field = format!("queue_mark:{}", stage.queue);
    let has_mark: bool = stage.connection().await.hexists(&marks, field).await.unwrap();
    assert!(!has_mark, "it is another program's");
    let confirm = stage.send(&stage.queue, "", Default::default(), b"{}").await.await;
    assert!(matches!(confirm, Ok(lapin::Confirmation::Ack(Some(_)))), "{confirm:?}");
    seeded(&stage, 0..1).await;
    publish(&stage, 0..1).await;
    stage.wait_gone("user:0").await;
    assert!(!worker.stderr().contains("no session with RabbitMQ"), "{}", worker.stderr());
}
