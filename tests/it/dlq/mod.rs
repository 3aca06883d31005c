//! `unstale dlq`: the program, on a real broker.

mod browse;
mod choose;
mod discard;
mod look;
mod memory;
mod replay;

use std::process::{Command, Stdio};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use unstale::broker::Signer;

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::wait_until;

/// A time that sorts before any real one.
const LONG_AGO: &str = "2020-01-02T03:04:05.5Z";

/// Returns the command `unstale dlq …` with the stage's settings, not started.
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

/// Runs the command to its end, and returns its exit code, stdout and stderr.
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

/// The properties in which published letters differ.
#[derive(Clone, Copy)]
struct Given<'g> {
    id: &'g str,
    reason: &'g str,
    error: &'g str,
    time: &'g str,
}

/// A letter of a worker with an event `user.updated`.
const GIVEN: Given<'static> =
    Given { id: "e", reason: "loader_refused", error: "the loader answered 404", time: LONG_AGO };

/// Publishes letters as a worker does: `user.updated` events with these ids, all dead-lettered at
/// the same time.
pub(crate) async fn publish_letters(stage: &Stage, ids: std::ops::Range<u32>) {
    let ids: Vec<String> = ids.map(|id| format!("e{id}")).collect();
    publish_given(stage, &ids.iter().map(|id| Given { id, ..GIVEN }).collect::<Vec<_>>()).await;
}

/// Publishes the letter of an event of that type, with that body.
pub(crate) async fn publish_letter(stage: &Stage, event_type: &str, body: &str) {
    let properties = letter(stage, &stage.signer().await, &GIVEN, (event_type, body));
    let queue = format!("{}.dead", stage.queue);
    stage.send("", &queue, properties, body.as_bytes()).await.await.unwrap();
    wait_until(SOON, "the letter is in the queue", async || stage.ready(".dead").await == 1).await;
}

/// Returns the properties of a letter, signed.
fn letter(
    stage: &Stage,
    signer: &Signer,
    given: &Given<'_>,
    (event_type, body): (&str, &str),
) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in [
        ("unstale-reason", given.reason),
        ("unstale-error", given.error),
        ("unstale-exchange", stage.exchange.as_str()),
        ("unstale-routing-key", event_type),
        ("unstale-event-type", event_type),
        ("unstale-form", "bare"),
        ("unstale-first-time", given.time),
        ("unstale-time", given.time),
        ("unstale-registry", "another"),
        ("unstale-event-id", given.id),
    ] {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    headers.insert("unstale-attempt".into(), AMQPValue::LongInt(5));
    signer.sign(&mut headers, body.as_bytes());
    BasicProperties::default().with_headers(headers)
}

/// Publishes letters as a worker does. The body holds the number in the event's id.
async fn publish_given(stage: &Stage, letters: &[Given<'_>]) {
    let queue = format!("{}.dead", stage.queue);
    let before = stage.ready(".dead").await as usize;
    let mut confirms = Vec::new();
    let signer = stage.signer().await;
    for given in letters {
        let body = format!("{{\"id\":{}}}", given.id.trim_start_matches('e'));
        let properties = letter(stage, &signer, given, ("user.updated", &body));
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
    wait_until(SOON, "the letters stand in the queue", async || {
        stage.ready(".dead").await as usize >= before + letters.len()
    })
    .await;
}
