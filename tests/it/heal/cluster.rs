//! Each primary of a cluster has its own checkpoints, and can lose writes alone.

use std::time::{Duration, Instant};

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use unstale::cache::{Cache, Entered, HealRecord, HealTurn, Tick};
use unstale::causes::Explain;
use unstale::registry::Action;

use super::{USERS, WITHIN, heals, publish};
use crate::cache::{effect, try_apply};
use crate::cluster::{cache, config};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Proxy, RedisCluster, Worker, rabbitmq, wait_until};

const SOME: u32 = 3_000;

/// One slot of each primary.
const SLOT_OF_EACH: [u16; 3] = [0, 8_000, 16_000];

/// Returns the slots of the checkpoints.
fn mark_slots() -> impl Iterator<Item = u16> {
    (0..128).map(|mark| mark * 128 + 97)
}

async fn stage() -> Stage {
    Stage::new(&[("users.yaml", USERS)]).await
}

async fn worker(stage: &Stage, cluster: &RedisCluster) -> Worker {
    let urls = cluster.urls();
    stage.worker(&[("UNSTALE_REDIS_MODE", "cluster"), ("UNSTALE_REDIS_URL", &urls)]).await
}

/// Stores an old value for each user, on the replicas as well.
async fn seed(cluster: &RedisCluster) {
    let client = cluster.client().await;
    let set =
        async |id: u32| client.clone().set::<_, _, ()>(format!("user:{id}"), "old").await.unwrap();
    for ids in (0..SOME).collect::<Vec<_>>().chunks(200) {
        futures_util::future::join_all(ids.iter().map(|&id| set(id))).await;
    }
    for primary in 0..3 {
        assert_eq!(cluster.ask::<u32>(primary, &["WAIT", "1", "10000"]).await, 1);
    }
}

/// Returns the number of users that a node holds; 0 while it is away.
async fn held(cluster: &RedisCluster, node: usize) -> usize {
    let Ok(mut connection) = cluster.nodes[node].client().get_multiplexed_async_connection().await
    else {
        return 0;
    };
    connection.keys::<_, Vec<String>>("user:*").await.map_or(0, |keys| keys.len())
}

async fn wait_gone(cluster: &RedisCluster, nodes: [usize; 3], within: Duration) {
    wait_until(within, "no old value can be read", async || {
        let mut left = 0;
        for node in nodes {
            left += held(cluster, node).await;
        }
        left == 0
    })
    .await;
}

/// Cuts a replica off from its primary without a sign for connected clients.
///
/// No other client can connect, so this returns a connection that is open.
async fn cut_off_replica(cluster: &RedisCluster, primary: usize) -> MultiplexedConnection {
    let mut connection = cluster.connection(primary).await;
    for command in [
        &["CONFIG", "SET", "requirepass", "nobody-knows"][..],
        &["CLIENT", "KILL", "TYPE", "replica"][..],
    ] {
        redis::cmd(command[0]).arg(&command[1..]).exec_async(&mut connection).await.unwrap();
    }
    wait_until(SOON, "the replica is cut off", async || {
        cluster
            .ask::<String>(primary + 3, &["INFO", "replication"])
            .await
            .contains("master_link_status:down")
    })
    .await;
    connection
}

async fn wait_primary(cluster: &RedisCluster, node: usize) {
    wait_until(SOON, "the replica has taken its place", async || {
        let replication: String = cluster.ask(node, &["INFO", "replication"]).await;
        let others = [0, 1, 2].into_iter().filter(|other| other + 3 != node).chain([node]);
        let agree = async |by: usize| cluster.owner(SLOT_OF_EACH[node - 3], by).await == node;
        replication.contains("role:master")
            && futures_util::future::join_all(others.map(agree))
                .await
                .into_iter()
                .all(|agrees| agrees)
            && cluster.ask::<String>(node, &["CLUSTER", "INFO"]).await.contains("cluster_state:ok")
    })
    .await;
}

/// Returns the last heal that `unstale status` shows.
async fn last_heal(cluster: &RedisCluster, stage: &Stage) -> Option<HealRecord> {
    let cache = Cache::connect(&config(cluster), &stage.queue).unwrap();
    cache.probe().await.unwrap();
    let marks = cache.read_checkpoints().await.unwrap();
    assert!(!marks.is_wanted());
    marks.last_heal()
}

async fn assert_healed_once(cluster: &RedisCluster, stage: &Stage, worker: &mut Worker) {
    worker.wait_ready().await;
    assert_eq!(heals(worker).await, 1.0, "{}", worker.stderr());
    assert!(
        worker.stderr().contains("Redis lost writes that it had confirmed"),
        "{}",
        worker.stderr()
    );
    let heal = last_heal(cluster, stage).await.expect("it is reported");
    assert_eq!((heal.count, heal.complete), (1, true));
}

