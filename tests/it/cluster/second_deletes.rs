//! Second deletes in a cluster: their schedule, the keys, the tags' sets and their members are in
//! different slots.

use redis::AsyncCommands;
use unstale::cache::{DueSecondDelete, SecondDelete};
use unstale::registry::{Action, Effect};

use super::{cache, get};
use crate::cache::{HOUR, apply, effect, write};
use crate::end_to_end::stage::SOON;
use crate::support::{RedisCluster, wait_until};

fn again(effect: Effect) -> Effect {
    Effect { again: Some(std::time::Duration::from_millis(1)), ..effect }
}

/// The second delete is due while the primary of one of its keys is away: nothing is taken out before all of
/// it is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_delete_due_during_a_failover_is_done_after_it() {
    let cluster = RedisCluster::start_with(std::time::Duration::from_secs(3), &[]).await;
    let (cache, mut redis) = (cache(&cluster, "q").await, cluster.client().await);
    let scheduled = cluster.owner(cluster.slot("unstale:again:q").await, 0).await;
    // A key of another primary, which will die.
    let mut elsewhere = None;
    for n in 0.. {
        let owner = cluster.owner(cluster.slot(&format!("k{n}")).await, 0).await;
        if owner != scheduled {
            elsewhere = Some((format!("k{n}"), owner));
            break;
        }
    }
    let (key, owner) = elsewhere.expect("of three primaries");
    apply(&cache, &[again(effect(0, &key, Action::Delete))]).await;
    let _: () = redis.set(&key, "stale").await.unwrap();
    wait_until(SOON, "the replica has it", async || {
        // A replica answers only readers that sent READONLY.
        let mut replica = cluster.connection(owner + 3).await;
        redis::cmd("READONLY").exec_async(&mut replica).await.unwrap();
        replica.exists::<_, bool>(&key).await.unwrap()
    })
    .await;
    cluster.nodes[owner].kill();
    cache.run_second_deletes("a").await.unwrap_err();
    wait_until(SOON, "the replica takes writes", async || cache.probe().await.is_ok()).await;
    let mut targets = Vec::new();
    wait_until(SOON, "the pass is done", async || {
        let due: Vec<DueSecondDelete> =
            cache.run_second_deletes("a").await.map(|passes| passes.due).unwrap_or_default();
        targets.extend(
            due.iter()
                .filter_map(DueSecondDelete::target)
                .map(|target| matches!(target, SecondDelete::Key(name) if name == key)),
        );
        !targets.is_empty()
    })
    .await;
    assert_eq!(targets, [true]);
    assert_eq!(get(&mut cluster.client().await, &key).await, None);
    // A value that is stored later stays.
    apply(&cache, &[effect(0, &key, write("new", HOUR, &[]))]).await;
    assert_eq!(cache.run_second_deletes("a").await.unwrap().due, []);
    assert_eq!(get(&mut cluster.client().await, &key).await.as_deref(), Some("new"));
}
