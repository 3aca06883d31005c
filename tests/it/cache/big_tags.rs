//! Tags of many keys: detached at once, drained in slices, resumed after a crash.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio_util::sync::CancellationToken;
use unstale::plan::EffectOutcome;
use unstale::registry::Action;

use super::{HOUR, Names, apply, cache, effect, run, slot, write};
use crate::support::{self, Redis};

/// Fills a tag's set with that number of keys that exist.
async fn fill_tag(redis: &mut MultiplexedConnection, set: &str, prefix: &str, keys: usize) {
    for first in (0..keys).step_by(10_000) {
        let (mut values, mut members) = (redis::cmd("MSET"), redis::cmd("SADD"));
        members.arg(set);
        for n in first..keys.min(first + 10_000) {
            let key = format!("{prefix}{n}");
            values.arg(&key).arg("v");
            members.arg(key);
        }
        values.exec_async(redis).await.unwrap();
        members.exec_async(redis).await.unwrap();
    }
}

#[tokio::test]
async fn a_tag_of_100_000_keys_is_drained_without_blocking_redis() {
    let server = Redis::start().await;
    let (cache, mut redis) = (cache(&server.url(), "q").await, server.connection().await);
    fill_tag(&mut redis, "cache_tag:big", "key:", 100_000).await;

    let applied = apply(
        &cache,
        &[effect(0, "big", Action::InvalidateTag), effect(0, "big", Action::InvalidateTag)],
    )
    .await;
    assert_eq!(applied.unsettled, [(slot(0), EffectOutcome::Slow), (slot(1), EffectOutcome::Slow)]);
    assert_eq!(run::<u64>(&mut redis, &["EXISTS", "cache_tag:big"]).await, 0, "detached");
    let again = apply(&cache, &[effect(0, "big", Action::InvalidateTag)]).await;
    assert_eq!(
        again.unsettled,
        [(slot(0), EffectOutcome::Slow)],
        "nothing to detach, yet not done before the drain is"
    );
    assert_eq!(
        apply(&cache, &[effect(0, "bi", Action::InvalidateTag)]).await.unsettled,
        [],
        "another tag does not wait"
    );

    // What comes in while it drains is not lost from the index.
    apply(&cache, &[effect(0, "new", write("v", HOUR, &["big"]))]).await;
    let stop = CancellationToken::new();
    let pings = tokio::spawn({
        let (stop, mut redis) = (stop.clone(), server.connection().await);
        async move {
            let (mut count, mut worst) = (0, Duration::ZERO);
            while !stop.is_cancelled() {
                let sent = Instant::now();
                run::<()>(&mut redis, &["PING"]).await;
                (count, worst) = (count + 1, worst.max(sent.elapsed()));
            }
            (count, worst)
        }
    });
    let mut largest = 0;
    let drained = cache
        .drain_tag("big", &CancellationToken::new(), |existed, gone| {
            largest = largest.max(existed + gone)
        })
        .await
        .unwrap();
    stop.cancel();
    let (pings, worst) = pings.await.unwrap();
    assert_eq!((drained.existed, drained.gone, drained.complete), (100_000, 0, true));
    assert!(largest <= 1_000, "a slice of {largest}");
    // What a slice costs is bounded by its size; that others are served between slices, the PINGs
    // show. A tight bound on their time would measure the machine.
    assert!(pings > 20 && worst < Duration::from_secs(1), "{pings} PINGs, the worst {worst:?}");
    assert_eq!(run::<Vec<String>>(&mut redis, &["SMEMBERS", "cache_tag:big"]).await, ["new"]);
    assert_eq!(run::<String>(&mut redis, &["GET", "new"]).await, "v");
    let record = ["EXISTS", "unstale:drains", "unstale:drain/{cache_tag:big}"];
    assert_eq!(run::<u64>(&mut redis, &record).await, 0, "the record is dropped");
    assert_eq!(apply(&cache, &[effect(0, "big", Action::InvalidateTag)]).await.unsettled, []);
}

