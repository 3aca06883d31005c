//! The documented ACL for a cluster, against everything that the worker does there.

use std::time::Duration;

use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;
use unstale::cache::{Cache, Entered, FillOutcome, Grant, HealTurn, Tick};
use unstale::config::{RedisConfig, SecretUrl};
use unstale::plan::EffectOutcome;
use unstale::registry::Action;

use super::config;
use crate::cache::{HOUR, apply, effect, slot, write};
use crate::permissions::{REDIS, documented_acl};
use crate::support::{RedisCluster, wait_until};

/// The rules that the page adds for a cluster.
fn added() -> Vec<String> {
    let row = REDIS
        .lines()
        .find(|line| line.starts_with("| `UNSTALE_REDIS_MODE=cluster` |"))
        .expect("the page has a row for it");
    let rules =
        row.split(" | ").nth(1).expect("a second cell").split('`').nth(1).expect("the rules");
    rules.replace("\\|", "|").split_whitespace().map(str::to_owned).collect()
}

#[tokio::test]
async fn the_documented_acl_is_enough_for_a_cluster() {
    let cluster = RedisCluster::start().await;
    let rules = [documented_acl("secret", "shop:"), added()].concat();
    for node in 0..3 {
        let command: Vec<&str> = ["ACL", "SETUSER", "unstale"]
            .into_iter()
            .chain(rules.iter().map(String::as_str))
            .collect();
        cluster.ask::<()>(node, &command).await;
    }
    let urls = vec![SecretUrl::new(
        format!("redis://unstale:secret@{}", cluster.nodes[0].addr()).parse().unwrap(),
    )];
    let cache = Cache::connect(&RedisConfig { urls, ..config(&cluster) }, "q")
        .unwrap()
        .setting_aside_for(Duration::from_millis(200));
    cache.probe().await.unwrap();
    assert!(matches!(cache.enter(1).await.unwrap(), Entered::ToHeal(_)));
    assert!(matches!(cache.take_heal().await.unwrap(), HealTurn::Ours(_)));
    cache.renew_heal().await.unwrap();
    assert!(cache.finish_heal(None, &[], 1).await.unwrap());
    assert!(matches!(cache.tick(1).await.unwrap(), Tick::Good(_)));
    cache.hold_checkpoint("replay", 1).await.unwrap();
    cache.release_checkpoint("replay").await.unwrap();
    let mut redis = cluster.client().await;
    let members: Vec<String> = (0..600).map(|n| format!("shop:member:{n}")).collect();
    let _: () = redis.sadd("cache_tag:big", &members).await.unwrap();
    let _: () = redis.sadd("cache_tag:small", "shop:a").await.unwrap();

    // One of the keys is on its way.
    let moving = cluster.slot("shop:nowhere").await;
    let from = cluster.owner(moving, 0).await;
    let mover = cluster.mover().await;
    mover.begin(moving, from, (from + 1) % 3).await;
    let effects = [
        effect(0, "shop:nowhere", Action::Delete),
        effect(0, "small", Action::InvalidateTag),
        effect(0, "big", Action::InvalidateTag),
        effect(0, "shop:version", Action::BumpVersion),
        effect(0, "shop:b", Action::Expire(HOUR)),
        effect(0, "shop:c", write("v", HOUR, &["t"])),
    ];
    assert_eq!(apply(&cache, &effects).await.unsettled, [(slot(2), EffectOutcome::Slow)]);
    mover.end(moving, from, (from + 1) % 3).await;
    assert!(cache.drain_tag("big", &CancellationToken::new(), |_, _| {}).await.unwrap().complete);
    assert!(cache.drain_all(&CancellationToken::new(), |_, _| {}).await.unwrap().complete);
    assert!(cache.lock_tag_maintenance("token", Duration::from_secs(10)).await.unwrap());
    for member in ["shop:gone", "shop:back"] {
        let _: () = redis.sadd("cache_tag:pruned", member).await.unwrap();
    }
    assert!(cache.tag_sets(0).await.unwrap().next != 0, "the next primary");
    assert_eq!(cache.maintain_slice(b"cache_tag:pruned", 0, false).await.unwrap().gone, 2);
    let _: () = redis.set("shop:back", "v").await.unwrap();
    // A look at a small set may find one of the two.
    wait_until(Duration::from_secs(10), "the one with a key is a member again", async || {
        cache.take_second_look(b"cache_tag:pruned").await.unwrap();
        let members: Vec<String> = redis.clone().smembers("cache_tag:pruned").await.unwrap();
        members == ["shop:back"]
    })
    .await;
    let Grant::Granted { since } =
        cache.grant_lease("shop:page", "token", Duration::from_secs(10)).await.unwrap()
    else {
        panic!("held")
    };
    assert_eq!(
        cache.fill("shop:page", "token", since, b"v", HOUR, &["t".into()]).await.unwrap(),
        FillOutcome::Filled
    );
    cache.release_lease("shop:page", "token").await.unwrap();
}
