//! Tag maintenance: a member that seems to be dead belongs to its tag until a second look.

use std::time::Duration;

use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;
use unstale::cache::Cache;
use unstale::plan::EffectOutcome;
use unstale::registry::Action;

use super::deployment::{Client, Deployment};
use crate::cache::{Names, apply, effect, slot};
use crate::end_to_end::stage::SOON;
use crate::support::wait_until;

super::on_both! {
    shared:
        an_invalidation_reaches_members_set_aside,
        the_second_look_returns_members_whose_keys_exist,
        a_key_set_after_its_member_was_set_aside_still_belongs_to_the_tag,
        tags_with_braces_never_share_members_set_aside;
}

const FILLED_FOR: Duration = Duration::from_millis(300);

async fn scene(on: &Deployment) -> (Names, Cache, Client) {
    let names = Names::new();
    let cache = on.cache_with(&names.of("q"), |cache| cache.setting_aside_for(FILLED_FOR)).await;
    (names, cache, on.client().await)
}

/// Looks through a tag's set once.
async fn look_through(cache: &Cache, tag: &str) -> (u64, u64) {
    let (mut cursor, mut looked, mut gone) = (0, 0, 0);
    loop {
        let slice = cache
            .maintain_slice(format!("cache_tag:{tag}").as_bytes(), cursor, false)
            .await
            .unwrap();
        (cursor, looked, gone) = (slice.next, looked + slice.looked, gone + slice.gone);
        if cursor == 0 {
            return (looked, gone);
        }
    }
}

async fn aside(redis: &mut Client, tag: &str) -> usize {
    let drain = if tag.contains('}') {
        format!("unstale:drained:cache_tag:{tag}")
    } else {
        format!("unstale:drain/{{cache_tag:{tag}}}")
    };
    let mut all = 0;
    for place in 0..4 {
        all += redis.scard::<_, usize>(format!("{drain}:aside{place}")).await.unwrap();
    }
    all
}

async fn settle(cache: &Cache, redis: &Client, tag: &str) {
    wait_until(SOON, "nothing is left aside", async || {
        while cache.take_second_look(format!("cache_tag:{tag}").as_bytes()).await.unwrap() {}
        aside(&mut redis.clone(), tag).await == 0
    })
    .await;
}

async fn an_invalidation_reaches_members_set_aside(on: &Deployment) {
    let (names, cache, mut redis) = scene(on).await;
    for (count, slow) in [(20, false), (900, true)] {
        for braces in [("", ""), ("{", "}")] {
            let tag = names.of(&format!("{}t{count}{}", braces.0, braces.1));
            let key = |n: usize| format!("{tag}:{n}");
            let set = format!("cache_tag:{tag}");
            let all: Vec<String> = (0..count).map(key).collect();
            let _: () = redis.sadd(&set, &all).await.unwrap();
            assert_eq!(look_through(&cache, &tag).await, (count as u64, count as u64));
            assert!(aside(&mut redis, &tag).await > 0);
            let _: () = redis.set(key(3), "late").await.unwrap();
            let _: () = redis.set(key(count), "v").await.unwrap();
            let _: () = redis.sadd(&set, key(count)).await.unwrap();
            let unsettled =
                apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await.unsettled;
            assert_eq!(unsettled, if slow { vec![(slot(0), EffectOutcome::Slow)] } else { vec![] });
            if slow {
                let drained =
                    cache.drain_tag(&tag, &CancellationToken::new(), |_, _| {}).await.unwrap();
                assert!(drained.complete);
            }
            assert_eq!(redis.count(&[&key(3), &key(count)]).await, 0, "{tag}");
            assert_eq!(aside(&mut redis, &tag).await, 0);
            // Nothing of it comes back.
            let _: () = redis.set(key(3), "newer").await.unwrap();
            assert!(!cache.take_second_look(set.as_bytes()).await.unwrap());
            assert_eq!(redis.members(&tag).await, [""; 0]);
            let again = apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
            assert_eq!(again.unsettled, []);
        }
    }
}

