//! `unstale dlq`: the program that people run, on a real broker.

mod browse;
mod discard;
mod look;
mod replay;

use std::process::{Command, Stdio};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::wait_until;

/// A time that sorts before any real one.
const LONG_AGO: &str = "2020-01-02T03:04:05.5Z";

/// `unstale dlq …` in the stage's settings, not started.
fn command(stage: &Stage, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
    command
        .arg("dlq")
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

/// Runs it to its end: code, stdout, stderr.
pub(crate) async fn dlq(stage: &Stage, args: &[&str]) -> (i32, String, String) {
    let mut command = command(stage, args);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Lets a worker declare the queues, and ends it.
async fn declare(stage: &Stage) {
    assert!(stage.worker(&[]).await.terminate().await.success());
}

/// Publishes letters as a worker does: `user.updated` of these ids, all dead-lettered at the same time.
async fn publish_letters(stage: &Stage, ids: std::ops::Range<u32>) {
    let queue = format!("{}.dead", stage.queue);
    let mut confirms = Vec::new();
    let count = ids.len();
    let signer = stage.signer().await;
    for id in ids {
        let mut headers = FieldTable::default();
        for (name, value) in [
            ("unstale-reason", "loader_refused"),
            ("unstale-error", "the loader answered 404"),
            ("unstale-exchange", stage.exchange.as_str()),
            ("unstale-routing-key", "user.updated"),
            ("unstale-event-type", "user.updated"),
            ("unstale-form", "bare"),
            ("unstale-first-time", LONG_AGO),
            ("unstale-time", LONG_AGO),
            ("unstale-registry", "another"),
        ] {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        headers.insert("unstale-event-id".into(), AMQPValue::LongString(format!("e{id}").into()));
        headers.insert("unstale-attempt".into(), AMQPValue::LongInt(5));
        let body = format!("{{\"id\":{id}}}");
        signer.sign(&mut headers, body.as_bytes());
        let properties = BasicProperties::default().with_headers(headers);
        confirms.push(stage.send("", &queue, properties, body.as_bytes()).await);
        if confirms.len() == 500 {
            for confirm in confirms.drain(..) {
                confirm.await.unwrap();
            }
        }
    }
    for confirm in confirms {
        confirm.await.unwrap();
    }
    wait_until(SOON, "the letters stand in the queue", async || stage.ready(".dead").await as usize >= count).await;
}
