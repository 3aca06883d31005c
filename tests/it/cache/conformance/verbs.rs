//! Each verb and its reported outcome. In a cluster, its keys are in every node's slots.

use std::time::Duration;

use redis::AsyncCommands;
use unstale::cache::KeyHits;
use unstale::plan::EffectOutcome;
use unstale::reason::Reason;
use unstale::registry::{Action, Expiry, RuleId};

use super::deployment::Deployment;
use crate::cache::{HOUR, apply, effect, slot, write};

super::on_both! {
    shared:
        every_verb_changes_its_keys,
        plans_take_effect_in_the_order_of_their_first_poll,
        a_wrong_type_at_a_counter_or_tag_fails_only_its_effect;
}

const KEYS: usize = 100;

fn hits(rule: u32, yes: u64, no: u64) -> KeyHits {
    KeyHits { rule: RuleId(rule), yes, no }
}

async fn every_verb_changes_its_keys(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
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
        assert_eq!(redis.text(&key("deleted", n)).await, None);
        assert_eq!(redis.text(&key("counter", n)).await.as_deref(), Some("3"));
        assert_eq!(redis.text(&key("written", n)).await, Some(n.to_string()));
        let ttl: i64 = redis.pttl(key("expired", n)).await.unwrap();
        assert!((50_000..=60_000).contains(&ttl), "{ttl}");
    }
}

async fn plans_take_effect_in_the_order_of_their_first_poll(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
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
        assert_eq!(redis.text(&key(n)).await.as_deref(), expected, "{n}");
    }
}

async fn a_wrong_type_at_a_counter_or_tag_fails_only_its_effect(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let [hash, text, huge, tag, written, deleted, other, counter] =
        ["hash", "text", "huge", "tag", "w", "k", "other", "v"].map(|name| names.of(name));
    let _: () = redis.hset(&hash, "f", "v").await.unwrap();
    for (key, value) in [
        (&text, "secret"),
        (&huge, "9223372036854775807"),
        (&format!("cache_tag:{tag}"), "no set"),
        (&written, "old"),
        (&deleted, "old"),
    ] {
        let _: () = redis.set(key, value).await.unwrap();
    }
    let effects = [
        effect(0, &hash, Action::BumpVersion),
        effect(0, &text, Action::BumpVersion),
        effect(0, &huge, Action::BumpVersion),
        effect(0, &tag, Action::InvalidateTag),
        effect(0, &written, write("new", HOUR, &[&tag])),
        effect(0, &deleted, Action::Delete),
        effect(0, &counter, Action::BumpVersion),
        effect(0, &other, write("new", HOUR, &[])),
    ];
    let mut applied = apply(&cache, &effects).await;
    applied.unsettled.sort_by_key(|(slot, _)| *slot);
    let refused = |message: &str| EffectOutcome::Dead {
        reason: Reason::RedisRefused,
        message: message.into(),
        may_be_permitted: false,
    };
    assert_eq!(
        applied.unsettled,
        [
            (slot(0), refused("INCRBY: WRONGTYPE")),
            (slot(1), refused("INCRBY: ERR not an integer or out of range")),
            (slot(2), refused("INCRBY: ERR the counter would overflow")),
            (slot(3), refused("invalidate_tag: WRONGTYPE")),
            (slot(4), refused("SADD, SET: WRONGTYPE")),
        ]
    );
    assert_eq!(
        redis.count(&[&written, &deleted]).await,
        0,
        "a value that no tag can reach is deleted"
    );
    assert_eq!(redis.text(&counter).await.as_deref(), Some("2"));
    assert_eq!(redis.text(&other).await.as_deref(), Some("new"));
}
