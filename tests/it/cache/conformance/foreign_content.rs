//! Readers may write to leases, generations and the sequence, and leave any content there, without
//! a TTL. None of it stops a tag or a key, and none lets a stale value in.

use std::time::Duration;

use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;
use unstale::cache::{Cache, Claim, FillOutcome, Grant, LoadToken, READER_SCRIPTS, new_token};
use unstale::plan::EffectOutcome;
use unstale::registry::Action;

use super::deployment::{Client, Deployment, Kind};
use crate::cache::{HOUR, apply, at, effect, run, slot, write};

super::on_both! {
    shared:
        a_generation_of_any_content_stops_no_tag_and_lets_no_stale_value_in,
        a_lease_of_any_content_locks_no_key_for_ever,
        a_fence_of_any_content_stops_no_write_for_ever;
    own:
        a_sequence_of_any_content_lets_no_stale_value_in,
        a_sequence_set_back_lets_no_stale_value_in;
}

const LEASE: Duration = Duration::from_secs(30);

/// A key of another type.
const A_SET: &str = "a set";

/// The largest number that the sequence gives.
const LARGEST: &str = "4503599627370495";

/// Contents that a program may leave in a key, without a time to live.
const CONTENTS: [&str; 17] = [
    A_SET,
    "abc",
    "",
    "nan",
    "inf",
    "1e300",
    "-5",
    "1.5",
    "0x10",
    " 7",
    "7",
    "7\n",
    "99999999999999999999999999",
    "9223372036854775807",
    "9007199254740992",
    "4503599627370496",
    LARGEST,
];

async fn leave(redis: &mut Client, key: &str, content: &str) {
    let _: () = redis.del(key).await.unwrap();
    let _: () = if content == A_SET {
        redis.sadd(key, "7").await.unwrap()
    } else {
        redis.set(key, content).await.unwrap()
    };
}

async fn grant(cache: &Cache, key: &str) -> (String, u64) {
    let token = new_token();
    match cache.grant_lease(key, &token, LEASE).await {
        Ok(Grant::Granted { since }) => (token, since),
        other => panic!("{key}: {other:?}"),
    }
}

async fn fill(cache: &Cache, key: &str, (token, since): (String, u64), tag: &str) -> FillOutcome {
    cache.fill(key, &token, since, b"v", HOUR, &[tag.to_owned()]).await.unwrap()
}

