//! Tag maintenance on one server: a member that seems to be dead belongs to its tag until a second
//! look.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio_util::sync::CancellationToken;
use unstale::cache::Cache;
use unstale::plan::EffectOutcome;
use unstale::registry::Action;

use super::{Names, apply, config, effect, run, slot};
use crate::end_to_end::stage::SOON;
use crate::support::{self, wait_until};

const FILLED_FOR: Duration = Duration::from_millis(300);

async fn cache(url: &str, queue: &str) -> Cache {
    let cache = Cache::connect(&config(url), queue).unwrap().setting_aside_for(FILLED_FOR);
    cache.probe().await.unwrap();
    cache
}

/// Looks through a tag's set once.
async fn prune(cache: &Cache, tag: &str) -> (u64, u64) {
    let (mut cursor, mut looked, mut gone) = (0, 0, 0);
    loop {
        let pruned = cache
            .maintain_slice(format!("cache_tag:{tag}").as_bytes(), cursor, false)
            .await
            .unwrap();
        (cursor, looked, gone) = (pruned.next, looked + pruned.looked, gone + pruned.gone);
        if cursor == 0 {
            return (looked, gone);
        }
    }
}

async fn members(redis: &mut MultiplexedConnection, tag: &str) -> Vec<String> {
    let mut members: Vec<String> = run(redis, &["SMEMBERS", &format!("cache_tag:{tag}")]).await;
    members.sort();
    members
}

#[tokio::test]
async fn a_member_set_aside_belongs_to_its_tag_until_the_second_look() {
    let (names, server) = (Names::new(), support::redis().await);
    let (cache, mut redis) =
        (cache(&server.url(), &names.of("q")).await, server.connection().await);
    for (count, slow) in [(20, false), (900, true)] {
        for braces in [("", ""), ("{", "}")] {
            let tag = names.of(&format!("{}t{count}{}", braces.0, braces.1));
            let key = |n: usize| format!("{tag}:{n}");
            let mut join = redis::cmd("SADD");
            join.arg(format!("cache_tag:{tag}")).arg((0..count).map(key).collect::<Vec<_>>());
            join.exec_async(&mut redis).await.unwrap();
            assert_eq!(prune(&cache, &tag).await, (count as u64, count as u64));
            run::<()>(&mut redis, &["SET", &key(3), "late"]).await;
            run::<()>(&mut redis, &["SET", &key(count), "v"]).await;
            run::<()>(&mut redis, &["SADD", &format!("cache_tag:{tag}"), &key(count)]).await;
            let unsettled =
                apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await.unsettled;
            assert_eq!(unsettled, if slow { vec![(slot(0), EffectOutcome::Slow)] } else { vec![] });
            if slow {
                assert!(
                    cache
                        .drain_tag(&tag, &CancellationToken::new(), |_, _| {})
                        .await
                        .unwrap()
                        .complete
                );
            }
            assert_eq!(run::<u64>(&mut redis, &["EXISTS", &key(3), &key(count)]).await, 0, "{tag}");
            // Nothing of it comes back.
            run::<()>(&mut redis, &["SET", &key(3), "newer"]).await;
            assert!(!cache.take_second_look(format!("cache_tag:{tag}").as_bytes()).await.unwrap());
            assert_eq!(members(&mut redis, &tag).await, [""; 0]);
        }
    }
}

#[tokio::test]
async fn the_second_look_returns_members_whose_keys_exist() {
    let (names, server) = (Names::new(), support::redis().await);
    let (cache, mut redis) =
        (cache(&server.url(), &names.of("q")).await, server.connection().await);
    for lasts in [None, Some("600000")] {
        let tag = names.of(lasts.unwrap_or("for ever"));
        let (set, key) = (format!("cache_tag:{tag}"), |name: &str| format!("{tag}:{name}"));
        for name in ["late", "loading", "gone"] {
            run::<()>(&mut redis, &["SADD", &set, &key(name)]).await;
        }
        if let Some(millis) = lasts {
            run::<()>(&mut redis, &["PEXPIRE", &set, millis]).await;
        }
        assert_eq!(prune(&cache, &tag).await, (3, 3));
        assert_eq!(members(&mut redis, &tag).await, [""; 0]);
        run::<()>(&mut redis, &["SET", &key("late"), "v"]).await;
        run::<()>(&mut redis, &["SET", &format!("unstale:lease/{{{}}}", key("loading")), "token"])
            .await;
        wait_until(SOON, "they are members again", async || {
            cache.take_second_look(set.as_bytes()).await.unwrap();
            members(&mut redis.clone(), &tag).await == [key("late"), key("loading")]
        })
        .await;
        let ttl: i64 = run(&mut redis, &["PTTL", &set]).await;
        assert!(if lasts.is_none() { ttl == -1 } else { ttl > 500_000 }, "{lasts:?}: {ttl}");
        while cache.take_second_look(set.as_bytes()).await.unwrap() {}
        assert_eq!(
            run::<Vec<String>>(&mut redis, &["KEYS", &format!("unstale:*{tag}*:aside*")]).await,
            [""; 0]
        );
        assert_eq!(
            run::<u64>(&mut redis, &["EXISTS", &key("late")]).await,
            1,
            "keys are never deleted"
        );
    }
}
