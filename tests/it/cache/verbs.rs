//! Each verb has its documented effect in Redis.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use unstale::cache::KeyHits;
use unstale::plan::EffectOutcome;
use unstale::registry::{Action, Expiry, LoaderId, Only, RuleId, Stale, Warm};

use super::{HOUR, Names, apply, cache, effect, run, slot, write};
use crate::support;

const MINUTE: Expiry = Expiry::After { ttl: Duration::from_secs(60), jitter: 0.0 };

fn hits(rule: u32, yes: u64, no: u64) -> KeyHits {
    KeyHits { rule: RuleId(rule), yes, no }
}

#[tokio::test]
async fn delete_counts_existing_keys_by_rule() {
    let (names, server) = (Names::new(), support::redis().await);
    let (cache, mut redis) =
        (cache(&server.url(), &names.of("q")).await, server.connection().await);
    for key in ["a", "b", "c"] {
        run::<()>(&mut redis, &["SET", &names.of(key), "1"]).await;
    }
    let effects = [
        effect(1, names.of("a"), Action::Delete),
        effect(0, names.of("b"), Action::Delete),
        effect(1, names.of("gone"), Action::Delete),
        effect(1, names.of("a"), Action::Delete),
    ];
    let applied = apply(&cache, &effects).await;
    assert_eq!(applied.unsettled, []);
    assert_eq!(applied.hits, [hits(0, 1, 0), hits(1, 1, 2)]);
    assert_eq!(
        run::<u64>(&mut redis, &["EXISTS", &names.of("a"), &names.of("b"), &names.of("c")]).await,
        1
    );
}

#[tokio::test]
async fn bump_version_starts_at_two_and_adds_up() {
    let (names, server) = (Names::new(), support::redis().await);
    let (cache, mut redis) =
        (cache(&server.url(), &names.of("q")).await, server.connection().await);
    let bump = effect(0, names.of("v"), Action::BumpVersion);
    assert_eq!(apply(&cache, std::slice::from_ref(&bump)).await.hits, [hits(0, 0, 1)]);
    assert_eq!(run::<u64>(&mut redis, &["GET", &names.of("v")]).await, 2);
    assert_eq!(apply(&cache, &[bump.clone(), bump.clone(), bump]).await.hits, [hits(0, 1, 2)]);
    assert_eq!(run::<u64>(&mut redis, &["GET", &names.of("v")]).await, 5);
    assert_eq!(run::<i64>(&mut redis, &["PTTL", &names.of("v")]).await, -1);
}

#[tokio::test]
async fn expire_shortens_and_never_lengthens() {
    let (names, server) = (Names::new(), support::redis().await);
    let (cache, mut redis) =
        (cache(&server.url(), &names.of("q")).await, server.connection().await);
    let now =
        i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    for (before, expiry, low, high) in [
        ("-1", MINUTE, 50_000, 60_000),
        ("30000", MINUTE, 20_000, 30_000),
        ("90000", MINUTE, 50_000, 60_000),
        ("-1", Expiry::At(now + 45_000), 35_000, 45_000),
        ("-1", Expiry::At(now - 1), -2, -2),
        ("-1", Expiry::At(-1), -2, -2),
    ] {
        let key = names.of("e");
        run::<()>(&mut redis, &["SET", &key, "1"]).await;
        if before != "-1" {
            run::<()>(&mut redis, &["PEXPIRE", &key, before]).await;
        }
        apply(&cache, &[effect(0, &key, Action::Expire(expiry))]).await;
        let after: i64 = run(&mut redis, &["PTTL", &key]).await;
        assert!((low..=high).contains(&after), "{before} {expiry:?}: {after}");
    }
}

#[tokio::test]
async fn write_sets_value_lifetime_and_tags() {
    let (names, server) = (Names::new(), support::redis().await);
    let (cache, mut redis) =
        (cache(&server.url(), &names.of("q")).await, server.connection().await);
    let (key, tag) = (names.of("w"), names.of("t"));
    let set = format!("cache_tag:{tag}");
    for (expiry, tags, ttl_of_key, ttl_of_set) in [
        // A new set lives as long as its first member, then as long as its longest, then for good.
        (MINUTE, vec![tag.as_str()], 60_000, 60_000),
        (HOUR, vec![&tag], 3_600_000, 3_600_000),
        (MINUTE, vec![&tag], 60_000, 3_600_000),
        (Expiry::Never, vec![&tag], -1, -1),
        (MINUTE, vec![&tag], 60_000, -1),
        (Expiry::Never, vec![], -1, -1),
    ] {
        apply(&cache, &[effect(0, &key, write("v", expiry, &tags))]).await;
        assert_eq!(run::<String>(&mut redis, &["GET", &key]).await, "v");
        assert_eq!(run::<Vec<String>>(&mut redis, &["SMEMBERS", &set]).await, [key.as_str()]);
        for (name, expected) in [(&key, ttl_of_key), (&set, ttl_of_set)] {
            let ttl: i64 = run(&mut redis, &["PTTL", name]).await;
            assert!(
                ttl == expected || (expected > 0 && (expected - 10_000..=expected).contains(&ttl)),
                "{expiry:?} {name}: {ttl}"
            );
        }
    }
    apply(&cache, &[effect(0, &key, write("v", Expiry::At(1), &[]))]).await;
    assert_eq!(
        run::<u64>(&mut redis, &["EXISTS", &key]).await,
        0,
        "a value that is over leaves none"
    );
}