/// Checks that the worker continues as before, on every node.
async fn assert_goes_on(cluster: &RedisCluster, stage: &Stage, worker: &Worker, nodes: [usize; 3]) {
    let before = heals(worker).await;
    let mut redis = cluster.client().await;
    for id in 0..30 {
        let _: () = redis.set(format!("user:{id}"), "newer").await.unwrap();
    }
    publish(stage, 30).await;
    wait_gone(cluster, nodes, SOON).await;
    assert_eq!(heals(worker).await, before, "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_cut_off_and_took_over_is_healed() {
    let cluster = RedisCluster::start_with(Duration::from_secs(3), &[]).await;
    let stage = stage().await;
    let mut worker = worker(&stage, &cluster).await;
    seed(&cluster).await;
    cut_off_replica(&cluster, 1).await;
    publish(&stage, SOME).await;
    wait_gone(&cluster, [0, 1, 2], SOON).await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(heals(&worker).await, 0.0, "{}", worker.stderr());
    assert!(held(&cluster, 4).await > 0, "the replica has them all");

    cluster.nodes[1].kill();
    wait_primary(&cluster, 4).await;
    wait_gone(&cluster, [0, 4, 2], WITHIN).await;
    assert_healed_once(&cluster, &stage, &mut worker).await;
    assert_goes_on(&cluster, &stage, &worker, [0, 4, 2]).await;
}

/// No connection breaks and no command fails. The old primary becomes a replica of the new one, and
/// redirects clients.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_that_breaks_no_connection_is_noticed_all_the_same() {
    let cluster = RedisCluster::start().await;
    let stage = stage().await;
    let mut worker = worker(&stage, &cluster).await;
    seed(&cluster).await;
    cut_off_replica(&cluster, 2).await;
    publish(&stage, SOME).await;
    wait_gone(&cluster, [0, 1, 2], SOON).await;
    stage.wait_settled(&[&worker]).await;
    assert!(held(&cluster, 5).await > 0, "the replica has them all");

    cluster.ask::<()>(5, &["CLUSTER", "FAILOVER", "TAKEOVER"]).await;
    wait_primary(&cluster, 5).await;
    wait_gone(&cluster, [0, 1, 5], WITHIN).await;
    assert_healed_once(&cluster, &stage, &mut worker).await;
    assert_goes_on(&cluster, &stage, &worker, [0, 1, 5]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_primary_that_comes_back_from_an_old_snapshot_is_healed() {
    let cluster = RedisCluster::start().await;
    let stage = stage().await;
    let (mut one, mut other) = (worker(&stage, &cluster).await, worker(&stage, &cluster).await);
    seed(&cluster).await;
    let snapshot = cluster.nodes[0].snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&cluster, [0, 1, 2], SOON).await;
    stage.wait_settled(&[&one, &other]).await;

    cluster.nodes[0].restore(&snapshot).await;
    wait_gone(&cluster, [0, 1, 2], WITHIN).await;
    one.wait_ready().await;
    other.wait_ready().await;
    assert_eq!(
        heals(&one).await + heals(&other).await,
        1.0,
        "one heals for both:\n{}\n----\n{}",
        one.stderr(),
        other.stderr()
    );
    assert_eq!(last_heal(&cluster, &stage).await.map(|heal| heal.count), Some(1));
    assert_goes_on(&cluster, &stage, &one, [0, 1, 2]).await;
}

/// The worker is killed with -9 after the heal began and before it has read the history. The
/// checkpoints on each primary then show that a heal is needed.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_heal_of_a_cluster_is_followed_by_another() {
    let cluster = RedisCluster::start().await;
    let stage = stage().await;
    let broker = rabbitmq().await;
    let proxy = Proxy::start(&broker.addr()).await;
    let (amqp_url, urls) = (broker.url().replace(&broker.addr(), &proxy.addr()), cluster.urls());
    let settings = [("UNSTALE_REDIS_MODE", "cluster"), ("UNSTALE_REDIS_URL", urls.as_str())];
    let doomed = stage.worker(&[settings[0], settings[1], ("UNSTALE_AMQP_URL", &amqp_url)]).await;
    seed(&cluster).await;
    let snapshot = cluster.nodes[0].snapshot().await;
    publish(&stage, SOME).await;
    wait_gone(&cluster, [0, 1, 2], SOON).await;
    stage.wait_settled(&[&doomed]).await;
    // The heal will not get beyond its beginning.
    proxy.stall();
    cluster.nodes[0].restore(&snapshot).await;
    wait_until(SOON, "it heals", async || {
        for primary in 0..3 {
            let Some(mut redis) = cluster.nodes[primary].try_connection().await else {
                return false;
            };
            for marks in redis.keys::<_, Vec<String>>("unstale:mark:*").await.unwrap_or_default() {
                if redis.hexists::<_, _, bool>(marks, "lock").await.unwrap_or(false) {
                    return true;
                }
            }
        }
        false
    })
    .await;
    assert!(held(&cluster, 0).await > 0, "old values are back");
    doomed.kill();
    let mut next = stage.start_worker(&settings);
    // The lock of the dead worker must expire first.
    wait_gone(&cluster, [0, 1, 2], SOON).await;
    next.wait_ready().await;
    assert_eq!(heals(&next).await, 1.0, "{}", next.stderr());
    assert_eq!(last_heal(&cluster, &stage).await.map(|heal| heal.complete), Some(true));
    assert_goes_on(&cluster, &stage, &next, [0, 1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_loses_nothing_heals_nothing() {
    let cluster = RedisCluster::start().await;
    let stage = stage().await;
    let mut worker = worker(&stage, &cluster).await;
    assert_eq!(heals(&worker).await, 0.0, "a fresh system: {}", worker.stderr());
    seed(&cluster).await;
    // While events are applied, slots move together with their checkpoints.
    let moving = async {
        let mover = cluster.mover().await;
        for slot in mark_slots().step_by(3) {
            let from = [0, 1, 2][usize::from(slot / 5_462)];
            let to = if from == 0 { 2 } else { 0 };
            mover.begin(slot, from, to).await;
            mover.end(slot, from, to).await;
        }
    };
    tokio::join!(publish(&stage, SOME), moving);
    wait_gone(&cluster, [0, 1, 2], SOON).await;
    stage.wait_settled(&[&worker]).await;
    worker.wait_ready().await;
    assert_eq!(heals(&worker).await, 0.0, "{}", worker.stderr());
    assert_goes_on(&cluster, &stage, &worker, [0, 1, 2]).await;
    // The worker has checked every checkpoint since.
    let ticked = Instant::now();
    wait_until(SOON, "two ticks", async || ticked.elapsed() > Duration::from_secs(2)).await;
    assert_eq!(heals(&worker).await, 0.0, "{}", worker.stderr());
    assert!(!worker.stderr().contains("lost writes"), "{}", worker.stderr());
    let next = self::worker(&stage, &cluster).await;
    assert_eq!(
        heals(&next).await,
        0.0,
        "another worker finds the marks where they are now: {}",
        next.stderr()
    );
}

/// An orderly promotion loses nothing, but looks like one that did. A worker that is gone may have
/// had the missing batch.
#[tokio::test(flavor = "multi_thread")]
async fn each_promotion_is_healed() {
    let cluster = RedisCluster::start().await;
    let stage = stage().await;
    let mut worker = worker(&stage, &cluster).await;
    seed(&cluster).await;
    publish(&stage, SOME).await;
    wait_gone(&cluster, [0, 1, 2], SOON).await;
    stage.wait_settled(&[&worker]).await;
    cluster.ask::<()>(4, &["CLUSTER", "FAILOVER"]).await;
    wait_primary(&cluster, 4).await;
    wait_until(SOON, "it heals", async || heals(&worker).await >= 1.0).await;
    worker.wait_ready().await;
    assert!(!worker.stderr().contains("Redis lost writes"), "{}", worker.stderr());
    assert_eq!(
        last_heal(&cluster, &stage).await.map(|heal| (heal.count, heal.complete)),
        Some((1, true))
    );
    assert_goes_on(&cluster, &stage, &worker, [0, 4, 2]).await;
}

/// A primary without checkpoints cannot be watched, so any later change of its connection means a
/// heal.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_all_marks_have_left_is_healed_after_the_next_outage() {
    let cluster = RedisCluster::start().await;
    let stage = stage().await;
    let mut worker = worker(&stage, &cluster).await;
    seed(&cluster).await;
    let mover = cluster.mover().await;
    for slot in mark_slots().filter(|slot| *slot < 5_462) {
        mover.begin(slot, 0, 1).await;
        mover.end(slot, 0, 1).await;
    }
    publish(&stage, SOME).await;
    wait_gone(&cluster, [0, 1, 2], SOON).await;
    stage.wait_settled(&[&worker]).await;
    worker.wait_ready().await;
    assert_eq!(heals(&worker).await, 0.0, "{}", worker.stderr());
    let snapshot = cluster.nodes[0].snapshot().await;
    cluster.nodes[0].restore(&snapshot).await;
    wait_until(SOON, "it heals, in doubt", async || heals(&worker).await >= 1.0).await;
    worker.wait_ready().await;
    assert_goes_on(&cluster, &stage, &worker, [0, 1, 2]).await;
}

/// Returns a worker that has begun.
async fn entered(cluster: &RedisCluster) -> Cache {
    let cache = cache(cluster, "q").await;
    if !matches!(cache.enter(1).await.unwrap(), Entered::Good(_)) {
        assert!(matches!(cache.take_heal().await.unwrap(), HealTurn::Ours(_)));
        assert!(cache.finish_heal(None, &[], 1).await.unwrap());
    }
    cache
}

/// No checkpoint advances in between. The batch after the loss finds it, and the one before it is
/// enough evidence.
#[tokio::test]
async fn one_lost_batch_of_one_primary_is_noticed_by_the_next() {
    let cluster = RedisCluster::start().await;
    let cache = entered(&cluster).await;
    let of_primary = async |primary: usize, from: u32| {
        for n in from.. {
            let key = format!("k{n}");
            if cluster.owner(cluster.slot(&key).await, 0).await == primary {
                return [effect(0, key, Action::Delete)];
            }
        }
        unreachable!("every primary has keys")
    };
    let (lost, next, elsewhere) =
        (of_primary(1, 0).await, of_primary(1, 1_000).await, of_primary(0, 0).await);
    let old_primary = cut_off_replica(&cluster, 1).await;
    try_apply(&cache, &lost).await.unwrap();
    cluster.ask::<()>(4, &["CLUSTER", "FAILOVER", "TAKEOVER"]).await;
    wait_until(SOON, "the old primary knows", async || {
        let nodes: String =
            redis::cmd("CLUSTER").arg("NODES").query_async(&mut old_primary.clone()).await.unwrap();
        nodes.contains("myself,slave")
    })
    .await;
    try_apply(&cache, &elsewhere).await.unwrap();
    let told = try_apply(&cache, &next).await.unwrap_err();
    assert!(told.in_full().contains("lost writes"), "{told}");
    cache.probe().await.unwrap();
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::ToHeal(_)), "nothing has covered it");
}

