//! A value loaded before an invalidation is not readable after it, even if key, tag and sequence
//! are on three nodes.

use std::time::Duration;

use redis::AsyncCommands;
use unstale::cache::{Cache, FillOutcome, Grant, new_token};
use unstale::registry::{Action, Expiry};

use super::{cache, get, members};
use crate::cache::{HOUR, Names, apply, effect, write};
use crate::support;

const LEASE: Duration = Duration::from_secs(30);

async fn grant(cache: &Cache, key: &str) -> (String, u64) {
    let token = new_token();
    let Grant::Granted { since } = cache.grant_lease(key, &token, LEASE).await.unwrap() else {
        panic!("{key} is held")
    };
    (token, since)
}

#[tokio::test]
async fn the_next_reader_may_load_after_the_holder_has_filled() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let (key, tags) = (names.of("k"), ["t", "u", "v"].map(|tag| names.of(tag)));
    let (token, since) = grant(&cache, &key).await;
    assert_eq!(cache.grant_lease(&key, "another", LEASE).await.unwrap(), Grant::Held);
    assert_eq!(
        cache.fill(&key, "another", since, b"x", HOUR, &[]).await.unwrap(),
        FillOutcome::Refused
    );
    assert_eq!(
        cache.fill(&key, &token, since, b"fresh", HOUR, &tags).await.unwrap(),
        FillOutcome::Filled
    );
    assert_eq!(get(&mut redis, &key).await.as_deref(), Some("fresh"));
    for tag in &tags {
        assert_eq!(members(&mut redis, tag).await, [key.as_str()]);
    }
    let (token, _) = grant(&cache, &key).await;
    cache.release_lease(&key, "another").await.unwrap();
    assert_eq!(cache.grant_lease(&key, "another", LEASE).await.unwrap(), Grant::Held);
    cache.release_lease(&key, &token).await.unwrap();
    grant(&cache, &key).await;
}

#[tokio::test]
async fn every_invalidation_of_a_key_voids_its_lease() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let tag = names.of("t");
    for name in ["k", "{k}", "x:{u:{42}:p}", "{a"] {
        let key = names.of(name);
        for action in [
            Action::Delete,
            write("v", HOUR, &[]),
            write("v", HOUR, &[&tag]),
            Action::Expire(Expiry::At(1)),
            Action::Expire(Expiry::After { ttl: Duration::from_secs(30), jitter: 0.0 }),
            Action::InvalidateTag,
        ] {
            let (token, since) = grant(&cache, &key).await;
            let target = if action == Action::InvalidateTag {
                // A member that the fill itself does not know to be one: only the member's own
                // lease can tell.
                let _: () = redis.sadd(format!("cache_tag:{tag}"), &key).await.unwrap();
                &tag
            } else {
                &key
            };
            apply(&cache, &[effect(0, target, action.clone())]).await;
            assert_eq!(
                cache.fill(&key, &token, since, b"stale", HOUR, &[]).await.unwrap(),
                FillOutcome::Refused,
                "{key} {action:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_tag_invalidated_during_the_load_refuses_a_value_that_was_not_in_it_yet() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let (key, tag) = (names.of("k"), names.of("t"));
    for many in [false, true] {
        let (token, since) = grant(&cache, &key).await;
        if many {
            cache.invalidate_tag(&tag).await.unwrap();
        } else {
            apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
        }
        assert_eq!(
            cache
                .fill(&key, &token, since, b"stale", HOUR, std::slice::from_ref(&tag))
                .await
                .unwrap(),
            FillOutcome::Refused
        );
        assert_eq!(get(&mut redis, &key).await, None);
    }
    let (token, since) = grant(&cache, &key).await;
    assert_eq!(
        cache.fill(&key, &token, since, b"fresh", HOUR, &[tag]).await.unwrap(),
        FillOutcome::Filled
    );
}

/// A failover may lose the last steps of the sequence.
#[tokio::test]
async fn a_sequence_set_back_admits_no_stale_value() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let (key, tag) = (names.of("k"), names.of("t"));
    cache.invalidate_tag(&tag).await.unwrap();
    let (token, since) = grant(&cache, &key).await;
    let before: u64 = redis.get("unstale:seq").await.unwrap();
    let _: () = redis.set("unstale:seq", before - 1_000_000).await.unwrap();
    cache.invalidate_tag(&tag).await.unwrap();
    assert_eq!(
        cache.fill(&key, &token, since, b"stale", HOUR, &[tag]).await.unwrap(),
        FillOutcome::Refused
    );
}
