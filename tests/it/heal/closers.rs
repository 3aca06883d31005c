//! A heal over events at which Redis closes the connection, since their values exceed a limit.

use std::time::Duration;

use redis::AsyncCommands;

use super::{heals, publish, readable, seed, wait_gone, wait_marks};
use crate::end_to_end::stage::Stage;
use crate::faults::closers::limit_values;
use crate::support::{Worker, wait_until};

const RULES: &str = r#"
defaults: { ttl: 1h }
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  big.updated: { version: "{id}", effects: [ { write: "big:{id}", value: "{text}{text}" } ] }
"#;

const SOME: u32 = 1_000;

/// Maximum time until a heal has found the event, and applied all others.
const FOUND: Duration = Duration::from_secs(90);

/// Removes the checkpoints, which looks like a loss of all writes.
async fn lose_checkpoints(stage: &Stage) {
    let marks = format!("unstale:mark:{}", stage.queue);
    let _: () = stage.connection().await.del(marks).await.unwrap();
}

/// Returns a stage whose history has an event that Redis accepts no more, between 2,000 others.
async fn with_big_event() -> (Stage, Worker) {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    publish(&stage, SOME).await;
    let text = "x".repeat(700_000);
    stage.publish("big.updated", &format!(r#"{{"id":1,"text":"{text}"}}"#)).await;
    publish(&stage, SOME).await;
    stage.wait_settled(&[&worker]).await;
    limit_values(&stage, 1 << 20).await;
    (stage, worker)
}

/// The heal ends, applies all other events, deletes the key that it could not write, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_heal_ends_over_an_event_at_which_redis_closes_the_connection() {
    let (stage, mut worker) = with_big_event().await;
    seed(&stage.redis, SOME).await;
    stage.set("big:1", "old").await;
    lose_checkpoints(&stage).await;
    wait_gone(&stage.redis, FOUND).await;
    wait_until(FOUND, "the heal ends", async || heals(&worker).await == 1.0).await;
    worker.wait_ready().await;
    assert!(!stage.exists("big:1").await, "the old value is gone: {}", worker.stderr());
    let log = worker.stderr();
    assert!(
        log.contains("heal could not apply some events") && log.contains("first_offset=1000"),
        "{log}"
    );
    assert!(!log.contains("begins anew"), "{log}");
    stage.set("user:1", "old").await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    stage.wait_gone("user:1").await;
    assert_eq!(readable(&stage.redis).await, Some(0));
}
