//! Redis restarts from old snapshots, and replicas that missed writes are promoted.

use std::time::{Duration, Instant};

use redis::AsyncCommands;

use super::{
    USERS, WITHIN, heals, low_ms, mark_fields, on, publish, readable, seed, stage, wait_gone,
    wait_marks, wait_quiet,
};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Proxy, Redis, wait_until};

const MANY: u32 = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_deletes_that_a_snapshot_does_not_have_are_made_again() {
    let stage = stage().await;
    let mut worker = stage.worker(&[]).await;
    wait_quiet(&stage).await;
    seed(&stage.redis, MANY).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, MANY).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(heals(&worker).await, 0.0, "{}", worker.stderr());

    stage.redis.restore(&snapshot).await;
    assert!(readable(&stage.redis).await.is_some_and(|count| count > 0), "they are back");
    wait_gone(&stage.redis, WITHIN).await;
    worker.wait_ready().await;
    assert_eq!(heals(&worker).await, 1.0, "{}", worker.stderr());
    assert!(
        worker.stderr().contains("Redis lost writes that it had confirmed"),
        "{}",
        worker.stderr()
    );
    // Leases from before the loss remember a sequence number that this Redis has passed.
    let sequence: u64 = stage.connection().await.get("unstale:seq").await.unwrap();
    let an_hour_ago = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
        - Duration::from_secs(3_600);
    assert!(u128::from(sequence) > an_hour_ago.as_micros(), "{sequence}");
    // It continues as before.
    stage.set("user:1", "new").await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    stage.wait_gone("user:1").await;
    assert_eq!(heals(&worker).await, 1.0);
}

/// No client's command fails. The snapshot is loaded under the worker within a second, and the
/// worker is idle.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_replica_that_was_cut_off_is_healed() {
    let primary = Redis::start().await;
    let replica = Redis::start().await;
    // Through these proxies, the test cuts the replica off and redirects the worker to it.
    let (wire, address) =
        (Proxy::start(&primary.addr()).await, Proxy::start(&primary.addr()).await);
    let replica_of = async |host: &str, port: &str| {
        redis::cmd("REPLICAOF")
            .arg(host)
            .arg(port)
            .exec_async(&mut replica.connection().await)
            .await
            .unwrap();
    };
    replica_of("127.0.0.1", &wire.port().to_string()).await;
    let stage = on(primary).await;
    let mut worker =
        stage.worker(&[("UNSTALE_REDIS_URL", &format!("redis://{}/0", address.addr()))]).await;
    seed(&stage.redis, MANY).await;
    wait_until(SOON, "the replica has them", async || {
        readable(&replica).await == Some(MANY as usize)
    })
    .await;
    wire.down().await;
    publish(&stage, MANY).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&worker]).await;

    stage.redis.kill();
    replica_of("NO", "ONE").await;
    address.redirect(&replica.addr()).await;
    wait_gone(&replica, WITHIN).await;
    worker.wait_ready().await;
    assert_eq!(heals(&worker).await, 1.0, "{}", worker.stderr());
}

