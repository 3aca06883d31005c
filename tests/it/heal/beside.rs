//! Heals beside live workers: owed heals, and effects that other rules left out.

use super::{USERS, heals, mark_fields, on, publish, readable, seed, stage, wait_gone, wait_marks};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Redis, Worker, rabbitmq, unique, wait_until};

const SOME: u32 = 200;

const ALL: [&str; 3] = [".*", ".*", ".*"];

/// Pattern of everything except the history.
const NO_HISTORY: &str = r"^(?!.*\.history$).*$";

/// Starts a worker as a user of its own, and returns it with the user's name.
async fn worker_as_user(stage: &Stage) -> (Worker, String) {
    let broker = rabbitmq().await;
    let user = unique("healer");
    let url = broker.add_user(&user, "secret", "/", ALL).await;
    (stage.worker(&[("UNSTALE_AMQP_URL", &url)]).await, user)
}

async fn permit_read(user: &str, read: &str) {
    rabbitmq().await.permit(user, "/", [".*", ".*", read]).await;
}

pub(super) async fn status(stage: &Stage) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
    command
        .arg("status")
        .env_clear()
        .envs(stage.broker_settings())
        .env("UNSTALE_REDIS_URL", stage.redis.url());
    String::from_utf8(command.output().await.unwrap().stdout).unwrap()
}

/// The broker refuses to read the history. Events continue nevertheless, and the heal happens once
/// reading is permitted.
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
    wait_until(SOON, "the heal is owed", async || {
        worker.metrics().await.sum("unstale_heal_owed", &[]) == 1.0
    })
    .await;
    worker.wait_ready().await;
    assert!(readable(&stage.redis).await.is_some_and(|left| left > 0), "nothing is healed yet");
    assert_eq!(heals(&worker).await, 0.0, "and nobody says so");
    stage.set("user:1", "new").await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    stage.wait_gone("user:1").await;
    let told = status(&stage).await;
    assert!(
        told.contains("has been due") && told.contains("grant `read` on the history"),
        "{told}"
    );
    assert_eq!(
        worker.stderr().matches("the broker cannot serve the history").count(),
        1,
        "{}",
        worker.stderr()
    );

    permit_read(&user, ".*").await;
    wait_gone(&stage.redis, SOON * 2).await;
    wait_until(SOON, "nothing is owed", async || {
        worker.metrics().await.sum("unstale_heal_owed", &[]) == 0.0
    })
    .await;
    assert!(!status(&stage).await.contains("has been due"));
}

/// The heal stays owed after the death of the worker that recorded it.
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
    wait_until(SOON, "the heal is owed", async || {
        worker.metrics().await.sum("unstale_heal_owed", &[]) == 1.0
    })
    .await;
    worker.kill();
    seed(&stage.redis, SOME).await;
    let next = stage.worker(&[]).await;
    wait_gone(&stage.redis, SOON).await;
    wait_until(SOON, "nothing is owed", async || {
        next.metrics().await.sum("unstale_heal_owed", &[]) == 0.0
    })
    .await;
    assert!(!mark_fields(&stage).await.iter().any(|(field, _)| field.starts_with("owed:")));
}

/// Rules that delete a page too.
const NEWER: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" }, { delete: "page:{id}" } ] } }"#;

/// Stores old users and old pages.
async fn seed_pages(stage: &Stage) {
    seed(&stage.redis, SOME).await;
    let mut redis = stage.connection().await;
    for id in 0..SOME {
        redis::cmd("SET")
            .arg(format!("page:{id}"))
            .arg("old")
            .exec_async(&mut redis)
            .await
            .unwrap();
    }
}

async fn pages(stage: &Stage) -> usize {
    let pages: Vec<String> =
        redis::cmd("KEYS").arg("page:*").query_async(&mut stage.connection().await).await.unwrap();
    pages.len()
}

