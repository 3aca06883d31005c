//! Tags' sets stay within bounds, and never lose a member whose key is about to be set.

use std::collections::VecDeque;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::AsyncCommands;
use redis::cluster_async::ClusterConnection;
use tokio_util::sync::CancellationToken;
use unstale::cache::Cache;
use unstale::plan::EffectOutcome;
use unstale::registry::Action;

use super::{config, get, members};
use crate::cache::{Names, apply, effect, slot};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{self, RedisCluster, wait_until};

const FILLED_FOR: Duration = Duration::from_millis(300);

async fn cache(cluster: &RedisCluster, queue: &str) -> Cache {
    let cache = Cache::connect(&config(cluster), queue).unwrap().setting_aside_for(FILLED_FOR);
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

async fn aside(redis: &mut ClusterConnection, tag: &str) -> usize {
    let mut all = 0;
    for place in 0..4 {
        all += redis
            .scard::<_, usize>(format!("unstale:drain/{{cache_tag:{tag}}}:aside{place}"))
            .await
            .unwrap();
    }
    all
}

async fn settle(cache: &Cache, redis: &mut ClusterConnection, tag: &str) {
    wait_until(SOON, "nothing is left aside", async || {
        while cache.take_second_look(format!("cache_tag:{tag}").as_bytes()).await.unwrap() {}
        aside(&mut redis.clone(), tag).await == 0
    })
    .await;
}

#[tokio::test]
async fn a_key_set_after_its_member_was_set_aside_still_belongs_to_the_tag() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let (tag, key) = (names.of("t"), |name: &str| names.of(name));
    for name in ["there", "late", "loading", "loaded-late", "gone"] {
        let _: () = redis.sadd(format!("cache_tag:{tag}"), key(name)).await.unwrap();
    }
    let _: () = redis.pexpire(format!("cache_tag:{tag}"), 600_000).await.unwrap();
    let _: () = redis.set(key("there"), "v").await.unwrap();
    let lease = |name: &str| format!("unstale:lease/{{{}}}", key(name));
    let _: () = redis.set(lease("loading"), "token").await.unwrap();
    assert_eq!(prune(&cache, &tag).await, (5, 3));
    let mut left = [key("loading"), key("there")];
    left.sort();
    assert_eq!(members(&mut redis, &tag).await, left);
    // A member that had joined before stays.
    let _: () = redis.set(key("late"), "v").await.unwrap();
    let _: () = redis.set(lease("loaded-late"), "token").await.unwrap();
    settle(&cache, &mut redis, &tag).await;
    let mut all = [key("late"), key("loaded-late"), key("loading"), key("there")];
    all.sort();
    assert_eq!(members(&mut redis, &tag).await, all);

    // All of it seems to be gone: the set ends, and comes back for as long as it had.
    for name in ["there", "late"] {
        let _: () = redis.del(key(name)).await.unwrap();
    }
    for name in ["loading", "loaded-late"] {
        let _: () = redis.del(lease(name)).await.unwrap();
    }
    assert_eq!(prune(&cache, &tag).await, (4, 4));
    assert_eq!(members(&mut redis, &tag).await, <[&str; 0]>::default());
    let _: () = redis.set(key("late"), "v").await.unwrap();
    settle(&cache, &mut redis, &tag).await;
    assert_eq!(members(&mut redis, &tag).await, [key("late")]);
    let ttl: i64 = redis.pttl(format!("cache_tag:{tag}")).await.unwrap();
    assert!(ttl > 500_000, "{ttl}");
    assert_eq!(get(&mut redis, &key("late")).await.as_deref(), Some("v"), "keys are never deleted");
}

#[tokio::test]
async fn an_invalidation_reaches_members_set_aside() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    for (count, slow) in [(20, false), (900, true)] {
        let (tag, key) =
            (names.of(&format!("t{count}")), |n: usize| names.of(&format!("{count}:{n}")));
        let all: Vec<String> = (0..count).map(key).collect();
        let _: () = redis.sadd(format!("cache_tag:{tag}"), &all).await.unwrap();
        assert_eq!(prune(&cache, &tag).await, (count as u64, count as u64));
        let _: () = redis.set(key(3), "late").await.unwrap();
        let _: () = redis.set(key(count), "v").await.unwrap();
        let _: () = redis.sadd(format!("cache_tag:{tag}"), key(count)).await.unwrap();
        let unsettled = apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await.unsettled;
        assert_eq!(unsettled, if slow { vec![(slot(0), EffectOutcome::Slow)] } else { vec![] });
        if slow {
            assert!(
                cache.drain_tag(&tag, &CancellationToken::new(), |_, _| {}).await.unwrap().complete
            );
        }
        assert_eq!(
            (get(&mut redis, &key(3)).await, get(&mut redis, &key(count)).await),
            (None, None),
            "{count}"
        );
        assert_eq!(aside(&mut redis, &tag).await, 0);
        // Nothing of it comes back.
        let _: () = redis.set(key(3), "newer").await.unwrap();
        assert!(!cache.take_second_look(format!("cache_tag:{tag}").as_bytes()).await.unwrap());
        assert_eq!(members(&mut redis, &tag).await, <[&str; 0]>::default());
        assert_eq!(apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await.unsettled, []);
    }
}