#[tokio::test]
async fn a_heal_of_a_cluster_is_one_workers_turn_and_serves_all() {
    let cluster = RedisCluster::start().await;
    let (one, other) = (entered(&cluster).await, entered(&cluster).await);
    let snapshot = cluster.nodes[2].snapshot().await;
    assert!(matches!(one.tick(100).await.unwrap(), Tick::Good(_)));
    assert!(matches!(other.tick(200).await.unwrap(), Tick::Good(_)));
    cluster.nodes[2].restore(&snapshot).await;
    for cache in [&one, &other] {
        wait_until(SOON, "the cluster answers", async || cache.probe().await.is_ok()).await;
        assert!(matches!(cache.enter(300).await.unwrap(), Entered::ToHeal(_)));
    }
    let HealTurn::Ours(marks) = one.take_heal().await.unwrap() else { panic!("nobody else heals") };
    assert_eq!(marks.lowest_ms(), Some(1), "as it was in the snapshot");
    assert_eq!(other.take_heal().await.unwrap(), HealTurn::Anothers);
    // A loss on any primary during the heal is noticed as well.
    let during = cluster.nodes[0].snapshot().await;
    one.renew_heal().await.unwrap();
    cluster.nodes[0].restore(&during).await;
    wait_until(SOON, "the cluster answers", async || one.probe().await.is_ok()).await;
    assert!(one.renew_heal().await.unwrap_err().in_full().contains("lost writes"));
    wait_until(SOON, "the cluster answers", async || one.probe().await.is_ok()).await;
    assert!(!one.finish_heal(None, &[], 300).await.unwrap());

    assert!(matches!(one.enter(300).await.unwrap(), Entered::ToHeal(_)));
    assert!(
        matches!(one.take_heal().await.unwrap(), HealTurn::Ours(_)),
        "its own locks do not keep it waiting"
    );
    try_apply(&one, &[effect(0, "a", Action::Delete), effect(0, "b", Action::Delete)])
        .await
        .unwrap();
    let record = HealRecord {
        began_ms: 0,
        ended_ms: 0,
        from_ms: 1,
        count: 1,
        complete: true,
        ..HealRecord::default()
    };
    assert!(one.finish_heal(Some(&record), &[], 300).await.unwrap());
    wait_until(SOON, "the cluster answers", async || other.probe().await.is_ok()).await;
    assert_eq!(other.take_heal().await.unwrap(), HealTurn::Done);
    assert!(matches!(other.enter(300).await.unwrap(), Entered::Good(_)), "healed by the first");
    let marks = one.read_checkpoints().await.unwrap();
    assert_eq!((marks.last_heal().unwrap().count, marks.is_wanted()), (1, false));
    one.hold_checkpoint("replay", 7).await.unwrap();
    assert_eq!(one.read_checkpoints().await.unwrap().lowest_ms(), Some(7));
    one.release_checkpoint("replay").await.unwrap();
    assert!(
        matches!(one.tick(300).await.unwrap(), Tick::Good(marks) if marks.lowest_ms() == Some(300))
    );
}
