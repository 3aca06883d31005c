//! Clocks three hours apart: the range of a heal must not depend on which clock is right.

use super::{USERS, heals, publish, readable, seed, wait_gone, wait_marks};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{RabbitMq, Redis, clock, rabbitmq};

const SOME: u32 = 200;

/// Restores a Redis from before the deletes, and the worker makes them again.
async fn lose_and_heal(stage: &Stage, hours_ahead: i32) {
    let folder = tempfile::tempdir().unwrap();
    let settings = clock::settings(hours_ahead, folder.path());
    let settings: Vec<(&str, &str)> =
        settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut worker = stage.worker(&settings).await;
    wait_marks(stage, 1).await;
    let before = heals(&worker).await;
    seed(&stage.redis, SOME).await;
    let snapshot = stage.redis.snapshot().await;
    publish(stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&worker]).await;
    stage.redis.restore(&snapshot).await;
    assert!(readable(&stage.redis).await.is_some_and(|count| count > 0), "they are back");
    wait_gone(&stage.redis, SOON).await;
    worker.wait_ready().await;
    assert_eq!(heals(&worker).await, before + 1.0, "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_three_hours_apart_heals_all() {
    for hours_ahead in [3, -3] {
        let stage =
            Stage::with(&rabbitmq().await.url(), Redis::start().await, &[("users.yaml", USERS)])
                .await;
        lose_and_heal(&stage, hours_ahead).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_three_hours_apart_is_healed() {
    for hours_ahead in [3, -3] {
        let stage = Stage::with(
            &rabbitmq().await.url(),
            Redis::start_at(hours_ahead, &[]).await,
            &[("users.yaml", USERS)],
        )
        .await;
        lose_and_heal(&stage, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_three_hours_apart_serves_all_of_a_heal() {
    for hours_ahead in [3, -3] {
        let broker = RabbitMq::start_at(hours_ahead).await;
        let stage =
            Stage::with(&broker.url(), Redis::start().await, &[("users.yaml", USERS)]).await;
        lose_and_heal(&stage, 0).await;
    }
}

/// Its low watermark has a time that no other clock can judge. The offset beside it is the stream's
/// own.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_worker_of_another_clock_did_is_healed_by_the_next() {
    for hours_ahead in [3, -3] {
        let stage =
            Stage::with(&rabbitmq().await.url(), Redis::start().await, &[("users.yaml", USERS)])
                .await;
        let folder = tempfile::tempdir().unwrap();
        let settings = clock::settings(hours_ahead, folder.path());
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let dead = stage.worker(&settings).await;
        wait_marks(&stage, 1).await;
        seed(&stage.redis, SOME).await;
        let snapshot = stage.redis.snapshot().await;
        publish(&stage, SOME).await;
        wait_gone(&stage.redis, SOON).await;
        stage.wait_settled(&[&dead]).await;
        dead.kill();
        stage.redis.restore(&snapshot).await;
        let next = stage.worker(&[]).await;
        assert_eq!(readable(&stage.redis).await, Some(0), "{hours_ahead}: {}", next.stderr());
        assert_eq!(heals(&next).await, 1.0, "{hours_ahead}: {}", next.stderr());
    }
}
