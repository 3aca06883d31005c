//! Messages that RabbitMQ cannot deliver: it ends the connection of the consumer instead.
//!
//! RabbitMQ 4 accepts messages over AMQP 1.0 that it cannot convert for an AMQP 0-9-1 consumer.

use std::time::{Duration, Instant};

use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::dlq::dlq;
use crate::end_to_end::stage::{SOON, Stage};
use crate::status;
use crate::support::amqp10::{Message10, publish};
use crate::support::{RabbitMq, Worker, servers, wait_until};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

const NEIGHBOURS: u32 = 20;

/// Maximum time until the events behind undeliverable messages are applied. A machine that runs
/// many tests takes most of it.
const PASSED_WITHIN: Duration = Duration::from_secs(30);

fn kinds() -> [(&'static str, Message10); 5] {
    let message = || Message10::new(r#"{"id":"undeliverable"}"#);
    [
        ("uuid", message().with_uuid("u")),
        ("char", message().with_char("c")),
        ("annotation", message().with_char_annotation("x-opt-c")),
        ("content type", message().with_content_type(&"x".repeat(400))),
        ("content encoding", message().with_content_encoding(&"e".repeat(300))),
    ]
}

/// Returns a stage on a broker of its own, which speaks AMQP 1.0.
async fn stage() -> (RabbitMq, Stage) {
    let plugins: &[&str] = if servers().rabbitmq < (4, 0, 0) { &["rabbitmq_amqp1_0"] } else { &[] };
    let broker = RabbitMq::start_with(plugins, "").await;
    let stage = Stage::on_broker(&broker, &[("rules.yaml", RULES)]).await;
    (broker, stage)
}

/// Publishes an event over AMQP 1.0.
async fn publish_event(broker: &RabbitMq, stage: &Stage, message: &Message10) {
    let prefix = if servers().rabbitmq < (4, 0, 0) { "exchange" } else { "exchanges" };
    let address = format!("/{prefix}/{}/user.updated", stage.exchange);
    publish(&broker.addr(), &address, message).await;
}

/// Publishes an event to one of our queues over AMQP 1.0.
async fn publish_to(broker: &RabbitMq, queue: &str, message: &Message10) {
    publish(&broker.addr(), &format!("/queues/{queue}"), message).await;
}

async fn publish_neighbours(stage: &Stage) {
    for id in 0..NEIGHBOURS {
        stage.set(&format!("user:{id}"), "old").await;
    }
    for id in 0..NEIGHBOURS {
        stage.publish("user.updated", &format!(r#"{{"id":{id}}}"#)).await;
    }
}

async fn wait_applied(stage: &Stage, worker: &Worker, what: &str) {
    let began = Instant::now();
    while began.elapsed() < PASSED_WITHIN {
        let mut left = 0;
        for id in 0..NEIGHBOURS {
            left += u32::from(stage.exists(&format!("user:{id}")).await);
        }
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: events are not applied\n{}", worker.stderr());
}

/// Before RabbitMQ 4, the plugin converts such messages or refuses them, and all events are applied.
#[tokio::test(flavor = "multi_thread")]
async fn events_behind_an_undeliverable_message_are_applied_and_it_becomes_a_dead_letter() {
    let (broker, stage) = stage().await;
    let worker = stage.worker(&[]).await;
    for (kind, message) in kinds() {
        publish_event(&broker, &stage, &message).await;
        publish_neighbours(&stage).await;
        wait_applied(&stage, &worker, kind).await;
    }
    if servers().rabbitmq < (4, 0, 0) {
        return;
    }
    wait_until(SOON, "each is a dead letter", async || stage.ready(".dead").await == 5).await;
    wait_until(SOON, "the worker is ready", async || {
        matches!(worker.get("/readyz").await, Some((200, _)))
    })
    .await;
    stage.wait_settled(&[&worker]).await;
    let log = worker.stderr();
    let named = log.matches("RabbitMQ ends the connection whenever it delivers").count();
    assert_eq!(named, 1, "the first is logged at once, and later ones are counted: {log}");
    assert!(log.contains("unstale dlq drop --undeliverable"), "{log}");
}

/// The events around a message that a stranger publishes to the slow lane's queue are applied.
#[tokio::test(flavor = "multi_thread")]
async fn an_undeliverable_message_of_the_slow_lane_becomes_a_dead_letter() {
    if servers().rabbitmq < (4, 0, 0) {
        return;
    }
    let (broker, stage) = stage().await;
    let worker = stage.worker(&[]).await;
    let message = Message10::new("{}").with_uuid("u");
    publish_to(&broker, &format!("{}.slow", stage.queue), &message).await;
    publish_neighbours(&stage).await;
    wait_applied(&stage, &worker, "slow lane").await;
    wait_until(SOON, "it is a dead letter", async || stage.ready(".dead").await == 1).await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 1, "no neighbour is a dead letter");
}

/// Declares the main queue again, without a delivery limit.
async fn declare_unlimited(stage: &Stage) {
    let (channel, queue) = (stage.new_channel().await, stage.queue.as_str());
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(-1));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), durable, arguments).await.unwrap();
    let (exchange, options) = (stage.exchange.as_str(), QueueBindOptions::default());
    let bound = channel.queue_bind(
        queue.into(),
        exchange.into(),
        "user.updated".into(),
        options,
        FieldTable::default(),
    );
    bound.await.unwrap();
}

/// Without a delivery limit the message stays. The worker then retries with its usual back-off, and
/// reports the cause.
#[tokio::test(flavor = "multi_thread")]
async fn an_undeliverable_message_without_a_delivery_limit_is_named_and_retried_slowly() {
    if servers().rabbitmq < (4, 0, 0) {
        return;
    }
    let (broker, stage) = stage().await;
    assert!(stage.worker(&[]).await.terminate().await.success(), "it declared the queues");
    declare_unlimited(&stage).await;
    let worker = stage.worker(&[("UNSTALE_DECLARE", "none")]).await;
    publish_event(&broker, &stage, &kinds()[0].1).await;
    wait_until(PASSED_WITHIN, "the worker gives up quick attempts", async || {
        worker.stderr().contains("still at the head of the queue")
    })
    .await;
    let (code, body) = worker.get("/readyz").await.unwrap();
    assert!(code == 503 && body.contains("RabbitMQ ends the connection whenever"), "{code} {body}");
    wait_until(SOON, "status names it", async || {
        let (_, status) = status::json(&stage, &[]).await;
        status.to_string().contains("RabbitMQ ends the connection whenever")
    })
    .await;
}

/// All commands on dead letters read the others, and warn of the undeliverable letter. Then it is
/// dropped.
#[tokio::test(flavor = "multi_thread")]
async fn commands_read_the_dead_letters_beside_an_undeliverable_one_and_drop_it() {
    if servers().rabbitmq < (4, 0, 0) {
        return;
    }
    let (broker, stage) = stage().await;
    let worker = stage.worker(&[]).await;
    for _ in 0..2 {
        stage.publish("user.updated", "no JSON").await;
    }
    wait_until(SOON, "two letters", async || stage.ready(".dead").await == 2).await;
    let dead = format!("{}.dead", stage.queue);
    publish_to(&broker, &dead, &kinds()[0].1).await;
    stage.publish("user.updated", "no JSON").await;
    wait_until(SOON, "four letters", async || stage.ready(".dead").await == 4).await;

    let warned = "RabbitMQ cannot deliver a letter of";
    let (code, out, err) = dlq(&stage, &["list"]).await;
    assert!(code == 1 && out.starts_with("3 dead letters") && err.contains(warned), "{out}{err}");
    let (code, out, err) = dlq(&stage, &["list", "--json"]).await;
    assert!(code == 1 && out.lines().count() == 3 && err.contains(warned), "{out}{err}");
    let (code, out, err) = dlq(&stage, &["show"]).await;
    assert!(
        code == 1 && out.matches("    no JSON").count() == 3 && err.contains(warned),
        "{out}{err}"
    );
    let (code, _, err) = dlq(&stage, &["drop", "--limit", "1", "--yes"]).await;
    assert!(code == 1 && err.contains("dropped 1 dead letter"), "{err}");
    let (code, _, err) = dlq(&stage, &["replay"]).await;
    assert!(code == 1 && err.contains("replayed 2 dead letters"), "{err}");
    assert!(err.contains("2 of 3 letters can be read"), "{err}");
    // It is a dead letter again, behind the others.
    wait_until(SOON, "it is back", async || stage.ready(".dead").await == 3).await;

    wait_until(SOON, "status names it", async || {
        let (_, status) = status::json(&stage, &[]).await;
        let problems = status["problems"].as_array().unwrap().clone();
        problems.iter().any(|problem| problem["code"] == "queue.undeliverable-letter")
    })
    .await;

    let (code, out, err) = dlq(&stage, &["drop", "--undeliverable", "--dry-run"]).await;
    assert!(code == 0 && err.contains("would drop 1 undeliverable dead letter"), "{out}{err}");
    assert_eq!(stage.ready(".dead").await, 3);
    let (code, out, err) = dlq(&stage, &["drop", "--undeliverable", "--yes"]).await;
    assert!(code == 0 && err.contains("dropped 1 undeliverable dead letter"), "{out}{err}");
    let (code, out, err) = dlq(&stage, &["list"]).await;
    assert!(code == 0 && out.starts_with("2 dead letters"), "{out}{err}");
    let (code, _, err) = dlq(&stage, &["drop", "--undeliverable", "--yes"]).await;
    assert!(code == 0 && err.contains("dropped 0 undeliverable dead letters"), "{err}");
    drop(worker);
}

/// `status` does not advise to delete a history that is whole but for one message.
#[tokio::test(flavor = "multi_thread")]
async fn status_reads_a_history_that_holds_an_undeliverable_message() {
    if servers().rabbitmq < (4, 0, 0) {
        return;
    }
    let (broker, stage) = stage().await;
    let worker = stage.worker(&[]).await;
    publish_event(&broker, &stage, &kinds()[0].1).await;
    publish_neighbours(&stage).await;
    wait_applied(&stage, &worker, "history").await;
    let (_, status) = status::json(&stage, &[]).await;
    let findings = format!("{}{}", status["problems"], status["notes"]);
    assert!(
        !findings.contains("delete_queue") && !findings.contains("history.broken"),
        "{findings}"
    );
    assert_eq!(status["rabbitmq"]["history"]["stands"]["last"], NEIGHBOURS, "{status:#}");
}
