//! A value loaded before an invalidation is not readable after it. In a cluster, key, tag and
//! sequence are on several nodes.

use std::time::Duration;

use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;
use unstale::cache::{Cache, FillOutcome, Grant, READER_SCRIPTS, new_token};
use unstale::registry::{Action, Expiry};

use super::deployment::{Deployment, Kind};
use crate::cache::{HOUR, apply, effect, run, write};

super::on_both! {
    shared:
        the_next_reader_may_load_after_the_holder_has_filled,
        a_clock_set_back_locks_no_key_for_hours,
        tag_maintenance_keeps_a_member_with_a_lease,
        every_invalidation_of_a_key_voids_its_lease,
        a_drain_voids_the_leases_of_the_members,
        a_tag_invalidated_during_the_load_refuses_a_value_that_was_not_in_it_yet;
    own:
        a_lost_sequence_admits_no_stale_value;
}

const LEASE: Duration = Duration::from_secs(30);

async fn grant(cache: &Cache, key: &str) -> (String, u64) {
    let token = new_token();
    let Grant::Granted { since } = cache.grant_lease(key, &token, LEASE).await.unwrap() else {
        panic!("{key} is held")
    };
    (token, since)
}

async fn the_next_reader_may_load_after_the_holder_has_filled(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let (key, tags) = (names.of("k"), ["t", "u", "v"].map(|tag| names.of(tag)));
    let (token, since) = grant(&cache, &key).await;
    assert_eq!(cache.grant_lease(&key, "another", LEASE).await.unwrap(), Grant::Held);
    assert_eq!(
        cache.fill(&key, "another", since, b"x", HOUR, &[]).await.unwrap(),
        FillOutcome::Refused
    );
    assert_eq!(
        cache.fill(&key, &token, since, b"\xff\0", HOUR, &tags).await.unwrap(),
        FillOutcome::Filled
    );
    assert_eq!(run::<Vec<u8>>(&mut redis, &["GET", &key]).await, b"\xff\0");
    for tag in &tags {
        assert_eq!(redis.members(tag).await, [key.as_str()]);
    }
    let (token, _) = grant(&cache, &key).await;
    cache.release_lease(&key, "another").await.unwrap();
    assert_eq!(cache.grant_lease(&key, "another", LEASE).await.unwrap(), Grant::Held);
    cache.release_lease(&key, &token).await.unwrap();
    grant(&cache, &key).await;
}

/// Its holder is gone, and Redis' clock went back by two hours: its time to live has grown by as
/// much.
async fn a_clock_set_back_locks_no_key_for_hours(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let read = READER_SCRIPTS.iter().find(|(name, _)| *name == "read").unwrap().1;
    for by_reader in [false, true] {
        let key = names.of(if by_reader { "read" } else { "granted" });
        let lease = format!("unstale:lease/{{{key}}}");
        run::<()>(&mut redis, &["SET", &lease, "gone", "PX", "7200000"]).await;
        if by_reader {
            let held = run::<Vec<String>>(
                &mut redis,
                &["EVAL", read, "2", &key, &lease, "another", "30000", "0"],
            )
            .await;
            assert_eq!(held, ["held"]);
        } else {
            assert_eq!(cache.grant_lease(&key, "another", LEASE).await.unwrap(), Grant::Held);
        }
        let left = run::<i64>(&mut redis, &["PTTL", &lease]).await;
        assert!((1..=30_000).contains(&left), "{left} ms");
        assert_eq!(
            run::<String>(&mut redis, &["GET", &lease]).await,
            "gone",
            "until then it is its holder's"
        );
    }
}

