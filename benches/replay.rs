//! Measures the replay of a day's history with `unstale replay`, its start and its effects in Redis
//! included.
//!
//! A bare lapin loop that reads the same stream takes turns with it.
//!
//! `cargo bench --bench replay` (`-- 1000000 3` for that many events, over 20,000 entities, and
//! rounds). Only ratios of one run count, since machines differ. It fails above the limits below.

#![allow(clippy::disallowed_methods, reason = "a program apart")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::Command;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use serde_json::Value;
use support::{RabbitMq, Redis, Worker};

const RULES: &str = r#"
events:
  user.updated:
    effects:
      - delete: ["user:{id}", "user:{id}:orders"]
      - invalidate_tags: "plan:{plan}"
"#;

const ENTITIES: u32 = 20_000;

/// Best value for the bare loop: smaller windows are slower, larger ones no faster.
const PREFETCH: u16 = 10_000;
const ACKNOWLEDGED_TOGETHER: u32 = 1_000;

/// Maximum time relative to bare reading, and maximum part of the effects that Redis receives.
const MOST_TIME: f64 = 1.5;
const MOST_EFFECTS: f64 = 0.05;

#[tokio::main]
async fn main() {
    let numbers: Vec<u32> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let events = numbers.first().copied().unwrap_or(1_000_000);
    let rounds = numbers.get(1).copied().unwrap_or(3);
    let broker = RabbitMq::start().await;
    let redis = Redis::start().await;
    let schemas = tempfile::tempdir().unwrap();
    std::fs::write(schemas.path().join("users.yaml"), RULES).unwrap();
    let (amqp_url, redis_url, queue) = (broker.url(), redis.url(), support::unique("replay"));
    let settings = [
        ("UNSTALE_AMQP_URL", amqp_url.as_str()),
        ("UNSTALE_REDIS_URL", &redis_url),
        ("UNSTALE_SCHEMAS", schemas.path().to_str().unwrap()),
        ("UNSTALE_QUEUE", &queue),
        ("UNSTALE_EXCHANGE", &queue),
    ];
    Worker::start_ready(&settings).await.terminate().await;
    let connection = broker.connection().await;
    let channel = connection.create_channel().await.unwrap();
    // A day's events were applied long ago, so only the history contains them.
    channel
        .queue_unbind(
            queue.as_str().into(),
            queue.as_str().into(),
            "user.updated".into(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    publish(&channel, &queue, events).await;
    let (mut bare, mut ours, mut share) = (Vec::new(), Vec::new(), 0.0);
    for round in 1..=rounds {
        bare.push(read_bare(&broker, &queue, events).await);
        let (took_s, sent) = replay(&settings, events);
        ours.push(took_s);
        share = sent;
        report(&format!("round {round}"), events, bare[bare.len() - 1], took_s, sent);
    }
    let (bare, ours) = (median(bare), median(ours));
    report("median", events, bare, ours, share);
    // With fewer events, fewer fold into one.
    let folds = events >= 50 * ENTITIES;
    assert!(
        ours <= bare * MOST_TIME && (!folds || share <= MOST_EFFECTS),
        "beyond {MOST_TIME} of the time, or {MOST_EFFECTS} of the effects"
    );
}

#[expect(clippy::print_stdout, reason = "a benchmark's report")]
fn report(what: &str, events: u32, bare_s: f64, ours_s: f64, share: f64) {
    let rate = |took_s: f64| f64::from(events) / took_s;
    println!(
        "{what}: bare reading {:.0} events/s, unstale replay {:.0} events/s, time ratio {:.2}, effects sent {:.1} %",
        rate(bare_s),
        rate(ours_s),
        ours_s / bare_s,
        share * 100.0
    );
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn body(number: u32) -> String {
    // No two adjacent events belong to one entity.
    let id = number.wrapping_mul(7_919) % ENTITIES;
    let plan = ["free", "team", "enterprise"][id as usize % 3];
    format!(
        r#"{{"id":"e-{number}","type":"user.updated","data":{{"id":{id},"email":"user{id}@example.org","plan":"{plan}"}}}}"#
    )
}

async fn publish(channel: &Channel, exchange: &str, events: u32) {
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut confirms = FuturesUnordered::new();
    for number in 0..events {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let body = body(number);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        confirms.push(
            channel
                .basic_publish(
                    exchange.into(),
                    "user.updated".into(),
                    options,
                    body.as_bytes(),
                    properties,
                )
                .await
                .unwrap(),
        );
        if confirms.len() >= 1_000 {
            confirms.next().await;
        }
    }
    while confirms.next().await.is_some() {}
}

/// Returns the time in seconds.
async fn read_bare(broker: &RabbitMq, queue: &str, events: u32) -> f64 {
    let connection = broker.connection().await;
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let start = Instant::now();
    let stream = format!("{queue}.history");
    // The tag is as short as that of `unstale replay`, since every delivery repeats it.
    let mut consumer = channel
        .basic_consume(
            stream.as_str().into(),
            "1".into(),
            BasicConsumeOptions::default(),
            arguments,
        )
        .await
        .unwrap();
    let mut seen = 0;
    while seen < events {
        let delivery = consumer.next().await.unwrap().unwrap();
        seen += 1;
        if seen % ACKNOWLEDGED_TOGETHER == 0 || seen == events {
            channel
                .basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true })
                .await
                .unwrap();
        }
    }
    let took_s = start.elapsed().as_secs_f64();
    connection.close(200, "".into()).await.unwrap();
    took_s
}

/// Returns the time in seconds, and the part of the effects that went to Redis.
fn replay(settings: &[(&str, &str)], events: u32) -> (f64, f64) {
    let start = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_unstale"))
        .args(["replay", "--since", "offset:0", "--json"])
        .env_clear()
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let took_s = start.elapsed().as_secs_f64();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome["events"], events);
    (took_s, outcome["sent"].as_f64().unwrap() / outcome["effects"].as_f64().unwrap())
}
