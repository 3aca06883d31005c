//! A worker with few resources under several faults at once: 256 MiB of memory, half a CPU, 1,024
//! descriptors.
//!
//! In reading order: `storms` for large and expensive events, `restarts` for kills, `strangers` for
//! foreign connections.
//!
//! `make test` runs each test at a small size. `make survive` runs it at the full size, against an
//! optimized build.
//!
//! Deliberately absent: attacks that a single event makes, which are in `attacks`.

#![expect(clippy::print_stderr, reason = "figures for who reads the output")]

mod restarts;
mod storms;
mod strangers;

use std::time::Duration;

use lapin::BasicProperties;
use lapin::Confirmation;
use redis::AsyncCommands;

use crate::end_to_end::stage::Stage;
use crate::support::guard::Guarded;
use crate::support::limits::{SmallBox, Usage};
use crate::support::{RabbitMq, Redis, Worker, full_runs, wait_until};

const RULES: &str = r#"
events:
  body.changed: { effects: [ { delete: "body:{id}" } ] }
  "kind.#": { effects: [ { delete: "kind:{id}" } ] }
"#;

/// Maximum time until a worker in the box is ready, with nothing to heal.
const READY: Duration = Duration::from_secs(30);

/// Events whose confirms are awaited together, which limits the memory of the test itself.
const UNDER_WAY: usize = 16;

/// Maximum time a publisher waits for confirms before it publishes again.
const CONFIRMED: Duration = Duration::from_secs(15);

/// Maximum time until events are confirmed, even by a broker that has just come back.
const PUBLISHED: Duration = Duration::from_secs(120);

/// Worker in its box. Dropping it kills the worker.
struct Boxed {
    /// First field: the limits must be dropped before the worker, which must not be continued after
    /// its end.
    _limits: Guarded,
    worker: Worker,
}

impl Boxed {
    fn start(stage: &Stage) -> Self {
        let worker = stage.start_worker(&[
            ("UNSTALE_RETRY_DELAYS", "50ms,100ms,200ms,1s"),
            ("UNSTALE_MAX_BODY_BYTES", "2MiB"),
        ]);
        Self { _limits: SmallBox::USUAL.hold(worker.pid()), worker }
    }

    fn usage(&self) -> Usage {
        Usage::of(self.worker.pid())
            .filter(|usage| usage.peak_bytes > 0)
            .unwrap_or_else(|| panic!("the worker died: {}", self.worker.stderr()))
    }

    /// Waits until the worker is ready, without a death in between.
    async fn ready_within(&self, deadline: Duration) {
        let ready = async || {
            self.usage();
            matches!(self.worker.get("/readyz").await, Some((200, _)))
        };
        wait_until(deadline, "the worker in its box is ready", ready).await;
    }
}

async fn stage(broker: &RabbitMq) -> Stage {
    Stage::with(&broker.url(), Redis::start().await, &[("rules.yaml", RULES)]).await
}

/// Returns the small size, or the full one for `make survive`.
fn sized(small: usize, full: usize) -> usize {
    if full_runs() { full } else { small }
}

/// Stores a value that the event of each number makes stale.
async fn store(stage: &Stage, family: &str, numbers: std::ops::Range<usize>) {
    let mut redis = stage.connection().await;
    let mut pipeline = redis::pipe();
    for n in numbers {
        pipeline.set(format!("{family}:{n}"), "old").ignore();
    }
    pipeline.exec_async(&mut redis).await.unwrap();
}

/// Returns the number of remaining stale values; `None` while Redis is away.
async fn stale(stage: &Stage, family: &str) -> Option<usize> {
    let mut redis = stage.redis.try_connection().await?;
    let keys: Vec<String> = redis.keys(format!("{family}:*")).await.ok()?;
    Some(keys.len())
}

/// Publishes the event of each number, with that many bytes around it, and waits for all confirms.
///
/// A queue that comes back with its broker may have taken a message and never confirm it. So this
/// publisher, like any other, publishes unconfirmed messages again.
async fn publish(
    stage: &Stage,
    routing_key: impl Fn(usize) -> String,
    numbers: std::ops::Range<usize>,
    bytes: usize,
) {
    let padding = "x".repeat(bytes);
    for first in numbers.clone().step_by(UNDER_WAY) {
        let chunk = first..numbers.end.min(first + UNDER_WAY);
        let confirmed = async || {
            let mut confirms = Vec::new();
            for n in chunk.clone() {
                let body = format!(r#"{{"id":{n},"padding":"{padding}"}}"#);
                confirms.push(
                    stage
                        .send(
                            &stage.exchange,
                            &routing_key(n),
                            BasicProperties::default(),
                            body.as_bytes(),
                        )
                        .await,
                );
            }
            for confirm in confirms {
                assert!(matches!(confirm.await.unwrap(), Confirmation::Ack(None)));
            }
        };
        wait_until(PUBLISHED, "events are confirmed", async || {
            tokio::time::timeout(CONFIRMED, confirmed()).await.is_ok()
        })
        .await;
    }
}