#[tokio::test]
async fn invalidate_tags_deletes_members_and_set() {
    let (names, server) = (Names::new(), support::redis().await);
    let (cache, mut redis) =
        (cache(&server.url(), &names.of("q")).await, server.connection().await);
    let (key, other, tag) = (names.of("k"), names.of("o"), names.of("t"));
    let set = format!("cache_tag:{tag}");
    run::<()>(&mut redis, &["MSET", &key, "1", &other, "1"]).await;
    run::<()>(&mut redis, &["SADD", &set, &key, "gone-before"]).await;
    let applied = apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
    assert_eq!((applied.unsettled, applied.hits), (vec![], vec![hits(0, 1, 1)]));
    assert_eq!(run::<u64>(&mut redis, &["EXISTS", &key, &set]).await, 0);
    assert_eq!(run::<u64>(&mut redis, &["EXISTS", &other]).await, 1);
}

#[tokio::test]
async fn warm_deletes_now_and_leaves_the_load_to_the_slow_lane() {
    let (names, server) = (Names::new(), support::redis().await);
    let (cache, mut redis) =
        (cache(&server.url(), &names.of("q")).await, server.connection().await);
    run::<()>(&mut redis, &["SET", &names.of("k"), "old"]).await;
    let warm = Action::Warm(Box::new(Warm {
        loader: LoaderId(0),
        url: "http://x/".into(),
        expiry: HOUR,
        tags: vec![],
        stale: Stale::Drop,
        only: Only::Always,
    }));
    let applied = apply(&cache, &[effect(0, names.of("k"), warm)]).await;
    assert_eq!(applied.unsettled, [(slot(0), EffectOutcome::Slow)]);
    assert_eq!(run::<u64>(&mut redis, &["EXISTS", &names.of("k")]).await, 0);
}

#[tokio::test]
async fn batches_of_many_chunks_take_effect_in_the_order_of_their_first_poll() {
    let (names, server) = (Names::new(), support::redis().await);
    let (cache, mut redis) =
        (cache(&server.url(), &names.of("q")).await, server.connection().await);
    let write_all: Vec<_> =
        (0..3_000).map(|n| effect(0, names.of(&n.to_string()), write("v", HOUR, &["t"]))).collect();
    let delete_all: Vec<_> =
        (0..3_000).map(|n| effect(1, names.of(&n.to_string()), Action::Delete)).collect();
    let (written, deleted) = tokio::join!(apply(&cache, &write_all), apply(&cache, &delete_all));
    assert_eq!(written.hits, [hits(0, 0, 3_000)]);
    assert_eq!(deleted.hits, [hits(1, 3_000, 0)]);
    assert_eq!(run::<u64>(&mut redis, &["EXISTS", &names.of("0"), &names.of("2999")]).await, 0);
}

/// A worker spawns what it applies.
#[tokio::test]
async fn a_plan_can_be_applied_on_another_thread() {
    let server = support::redis().await;
    let cache = std::sync::Arc::new(cache(&server.url(), "q").await);
    let key = Names::new().of("k");
    let task = tokio::spawn(async move {
        let effects = [effect(0, key, Action::Delete)];
        apply(&cache, &effects).await.unsettled.len()
    });
    assert_eq!(task.await.unwrap(), 0);
}

#[tokio::test]
async fn a_script_flush_does_not_disturb_a_batch() {
    let (names, server) = (Names::new(), support::redis().await);
    let (cache, mut redis) =
        (cache(&server.url(), &names.of("q")).await, server.connection().await);
    for round in ["1", "2"] {
        let effects = [
            effect(0, names.of("a"), write(round, HOUR, &["t"])),
            effect(0, names.of("b"), write(round, HOUR, &["t"])),
            effect(0, names.of("other"), Action::InvalidateTag),
        ];
        assert_eq!(apply(&cache, &effects).await.unsettled, []);
        assert_eq!(
            run::<Vec<String>>(&mut redis, &["MGET", &names.of("a"), &names.of("b")]).await,
            [round, round]
        );
        run::<()>(&mut redis, &["SCRIPT", "FLUSH"]).await;
    }
}
