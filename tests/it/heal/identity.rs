//! The server's identity shows a restart or a promotion, even if all checkpoints are right.
//!
//! A worker that ended may have applied more than the checkpoints of the remaining workers show.

use std::time::Duration;

use redis::AsyncCommands;
use unstale::cache::{Doubt, Entered, Tick};

use super::marks::{MARKS, bump, cache, delete, probe, worker};
use super::{heals, mark_fields, publish, seed, stage, wait_gone, wait_marks};
use crate::end_to_end::stage::SOON;
use crate::support::{Proxy, Redis, rabbitmq, wait_until};

const SOME: u32 = 300;

/// The dead worker applied the batch, and the survivor has not advanced its checkpoint since.
#[tokio::test]
async fn a_loss_that_only_a_dead_worker_could_show_is_healed() {
    let server = Redis::start().await;
    let (dead, survivor) = (worker(&server).await, worker(&server).await);
    let snapshot = server.snapshot().await;
    delete(&dead, "a").await.unwrap();
    drop(dead);
    server.restore(&snapshot).await;
    probe(&survivor).await;
    let Entered::ToHeal(marks) = survivor.enter(1).await.unwrap() else {
        panic!("its own mark is as it left it, and says nothing")
    };
    assert_eq!(marks.doubt(), Doubt::Replaced);
}

#[tokio::test]
async fn a_worker_without_memory_trusts_a_server_that_served_all_the_time() {
    let server = Redis::start().await;
    drop(worker(&server).await);
    let mut redis = server.connection().await;
    let marks: Vec<(String, String)> = redis.hgetall(MARKS).await.unwrap();
    let (field, mark) = marks.into_iter().find(|(field, _)| field.len() == 32).unwrap();
    let parts: Vec<u64> = mark.split(':').map(|part| part.parse().unwrap()).collect();
    let _: () = redis
        .hset(MARKS, &field, format!("{}:{}:{}", parts[0], parts[1], parts[2] - 600_000))
        .await
        .unwrap();
    assert!(
        matches!(cache(&server).await.enter(1).await.unwrap(), Entered::Good(_)),
        "nobody ran for ten minutes"
    );

    // The first replica changes the replication id, and loses nothing.
    let id = async |server: &Redis| {
        let info: String = redis::cmd("INFO")
            .arg("replication")
            .query_async(&mut server.connection().await)
            .await
            .unwrap();
        info.lines().find_map(|line| line.strip_prefix("master_replid:")).unwrap().to_owned()
    };
    let (before, replica) = (id(&server).await, Redis::start().await);
    let replica_of = async |host: &str, port: &str| {
        redis::cmd("REPLICAOF")
            .arg(host)
            .arg(port)
            .exec_async(&mut replica.connection().await)
            .await
            .unwrap();
    };
    replica_of("127.0.0.1", &server.port().to_string()).await;
    wait_until(SOON, "the replica follows", async || {
        id(&server).await != before && id(&replica).await == id(&server).await
    })
    .await;
    assert!(matches!(cache(&server).await.enter(1).await.unwrap(), Entered::Good(_)));

    // After a promotion it counts as another server, even with the same content.
    wait_until(SOON, "the replica has the marks", async || {
        replica.connection().await.exists(MARKS).await.unwrap()
    })
    .await;
    replica_of("NO", "ONE").await;
    let Entered::ToHeal(marks) = cache(&replica).await.enter(1).await.unwrap() else {
        panic!("it was promoted")
    };
    assert_eq!(marks.doubt(), Doubt::Replaced);
}

/// No connection breaks. The next advance of the checkpoint finds the change.
#[tokio::test]
async fn a_server_that_was_demoted_and_promoted_again_is_healed() {
    let (server, other) = (Redis::start().await, Redis::start().await);
    let cache = worker(&server).await;
    let mut connection = server.connection().await;
    let replica_of = |host: &str, port: &str| {
        let mut command = redis::cmd("REPLICAOF");
        command.arg(host).arg(port);
        command
    };
    let marks: Vec<(String, String)> = connection.hgetall(MARKS).await.unwrap();
    let _: () = other.connection().await.hset_multiple(MARKS, &marks).await.unwrap();
    replica_of("127.0.0.1", &other.port().to_string()).exec_async(&mut connection).await.unwrap();
    wait_until(SOON, "it follows the other", async || {
        let info: String = redis::cmd("INFO")
            .arg("replication")
            .query_async(&mut connection.clone())
            .await
            .unwrap();
        info.contains("master_link_status:up")
    })
    .await;
    replica_of("NO", "ONE").exec_async(&mut connection).await.unwrap();
    assert_eq!(
        cache.tick(1).await.unwrap(),
        Tick::Replaced,
        "its mark is as it must be, and came from the other"
    );
}

