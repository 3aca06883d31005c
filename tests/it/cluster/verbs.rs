//! Keys that a cluster takes only in part.

use redis::AsyncCommands;
use unstale::plan::EffectOutcome;
use unstale::reason::Reason;
use unstale::registry::Action;

use super::{cache, get};
use crate::cache::{HOUR, Names, apply, effect, write};
use crate::support;

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
