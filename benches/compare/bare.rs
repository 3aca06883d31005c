//! Loops that do almost nothing. Each is a process of its own, so that its CPU time can be
//! measured. It is this program with one argument.

use std::time::Instant;

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, Consumer};

use crate::process;

pub(crate) const DRAIN: &str = "bare-drain";
pub(crate) const SKETCH: &str = "bare-unlink";

const ACKNOWLEDGED_AT_ONCE: u64 = 250;
const BATCH: usize = 256;

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by the benchmark"))
}

async fn consume() -> (Connection, Channel, Consumer) {
    let connection = Connection::connect(&setting("AMQP_URL"), ConnectionProperties::default())
        .await
        .expect("the broker is there");
    let channel = connection.create_channel().await.expect("the broker gives a channel");
    let prefetch = setting("PREFETCH").parse().expect("PREFETCH is a number");
    channel
        .basic_qos(prefetch, BasicQosOptions::default())
        .await
        .expect("the broker takes a prefetch");
    let (queue, tag) = (setting("QUEUE"), setting("TAG"));
    let consumer = channel.basic_consume(
        queue.as_str().into(),
        tag.as_str().into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let consumer = consumer.await.expect("the queue is there");
    (connection, channel, consumer)
}

/// Receives this many events, acknowledges 250 at a time, and prints seconds and CPU microseconds.
pub(crate) async fn drain() {
    let events: u64 = setting("EVENTS").parse().expect("EVENTS is a number");
    let (connection, channel, mut consumer) = consume().await;
    let (mut seen, mut started) = (0, None);
    while seen < events {
        let delivery =
            consumer.next().await.expect("the consumer is open").expect("the channel is open");
        started.get_or_insert_with(|| (Instant::now(), process::cpu(std::process::id())));
        seen += 1;
        if seen % ACKNOWLEDGED_AT_ONCE == 0 || seen == events {
            channel
                .basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true })
                .await
                .expect("the channel is open");
        }
    }
    let (start, cpu) = started.expect("there were events");
    #[expect(clippy::print_stdout, reason = "the parent reads it")]
    {
        println!(
            "{} {}",
            start.elapsed().as_secs_f64(),
            (process::cpu(std::process::id()) - cpu).as_micros()
        );
    }
    let _ = connection.close(200, "".into()).await;
}

/// Receives what has arrived, deletes its keys with one UNLINK, and acknowledges it. Repeats until
/// it is killed.
pub(crate) async fn unlink() {
    let (_connection, channel, mut consumer) = consume().await;
    let client = redis::Client::open(setting("REDIS_URL")).expect("a URL");
    let mut cache = client.get_multiplexed_async_connection().await.expect("Redis is there");
    loop {
        let mut last =
            consumer.next().await.expect("the consumer is open").expect("the channel is open");
        let mut command = redis::cmd("UNLINK");
        let mut count = 1;
        command.arg(key_of(&last.data));
        while count < BATCH {
            let Some(Some(next)) = consumer.next().now_or_never() else { break };
            last = next.expect("the channel is open");
            command.arg(key_of(&last.data));
            count += 1;
        }
        let _: u64 = command.query_async(&mut cache).await.expect("Redis answers");
        channel
            .basic_ack(last.delivery_tag, BasicAckOptions { multiple: true })
            .await
            .expect("the channel is open");
    }
}

fn key_of(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Event {
        data: Data,
    }
    #[derive(serde::Deserialize)]
    struct Data {
        id: u64,
    }
    let event: Event = serde_json::from_slice(body).expect("an event of ours");
    format!("user:{}", event.data.id)
}
