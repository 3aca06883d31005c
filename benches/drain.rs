//! How fast a full quorum queue is drained: `unstale run` beside a bare lapin loop that does nothing, on the same broker, in turn.
//!
//! `cargo bench --bench drain` (`-- 300000 3` for that many events and rounds). Ratios of one run count; machines are noisy.
//!
//! Two cores with RabbitMQ 3.10.8 and Redis 7.0.15 on them, 300,000 events, three rounds: bare 98,000 to 109,000 events/s, the worker 58,000 to
//! 110,000, ratios 0.53, 0.71 and 1.05.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use support::{RabbitMq, Redis, Worker, wait_until};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

#[tokio::main]
async fn main() {
    let numbers: Vec<u32> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let events = numbers.first().copied().unwrap_or(300_000);
    let rounds = numbers.get(1).copied().unwrap_or(3);
    let broker = RabbitMq::start().await;
    let redis = Redis::start().await;
    let schemas = tempfile::tempdir().unwrap();
    std::fs::write(schemas.path().join("users.yaml"), RULES).unwrap();
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        bare.push(drain_bare(&broker, events).await);
        ours.push(drain_with_worker(&broker, &redis, schemas.path().to_str().unwrap(), events).await);
        report(&format!("round {round}"), bare[bare.len() - 1], ours[ours.len() - 1]);
    }
    report("median", median(bare), median(ours));
}

#[expect(clippy::print_stdout, reason = "a benchmark's report")]
fn report(what: &str, bare: f64, ours: f64) {
    println!("{what}: bare lapin drain {bare:.0} events/s, unstale {ours:.0} events/s, ratio {:.2}", ours / bare);
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn body(id: u32) -> String {
    format!(r#"{{"id":"e-{id}","type":"user.updated","data":{{"id":{id},"email":"user{id}@example.org","plan":"team"}}}}"#)
}

async fn publish(channel: &Channel, exchange: &str, routing_key: &str, events: u32) {
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut confirms = FuturesUnordered::new();
    for id in 0..events {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let body = body(id);
        let sent = channel.basic_publish(exchange.into(), routing_key.into(), BasicPublishOptions::default(), body.as_bytes(), properties);
        confirms.push(sent.await.unwrap());
        if confirms.len() >= 1_000 {
            confirms.next().await;
        }
    }
    while confirms.next().await.is_some() {}
}

async fn drain_bare(broker: &RabbitMq, events: u32) -> f64 {
    let connection = broker.connection().await;
    let channel = connection.create_channel().await.unwrap();
    let queue = support::unique("bare");
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();
    publish(&channel, "", &queue, events).await;
    channel.basic_qos(1_000, BasicQosOptions::default()).await.unwrap();
    let start = Instant::now();
    let mut consumer =
        channel.basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await.unwrap();
    let mut seen = 0;
    while seen < events {
        let delivery = consumer.next().await.unwrap().unwrap();
        seen += 1;
        if seen % 250 == 0 || seen == events {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await.unwrap();
        }
    }
    let rate = f64::from(events) / start.elapsed().as_secs_f64();
    connection.close(200, "".into()).await.unwrap();
    rate
}

async fn drain_with_worker(broker: &RabbitMq, redis: &Redis, schemas: &str, events: u32) -> f64 {
    let (amqp_url, redis_url, queue) = (broker.url(), redis.url(), support::unique("ours"));
    let settings = [
        ("UNSTALE_AMQP_URL", amqp_url.as_str()),
        ("UNSTALE_REDIS_URL", &redis_url),
        ("UNSTALE_SCHEMAS", schemas),
        ("UNSTALE_QUEUE", &queue),
        ("UNSTALE_EXCHANGE", &queue),
    ];
    // Once for the topology, then the backlog, then the measured one.
    Worker::start_ready(&settings).await.terminate().await;
    let connection = broker.connection().await;
    publish(&connection.create_channel().await.unwrap(), &queue, "user.updated", events).await;
    let worker = Worker::start(&settings);
    let mut first = None;
    let mut last = (Instant::now(), 0.0);
    wait_until(Duration::from_secs(600), "the backlog is drained", async || {
        if worker.get("/livez").await.is_none() {
            return false;
        }
        let done = worker.metrics().await.sum("unstale_events_total", &[("outcome", "applied")]);
        last = (Instant::now(), done);
        if done > 0.0 {
            first.get_or_insert(last);
        }
        done >= f64::from(events)
    })
    .await;
    let (started, already) = first.unwrap_or(last);
    worker.terminate().await;
    (last.1 - already) / (last.0 - started).as_secs_f64()
}