/// A reader that fills in the steps of a cluster has joined the set, and its value is still to
/// come.
async fn tag_maintenance_keeps_a_member_with_a_lease(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let set = format!("cache_tag:{}", names.of("t"));
    for name in on.usable(&["k", "{k}", "x:{u:{42}:p}", "a}b"]) {
        let (key, gone) = (names.of(name), names.of("gone"));
        let (token, _) = grant(&cache, &key).await;
        run::<()>(&mut redis, &["SADD", &set, &key, &gone]).await;
        assert_eq!(cache.maintain_slice(set.as_bytes(), 0, false).await.unwrap().gone, 1);
        assert_eq!(run::<Vec<String>>(&mut redis, &["SMEMBERS", &set]).await, [key.as_str()]);
        cache.release_lease(&key, &token).await.unwrap();
        assert_eq!(cache.maintain_slice(set.as_bytes(), 0, false).await.unwrap().gone, 1);
    }
}

async fn every_invalidation_of_a_key_voids_its_lease(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let tag = names.of("t");
    // Every form of a key, so that the names of its lease in Rust and in Lua are the same.
    for name in on.usable(&["k", "{k}", "x:{u:{42}:p}", "a}b", "{a", "{}{x}", "{}"]) {
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
                run::<()>(&mut redis, &["SADD", &format!("cache_tag:{tag}"), &key]).await;
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

async fn a_drain_voids_the_leases_of_the_members(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let name = if on.kind() == Kind::Single { "k}1" } else { "{k}1" };
    let (tag, key) = (names.of("t"), names.of(name));
    let mut add = redis::cmd("SADD");
    add.arg(format!("cache_tag:{tag}")).arg(&key);
    for n in 0..600 {
        add.arg(names.of(&n.to_string()));
    }
    add.exec_async(&mut redis).await.unwrap();
    let (token, since) = grant(&cache, &key).await;
    assert!(cache.invalidate_tag(&tag).await.unwrap().draining);
    cache.drain_tag(&tag, &CancellationToken::new(), |_, _| {}).await.unwrap();
    assert_eq!(
        cache.fill(&key, &token, since, b"stale", HOUR, &[]).await.unwrap(),
        FillOutcome::Refused
    );
}

async fn a_tag_invalidated_during_the_load_refuses_a_value_that_was_not_in_it_yet(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let (key, tag) = (names.of("k"), names.of("t"));
    for is_in_a_batch in [false, true] {
        let (token, since) = grant(&cache, &key).await;
        if is_in_a_batch {
            apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
        } else {
            cache.invalidate_tag(&tag).await.unwrap();
        }
        let tags = std::slice::from_ref(&tag);
        let filled = cache.fill(&key, &token, since, b"stale", HOUR, tags).await.unwrap();
        assert_eq!(filled, FillOutcome::Refused);
        assert_eq!(redis.count(&[&key]).await, 0);
        if on.kind() == Kind::Single {
            // In a cluster, a key joins its tags' sets before their generations are asked.
            assert_eq!(redis.members(&tag).await, [""; 0]);
        }
    }
    let (token, since) = grant(&cache, &key).await;
    assert_eq!(
        cache.fill(&key, &token, since, b"fresh", HOUR, &[tag]).await.unwrap(),
        FillOutcome::Filled
    );
}

async fn a_lost_sequence_admits_no_stale_value(on: &Deployment) {
    let (_, cache, mut redis) = on.scene().await;
    for _ in 0..3 {
        cache.invalidate_tag("t").await.unwrap();
    }
    let (token, since) = grant(&cache, "k").await;
    run::<()>(&mut redis, &["DEL", "unstale:seq"]).await;
    cache.invalidate_tag("t").await.unwrap();
    assert_eq!(
        cache.fill("k", &token, since, b"stale", HOUR, &["t".into()]).await.unwrap(),
        FillOutcome::Refused
    );
}

/// A failover of one node may lose the last steps of the sequence, while a lease on another node
/// stays. On a single server both are lost together.
#[tokio::test]
async fn a_sequence_set_back_admits_no_stale_value() {
    let on = Deployment::own(Kind::Cluster).await;
    let (names, cache, mut redis) = on.scene().await;
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
