//! Several workers, workers that die, and workers that have nothing to heal.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::AsyncCommands;

use super::{
    WITHIN, heals, mark_fields, on, publish, seed, stage, wait_gone, wait_healed, wait_marks,
};
use crate::end_to_end::stage::SOON;
use crate::support::{Flow, Proxy, Redis, Tap, Way, rabbitmq, wait_until};

const SOME: u32 = 500;

#[tokio::test(flavor = "multi_thread")]
async fn of_two_workers_one_heals_for_both() {
    let stage = stage().await;
    let mut one = stage.worker(&[]).await;
    let mut other = stage.worker(&[]).await;
    wait_marks(&stage, 2).await;
    seed(&stage.redis, SOME).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&one, &other]).await;
    // Both have advanced their checkpoints since the snapshot.
    let marks = async || {
        mark_fields(&stage)
            .await
            .into_iter()
            .filter(|(field, _)| field.len() == 32)
            .collect::<Vec<_>>()
    };
    let before = marks().await;
    wait_until(SOON, "both marks have moved", async || {
        let now = marks().await;
        before.iter().all(|mark| !now.contains(mark))
    })
    .await;
    stage.redis.restore(&snapshot).await;
    wait_gone(&stage.redis, WITHIN).await;
    wait_healed(&mut [&mut one, &mut other]).await;
    assert_eq!(
        heals(&one).await + heals(&other).await,
        1.0,
        "{}\n----\n{}",
        one.stderr(),
        other.stderr()
    );
    assert!(
        !mark_fields(&stage).await.iter().any(|(field, _)| field == "wanted" || field == "lock")
    );
}

/// The checkpoints that it leaves show that a heal is needed. The next worker does it, without a
/// memory of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_heal_is_followed_by_the_next() {
    let stage = stage().await;
    let broker = rabbitmq().await;
    let proxy = Proxy::start(&broker.addr()).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    let doomed = stage.worker(&[("UNSTALE_AMQP_URL", &amqp_url)]).await;
    seed(&stage.redis, SOME).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&doomed]).await;
    // It will not get beyond the beginning.
    proxy.stall();
    stage.redis.restore(&snapshot).await;
    wait_until(SOON, "it heals", async || {
        let Some(mut redis) = stage.redis.try_connection().await else { return false };
        redis
            .hexists::<_, _, bool>(format!("unstale:mark:{}", stage.queue), "lock")
            .await
            .unwrap_or(false)
    })
    .await;
    doomed.kill();
    let mut next = stage.start_worker(&[]);
    // The lock of the dead worker must expire first.
    wait_gone(&stage.redis, WITHIN).await;
    next.wait_ready().await;
    assert_eq!(heals(&next).await, 1.0, "{}", next.stderr());
}

/// The remaining workers cannot always know whether a restart of Redis lost anything. So each
/// restart of Redis causes a heal of the recent past. Restarts of workers cause none.
#[tokio::test(flavor = "multi_thread")]
async fn restarts_of_redis_are_healed_and_those_of_workers_are_not() {
    let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let stage = on(redis).await;
    let mut worker = stage.worker(&[]).await;
    assert_eq!(heals(&worker).await, 0.0, "a fresh system: {}", worker.stderr());
    seed(&stage.redis, SOME).await;
    publish(&stage, SOME).await;
    stage.redis.kill();
    stage.redis.restart().await;
    wait_gone(&stage.redis, SOON).await;
    worker.wait_ready().await;
    assert_eq!(heals(&worker).await, 1.0, "{}", worker.stderr());
    assert!(!worker.stderr().contains("Redis lost writes"), "{}", worker.stderr());
    worker.kill();
    let next = stage.worker(&[]).await;
    assert_eq!(heals(&next).await, 0.0, "the worker was killed: {}", next.stderr());
    assert!(next.terminate().await.success());
    let next = stage.worker(&[]).await;
    assert_eq!(heals(&next).await, 0.0, "the worker was stopped: {}", next.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_history_the_loss_is_reported() {
    let stage = stage().await;
    let mut worker = stage.worker(&[("UNSTALE_HISTORY", "off")]).await;
    wait_marks(&stage, 1).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, 10).await;
    stage.wait_settled(&[&worker]).await;
    stage.redis.restore(&snapshot).await;
    wait_until(SOON, "it says so", async || {
        worker.stderr().contains("there is no history to heal Redis from")
    })
    .await;
    worker.wait_ready().await;
    assert_eq!(heals(&worker).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn turned_off_it_leaves_no_mark_and_heals_nothing() {
    let stage = stage().await;
    let mut worker = stage.worker(&[("UNSTALE_HEAL_WINDOW", "off")]).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, 10).await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(mark_fields(&stage).await, []);
    stage.redis.restore(&snapshot).await;
    worker.wait_ready().await;
    assert_eq!(heals(&worker).await, 0.0);
}

/// Redis answers, but the worker cannot find out if it holds all that it confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn no_worker_is_ready_before_the_checkpoints_were_read() {
    let stage = stage().await;
    let halted = Arc::new(Mutex::new(None::<BTreeSet<u64>>));
    let halts = Arc::clone(&halted);
    let tap = Tap::new(move |connection, way, bytes| match &mut *halts.lock().unwrap() {
        Some(halted)
            if way == Way::ToServer
                && bytes.windows(13).any(|window| window == b"unstale:mark:") =>
        {
            halted.insert(connection);
            Flow::Halt
        }
        _ => Flow::Pass,
    });
    let proxy = Proxy::start_tapped(&stage.redis.addr(), tap).await;
    let worker =
        stage.worker(&[("UNSTALE_REDIS_URL", &format!("redis://{}/0", proxy.addr()))]).await;
    *halted.lock().unwrap() = Some(BTreeSet::new());
    let is_ready = async || matches!(worker.get("/readyz").await, Some((200, _)));
    wait_until(SOON, "its mark cannot be moved on", async || !is_ready().await).await;
    // The probe of each further connection succeeded. Otherwise there would be nothing to stop.
    wait_until(Duration::from_secs(40), "it has tried again twice", async || {
        assert!(
            !is_ready().await,
            "nobody knows whether Redis holds what it confirmed:\n{}",
            worker.stderr()
        );
        halted.lock().unwrap().as_ref().is_some_and(|halted| halted.len() >= 3)
    })
    .await;
    *halted.lock().unwrap() = None;
    wait_until(SOON, "it is ready again", is_ready).await;
}
