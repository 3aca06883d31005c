//! Members of tags that are longer than any key. Applications may add them: what is read and
//! deleted at once is bounded in bytes, so that Redis serves others meanwhile.

use std::time::Duration;

use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;
use unstale::plan::EffectOutcome;
use unstale::registry::Action;

use super::deployment::{Client, Deployment};
use crate::cache::{Names, apply, effect, slot};
use crate::end_to_end::stage::SOON;
use crate::support::wait_until;

super::on_both! {
    shared:
        tags_of_some_long_members_each_are_invalidated_at_once,
        maintenance_looks_at_few_long_members_at_once;
    own:
        a_tag_of_long_members_is_drained_in_slices_of_bytes;
}

const FILLED_FOR: Duration = Duration::from_millis(300);

const LONG: usize = 100_000;

/// Long members that one step may read: a first look at few, then a wider one.
const AT_ONCE: u64 = 24;

/// Adds long members that are no keys, one that is a key, and a short one that is a key. Returns
/// the two keys.
async fn fill_tag(redis: &mut Client, tag: &str, members: usize) -> [String; 2] {
    let long = |n: usize| format!("{tag}:{n}:{}", "m".repeat(LONG));
    for n in 0..members {
        let _: () = redis.sadd(format!("cache_tag:{tag}"), long(n)).await.unwrap();
    }
    let keys = [long(0), format!("{tag}:short")];
    for key in &keys {
        let _: () = redis.set(key, "old").await.unwrap();
    }
    let _: () = redis.sadd(format!("cache_tag:{tag}"), &keys[1]).await.unwrap();
    keys
}

async fn are_gone(redis: &mut Client, keys: &[String]) -> bool {
    for key in keys {
        if redis.exists::<_, bool>(key).await.unwrap() {
            return false;
        }
    }
    true
}

/// A tag of few members that are long is detached, and drained in slices of few.
async fn a_tag_of_long_members_is_drained_in_slices_of_bytes(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let (cache, redis) = (&cache, &mut redis);
    for members in [60, 600] {
        let (tag, small) = (names.of(&format!("t{members}")), names.of("small"));
        let set = format!("cache_tag:{tag}");
        let keys = fill_tag(redis, &tag, members).await;
        let small_key = names.of("key of the small");
        let _: () = redis.set(&small_key, "old").await.unwrap();
        let _: () = redis.sadd(format!("cache_tag:{small}"), &small_key).await.unwrap();
        let applied = apply(
            cache,
            &[effect(0, &tag, Action::InvalidateTag), effect(0, &small, Action::InvalidateTag)],
        )
        .await;
        assert_eq!(applied.unsettled, [(slot(0), EffectOutcome::Slow)]);
        assert!(are_gone(redis, &[small_key]).await);
        assert!(!redis.exists::<_, bool>(&set).await.unwrap(), "detached");

        let mut largest = 0;
        let drained = cache
            .drain_tag(&tag, &CancellationToken::new(), |existed, gone| {
                largest = largest.max(existed + gone);
            })
            .await
            .unwrap();
        assert!(drained.complete);
        assert_eq!((drained.existed, drained.gone), (2, members as u64 - 1));
        assert!(largest <= AT_ONCE, "a slice of {largest}");
        assert!(are_gone(redis, &keys).await, "an application may mean a long key");
        let record: usize = redis.scard(format!("unstale:drain/{{{set}}}")).await.unwrap();
        assert_eq!(record, 0);
        let again = apply(cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
        assert_eq!(again.unsettled, []);
        // By the way that takes one tag.
        let keys = fill_tag(redis, &tag, members).await;
        assert!(cache.invalidate_tag(&tag).await.unwrap().draining);
        let drained = cache.drain_tag(&tag, &CancellationToken::new(), |_, _| {}).await.unwrap();
        assert!(drained.complete && are_gone(redis, &keys).await);
    }
}

/// Each of the tags is small enough, all together are not: each is invalidated at once.
async fn tags_of_some_long_members_each_are_invalidated_at_once(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let (cache, redis) = (&cache, &mut redis);
    let tags: Vec<String> = (0..12).map(|n| names.of(&format!("t{n}"))).collect();
    let mut keys = Vec::new();
    for tag in &tags {
        keys.extend(fill_tag(redis, tag, 6).await);
    }
    let effects: Vec<_> = tags.iter().map(|tag| effect(0, tag, Action::InvalidateTag)).collect();
    let applied = apply(cache, &effects).await;
    assert_eq!(applied.unsettled, []);
    assert_eq!((applied.hits[0].yes, applied.hits[0].no), (24, 12 * 5));
    assert!(are_gone(redis, &keys).await);
}

async fn maintenance_looks_at_few_long_members_at_once(on: &Deployment) {
    let names = Names::new();
    let cache = &on.cache_with(&names.of("q"), |cache| cache.setting_aside_for(FILLED_FOR)).await;
    let redis = &mut on.client().await;
    for comes_late in [true, false] {
        let tag = names.of(&format!("t{comes_late}"));
        let set = format!("cache_tag:{tag}");
        let keys = fill_tag(redis, &tag, 60).await;
        for key in &keys {
            let _: () = redis.del(key).await.unwrap();
        }
        let (mut cursor, mut looked) = (0, 0);
        loop {
            let slice = cache.maintain_slice(set.as_bytes(), cursor, false).await.unwrap();
            assert!(slice.looked <= AT_ONCE, "{slice:?}");
            (cursor, looked) = (slice.next, looked + slice.looked);
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(looked, 61);
        let aside = async || {
            let mut all = 0;
            for place in 0..4 {
                let aside = format!("unstale:drain/{{{set}}}:aside{place}");
                all += redis.clone().scard::<_, u64>(aside).await.unwrap();
            }
            all
        };
        assert!(aside().await > 0);
        if comes_late {
            for key in &keys {
                let _: () = redis.clone().set(key, "late").await.unwrap();
            }
            let applied = apply(cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
            assert_eq!(applied.unsettled, [(slot(0), EffectOutcome::Slow)]);
            let drained =
                cache.drain_tag(&tag, &CancellationToken::new(), |_, _| {}).await.unwrap();
            assert!(drained.complete && are_gone(&mut redis.clone(), &keys).await);
        } else {
            let mut before = aside().await;
            wait_until(SOON, "nothing is set aside any more", async || {
                cache.take_second_look(set.as_bytes()).await.unwrap();
                let left = aside().await;
                assert!(before - left <= AT_ONCE, "{} at once", before - left);
                before = left;
                left == 0
            })
            .await;
        }
    }
}