#[tokio::test]
async fn another_worker_finishes_a_drain() {
    // A server of its own: what is left over is drained by any worker.
    let (names, server) = (Names::new(), Redis::start().await);
    let queue = names.of("q");
    let (first, mut redis) = (cache(&server.url(), &queue).await, server.connection().await);
    let (tag, prefix) = (names.of("t"), names.of("k"));
    let set = format!("cache_tag:{tag}");
    fill_tag(&mut redis, &set, &prefix, 2_000).await;
    assert!(first.invalidate_tag(&tag).await.unwrap().draining);
    fill_tag(&mut redis, &set, &format!("{prefix}again"), 700).await;
    assert!(first.invalidate_tag(&tag).await.unwrap().draining);

    let cancel = CancellationToken::new();
    let partly = first.drain_tag(&tag, &cancel, |_, _| cancel.cancel()).await.unwrap();
    assert!(!partly.complete && partly.existed > 0, "{partly:?}");
    drop(first);

    let second = cache(&server.url(), &queue).await;
    let rest = second.drain_all(&CancellationToken::new(), |_, _| {}).await.unwrap();
    assert!(rest.complete);
    assert_eq!(partly.existed + rest.existed, 2_700);
    assert_eq!(
        run::<u64>(
            &mut redis,
            &[
                "EXISTS",
                &format!("{prefix}0"),
                &format!("{prefix}1999"),
                &format!("{prefix}again1")
            ]
        )
        .await,
        0
    );
    assert_eq!(run::<Vec<String>>(&mut redis, &["KEYS", "unstale:drain*"]).await, [""; 0]);
}

#[tokio::test]
async fn an_invalidation_from_any_queue_waits_for_the_drain_of_its_tag() {
    let (names, server) = (Names::new(), support::redis().await);
    let (one, other) = (
        cache(&server.url(), &names.of("q")).await,
        cache(&server.url(), &names.of("another q")).await,
    );
    let mut redis = server.connection().await;
    let (tag, last) = (names.of("t"), names.of("k599"));
    fill_tag(&mut redis, &format!("cache_tag:{tag}"), &names.of("k"), 600).await;
    assert!(one.invalidate_tag(&tag).await.unwrap().draining);
    let again = apply(&other, &[effect(0, &tag, Action::InvalidateTag)]).await;
    assert_eq!(
        again.unsettled,
        [(slot(0), EffectOutcome::Slow)],
        "done only once the members are gone"
    );
    assert!(other.drain_tag(&tag, &CancellationToken::new(), |_, _| {}).await.unwrap().complete);
    assert_eq!(run::<u64>(&mut redis, &["EXISTS", &last]).await, 0);
    assert!(!one.invalidate_tag(&tag).await.unwrap().draining);
}

#[tokio::test]
async fn a_drain_whose_record_was_evicted_is_found_by_its_tag() {
    let server = Redis::start().await;
    let (cache, mut redis) = (cache(&server.url(), "q").await, server.connection().await);
    fill_tag(&mut redis, "cache_tag:t", "k", 600).await;
    assert!(cache.invalidate_tag("t").await.unwrap().draining);
    assert_eq!(run::<u64>(&mut redis, &["DEL", "unstale:drain/{cache_tag:t}"]).await, 1);
    let drained = cache.drain_tag("t", &CancellationToken::new(), |_, _| {}).await.unwrap();
    assert_eq!((drained.existed, drained.lost), (600, 0));
    assert_eq!(run::<u64>(&mut redis, &["EXISTS", "k0", "k599"]).await, 0);
    assert_eq!(run::<Vec<String>>(&mut redis, &["KEYS", "unstale:drain*"]).await, [""; 0]);
}

#[tokio::test]
async fn a_drain_reports_an_evicted_detached_set() {
    let server = Redis::start().await;
    let (cache, mut redis) = (cache(&server.url(), "q").await, server.connection().await);
    fill_tag(&mut redis, "cache_tag:t", "k", 600).await;
    cache.invalidate_tag("t").await.unwrap();
    let detached = run::<Vec<String>>(&mut redis, &["KEYS", "unstale:drain/{cache_tag:t}:*"]).await;
    assert_eq!(run::<u64>(&mut redis, &["DEL", &detached[0]]).await, 1);
    let drained = cache.drain_all(&CancellationToken::new(), |_, _| {}).await.unwrap();
    assert_eq!((drained.existed, drained.lost), (0, 1));
    assert_eq!(
        cache.drain_tag("t", &CancellationToken::new(), |_, _| {}).await.unwrap().lost,
        0,
        "told once"
    );
    assert_eq!(run::<Vec<String>>(&mut redis, &["KEYS", "unstale:drain*"]).await, [""; 0]);
}

