//! Slots that move: commands wait or follow, and no event fails.

use std::time::{Duration, Instant};

use redis::AsyncCommands;
use unstale::registry::Action;

use super::traffic::{RULES, Traffic};
use super::{cache, get};
use crate::cache::{HOUR, Names, apply, effect, write};
use crate::end_to_end::stage::Stage;
use crate::support::{self, RedisCluster, wait_until};

#[tokio::test]
async fn a_moving_slot_is_followed() {
    let (names, cluster) = (Names::new(), RedisCluster::start().await);
    let (cache, mut redis) = (cache(&cluster, "q").await, cluster.client().await);
    // All in one slot.
    let key = |name: &str| format!("{{{}}}:{name}", names.of("tag"));
    let slot = cluster.slot(&key("")).await;
    let from = cluster.owner(slot, 0).await;
    let to = (from + 1) % 3;
    for name in ["here", "moved", "member"] {
        let _: () = redis.set(key(name), "old").await.unwrap();
    }
    let _: () = redis.sadd(format!("cache_tag:{}", key("t")), key("member")).await.unwrap();
    let mover = cluster.mover().await;
    mover.begin(slot, from, to).await;
    mover.migrate(&[key("moved")], from, to).await;

    // Some keys are on this node, some have moved, and some do not exist.
    let effects = [
        effect(0, key("here"), Action::Delete),
        effect(0, key("moved"), Action::Delete),
        effect(0, key("nowhere"), Action::Delete),
        effect(1, key("new"), write("v", HOUR, &[])),
        effect(1, key("new"), Action::Delete),
        effect(1, key("new"), write("w", HOUR, &[])),
        effect(2, key("counter"), Action::BumpVersion),
    ];
    let applied = apply(&cache, &effects).await;
    assert_eq!(applied.unsettled, []);
    assert_eq!(applied.hits[0].yes, 2, "{:?}", applied.hits);
    // A script with several keys waits for the slot.
    let invalidate = [
        effect(0, key("t"), Action::InvalidateTag),
        effect(1, key("tagged"), write("x", HOUR, &[&key("t")])),
    ];
    let (applied, ()) = tokio::join!(apply(&cache, &invalidate), async {
        wait_until(Duration::from_secs(10), "a script is told to wait", async || {
            let told = async |node| {
                cluster
                    .ask::<String>(node, &["INFO", "errorstats"])
                    .await
                    .contains("errorstat_TRYAGAIN")
            };
            told(from).await || told(to).await
        })
        .await;
        mover.end(slot, from, to).await;
    });
    assert_eq!(applied.unsettled, []);
    for (name, expected) in [
        ("here", None),
        ("moved", None),
        ("nowhere", None),
        ("member", None),
        ("new", Some("w")),
        ("counter", Some("2")),
        ("tagged", Some("x")),
    ] {
        assert_eq!(get(&mut redis, &key(name)).await.as_deref(), expected, "{name}");
    }
    // The test deletes the key once more on its new node.
    assert_eq!(apply(&cache, &[effect(0, key("new"), Action::Delete)]).await.unsettled, []);
    assert_eq!(get(&mut redis, &key("new")).await, None);
    assert!(cache.state().is_up(), "nothing of it was an outage");
}

/// Each of two nodes redirects the slot to the other one. This can happen when slots move faster
/// than the nodes learn of it.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_redirect_to_each_other_are_not_flooded() {
    let (names, cluster) = (Names::new(), RedisCluster::start().await);
    let cache = cache(&cluster, "q").await;
    let key = names.of("key");
    let slot = cluster.slot(&key).await;
    let owner = cluster.owner(slot, 0).await;
    let (owner_id, other_id) = (cluster.id(owner).await, cluster.id((owner + 1) % 3).await);
    let give_to = async |id: &str| {
        cluster.ask::<()>(owner, &["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", id]).await
    };
    let moved = async || {
        let mut moved = 0;
        for node in 0..3 {
            let errors: String = cluster.ask(node, &["INFO", "errorstats"]).await;
            let count = errors.lines().find_map(|line| line.strip_prefix("errorstat_MOVED:count="));
            moved += count.map_or(0, |count| count.trim().parse::<u32>().unwrap());
        }
        moved
    };
    give_to(&other_id).await;
    let begun = Instant::now();
    let delete = [effect(0, key.clone(), Action::Delete)];
    let (applied, asked) = tokio::join!(apply(&cache, &delete), async {
        wait_until(Duration::from_secs(5), "it is sent to and fro", async || moved().await >= 10)
            .await;
        give_to(&owner_id).await;
        moved().await
    });
    assert_eq!(applied.unsettled, [], "fixed in time");
    // One at once, then one each 20 ms.
    let at_most = begun.elapsed().as_millis() / 20 + 5;
    assert!(u128::from(asked) <= at_most, "{asked} times in {:?}", begun.elapsed());
}

#[tokio::test]
async fn scripts_unknown_to_a_node_are_sent_again() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    for round in ["1", "2"] {
        let effects: Vec<_> = (0..30)
            .map(|n| {
                effect(
                    0,
                    names.of(&n.to_string()),
                    write(round, HOUR, &[&names.of(&format!("t{n}"))]),
                )
            })
            .collect();
        assert_eq!(apply(&cache, &effects).await.unsettled, []);
        for n in 0..30 {
            assert_eq!(get(&mut redis, &names.of(&n.to_string())).await.as_deref(), Some(round));
        }
        for node in 0..3 {
            cluster.ask::<()>(node, &["SCRIPT", "FLUSH"]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_slots_move_under_load_and_nothing_is_lost() {
    let cluster = RedisCluster::start().await;
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let traffic = Traffic::of(0..8_000);
    let redis = cluster.client().await;
    traffic.seed(&redis).await;
    let urls = cluster.urls();
    let worker =
        stage.worker(&[("UNSTALE_REDIS_MODE", "cluster"), ("UNSTALE_REDIS_URL", &urls)]).await;
    let moving = async {
        let mover = cluster.mover().await;
        for slot in (0..16_384).step_by(64) {
            // As they are at first.
            let from = usize::from(slot / 5_462);
            mover.begin(slot, from, (from + 1) % 3).await;
            mover.end(slot, from, (from + 1) % 3).await;
        }
    };
    tokio::join!(traffic.publish(&stage), moving);
    traffic.settled(&stage, &worker, async || cluster.client().await).await;
    assert!(
        !worker.stderr().contains("Redis is out"),
        "no slot that moves is an outage:\n{}",
        worker.stderr()
    );
    assert_eq!(worker.terminate().await.code(), Some(0));
}