/// A tag's name may look like the name of what is set aside of another one.
#[tokio::test]
async fn tags_with_braces_never_share_members_set_aside() {
    let (names, cluster) = (Names::new(), support::redis_cluster().await);
    let (cache, mut redis) = (cache(cluster, &names.of("q")).await, cluster.client().await);
    let tag = format!("{{{}}}", names.of("t"));
    let late = names.of("late");
    let _: () = redis.sadd(format!("cache_tag:{tag}"), &late).await.unwrap();
    assert_eq!(prune(&cache, &tag).await, (1, 1));
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
    assert_eq!(get(&mut redis, &late).await, None, "an invalidation reaches it");
}

/// An hour of adds and expiries, compressed: members live 4 s instead of 10 min.
#[tokio::test(flavor = "multi_thread")]
async fn a_churned_tag_of_a_cluster_stays_within_1_2_times_its_live_members() {
    const LIFETIME: Duration = Duration::from_secs(4);
    const ADDS_PER_TICK: u64 = 5;
    let cluster = RedisCluster::start().await;
    let rules = r#"events: { pages.imported: { effects: [ { invalidate_tags: "pages" } ] } }"#;
    let stage = Stage::new(&[("pages.yaml", rules)]).await;
    let urls = cluster.urls();
    let worker =
        stage.worker(&[("UNSTALE_REDIS_MODE", "cluster"), ("UNSTALE_REDIS_URL", &urls)]).await;
    let redis = cluster.client().await;
    let add = async |n: u64| {
        let mut redis = redis.clone();
        let key = format!("page:{n}");
        // A member whose key does not exist yet may be set aside for a minute.
        let _: () = redis.pset_ex(&key, "v", LIFETIME.as_millis() as u64).await.unwrap();
        let _: () = redis.sadd("cache_tag:pages", &key).await.unwrap();
    };
    let start = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let (mut added, mut live, mut samples) = (0, VecDeque::new(), Vec::new());
    while start.elapsed() < LIFETIME * 6 {
        ticks.tick().await;
        join_all((added..added + ADDS_PER_TICK).map(add)).await;
        added += ADDS_PER_TICK;
        live.push_back(Instant::now());
        // Three lifetimes in, it has found out how often to look.
        if start.elapsed() > LIFETIME * 3 {
            let members: u64 = redis.clone().scard("cache_tag:pages").await.unwrap();
            while live.front().is_some_and(|added: &Instant| added.elapsed() > LIFETIME) {
                live.pop_front();
            }
            samples.push(members as f64 / (live.len() as u64 * ADDS_PER_TICK) as f64);
        }
    }
    // One sample in twenty may follow a moment in which a busy machine let nobody look.
    samples.sort_by(f64::total_cmp);
    let most = samples[samples.len() * 95 / 100];
    assert!(
        samples.len() > 50 && most > 0.9 && most < 1.2,
        "{most} times its live members in {} samples of {added} adds",
        samples.len()
    );
    assert!(worker.metrics().await.sum("unstale_pruned_members_total", &[]) > 1_000.0);
    // None that lives was lost, of those that have time to be asked.
    let member = async |n: u64| {
        let mut redis = redis.clone();
        let is_member: bool =
            redis.sismember("cache_tag:pages", format!("page:{n}")).await.unwrap();
        is_member || !redis.exists::<_, bool>(format!("page:{n}")).await.unwrap()
    };
    assert!(join_all((added - 400..added).map(member)).await.into_iter().all(|kept| kept));
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_scans_all_primaries() {
    let cluster = RedisCluster::start().await;
    let mut redis = cluster.client().await;
    for tag in 0..12 {
        for n in 0..5 {
            let _: () = redis.sadd(format!("cache_tag:{tag}"), format!("{tag}:{n}")).await.unwrap();
        }
        let _: () = redis.set(format!("{tag}:0"), "v").await.unwrap();
    }
    let gc = async |args: &'static [&'static str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
        command
            .args(["tags", "gc"])
            .args(args)
            .env_clear()
            .env("UNSTALE_REDIS_MODE", "cluster")
            .env("UNSTALE_REDIS_URL", cluster.urls());
        command.env("UNSTALE_LOG", "warn").stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(
        gc(&["--dry-run"]).await,
        (Some(0), "would remove 48 of 60 members from 12 tags\n".to_owned())
    );
    assert_eq!(gc(&[]).await, (Some(0), "removed 48 of 60 members from 12 tags\n".to_owned()));
    for tag in 0..12 {
        assert_eq!(members(&mut redis, &tag.to_string()).await, [format!("{tag}:0")]);
        assert_eq!(aside(&mut redis, &tag.to_string()).await, 0);
    }
}
