//! Deleted objects of the broker: they are declared again, and nothing confirmed is lost with them.

use std::time::Duration;

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{RabbitMq, Worker, servers, wait_until};

pub(super) const RULES: &str =
    r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// Maximum time until a worker has fixed the objects; it checks them every 10 to 20 s.
const MENDED: Duration = Duration::from_secs(60);

pub(super) async fn seeded(stage: &Stage, users: std::ops::Range<u32>) {
    let old: Vec<(String, &str)> = users.map(|id| (format!("user:{id}"), "old")).collect();
    let _: () =
        redis::cmd("MSET").arg(old).query_async(&mut stage.connection().await).await.unwrap();
}

/// Publishes with `mandatory`: each message is confirmed, and none is returned.
pub(super) async fn publish(stage: &Stage, ids: std::ops::Range<u32>) {
    let mut confirms = Vec::new();
    for id in ids {
        let body = format!(r#"{{"id":{id}}}"#);
        confirms.push(
            stage
                .send(&stage.exchange, "user.updated", BasicProperties::default(), body.as_bytes())
                .await,
        );
    }
    for confirm in confirms {
        assert!(
            matches!(confirm.await, Ok(lapin::Confirmation::Ack(None))),
            "confirmed, and taken by some queue"
        );
    }
}

pub(super) async fn all_applied(stage: &Stage, what: &str) {
    wait_until(MENDED * 2, what, async || {
        let left: Vec<String> =
            redis::AsyncCommands::keys(&mut stage.connection().await, "user:*").await.unwrap();
        left.is_empty()
    })
    .await;
}

pub(crate) async fn delete_queue(channel: &Channel, queue: &str) {
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

async fn ready(worker: &Worker) -> bool {
    matches!(worker.get("/readyz").await, Some((200, _)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_deleted_under_a_running_worker_loses_nothing() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    seeded(&stage, 0..400).await;
    let channel = stage.new_channel().await;
    for part in 0..4 {
        // Some of these reach the history alone.
        delete_queue(&channel, &stage.queue).await;
        publish(&stage, part * 100..(part + 1) * 100).await;
        wait_until(SOON, "the queue is back", async || {
            stage.exists_queue(&stage.queue).await && stage.consumers(&stage.queue).await == 1
        })
        .await;
    }
    all_applied(&stage, "what came while the queue was away is applied").await;
    assert!(worker.stderr().contains("declared again"), "{}", worker.stderr());
}

/// The procedure of docs/how-to/outages.md to change a queue's arguments.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_deleted_between_stop_and_start_loses_nothing() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    publish(&stage, 0..1).await;
    stage.wait_settled(&[&worker]).await;
    assert!(worker.terminate().await.success());
    seeded(&stage, 0..20).await;
    delete_queue(&stage.new_channel().await, &stage.queue).await;
    publish(&stage, 0..20).await;
    let _worker = stage.worker(&[]).await;
    all_applied(&stage, "what came while the queue was away is applied").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_and_bindings_that_are_removed_come_back_by_themselves() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    seeded(&stage, 0..2).await;
    let channel = stage.new_channel().await;
    let (queue, exchange) = (stage.queue.as_str(), stage.exchange.as_str());
    channel
        .queue_unbind(queue.into(), exchange.into(), "user.updated".into(), FieldTable::default())
        .await
        .unwrap();
    let applied = async |id: u32| {
        wait_until(MENDED, "an event reaches the worker again", async || {
            // The publisher must notice unroutable events and a missing exchange.
            let Some(channel) = stage.try_channel().await else { return false };
            let body = format!(r#"{{"id":{id}}}"#);
            let _ = channel
                .basic_publish(
                    exchange.into(),
                    "user.updated".into(),
                    Default::default(),
                    body.as_bytes(),
                    BasicProperties::default(),
                )
                .await;
            let _ = channel.close(200, "".into()).await;
            !stage.exists(&format!("user:{id}")).await
        })
        .await;
    };
    applied(0).await;
    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    wait_until(MENDED, "it is declared again", async || {
        worker.stderr().contains("objects in RabbitMQ were missing")
    })
    .await;
    applied(1).await;
    assert!(ready(&worker).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_deleted_is_declared_again_and_stops_nothing() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    seeded(&stage, 0..2).await;
    let history = format!("{}.history", stage.queue);
    delete_queue(&stage.new_channel().await, &history).await;
    publish(&stage, 0..1).await;
    stage.wait_gone("user:0").await;
    assert!(ready(&worker).await);
    wait_until(MENDED, "the history is back", async || stage.exists_queue(&history).await).await;
    publish(&stage, 1..2).await;
    stage.wait_gone("user:1").await;
    wait_until(SOON, "it says so", async || {
        worker.stderr().contains("objects in RabbitMQ were missing")
    })
    .await;
    assert!(ready(&worker).await, "{}", worker.stderr());
}

/// Another queue has the history's name. A worker that starts then applies the waiting events, and
/// reports the problem.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_of_another_type_stops_no_worker_that_starts() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    seeded(&stage, 0..1).await;
    assert!(worker.terminate().await.success());
    let (history, channel) = (format!("{}.history", stage.queue), stage.new_channel().await);
    delete_queue(&channel, &history).await;
    let durable = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
    channel
        .queue_declare(history.as_str().into(), durable, lapin::types::FieldTable::default())
        .await
        .unwrap();
    publish(&stage, 0..1).await;
    let worker = stage.worker(&[]).await;
    stage.wait_gone("user:0").await;
    wait_until(SOON, "it says so", async || worker.stderr().contains("the history cannot be used"))
        .await;
    assert!(ready(&worker).await, "{}", worker.stderr());
}

/// If RabbitMQ is killed before it has written a new stream to disk, it may keep a stream that it
/// cannot serve.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_the_broker_has_broken_stops_nothing() {
    let broker = RabbitMq::start().await;
    let mut stage = Stage::on_broker(&broker, &[("user.yaml", RULES)]).await;
    seeded(&stage, 0..1).await;
    let worker = stage.worker(&[]).await;
    broker.kill();
    broker.restart().await;
    stage.reconnect().await;
    wait_until(MENDED, "it is ready again", async || ready(&worker).await).await;
    if servers().a_broken_stream_ends_publishers() {
        // Publishing fails until the operator follows the advice of `status`.
        let (_, status) = crate::status::json(&stage, &[]).await;
        let problems = status["problems"].to_string();
        assert!(problems.contains("the broker does not serve the history"), "{status:#}");
        assert!(problems.contains("`rabbitmqctl delete_queue`"), "{status:#}");
        let history = format!("{}.history", stage.queue);
        broker.ctl(&["delete_queue", &history]).await;
        wait_until(MENDED, "the history is declared again", async || {
            stage.exists_queue(&history).await
        })
        .await;
    }
    publish(&stage, 0..1).await;
    stage.wait_gone("user:0").await;
    // A worker that starts now does so as well.
    assert!(worker.terminate().await.success());
    let mut worker = stage.start_worker(&[]);
    worker.wait_ready().await;
}

/// A worker that declares nothing waits for one that does.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_others_delete_and_declare_again_loses_nothing() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    assert!(stage.worker(&[]).await.terminate().await.success(), "it declared the queues");
    let worker = stage.worker(&[("UNSTALE_DECLARE", "none")]).await;
    seeded(&stage, 0..20).await;
    let channel = stage.new_channel().await;
    delete_queue(&channel, &stage.queue).await;
    publish(&stage, 0..20).await;
    wait_until(SOON, "it notices", async || worker.stderr().contains("no session with RabbitMQ"))
        .await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let (queue, exchange) = (stage.queue.as_str(), stage.exchange.as_str());
    channel.queue_declare(queue.into(), options, arguments).await.unwrap();
    channel
        .queue_bind(
            queue.into(),
            exchange.into(),
            "user.updated".into(),
            Default::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    let applied = tokio::time::timeout(
        MENDED,
        all_applied(&stage, "what came while the queue was away is applied"),
    )
    .await;
    assert!(applied.is_ok(), "it is not applied:\n{}", worker.stderr());
    wait_until(SOON, "it is ready", async || ready(&worker).await).await;
}

/// A retry queue has no consumer that would notice its deletion, and its messages are lost with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_queue_that_others_delete_loses_nothing() {
    let rules = r#"
defaults: { ttl: 1h }
loaders: { pages: { url: "http://127.0.0.1:1" } }
events: { page.changed: { effects: [ { warm: "page:{id}", from: "pages:/{id}" } ] } }
"#;
    let stage = Stage::new(&[("pages.yaml", rules)]).await;
    let delays = ("UNSTALE_RETRY_DELAYS", "1h");
    assert!(stage.worker(&[delays]).await.terminate().await.success(), "it declared the queues");
    let worker = stage.worker(&[delays, ("UNSTALE_DECLARE", "none")]).await;
    stage.publish("page.changed", r#"{"id":1}"#).await;
    wait_until(SOON, "the load is to be tried again", async || stage.ready(".retry.1h").await == 1)
        .await;
    stage.set("page:1", "old").await;
    delete_queue(&stage.new_channel().await, &format!("{}.retry.1h", stage.queue)).await;
    wait_until(MENDED, "the event is applied from the history", async || {
        !stage.exists("page:1").await
    })
    .await;
    assert!(worker.stderr().contains("was deleted"), "{}", worker.stderr());
}