#[tokio::test]
async fn two_workers_may_drain_the_same_tag() {
    let (names, server) = (Names::new(), support::redis().await);
    let (one, other) =
        (cache(&server.url(), &names.of("q")).await, cache(&server.url(), &names.of("q")).await);
    let mut redis = server.connection().await;
    let tag = names.of("t");
    fill_tag(&mut redis, &format!("cache_tag:{tag}"), &names.of("k"), 5_000).await;
    one.invalidate_tag(&tag).await.unwrap();
    let cancel = CancellationToken::new();
    let (a, b) = tokio::join!(
        one.drain_tag(&tag, &cancel, |_, _| {}),
        other.drain_tag(&tag, &cancel, |_, _| {})
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(a.complete && b.complete);
    assert_eq!(a.existed + b.existed, 5_000);
}

#[tokio::test]
async fn many_small_tags_take_several_calls() {
    let (names, server) = (Names::new(), support::redis().await);
    let (cache, mut redis) =
        (cache(&server.url(), &names.of("q")).await, server.connection().await);
    let tags: Vec<String> = (0..9).map(|n| names.of(&format!("tag{n}"))).collect();
    for tag in &tags {
        fill_tag(&mut redis, &format!("cache_tag:{tag}"), &format!("{tag}:"), 400).await;
    }
    let no_set = names.of("no set");
    run::<()>(&mut redis, &["SET", &format!("cache_tag:{no_set}"), "text"]).await;
    // Of two rules in turn, and one that Redis refuses among them.
    let mut effects: Vec<_> =
        (0..).zip(&tags).map(|(n, tag)| effect(n % 2, tag, Action::InvalidateTag)).collect();
    effects.insert(2, effect(0, &no_set, Action::InvalidateTag));
    let applied = apply(&cache, &effects).await;
    let [(slot, EffectOutcome::Dead { .. })] = applied.unsettled.as_slice() else {
        panic!("{:?}", applied.unsettled)
    };
    assert_eq!(slot.position, 2);
    let hits: Vec<_> = applied.hits.iter().map(|hits| (hits.rule.0, hits.yes, hits.no)).collect();
    assert_eq!(hits, [(0, 5 * 400, 0), (1, 4 * 400, 0)]);
    for tag in &tags {
        let (first, last, set) =
            (format!("{tag}:0"), format!("{tag}:399"), format!("cache_tag:{tag}"));
        assert_eq!(run::<u64>(&mut redis, &["EXISTS", &first, &last, &set]).await, 0, "{tag}");
    }
}

/// An event of many middle-sized tags leaves other clients their turns.
#[tokio::test]
async fn a_thousand_tags_are_not_deleted_in_one_call() {
    const TAGS: usize = 1_000;
    const MEMBERS: usize = 400;
    let server = Redis::start().await;
    let (cache, mut redis) = (cache(&server.url(), "q").await, server.connection().await);
    let fill = "for t = 1, tonumber(ARGV[1]) do for m = 1, tonumber(ARGV[2]) do \
                local key = 'k' .. t .. ':' .. m redis.call('SET', key, 'v') redis.call('SADD', 'cache_tag:t' .. t, key) end end";
    let mut script = redis::cmd("EVAL");
    script.arg(fill).arg(0).arg(TAGS).arg(MEMBERS);
    script.exec_async(&mut redis).await.unwrap();
    let effects: Vec<_> =
        (1..=TAGS).map(|tag| effect(0, format!("t{tag}"), Action::InvalidateTag)).collect();
    let stop = CancellationToken::new();
    let others = std::thread::spawn({
        let (client, stop) = (server.client(), stop.clone());
        move || {
            let mut redis = client.get_connection().unwrap();
            let (mut turns, mut worst) = (0, Duration::ZERO);
            while !stop.is_cancelled() {
                let sent = Instant::now();
                redis::cmd("PING").exec(&mut redis).unwrap();
                (turns, worst) = (turns + 1, worst.max(sent.elapsed()));
            }
            (turns, worst)
        }
    });
    let start = Instant::now();
    let applied = apply(&cache, &effects).await;
    let took = start.elapsed();
    stop.cancel();
    let (turns, worst) = others.join().unwrap();
    assert_eq!(applied.unsettled, []);
    assert_eq!(applied.hits[0].yes, (TAGS * MEMBERS) as u64);
    assert_eq!(run::<Vec<String>>(&mut redis, &["KEYS", "k*"]).await, [""; 0]);
    // A tight bound on their time would measure the machine.
    assert!(turns > 250, "{turns} turns in {took:?}, the worst {worst:?}");
}
