//! `unstale replay`: the program, on a real broker and a real Redis.

mod beside;
pub(crate) mod bounds;
mod choose;
mod ends;
pub(crate) mod engine;
mod fences;
mod letters;
mod places;
mod second_passes;
mod survey;
mod verbs;

use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use redis::AsyncCommands as _;
use serde_json::Value;

use crate::end_to_end::stage::{SOON, Stage};

/// Returns the command `unstale replay …` with the stage's settings, not started.
fn command(stage: &Stage, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
    command
        .arg("replay")
        .args(args)
        .env_clear()
        .env("UNSTALE_AMQP_URL", stage.amqp_url())
        .env("UNSTALE_REDIS_URL", stage.redis.url())
        .env("UNSTALE_SCHEMAS", stage.schemas.path())
        .env("UNSTALE_EXCHANGE", &stage.exchange)
        .env("UNSTALE_QUEUE", &stage.queue)
        .env("UNSTALE_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The result of a replay.
struct Replayed {
    code: i32,
    out: String,
    err: String,
}

impl Replayed {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.out, self.err))
    }

    #[track_caller]
    fn clean(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }
}

/// Runs a replay to its end.
async fn replay(stage: &Stage, args: &[&str]) -> Replayed {
    run(command(stage, args)).await
}

async fn run(mut command: Command) -> Replayed {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Replayed {
        code: output.status.code().unwrap(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// Lets a worker declare the queues and the history, and ends it.
async fn declare(stage: &Stage) {
    assert!(stage.worker(&[]).await.terminate().await.success());
}

/// Waits until the history shows a number of messages, which is a moment after their confirms.
async fn wait_recorded(stage: &Stage, messages: u64) {
    let channel = stage.new_channel().await;
    channel.basic_qos(1_000, BasicQosOptions::default()).await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let queue = format!("{}.history", stage.queue);
    let mut consumer = channel
        .basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), arguments)
        .await
        .unwrap();
    for _ in 0..messages {
        let next = tokio::time::timeout(SOON, consumer.next()).await;
        let delivery = next
            .unwrap_or_else(|_| panic!("the history has fewer than {messages} messages"))
            .unwrap()
            .unwrap();
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await.unwrap();
    }
    channel.close(200, "".into()).await.unwrap();
}

/// Waits a little more than a second, because places in time are accurate to a second and one
/// chunk.
const APART: Duration = Duration::from_millis(2_500);

/// Publishes `user.updated` of these ids.
async fn publish_users(stage: &Stage, ids: std::ops::Range<u32>) {
    let mut confirms = Vec::new();
    for id in ids {
        let body = format!("{{\"id\":{id}}}");
        confirms.push(
            stage
                .send(&stage.exchange, "user.updated", BasicProperties::default(), body.as_bytes())
                .await,
        );
        if confirms.len() == 500 {
            for confirm in confirms.drain(..) {
                confirm.await.unwrap();
            }
        }
    }
    for confirm in confirms {
        confirm.await.unwrap();
    }
}

/// Returns the number of cached users.
async fn users(stage: &Stage) -> usize {
    let keys: Vec<String> = stage.connection().await.keys("user:*").await.unwrap();
    keys.len()
}

/// Removes everything from Redis.
async fn flush(stage: &Stage) {
    let _: () = redis::cmd("FLUSHALL").query_async(&mut stage.connection().await).await.unwrap();
}