/// Returns the digests of each completed heal.
async fn healed_by(stage: &Stage) -> Vec<usize> {
    let fields =
        mark_fields(stage).await.into_iter().filter(|(field, _)| field.starts_with("healed:"));
    fields
        .map(|(_, text)| {
            serde_json::from_str::<serde_json::Value>(&text).unwrap()["digests"]
                .as_array()
                .unwrap()
                .len()
        })
        .collect()
}

/// Makes the last heal look that old.
async fn age_heals(stage: &Stage, hours: u64) {
    let by = hours * 3_600_000;
    let marks = format!("unstale:mark:{}", stage.queue);
    for (field, text) in mark_fields(stage).await {
        let aged = if field == "heal" {
            let times: Vec<u64> = text.split(':').map(|part| part.parse().unwrap()).collect();
            format!("{}:{}:{}:{}:{}", times[0] - by, times[1] - by, times[2], times[3], times[4])
        } else if field == "heal:details" || field.starts_with("healed:") {
            let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
            for name in ["began_ms", "ended_ms"] {
                if let Some(time) = json[name].as_u64() {
                    json[name] = (time - by).into();
                }
            }
            json.to_string()
        } else {
            continue;
        };
        redis::cmd("HSET")
            .arg(&marks)
            .arg(field)
            .arg(aged)
            .exec_async(&mut stage.connection().await)
            .await
            .unwrap();
    }
}

/// Waits until the checkpoint has advanced three times.
async fn wait_ticks() {
    let begun = std::time::Instant::now();
    wait_until(SOON, "three ticks", async || begun.elapsed() > std::time::Duration::from_secs(3))
        .await;
}

/// Returns a stage where a worker with the older rules has healed: old pages stay.
async fn healed_by_older_rules() -> (Stage, Worker) {
    let stage = stage().await;
    let older = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    seed_pages(&stage).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&older]).await;
    stage.redis.restore(&snapshot).await;
    wait_until(SOON, "the worker with the older rules heals", async || heals(&older).await == 1.0)
        .await;
    assert_eq!((readable(&stage.redis).await, pages(&stage).await), (Some(0), SOME as usize));
    (stage, older)
}

async fn worker_with_newer_rules(stage: &Stage) -> (Worker, tempfile::TempDir) {
    let newer = tempfile::tempdir().unwrap();
    std::fs::write(newer.path().join("users.yaml"), NEWER).unwrap();
    (stage.worker(&[("UNSTALE_SCHEMAS", newer.path().to_str().unwrap())]).await, newer)
}

/// During a rollout of rules, the worker with the older ones heals. A worker with the newer rules
/// then heals by them, once.
#[tokio::test(flavor = "multi_thread")]
async fn workers_with_other_rules_heal_again_by_their_own() {
    let (stage, older) = healed_by_older_rules().await;
    let (with_newer, _rules) = worker_with_newer_rules(&stage).await;
    wait_until(SOON, "no old page can be read", async || pages(&stage).await == 0).await;
    wait_until(SOON, "both rules healed", async || healed_by(&stage).await == [2]).await;
    let before = (heals(&older).await, heals(&with_newer).await);
    assert_eq!(before, (1.0, 1.0), "{}\n----\n{}", older.stderr(), with_newer.stderr());
    // Neither of the two workers heals again because of the other one.
    wait_ticks().await;
    assert_eq!((heals(&older).await, heals(&with_newer).await), before);
    assert!(USERS.contains("user:{id}"));
}

/// Redis holds the record of the heal for a day. A reload of rules has the same effect as a start.
#[tokio::test(flavor = "multi_thread")]
async fn rules_that_are_loaded_hours_after_a_heal_heal_again() {
    let (stage, older) = healed_by_older_rules().await;
    age_heals(&stage, 20).await;
    let told = status(&stage).await;
    assert!(!told.contains("no heal has applied the rules"), "{told}");
    stage.write_schema("users.yaml", NEWER);
    wait_until(SOON, "no old page can be read", async || pages(&stage).await == 0).await;
    wait_until(SOON, "both rules healed", async || healed_by(&stage).await == [2]).await;
    assert_eq!(heals(&older).await, 2.0, "{}", older.stderr());
}

