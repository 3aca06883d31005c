//! Attacks by a publisher, a tenant and an application, on the real worker, a real broker and a
//! real Redis.
//!
//! In reading order: [`events`] costs CPU and memory by rules, [`shapes`] by the form of a message,
//! [`registries`] by rule files. [`own_keys`] targets unstale's own keys, [`headers`] its own
//! headers.
//!
//! Each attack is a row. It must cost less than [`CPU`] and [`MEMORY_BYTES`]. It must be applied,
//! or become a dead letter that names the rule, and must not affect later events.
//!
//! Deliberately absent: code of ours between the attacker and the worker.

mod events;
mod headers;
mod nesting;
mod own_keys;
mod registries;
mod shapes;

use std::time::Duration;

use lapin::BasicProperties;

use crate::end_to_end::stage::{DeadLetter, Stage};
use crate::support::limits::{Usage, forget_peak};
use crate::support::{Worker, wait_until};

/// Maximum CPU time that one event may cost a worker.
///
/// A build without optimization is about ten times as slow as the one that users run.
const CPU: Duration =
    if cfg!(debug_assertions) { Duration::from_secs(8) } else { Duration::from_secs(1) };

/// Maximum memory that one event may cost a worker beyond what it held before.
const MEMORY_BYTES: u64 = 64 << 20;

/// Maximum time for any wait here: an unlimited attack ends its test this way.
const PATIENCE: Duration = Duration::from_secs(60);

const INNOCENT: (&str, &str) = (
    "innocent.yaml",
    r#"events: { innocent.changed: { effects: [ { delete: "innocent:{id}" } ] } }"#,
);

/// Worker under attack.
struct Victim {
    stage: Stage,
    worker: Worker,
    /// Log lines before the first attack: warnings about the rules.
    lines_before: usize,
}

/// Cost of one attack.
#[derive(Debug)]
struct Cost {
    cpu: Duration,
    bytes: u64,
}

impl Victim {
    async fn new(files: &[(&str, &str)], settings: &[(&str, &str)]) -> Self {
        let files: Vec<_> = [INNOCENT].iter().chain(files).copied().collect();
        let stage = Stage::new(&files).await;
        let quick = [("UNSTALE_RETRY_DELAYS", "50ms,100ms"), ("UNSTALE_UNKNOWN", "dead")];
        let worker = stage.worker(&[&quick, settings].concat()).await;
        let lines_before = worker.stderr().lines().count();
        let victim = Self { stage, worker, lines_before };
        victim.passes_harmless("the first event").await;
        victim
    }

    /// Publishes an event and a harmless one after it. Returns their cost together, once nothing is
    /// in flight.
    async fn suffers(
        &self,
        name: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Cost {
        let pid = self.worker.pid();
        forget_peak(pid);
        let before = Usage::of(pid).unwrap_or_else(|| {
            panic!("before {name} the worker is gone: {}", self.worker.stderr())
        });
        self.stage.publish_with(routing_key, properties, body).await;
        self.passes_harmless(name).await;
        // Looks twice, because a message may move during a look to a queue that was already
        // counted.
        let settled = async || {
            self.stage.is_settled(&[&self.worker]).await
                && self.stage.is_settled(&[&self.worker]).await
        };
        wait_until(PATIENCE, &format!("{name} is settled"), settled).await;
        let after = Usage::of(pid)
            .unwrap_or_else(|| panic!("{name} ended the worker: {}", self.worker.stderr()));
        Cost {
            cpu: after.cpu - before.cpu,
            bytes: after.peak_bytes.saturating_sub(before.resident_bytes),
        }
    }

    /// Checks that an event unrelated to the attack is applied.
    async fn passes_harmless(&self, name: &str) {
        let id = fastrand::u64(..);
        let key = format!("innocent:{id}");
        self.stage.set(&key, "old").await;
        self.stage.publish("innocent.changed", &format!(r#"{{"id":{id}}}"#)).await;
        wait_until(PATIENCE, &format!("the innocent event behind {name} is applied"), async || {
            !self.stage.exists(&key).await
        })
        .await;
    }

    /// Takes the dead letters so far out of their queue.
    ///
    /// Each must have a reason, and a message without payload text.
    async fn dead_letters(&self) -> Vec<DeadLetter> {
        let count = self.stage.ready(".dead").await;
        if count == 0 {
            return Vec::new();
        }
        let letters = self.stage.dead_letters(count).await;
        for letter in &letters {
            let error = letter.header("unstale-error").unwrap_or_default();
            assert!(
                letter.header("unstale-reason").is_some(),
                "a dead letter without a reason: {error}"
            );
            assert!(
                error.len() <= 1024 && !error.chars().any(is_forged),
                "a message with what a publisher wrote: {error:?}"
            );
        }
        letters
    }

    /// Checks at the end that the worker is ready, never healed, and has no publisher's text that
    /// breaks its log.
    async fn survived(&self) {
        let (status, body) = self.worker.get("/readyz").await.expect("the worker answers");
        assert_eq!(status, 200, "{body}");
        assert!(
            self.worker.metrics().await.sum("unstale_heals_total", &[]) < 0.5,
            "a heal: {}",
            self.worker.stderr()
        );
        for line in self.worker.stderr().lines().skip(self.lines_before) {
            assert!(
                line.starts_with("20") && !line.chars().any(is_forged),
                "a forged line in the log: {line:?}"
            );
        }
    }
}

impl Cost {
    /// Returns an error with the cost if it exceeds the limits.
    fn verdict(&self, name: &str) -> Result<(), String> {
        let bounded = self.cpu < CPU && self.bytes < MEMORY_BYTES;
        let text = format!("{name}: {:?} of CPU, {} MiB", self.cpu, self.bytes >> 20);
        if bounded { Ok(()) } else { Err(text) }
    }
}

/// Returns whether the character ends a line, moves a cursor or hides text.
fn is_forged(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns a JSON array of the results of `element`.
fn list(count: usize, element: impl Fn(usize) -> String) -> String {
    let elements: Vec<String> = (0..count).map(element).collect();
    format!("[{}]", elements.join(","))
}
