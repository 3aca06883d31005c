//! Heals beside live workers: what is owed, and what other rules left out.

use super::{USERS, heals, mark_fields, on, publish, readable, seed, stage, wait_gone, wait_marks};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Redis, Worker, rabbitmq, unique, wait_until};

const SOME: u32 = 200;

const ALL: [&str; 3] = [".*", ".*", ".*"];

/// All but the history.
const NO_HISTORY: &str = r"^(?!.*\.history$).*$";

/// A worker as a user of its own, and the user's name.
async fn worker_as_user(stage: &Stage) -> (Worker, String) {
    let broker = rabbitmq().await;
    let user = unique("healer");
    let url = broker.add_user(&user, "secret", "/", ALL).await;
    (stage.worker(&[("UNSTALE_AMQP_URL", &url)]).await, user)
}

async fn permit_read(user: &str, read: &str) {
    rabbitmq().await.ctl(&["set_permissions", user, ".*", ".*", read]).await;
}

async fn status(stage: &Stage) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
    command.arg("status").env_clear().envs(stage.broker_settings()).env("UNSTALE_REDIS_URL", stage.redis.url());
    String::from_utf8(command.output().await.unwrap().stdout).unwrap()
}

/// The broker lets nobody read the history: events go on all the same, and the heal is done once it
/// can be.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_cannot_be_read_does_not_stop_events() {
    let stage = stage().await;
    let (mut worker, user) = worker_as_user(&stage).await;
    wait_marks(&stage, 1).await;
    seed(&stage.redis, SOME).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&worker]).await;
    permit_read(&user, NO_HISTORY).await;
    stage.redis.restore(&snapshot).await;
    wait_until(SOON, "the heal is owed", async || worker.metrics().await.sum("unstale_heal_owed", &[]) == 1.0).await;
    worker.wait_ready().await;
    assert!(readable(&stage.redis).await.is_some_and(|left| left > 0), "nothing is healed yet");
    assert_eq!(heals(&worker).await, 0.0, "and nobody says so");
    stage.set("user:1", "new").await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    stage.wait_gone("user:1").await;
    let told = status(&stage).await;
    assert!(told.contains("is to be applied again, and has not been") && told.contains("grant `read` on the history"), "{told}");
    assert_eq!(worker.stderr().matches("the broker cannot serve the history").count(), 1, "{}", worker.stderr());

    permit_read(&user, ".*").await;
    wait_gone(&stage.redis, SOON * 2).await;
    wait_until(SOON, "nothing is owed", async || worker.metrics().await.sum("unstale_heal_owed", &[]) == 0.0).await;
    assert!(!status(&stage).await.contains("has not been"));
}

/// It outlives the worker that knew of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_is_paid_by_the_next_worker() {
    let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let stage = on(redis).await;
    let (worker, user) = worker_as_user(&stage).await;
    wait_marks(&stage, 1).await;
    publish(&stage, SOME).await;
    stage.wait_settled(&[&worker]).await;
    permit_read(&user, NO_HISTORY).await;
    stage.redis.restart().await;
    wait_until(SOON, "the heal is owed", async || worker.metrics().await.sum("unstale_heal_owed", &[]) == 1.0).await;
    worker.kill();
    seed(&stage.redis, SOME).await;
    let next = stage.worker(&[]).await;
    wait_gone(&stage.redis, SOON).await;
    wait_until(SOON, "nothing is owed", async || next.metrics().await.sum("unstale_heal_owed", &[]) == 0.0).await;
    assert!(!mark_fields(&stage).await.iter().any(|(field, _)| field.starts_with("owed:")));
}

/// During a rollout of rules, the worker with the older ones heals: what only the newer ones say is
/// healed all the same, once.
#[tokio::test(flavor = "multi_thread")]
async fn workers_with_other_rules_heal_again_by_their_own() {
    const NEWER: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" }, { delete: "page:{id}" } ] } }"#;
    let stage = stage().await;
    let newer = tempfile::tempdir().unwrap();
    std::fs::write(newer.path().join("users.yaml"), NEWER).unwrap();
    let older = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    seed(&stage.redis, SOME).await;
    let mut redis = stage.connection().await;
    for id in 0..SOME {
        redis::cmd("SET").arg(format!("page:{id}")).arg("old").exec_async(&mut redis).await.unwrap();
    }
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&older]).await;
    stage.redis.restore(&snapshot).await;
    wait_until(SOON, "the worker with the older rules heals", async || heals(&older).await == 1.0).await;
    assert_eq!(readable(&stage.redis).await, Some(0));

    let with_newer = stage.worker(&[("UNSTALE_SCHEMAS", newer.path().to_str().unwrap())]).await;
    wait_until(SOON, "no old page can be read", async || {
        let pages: Vec<String> = redis::cmd("KEYS").arg("page:*").query_async(&mut stage.connection().await).await.unwrap();
        pages.is_empty()
    })
    .await;
    let healed_by = async || {
        let details = mark_fields(&stage).await.into_iter().find(|(field, _)| field == "heal:details").unwrap().1;
        serde_json::from_str::<serde_json::Value>(&details).unwrap()["digests"].as_array().unwrap().len()
    };
    wait_until(SOON, "both rules healed", async || healed_by().await == 2).await;
    let before = (heals(&older).await, heals(&with_newer).await);
    assert_eq!(before, (1.0, 1.0), "{}\n----\n{}", older.stderr(), with_newer.stderr());
    // Neither heals for the other again.
    let ticked = std::time::Instant::now();
    wait_until(SOON, "three ticks", async || ticked.elapsed() > std::time::Duration::from_secs(3)).await;
    assert_eq!((heals(&older).await, heals(&with_newer).await), before);
    assert!(USERS.contains("user:{id}"));
}
