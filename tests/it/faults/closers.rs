//! Commands at which Redis closes the connection, since they exceed a limit of its own or of a
//! proxy.

use std::time::Duration;

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Redis, Worker, rabbitmq, wait_until};

const RULES: &str = r#"
defaults: { ttl: 1h }
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  big.updated: { version: "{id}", effects: [ { write: "big:{id}", value: "{text}{text}" } ] }
"#;

const SOME: u32 = 20;

/// Maximum time until the event that loses connections is found, and all others are applied.
const FOUND: Duration = Duration::from_secs(60);

async fn limit_values(stage: &Stage, bytes: u32) {
    redis::cmd("CONFIG")
        .arg(&["SET", "proto-max-bulk-len", &bytes.to_string()])
        .exec_async(&mut stage.connection().await)
        .await
        .unwrap();
}

/// Publishes an event with a value of 1.4 MB between others.
async fn publish_big_between(stage: &Stage) {
    let text = "x".repeat(700_000);
    for id in 0..SOME {
        stage.set(&format!("user:{id}"), "old").await;
    }
    for id in 0..SOME {
        if id == SOME / 2 {
            stage.publish("big.updated", &format!(r#"{{"id":1,"text":"{text}"}}"#)).await;
        }
        stage.publish("user.updated", &format!(r#"{{"id":{id}}}"#)).await;
    }
}

async fn wait_users_gone(stage: &Stage, worker: &Worker) {
    wait_until(FOUND, "the other events are applied", async || {
        for id in 0..SOME {
            if stage.exists(&format!("user:{id}")).await {
                return false;
            }
        }
        worker.metrics().await.sum("unstale_paused", &[]) == 0.0
    })
    .await;
}

/// The event that loses the connection becomes a dead letter, and its neighbours are applied.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_at_which_redis_closes_the_connection_is_dead_lettered() {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    limit_values(&stage, 1 << 20).await;
    publish_big_between(&stage).await;
    wait_users_gone(&stage, &worker).await;
    wait_until(SOON, "one dead letter", async || stage.ready(".dead").await == 1).await;
    let letters = stage.dead_letters(1).await;
    let error = letters[0].header("unstale-error").unwrap();
    assert!(error.contains("14000") && error.contains("proto-max-bulk-len"), "{error}");
    assert_eq!(letters[0].header("unstale-reason").as_deref(), Some("redis_refused"));
    stage.wait_settled(&[&worker]).await;
}

/// Restarts of Redis lose connections too. No event becomes a dead letter for them.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_not_blamed_for_restarts_of_redis() {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    for round in 0..8 {
        stage.redis.restart().await;
        stage.publish("user.updated", &format!(r#"{{"id":{round}}}"#)).await;
    }
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0, "{}", worker.stderr());
}

/// A replay leaves such an event out, and names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_leaves_out_the_event_at_which_redis_closes_the_connection() {
    let redis = Redis::start_with(&["--proto-max-bulk-len", "1mb"]).await;
    let stage = Stage::with(&rabbitmq().await.url(), redis, &[("rules.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    publish_big_between(&stage).await;
    wait_users_gone(&stage, &worker).await;
    wait_until(SOON, "one dead letter", async || stage.ready(".dead").await == 1).await;
    stage.set("user:1", "old").await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
    command
        .args(["replay", "--since", "offset:0"])
        .env_clear()
        .envs(stage.broker_settings())
        .env("UNSTALE_REDIS_URL", stage.redis.url())
        .env("UNSTALE_SCHEMAS", stage.schemas.path());
    let output = tokio::time::timeout(FOUND, command.output()).await.expect("it ends").unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("the first at offset:10"), "{text}");
    assert!(!stage.exists("user:1").await, "{text}");
}
