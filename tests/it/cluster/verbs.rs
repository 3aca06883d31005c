//! Each verb, on keys in every node's slots, and its reported outcome.

use std::time::Duration;

use redis::AsyncCommands;
use unstale::cache::KeyHits;
use unstale::plan::EffectOutcome;
use unstale::reason::Reason;
use unstale::registry::{Action, Expiry, RuleId};

use super::{cache, get};
use crate::cache::{HOUR, Names, apply, effect, slot, write};
use crate::support;

const KEYS: usize = 100;

fn hits(rule: u32, yes: u64, no: u64) -> KeyHits {
    KeyHits { rule: RuleId(rule), yes, no }
}

#[tokio::test]
async fn every_verb_reaches_the_node_of_its_key() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let key = |kind: &str, n: usize| names.of(&format!("{kind}:{n}"));
    for n in 0..KEYS {
        for kind in ["deleted", "expired"] {
            let _: () = redis.set(key(kind, n), "old").await.unwrap();
        }
    }
    let mut effects = Vec::new();
    for n in 0..KEYS {
        effects.extend([
            effect(0, key("deleted", n), Action::Delete),
            effect(1, key("counter", n), Action::BumpVersion),
            effect(1, key("counter", n), Action::BumpVersion),
            effect(
                2,
                key("expired", n),
                Action::Expire(Expiry::After { ttl: Duration::from_secs(60), jitter: 0.0 }),
            ),
            effect(3, key("written", n), write(&n.to_string(), HOUR, &[])),
        ]);
    }
    let applied = apply(&cache, &effects).await;
    assert_eq!(applied.unsettled, []);
    let keys = KEYS as u64;
    assert_eq!(
        applied.hits,
        [hits(0, keys, 0), hits(1, 0, 2 * keys), hits(2, keys, 0), hits(3, 0, keys)]
    );
    for n in 0..KEYS {
        assert_eq!(get(&mut redis, &key("deleted", n)).await, None);
        assert_eq!(get(&mut redis, &key("counter", n)).await.as_deref(), Some("3"));
        assert_eq!(get(&mut redis, &key("written", n)).await, Some(n.to_string()));
        let ttl: i64 = redis.pttl(key("expired", n)).await.unwrap();
        assert!((50_000..=60_000).contains(&ttl), "{ttl}");
    }
}

#[tokio::test]
async fn plans_take_effect_in_a_cluster_in_the_order_of_their_first_poll() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let tag = names.of("t");
    let key = |n: usize| names.of(&n.to_string());
    let writes: Vec<_> = (0..KEYS).map(|n| effect(0, key(n), write("v", HOUR, &[&tag]))).collect();
    let deletions: Vec<_> = (0..KEYS / 2).map(|n| effect(1, key(n), Action::Delete)).collect();
    let again: Vec<_> =
        (0..KEYS / 4).map(|n| effect(0, key(n), write("again", HOUR, &[]))).collect();
    let (written, deleted, _) =
        tokio::join!(apply(&cache, &writes), apply(&cache, &deletions), apply(&cache, &again));
    assert_eq!(
        (written.hits, deleted.hits),
        (vec![hits(0, 0, KEYS as u64)], vec![hits(1, KEYS as u64 / 2, 0)])
    );
    for n in 0..KEYS {
        let expected = if n < KEYS / 4 { Some("again") } else { (n >= KEYS / 2).then_some("v") };
        assert_eq!(get(&mut redis, &key(n)).await.as_deref(), expected, "{n}");
    }
}

#[tokio::test]
async fn a_refusal_fails_only_its_own_effect() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let (text, tag, key) = (names.of("text"), names.of("no-set"), names.of("k"));
    let _: () = redis.set(&text, "secret").await.unwrap();
    let _: () = redis.set(format!("cache_tag:{tag}"), "no set").await.unwrap();
    let _: () = redis.set(&key, "old").await.unwrap();
    let effects = [
        effect(0, &text, Action::BumpVersion),
        effect(0, &tag, Action::InvalidateTag),
        effect(0, &key, write("new", HOUR, &[&tag])),
        effect(0, names.of("other"), write("new", HOUR, &[])),
    ];
    let mut applied = apply(&cache, &effects).await;
    applied.unsettled.sort_by_key(|(slot, _)| *slot);
    let refused = |message: &str| EffectOutcome::Dead {
        reason: Reason::RedisRefused,
        message: message.into(),
    };
    let expected = [
        "INCRBY: ERR not an integer or out of range",
        "invalidate_tag: WRONGTYPE",
        "SADD, SET: WRONGTYPE",
    ];
    let expected: Vec<_> = expected
        .iter()
        .enumerate()
        .map(|(place, message)| (slot(place), refused(message)))
        .collect();
    assert_eq!(applied.unsettled, expected);
    assert_eq!(get(&mut redis, &key).await, None, "a value that no tag can reach is deleted");
    assert_eq!(get(&mut redis, &names.of("other")).await.as_deref(), Some("new"));
}

/// Its lease and its fence would be in another slot.
#[tokio::test]
async fn a_key_without_side_keys_is_deleted_and_unresolvable() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let keys = ["a}1", "a}2", "a}3", "a}4"].map(|key| names.of(key));
    for key in &keys {
        let _: () = redis.set(key, "old").await.unwrap();
    }
    let effects = [
        effect(0, &keys[0], Action::Delete),
        effect(0, &keys[1], write("new", HOUR, &[])),
        effect(0, &keys[2], Action::Expire(HOUR)),
        effect(0, names.of("tag}"), Action::InvalidateTag),
        effect(0, &keys[3], write("new", HOUR, &["t"])),
        effect(0, names.of("whole"), write("new", HOUR, &[&names.of("tag}")])),
        // A counter has no side keys; one with a hash tag has them beside it.
        effect(1, names.of("counter}"), Action::BumpVersion),
        effect(1, names.of("{a}b}"), Action::Delete),
    ];
    let mut applied = apply(&cache, &effects).await;
    applied.unsettled.sort_by_key(|(slot, _)| *slot);
    let places: Vec<_> = applied.unsettled.iter().map(|(slot, _)| slot.position).collect();
    assert_eq!(places, [0, 1, 2, 3, 4, 5]);
    assert!(applied.unsettled.iter().all(|(_, outcome)| matches!(
        outcome,
        EffectOutcome::Dead { reason: Reason::Unresolvable, .. }
    )));
    for key in keys.iter().chain([&names.of("whole")]) {
        assert_eq!(get(&mut redis, key).await, None, "{key}");
    }
    assert_eq!(get(&mut redis, &names.of("counter}")).await.as_deref(), Some("2"));
}