/// The checkpoints record the oldest event in the queue at the snapshot. An event that arrived an
/// hour earlier and was applied later is lost with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_that_was_an_hour_old_is_made_again() {
    const FEWER: u32 = 3_000;
    let stage = stage().await;
    let first = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    first.kill();
    // An hour passes in which the queue fills, according to the checkpoints, which record when it
    // was last empty.
    let (field, mark) =
        mark_fields(&stage).await.into_iter().find(|(field, _)| field.len() == 32).unwrap();
    let parts: Vec<&str> = mark.split(':').collect();
    let an_hour_ago =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
            as u64
            - 3_600_000;
    let _: () = stage
        .connection()
        .await
        .hset(
            format!("unstale:mark:{}", stage.queue),
            field,
            format!("{}:{an_hour_ago}:{}", parts[0], parts[2]),
        )
        .await
        .unwrap();
    seed(&stage.redis, FEWER).await;
    publish(&stage, FEWER).await;
    // A worker that drains the queue slowly.
    let mut worker = stage.worker(&[("UNSTALE_PREFETCH", "1"), ("UNSTALE_BATCH", "1")]).await;
    wait_until(SOON, "it has begun", async || {
        readable(&stage.redis).await.is_some_and(|left| left < FEWER as usize)
    })
    .await;
    let snapshot = stage.redis.snapshot().await;
    assert!(readable(&stage.redis).await.is_some_and(|left| left > 0), "it has not ended");
    wait_gone(&stage.redis, SOON * 4).await;
    stage.wait_settled(&[&worker]).await;

    stage.redis.restore(&snapshot).await;
    wait_gone(&stage.redis, WITHIN).await;
    worker.wait_ready().await;
    let (_, heal) =
        mark_fields(&stage).await.into_iter().find(|(field, _)| field == "heal").unwrap();
    let parts: Vec<u64> = heal.split(':').map(|part| part.parse().unwrap()).collect();
    assert_eq!(
        (parts[2], parts[3], parts[4]),
        (an_hour_ago - 60_000, 1, 1),
        "from before the backlog, once, whole: {heal}"
    );
    assert_eq!(heals(&worker).await, 1.0, "{}", worker.stderr());
}

/// Retry messages wait when the snapshot is taken. Their later effects are lost as well.
#[tokio::test(flavor = "multi_thread")]
async fn events_on_the_retry_schedule_are_covered() {
    let rules = r#"
defaults: { ttl: 1h }
loaders: { pages: { url: "{vars.PAGES_URL}" } }
events: { page.changed: { effects: [ { warm: "page:{id}", from: "pages:/{id}" } ] } }
"#;
    let stage = Stage::new(&[("users.yaml", USERS), ("pages.yaml", rules)]).await;
    // No server listens there.
    let worker = stage
        .worker(&[
            ("UNSTALE_VAR_PAGES_URL", "http://127.0.0.1:1"),
            ("UNSTALE_RETRY_DELAYS", "3s,7d"),
            ("UNSTALE_FENCE_TTL", "30d"),
        ])
        .await;
    wait_quiet(&stage).await;
    let before =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
            as u64;
    stage.publish("page.changed", r#"{"id":1}"#).await;
    wait_until(SOON, "it climbs the ladder", async || {
        worker.metrics().await.sum("unstale_retries_total", &[]) >= 1.0
    })
    .await;
    let began = Instant::now();
    // Checks continue and find the queue empty. The low watermark still does not move on.
    while began.elapsed() < Duration::from_secs(4) {
        assert!(
            low_ms(&stage).await.is_some_and(|low| low <= before + 1_000),
            "the mark must not pass what is on the ladder"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // The retry message records when its event arrived, for the worker that gets it next.
    assert!(
        worker.metrics().await.sum("unstale_retries_total", &[]) >= 2.0,
        "it has come again, and gone again"
    );
}

/// Without checkpoints the heal begins `UNSTALE_HEAL_WINDOW` before the newest event, whose time is
/// found in the history while others are published.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_without_marks_is_healed_while_events_are_published() {
    const FEW: u32 = 40;
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    publish(&stage, FEW).await;
    stage.wait_settled(&[&worker]).await;
    let publisher = async {
        loop {
            stage.publish("user.updated", r#"{"id":1000000}"#).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let healed = async {
        for round in 1..=3 {
            seed(&stage.redis, FEW).await;
            let _: () = stage
                .connection()
                .await
                .del(format!("unstale:mark:{}", stage.queue))
                .await
                .unwrap();
            wait_until(SOON, "a heal", async || heals(&worker).await == f64::from(round)).await;
            assert_eq!(readable(&stage.redis).await, Some(0), "{}", worker.stderr());
        }
    };
    tokio::select! {
        () = publisher => {}
        () = healed => {}
    }
}
