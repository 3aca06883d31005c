//! Clocks three hours apart: the range of a heal must not depend on which clock is right.

use redis::AsyncCommands;
use unstale::cache::{Entered, HealRecord, HealTurn, Tick};

use super::marks::{MARKS, bump, delete, probe, worker};
use super::{USERS, heals, publish, readable, seed, wait_gone, wait_marks};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{RabbitMq, Redis, clock, rabbitmq, wait_until};

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

/// No other clock can compare the time in its low watermark. The offset beside the time depends on
/// no clock.
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

/// After a heal, losses from before it no longer count. If the clock was ahead during the heal, the
/// heal must not hide later losses, before or after the clock reaches that time.
#[tokio::test]
async fn a_heal_by_a_clock_that_was_ahead_hides_no_later_loss() {
    for hours_later in [0, 4] {
        let server = Redis::start_at(3, &[]).await;
        let refuse_info = async || {
            // Else the server's identity would show the loss.
            let mut redis = server.connection().await;
            let no_info = ["SETUSER", "default", "-info"];
            redis::cmd("ACL").arg(&no_info).exec_async(&mut redis).await.unwrap();
        };
        refuse_info().await;
        let worker = worker(&server).await;
        let mut redis = server.connection().await;
        redis::cmd("HSET").arg(&[MARKS, "wanted", "1"]).exec_async(&mut redis).await.unwrap();
        assert!(matches!(worker.take_heal().await.unwrap(), HealTurn::Ours(_)));
        let record = HealRecord { count: 1, complete: true, ..HealRecord::default() };
        assert!(worker.finish_heal(Some(&record), &[], 1).await.unwrap());

        server.restore_at(0, &server.snapshot().await).await;
        refuse_info().await;
        probe(&worker).await;
        assert!(matches!(worker.enter(1).await.unwrap(), Entered::Good(_)), "nothing was lost");
        assert!(matches!(worker.tick(1).await.unwrap(), Tick::Good(_)));
        let snapshot = server.snapshot().await;
        delete(&worker, "a").await.unwrap();
        server.restore_at(hours_later, &snapshot).await;
        refuse_info().await;
        probe(&worker).await;
        assert!(matches!(worker.enter(1).await.unwrap(), Entered::ToHeal(_)), "{hours_later}");
    }
}

/// By the new clock, the fields of the others look hours old. They belong to living workers, to
/// dead workers whose events are redelivered, and to commands.
#[tokio::test]
async fn a_clock_that_is_set_ahead_removes_no_mark() {
    let server = Redis::start().await;
    let (worker, other) = (worker(&server).await, worker(&server).await);
    other.hold_checkpoint("replay", 5).await.unwrap();
    // By the new clock, all earlier times are three hours older.
    let mut redis = server.connection().await;
    let marks: Vec<(String, String)> = redis.hgetall(MARKS).await.unwrap();
    for (field, text) in marks {
        if let [number, low, at] = text.split(':').collect::<Vec<_>>()[..]
            && let Ok(at) = at.parse::<u64>()
        {
            let text = format!("{number}:{low}:{}", at - 3 * 3_600_000);
            let _: () = redis.hset(MARKS, field, text).await.unwrap();
        }
    }
    for _ in 0..2 {
        assert!(matches!(worker.tick(7).await.unwrap(), Tick::Good(_)));
    }
    assert!(matches!(other.tick(7).await.unwrap(), Tick::Good(_)), "its mark was removed");
    assert_eq!(worker.read_checkpoints().await.unwrap().lowest_ms(), Some(5), "of the command");
}

/// A retry message of another schedule may wait for two hours, whatever the clock says. Without
/// the step, the low watermark would pass it.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_ahead_forgets_no_retry_step() {
    let stage = super::stage().await;
    let mut worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    let marks = format!("unstale:mark:{}", stage.queue);
    let now_ms = async || {
        let now: Vec<u64> =
            redis::cmd("TIME").query_async(&mut stage.connection().await).await.unwrap();
        now[0] * 1_000
    };
    let used_ms = now_ms().await;
    let _: () = stage.connection().await.hset(&marks, "retry_step:7200000", used_ms).await.unwrap();
    wait_until(SOON, "the worker has looked twice since", async || {
        let marks = super::mark_fields(&stage).await;
        let (_, mark) = marks.iter().find(|(field, _)| field.len() == 32).unwrap();
        let at_ms: u64 = mark.split(':').nth(2).unwrap().parse().unwrap();
        at_ms >= used_ms + 3_000
    })
    .await;
    stage.redis.restore_at(4, &stage.redis.snapshot().await).await;
    worker.wait_ready().await;
    wait_until(SOON, "the worker counts the step anew", async || {
        let noted: Option<u64> =
            stage.connection().await.hget(&marks, "retry_step:7200000").await.unwrap();
        noted.is_some_and(|noted| noted >= used_ms + 4 * 3_600_000)
    })
    .await;
    assert!(worker.stderr().contains("the clock of Redis was set"), "{}", worker.stderr());
}

#[tokio::test]
async fn a_heal_moves_counters_past_lost_numbers_although_the_clock_went_back() {
    let server = Redis::start_at(3, &[]).await;
    let worker = worker(&server).await;
    let heal = async || {
        let _: () = server.connection().await.hset(MARKS, "wanted", 1).await.unwrap();
        assert!(matches!(worker.take_heal().await.unwrap(), HealTurn::Ours(_)));
        bump(&worker, "version").await;
        assert!(worker.finish_heal(None, &[], 1).await.unwrap());
        server.connection().await.get::<_, u64>("version").await.unwrap()
    };
    heal().await;
    let snapshot = server.snapshot().await;
    bump(&worker, "version").await;
    bump(&worker, "version").await;
    let given: u64 = server.connection().await.get("version").await.unwrap();
    server.restore_at(0, &snapshot).await;
    probe(&worker).await;
    let healed = heal().await;
    assert!(healed > given + 1_000, "{healed} after {given}");
}