async fn the_second_look_returns_members_whose_keys_exist(on: &Deployment) {
    let (names, cache, mut redis) = scene(on).await;
    for lasts in [None, Some(600_000)] {
        let tag = names.of(if lasts.is_none() { "for ever" } else { "ten minutes" });
        let (set, key) = (format!("cache_tag:{tag}"), |name: &str| format!("{tag}:{name}"));
        for name in ["late", "loading", "gone"] {
            let _: () = redis.sadd(&set, key(name)).await.unwrap();
        }
        if let Some(millis) = lasts {
            let _: () = redis.pexpire(&set, millis).await.unwrap();
        }
        assert_eq!(look_through(&cache, &tag).await, (3, 3));
        assert_eq!(redis.members(&tag).await, [""; 0]);
        let _: () = redis.set(key("late"), "v").await.unwrap();
        let lease = format!("unstale:lease/{{{}}}", key("loading"));
        let _: () = redis.set(lease, "token").await.unwrap();
        settle(&cache, &redis, &tag).await;
        assert_eq!(redis.members(&tag).await, [key("late"), key("loading")]);
        let ttl: i64 = redis.pttl(&set).await.unwrap();
        assert!(if lasts.is_none() { ttl == -1 } else { ttl > 500_000 }, "{lasts:?}: {ttl}");
        assert_eq!(redis.count(&[&key("late")]).await, 1, "keys are never deleted");
    }
}

async fn a_key_set_after_its_member_was_set_aside_still_belongs_to_the_tag(on: &Deployment) {
    let (names, cache, mut redis) = scene(on).await;
    let (tag, key) = (names.of("t"), |name: &str| names.of(name));
    for name in ["there", "late", "loading", "loaded-late", "gone"] {
        let _: () = redis.sadd(format!("cache_tag:{tag}"), key(name)).await.unwrap();
    }
    let _: () = redis.pexpire(format!("cache_tag:{tag}"), 600_000).await.unwrap();
    let _: () = redis.set(key("there"), "v").await.unwrap();
    let lease = |name: &str| format!("unstale:lease/{{{}}}", key(name));
    let _: () = redis.set(lease("loading"), "token").await.unwrap();
    assert_eq!(look_through(&cache, &tag).await, (5, 3));
    let mut left = [key("loading"), key("there")];
    left.sort();
    assert_eq!(redis.members(&tag).await, left);
    // A member that had joined before stays.
    let _: () = redis.set(key("late"), "v").await.unwrap();
    let _: () = redis.set(lease("loaded-late"), "token").await.unwrap();
    settle(&cache, &redis, &tag).await;
    let mut all = [key("late"), key("loaded-late"), key("loading"), key("there")];
    all.sort();
    assert_eq!(redis.members(&tag).await, all);

    // All of it seems to be gone: the set ends, and comes back for as long as it had.
    for name in ["there", "late"] {
        let _: () = redis.del(key(name)).await.unwrap();
    }
    for name in ["loading", "loaded-late"] {
        let _: () = redis.del(lease(name)).await.unwrap();
    }
    assert_eq!(look_through(&cache, &tag).await, (4, 4));
    assert_eq!(redis.members(&tag).await, <[&str; 0]>::default());
    let _: () = redis.set(key("late"), "v").await.unwrap();
    settle(&cache, &redis, &tag).await;
    assert_eq!(redis.members(&tag).await, [key("late")]);
    let ttl: i64 = redis.pttl(format!("cache_tag:{tag}")).await.unwrap();
    assert!(ttl > 500_000, "{ttl}");
    assert_eq!(redis.text(&key("late")).await.as_deref(), Some("v"), "keys are never deleted");
}

/// A tag's name may look like the name of what is set aside of another one.
async fn tags_with_braces_never_share_members_set_aside(on: &Deployment) {
    let (names, cache, mut redis) = scene(on).await;
    let tag = format!("{{{}}}", names.of("t"));
    let late = names.of("late");
    let _: () = redis.sadd(format!("cache_tag:{tag}"), &late).await.unwrap();
    assert_eq!(look_through(&cache, &tag).await, (1, 1));
    let _: () = redis.set(&late, "v").await.unwrap();
    for place in 0..4 {
        let other = format!("{tag}:aside{place}");
        let keys: Vec<String> = (0..600).map(|n| names.of(&format!("{place}:{n}"))).collect();
        let _: () = redis.sadd(format!("cache_tag:{other}"), keys).await.unwrap();
        assert_eq!(
            apply(&cache, &[effect(0, &other, Action::InvalidateTag)]).await.unsettled,
            [(slot(0), EffectOutcome::Slow)]
        );
        assert!(
            cache.drain_tag(&other, &CancellationToken::new(), |_, _| {}).await.unwrap().complete
        );
    }
    apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
    cache.drain_tag(&tag, &CancellationToken::new(), |_, _| {}).await.unwrap();
    assert_eq!(redis.text(&late).await, None, "an invalidation reaches it");
}