/// A fill is refused for as long as a lease may last; the next invalidation sets the generation
/// anew. A drain ends with any content of the generation.
async fn a_generation_of_any_content_stops_no_tag_and_lets_no_stale_value_in(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let (cache, redis) = (&cache, &mut redis);
    for (n, content) in CONTENTS.iter().enumerate() {
        let (tag, key) = (names.of(&format!("t{n}")), names.of(&format!("k{n}")));
        let set = format!("cache_tag:{tag}");
        let generation = format!("unstale:gen/{{{set}}}");
        let granted = grant(cache, &key).await;
        leave(redis, &generation, content).await;
        let filled = fill(cache, &key, granted, &tag).await;
        // 7 may be one of ours.
        if *content != "7" {
            assert_eq!(filled, FillOutcome::Refused, "{content:?}");
            let left: i64 = redis.pttl(&generation).await.unwrap();
            assert!((1..=3_600_000).contains(&left), "{content:?} lasts for {left} ms");
        }

        let members: Vec<String> = (0..600).map(|member| format!("{key}:{member}")).collect();
        let _: () = redis.sadd(&set, &members).await.unwrap();
        let _: () = redis.set(&members[599], "old").await.unwrap();
        leave(redis, &generation, content).await;
        let applied = apply(cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
        assert_eq!(applied.unsettled, [(slot(0), EffectOutcome::Slow)], "{content:?}");
        let number: u64 = redis.get(&generation).await.unwrap();
        assert!((1_000_000_000_000_000..1 << 52).contains(&number), "{content:?}: {number}");
        leave(redis, &generation, content).await;
        let drained = cache.drain_tag(&tag, &CancellationToken::new(), |_, _| {}).await.unwrap();
        let existed = 1 + u64::from(filled == FillOutcome::Filled);
        assert_eq!((drained.complete, drained.existed), (true, existed), "{content:?}");

        leave(redis, &generation, content).await;
        assert_eq!(apply(cache, &[effect(0, &tag, Action::InvalidateTag)]).await.unsettled, []);
        let granted = grant(cache, &key).await;
        assert_eq!(fill(cache, &key, granted, &tag).await, FillOutcome::Filled, "{content:?}");
    }
}

/// A lease that was granted while the sequence held something else is refused its fill after an
/// invalidation.
async fn a_sequence_of_any_content_lets_no_stale_value_in(on: &Deployment) {
    let (_, cache, mut redis) = on.scene().await;
    let (cache, redis) = (&cache, &mut redis);
    for (n, content) in CONTENTS.iter().filter(|content| **content != LARGEST).enumerate() {
        let (tag, key) = (format!("t{n}"), format!("k{n}"));
        for is_wrong_at_the_fill in [false, true] {
            apply(cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
            leave(redis, "unstale:seq", content).await;
            let granted = grant(cache, &key).await;
            apply(cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
            if is_wrong_at_the_fill {
                leave(redis, "unstale:seq", content).await;
            }
            assert_eq!(fill(cache, &key, granted, &tag).await, FillOutcome::Refused, "{content:?}");
        }
        apply(cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
        let granted = grant(cache, &key).await;
        assert_eq!(fill(cache, &key, granted, &tag).await, FillOutcome::Filled, "{content:?}");
    }
}

/// An operator sets the sequence back, or restores that key alone. A lease of before is refused its
/// fill after an invalidation, whose number is above the clock.
async fn a_sequence_set_back_lets_no_stale_value_in(on: &Deployment) {
    let (_, cache, mut redis) = on.scene().await;
    let (cache, redis) = (&cache, &mut redis);
    let micros_ago = |now: u64, micros: u64| (now - micros).to_string();
    for (n, micros) in [1_000, 60_000_000, 86_400_000_000, u64::MAX].into_iter().enumerate() {
        let (tag, key) = (format!("t{n}"), format!("k{n}"));
        apply(cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
        let granted = grant(cache, &key).await;
        let back = if micros == u64::MAX {
            "1000000000000000".to_owned()
        } else {
            micros_ago(granted.1, micros)
        };
        leave(redis, "unstale:seq", &back).await;
        apply(cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
        assert_eq!(fill(cache, &key, granted, &tag).await, FillOutcome::Refused, "{back}");
        let granted = grant(cache, &key).await;
        assert_eq!(fill(cache, &key, granted, &tag).await, FillOutcome::Filled, "{back}");
    }
}

/// No lease and no claim lasts for ever.
async fn a_lease_of_any_content_locks_no_key_for_ever(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let (cache, redis) = (&cache, &mut redis);
    for (n, content) in CONTENTS.iter().enumerate() {
        let key = names.of(&format!("k{n}"));
        let [lease, load, next] =
            ["lease", "load", "next"].map(|kind| format!("unstale:{kind}/{{{key}}}"));
        leave(redis, &lease, content).await;
        let held = cache.grant_lease(&key, "another", LEASE).await;
        assert_eq!(held.unwrap(), Grant::Held, "{content:?}");
        let left: i64 = redis.pttl(&lease).await.unwrap();
        assert!((1..=30_000).contains(&left), "{content:?} lasts for {left} ms");

        leave(redis, &lease, content).await;
        assert!(!cache.release_lease(&key, "another").await.unwrap(), "{content:?}");
        let filled = cache.fill(&key, "another", 0, b"v", HOUR, &[]).await.unwrap();
        assert_eq!(filled, FillOutcome::Refused, "{content:?}");

        let token = LoadToken::new(1, 2, "worker");
        for key in [&load, &next] {
            leave(redis, key, content).await;
        }
        let claim = cache.claim_load(&key, &token, LEASE, true).await.unwrap();
        assert_eq!(claim, Claim::Load, "{content:?}");
        leave(redis, &next, content).await;
        cache.keep_load(&key, &token, LEASE).await.unwrap();
        cache.end_load(&key, &token, Some(LEASE)).await.unwrap();
        leave(redis, &load, content).await;
        cache.keep_load(&key, &token, LEASE).await.unwrap();
        cache.end_load(&key, &token, Some(LEASE)).await.unwrap();
    }
}

/// A fence of another content gives way, and one that refuses a version does not last for ever.
async fn a_fence_of_any_content_stops_no_write_for_ever(on: &Deployment) {
    let (names, cache, mut redis) = on.scene().await;
    let (cache, redis) = (&cache, &mut redis);
    let place = (0xab, 1);
    for (n, content) in CONTENTS
        .into_iter()
        .chain(["8::", "9::", "9:00000000000000ab:", "99:00000000000000ab:1"])
        .enumerate()
    {
        let key = names.of(&format!("k{n}"));
        let fence = format!("unstale:fence/{{{key}}}:family");
        leave(redis, &fence, content).await;
        let value = effect(0, &key, write("v", HOUR, &[]));
        let applied = apply(cache, &[at(("family", "9"), place, value)]).await;
        assert_eq!(applied.unsettled, [], "{content:?}");
        let left: i64 = redis.pttl(&fence).await.unwrap();
        assert!(left > 0, "{content:?} lasts for {left} ms");
        let is_written: bool = redis.exists(&key).await.unwrap();
        assert_eq!(is_written, !["9::", "99:00000000000000ab:1"].contains(&content), "{content:?}");
    }
}

/// The readers' scripts, as any client sends them to a single server. In a cluster they have fewer
/// keys.
#[tokio::test]
async fn a_reader_waits_for_no_lease_for_ever_and_fills_with_no_number_but_ours() {
    let on = Deployment::own(Kind::Single).await;
    let (_, cache, mut redis) = on.scene().await;
    let script =
        |name: &str| READER_SCRIPTS.iter().find(|(published, _)| *published == name).unwrap().1;
    for (n, content) in CONTENTS.iter().filter(|content| **content != LARGEST).enumerate() {
        let (key, tag) = (format!("k{n}"), format!("t{n}"));
        let (lease, set) = (format!("unstale:lease/{{{key}}}"), format!("cache_tag:{tag}"));
        let generation = format!("unstale:gen/{{{set}}}");
        let read =
            ["EVAL", script("read"), "3", &key, &lease, "unstale:seq", "token", "30000", "0"];
        leave(&mut redis, &lease, content).await;
        assert_eq!(run::<Vec<String>>(&mut redis, &read).await, ["held"], "{content:?}");
        let left: i64 = redis.pttl(&lease).await.unwrap();
        assert!((1..=30_000).contains(&left), "{content:?} lasts for {left} ms");

        let _: () = redis.del(&lease).await.unwrap();
        leave(&mut redis, "unstale:seq", content).await;
        let granted: Vec<String> = run(&mut redis, &read).await;
        assert_eq!(granted[0], "lease", "{content:?}");
        apply(&cache, &[effect(0, &tag, Action::InvalidateTag)]).await;
        // In a cluster a client gets the sequence by itself.
        for since in [granted[1].as_str(), content] {
            let join = ["EVAL", script("join"), "2", &set, &generation, &key, since, "PX", "60000"];
            assert_eq!(run::<i64>(&mut redis, &join).await, 0, "{content:?}");
            let _: () = redis.set(&lease, "token").await.unwrap();
            let fill = [
                "EVAL",
                script("fill"),
                "4",
                &key,
                &lease,
                &set,
                &generation,
                "token",
                since,
                "v",
                "PX",
                "60000",
                "60000",
            ];
            assert_eq!(run::<i64>(&mut redis, &fill).await, 0, "{content:?}, {since:?}");
        }
        leave(&mut redis, &lease, content).await;
        let release = ["EVAL", script("release"), "1", &lease, "token"];
        assert_eq!(run::<i64>(&mut redis, &release).await, 0, "{content:?}");
    }
}
