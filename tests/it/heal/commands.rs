//! Commands that apply events again have a checkpoint of their own.

use std::sync::Arc;

use unstale::cache::{Cache, Entered, HealFrom, HealTurn};
use unstale::ops::heal::{HealGuard, HealSpan, Healed, heal};
use unstale::registry::{LoadOptions, Registry};

use super::{
    WITHIN, heals, mark_fields, publish, readable, seed, stage, wait_gone, wait_marks, wait_quiet,
};
use crate::dlq::{dlq, publish_letters};
use crate::end_to_end::stage::SOON;
use crate::replay::engine::config;
use crate::support::wait_until;

#[tokio::test(flavor = "multi_thread")]
async fn replays_hold_a_mark_while_they_run() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    stage.publish("user.updated", "no JSON").await;
    publish(&stage, 2_000).await;
    wait_until(SOON, "a dead letter", async || stage.ready(".dead").await == 1).await;
    stage.wait_settled(&[&worker]).await;
    let run = |args: &'static [&'static str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
        command
            .args(args)
            .env_clear()
            .envs(stage.broker_settings())
            .env("UNSTALE_REDIS_URL", stage.redis.url());
        command
            .env("UNSTALE_SCHEMAS", stage.schemas.path())
            .env("UNSTALE_LOG", "error")
            .kill_on_drop(true);
        command.spawn().unwrap()
    };
    let low_of = async |kind: &str| {
        let fields = mark_fields(&stage).await;
        fields
            .into_iter()
            .find(|(field, _)| field.starts_with(kind))
            .map(|(_, mark)| mark.split(':').nth(1).unwrap().parse::<u64>().unwrap())
    };
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
            as u64;

    let mut replay = run(&["replay", "--since", "1h", "--rate", "200/s"]);
    wait_until(SOON, "the replay has a mark", async || low_of("replay:").await.is_some()).await;
    let low = low_of("replay:").await.unwrap();
    assert!(low.abs_diff(now - 3_600_000) < 60_000, "from where it begins: {low}");
    replay.kill().await.unwrap();
    assert!(low_of("replay:").await.is_some(), "killed, its mark stays for an hour");
    // A command that ends removes its checkpoint, and reports what it could not apply.
    assert_eq!(run(&["replay", "--since", "1h"]).wait().await.unwrap().code(), Some(1));
    let left =
        mark_fields(&stage).await.iter().filter(|(field, _)| field.starts_with("replay:")).count();
    assert_eq!(left, 1, "that of the one that was killed");

    // The workers apply its dead letters some time later.
    let mut replay = run(&["dlq", "replay"]);
    assert!(replay.wait().await.unwrap().success());
    assert!(low_of("dlq:").await.is_some());
}

/// The history does not hold the letters' events, as if they were older than the history.
async fn what_dlq_replay_applied_is_healed(args: &[&str]) {
    const LETTERS: u32 = 20;
    let stage = stage().await;
    let mut worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    wait_quiet(&stage).await;
    publish_letters(&stage, 0..LETTERS).await;
    seed(&stage.redis, LETTERS).await;
    let snapshot = stage.redis.snapshot().await;
    let (code, _, err) = dlq(&stage, args).await;
    assert!(code == 0 && err.contains("replayed 20 dead letters"), "{err}");
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&worker]).await;

    stage.redis.restore(&snapshot).await;
    assert!(readable(&stage.redis).await.is_some_and(|count| count > 0), "they are back");
    wait_gone(&stage.redis, WITHIN).await;
    worker.wait_ready().await;
    assert_eq!(heals(&worker).await, 1.0, "{}", worker.stderr());
    assert!(worker.stderr().contains("complete=true"), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_replayed_after_a_snapshot_are_applied_again() {
    what_dlq_replay_applied_is_healed(&["replay"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_replayed_in_parts_after_a_snapshot_are_applied_again() {
    what_dlq_replay_applied_is_healed(&["replay", "--stop-after-failures", "1"]).await;
}

/// Redis has lost a replay, with the checkpoint that the replay had. The heal begins after the
/// events that the replay applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_heal_begins_where_a_recorded_replay_began() {
    const EVENTS: u32 = 20;
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    publish(&stage, EVENTS).await;
    stage.wait_settled(&[&worker]).await;
    assert!(worker.terminate().await.success());
    let mut replay = tokio::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
    replay
        .args(["replay", "--since", "1h"])
        .env_clear()
        .envs(stage.broker_settings())
        .env("UNSTALE_REDIS_URL", stage.redis.url())
        .env("UNSTALE_SCHEMAS", stage.schemas.path());
    let output = replay.output().await.unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && err.contains("replayed 20 events"), "{err}");

    let config = config(&stage);
    let registry = Registry::load(&LoadOptions::for_run(&config.registry)).unwrap().registry;
    let registry = Arc::new(registry);
    let cache = Cache::connect(&config.redis, &config.amqp.queue).unwrap();
    cache.probe().await.unwrap();
    let _: () = redis::cmd("FLUSHALL").query_async(&mut stage.connection().await).await.unwrap();
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::ToHeal(_)));
    let HealTurn::Ours(marks) = cache.take_heal().await.unwrap() else { panic!("no other heals") };
    let from = HealFrom { offset: Some(EVENTS.into()), time: None };
    let begun = cache.take_over_progress(&marks, from, registry.digest());
    // The second heal continues a heal that died after it had begun earlier, and had applied five
    // events.
    let mut died = begun.clone();
    (died.first, died.applied_to) = (Some(0), Some(5));
    for (found, left) in [(begun, 0), (died, 5)] {
        seed(&stage.redis, EVENTS).await;
        let guard = HealGuard::begin(&config, &cache, found);
        let healed =
            heal(&config, &registry, &cache, HealSpan { from, ..HealSpan::default() }, &guard)
                .await
                .unwrap();
        let Healed::Applied { begin, complete, .. } = healed else { panic!("{healed:?}") };
        assert_eq!((begin, complete, readable(&stage.redis).await), (0, true, Some(left)));
    }
}
