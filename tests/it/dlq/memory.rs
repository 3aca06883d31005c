//! The commands need a bounded amount of memory with any content of the dead-letter queue.

#![expect(clippy::print_stderr, reason = "figures for who reads the output")]

use std::io::Read as _;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::sleep;

use super::{command, declare};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::limits::Usage;
use crate::support::{full_runs, wait_until};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// Memory that a command may take beside what it takes over an empty queue and one body.
const ROOM_BYTES: u64 = 64 << 20;

const BODY_BYTES: usize = 1 << 20;

/// Publishes letters whose headers or bodies are large.
async fn publish_large(stage: &Stage, small: u32, large: u32) {
    let queue = format!("{}.dead", stage.queue);
    let mut headers = FieldTable::default();
    for (name, value) in [("unstale-reason", "malformed"), ("unstale-routing-key", "user.updated")]
    {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    for name in ["x-note", "unstale-error", "unstale-event-id"] {
        headers.insert(name.into(), AMQPValue::LongString("n".repeat(40_000).into()));
    }
    let padding = "x".repeat(BODY_BYTES - 64);
    let mut confirms = Vec::new();
    for id in 0..small + large {
        let (properties, body) = if id < small {
            (BasicProperties::default().with_headers(headers.clone()), format!(r#"{{"id":{id}}}"#))
        } else {
            (BasicProperties::default(), format!(r#"{{"id":{id},"text":"{padding}"}}"#))
        };
        confirms.push(stage.send("", &queue, properties, body.as_bytes()).await);
        if confirms.len() == 20 {
            for confirm in confirms.drain(..) {
                confirm.await.unwrap();
            }
        }
    }
    for confirm in confirms {
        confirm.await.unwrap();
    }
    wait_until(SOON, "the letters stand in the queue", async || {
        stage.ready(".dead").await == small + large
    })
    .await;
}

/// Runs a command to its end. Returns its peak of memory, and its output on stderr.
async fn peak_bytes(stage: &Stage, args: &[&str]) -> (u64, String) {
    let mut command = command(stage, args);
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let said = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        text
    });
    let mut peak = 0;
    let status = loop {
        if let Some(usage) = Usage::of(child.id()) {
            peak = peak.max(usage.peak_bytes);
        }
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => sleep(Duration::from_millis(2)).await,
        }
    };
    let said = said.await.unwrap();
    assert!(status.code().is_some_and(|code| code <= 1), "{args:?}: {status}: {said}");
    eprintln!("{args:?}: {} MiB", peak >> 20);
    (peak, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_over_large_letters_takes_little_memory() {
    let (small, large) = if full_runs() { (3_000, 2_000) } else { (300, 150) };
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    let (empty_bytes, _) = peak_bytes(&stage, &["show", "--limit", "2"]).await;
    publish_large(&stage, small, large).await;
    let bound_bytes = empty_bytes + ROOM_BYTES + BODY_BYTES as u64;
    let replayed = large / 2;
    let limit = replayed.to_string();
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["show", "--limit", "2"],
        &["show", "--limit", "2", "--json"],
        &["replay", "--dry-run"],
        &["drop", "--dry-run"],
        &["replay", "--limit", &limit],
        &["drop", "--yes"],
    ] {
        let (peak, said) = peak_bytes(&stage, args).await;
        assert!(
            peak <= bound_bytes,
            "{args:?}: {} MiB, {} MiB over an empty queue: {said}",
            peak >> 20,
            empty_bytes >> 20
        );
    }
    wait_until(SOON, "all are gone, some of them to workers", async || {
        stage.ready(".dead").await == 0 && stage.ready("").await == replayed
    })
    .await;
}