/// Events after the heal were not lost, so a deploy of other rules does not invalidate them again.
#[tokio::test(flavor = "multi_thread")]
async fn other_rules_heal_only_what_can_have_been_lost() {
    let (stage, older) = healed_by_older_rules().await;
    // One user that changed before the loss too, and one that did not.
    let later = format!("page:{SOME}");
    stage.set(&later, "new").await;
    for id in [1, SOME] {
        stage.publish("user.updated", &format!(r#"{{"id":{id}}}"#)).await;
    }
    stage.wait_settled(&[&older]).await;
    let (newer, _rules) = worker_with_newer_rules(&stage).await;
    wait_until(SOON, "both rules healed", async || healed_by(&stage).await == [2]).await;
    let pages: Vec<String> =
        redis::cmd("KEYS").arg("page:*").query_async(&mut stage.connection().await).await.unwrap();
    assert_eq!(pages, [later], "{}", newer.stderr());
}

/// A deploy of other rules heals nothing if nothing was lost for a day.
#[tokio::test(flavor = "multi_thread")]
async fn rules_that_are_loaded_a_day_after_a_heal_heal_nothing() {
    let (stage, older) = healed_by_older_rules().await;
    age_heals(&stage, 25).await;
    let (newer, _rules) = worker_with_newer_rules(&stage).await;
    wait_ticks().await;
    assert_eq!((heals(&older).await, heals(&newer).await), (1.0, 0.0), "{}", newer.stderr());
    assert_eq!(pages(&stage).await, SOME as usize);
}

/// The heal was owed, and a worker with the older rules has done it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_owed_is_healed_by_other_rules_too() {
    let stage = stage().await;
    let (older, user) = worker_as_user(&stage).await;
    wait_marks(&stage, 1).await;
    seed_pages(&stage).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&older]).await;
    permit_read(&user, NO_HISTORY).await;
    stage.redis.restore(&snapshot).await;
    wait_until(SOON, "the heal is owed", async || {
        older.metrics().await.sum("unstale_heal_owed", &[]) == 1.0
    })
    .await;
    permit_read(&user, ".*").await;
    wait_until(SOON * 2, "it is paid", async || {
        older.metrics().await.sum("unstale_heal_owed", &[]) == 0.0
    })
    .await;
    assert_eq!((readable(&stage.redis).await, pages(&stage).await), (Some(0), SOME as usize));
    let (newer, _rules) = worker_with_newer_rules(&stage).await;
    wait_until(SOON, "no old page can be read", async || pages(&stage).await == 0).await;
    wait_until(SOON, "the newer rules healed", async || healed_by(&stage).await == [2]).await;
    assert_eq!(heals(&newer).await, 1.0, "{}", newer.stderr());
}

/// A worker with a wrong setting has healed, so it applied other effects than the right ones.
async fn healed_under_a_wrong_setting(setting: (&str, &str)) {
    let stage = stage().await;
    let right = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    seed(&stage.redis, SOME).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&right]).await;
    right.terminate().await;
    let wrong = stage.worker(&[setting]).await;
    stage.redis.restore(&snapshot).await;
    wait_until(SOON, "the wrong worker heals", async || heals(&wrong).await == 1.0).await;
    assert_eq!(readable(&stage.redis).await, Some(SOME as usize));
    wrong.terminate().await;
    let next = stage.worker(&[]).await;
    wait_gone(&stage.redis, SOON).await;
    wait_until(SOON, "both have healed", async || healed_by(&stage).await == [2]).await;
    wait_ticks().await;
    assert_eq!(heals(&next).await, 1.0, "{}", next.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heal_under_a_wrong_key_prefix_is_done_again() {
    healed_under_a_wrong_setting(("UNSTALE_KEY_PREFIX", "oops:")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heal_under_a_wrong_body_limit_is_done_again() {
    healed_under_a_wrong_setting(("UNSTALE_MAX_BODY_BYTES", "5B")).await;
}