#[tokio::test]
async fn without_the_right_to_info_marks_are_trusted_for_10_s() {
    let server = Redis::start().await;
    drop(worker(&server).await);
    let mut redis = server.connection().await;
    redis::cmd("ACL").arg(&["SETUSER", "default", "-info"]).exec_async(&mut redis).await.unwrap();
    assert!(
        matches!(cache(&server).await.enter(1).await.unwrap(), Entered::Good(_)),
        "a moment old"
    );
    let marks: Vec<(String, String)> = redis.hgetall(MARKS).await.unwrap();
    for (field, mark) in marks.into_iter().filter(|(field, _)| field.len() == 32) {
        let parts: Vec<u64> = mark.split(':').map(|part| part.parse().unwrap()).collect();
        let _: () = redis
            .hset(MARKS, field, format!("{}:{}:{}", parts[0], parts[1], parts[2] - 11_000))
            .await
            .unwrap();
    }
    // A command's checkpoint does not count as a worker's.
    cache(&server).await.hold_checkpoint("replay", 7).await.unwrap();
    let Entered::ToHeal(marks) = cache(&server).await.enter(1).await.unwrap() else {
        panic!("they are older than 10 s")
    };
    assert_eq!((marks.lowest_ms(), marks.doubt()), (Some(1), Doubt::Unknown));
}

/// A counter that went back had higher numbers before. The heal moves it past them, and an ordinary
/// bump does not jump.
#[tokio::test]
async fn a_heal_moves_counters_past_all_that_was_given_out() {
    let server = Redis::start().await;
    let cache = worker(&server).await;
    bump(&cache, "version").await;
    let mut redis = server.connection().await;
    assert_eq!(
        redis.get::<_, u64>("version").await.unwrap(),
        2,
        "the first number of a counter is 2"
    );
    let snapshot = server.snapshot().await;
    bump(&cache, "version").await;
    server.restore(&snapshot).await;
    probe(&cache).await;
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::ToHeal(_)));
    cache.take_heal().await.unwrap();
    let now_ms =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
            as u64;
    bump(&cache, "version").await;
    let mut redis = server.connection().await;
    let healed = redis.get::<_, u64>("version").await.unwrap();
    assert!(healed.abs_diff(now_ms) < 60_000, "{healed}");
    assert!(cache.finish_heal(None, &[], 1).await.unwrap());
    bump(&cache, "version").await;
    assert_eq!(redis.get::<_, u64>("version").await.unwrap(), healed + 1);
}

/// The first worker arrives within 10 s of a restart. The checkpoints of the dead ones are recent,
/// and older than the lost writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_after_a_restart_heals_at_once() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    seed(&stage.redis, SOME).await;
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&worker]).await;
    worker.kill();
    stage.redis.restore(&snapshot).await;
    let next = stage.worker(&[]).await;
    wait_gone(&stage.redis, Duration::ZERO).await;
    assert_eq!(heals(&next).await, 1.0, "{}", next.stderr());
}

/// The survivor cannot reach the broker, and is suspended while the other worker's batch is applied
/// and lost. Its own checkpoint is unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_heals_what_only_a_dead_worker_had_applied() {
    let stage = stage().await;
    let broker = rabbitmq().await;
    let proxy = Proxy::start(&broker.addr()).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    let survivor = stage.worker(&[("UNSTALE_AMQP_URL", &amqp_url)]).await;
    proxy.down().await;
    wait_until(SOON, "nobody consumes", async || stage.consumers(&stage.queue).await == 0).await;
    let dead = stage.worker(&[]).await;
    wait_marks(&stage, 2).await;
    seed(&stage.redis, SOME).await;
    survivor.signal("STOP");
    let snapshot = stage.redis.snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&stage.redis, SOON).await;
    stage.wait_settled(&[&dead]).await;
    dead.kill();
    stage.redis.restore(&snapshot).await;
    proxy.resume().await;
    survivor.signal("CONT");
    wait_gone(&stage.redis, SOON).await;
    wait_until(SOON, "it has healed", async || heals(&survivor).await == 1.0).await;
    assert!(!survivor.stderr().contains("Redis lost writes"), "{}", survivor.stderr());
}

/// After a clean stop there is nothing to heal and nothing to report, even if no worker runs for
/// long.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_of_all_workers_heals_nothing() {
    let stage = stage().await;
    let (one, other) = (stage.worker(&[]).await, stage.worker(&[]).await);
    wait_marks(&stage, 2).await;
    publish(&stage, SOME).await;
    stage.wait_settled(&[&one, &other]).await;
    assert!(one.terminate().await.success());
    assert!(other.terminate().await.success());
    let left: Vec<String> = mark_fields(&stage)
        .await
        .into_iter()
        .map(|(field, _)| field)
        .filter(|field| field.len() == 32)
        .collect();
    assert_eq!(left, Vec::<String>::new(), "no worker left a mark");
    let next = stage.worker(&[]).await;
    assert_eq!(heals(&next).await, 0.0, "{}", next.stderr());
    assert!(!next.stderr().contains("applying the history again"), "{}", next.stderr());
}

/// A live worker takes over the low watermark of a dead one, once its own low watermark is as
/// early.
#[tokio::test(flavor = "multi_thread")]
async fn the_mark_of_a_killed_worker_goes_to_a_living_one() {
    let stage = stage().await;
    let (doomed, living) = (stage.worker(&[]).await, stage.worker(&[]).await);
    wait_marks(&stage, 2).await;
    doomed.kill();
    let covering = async || {
        let fields = mark_fields(&stage).await;
        fields
            .iter()
            .filter(|(field, mark)| field.len() == 32 && !mark.contains(":9007199254740991:"))
            .count()
    };
    wait_until(SOON, "one checkpoint alone has a low watermark", async || covering().await == 1)
        .await;
    assert_eq!(heals(&living).await, 0.0, "{}", living.stderr());
}
