//! A batch has the same result as its effects one by one: the tests apply the same effects together
//! and singly, on two databases.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use redis::aio::MultiplexedConnection;
use unstale::cache::Applied;
use unstale::plan::EffectOutcome;
use unstale::registry::{Action, Effect, Expiry, LoaderId, Only, Stale, Warm};

use super::{apply, at, cache, effect, run, write};
use crate::support::{self, Redis};

pub(crate) type Dump = BTreeMap<String, (String, Vec<String>, bool)>;

/// Type, content and whether it will go, of every key that is not ours, and of every fence.
pub(crate) async fn dump(connection: &mut MultiplexedConnection) -> Dump {
    let mut all = BTreeMap::new();
    for key in run::<Vec<String>>(connection, &["KEYS", "*"]).await {
        if key.starts_with("unstale:") && !key.starts_with("unstale:fence") {
            continue;
        }
        let kind: String = run(connection, &["TYPE", &key]).await;
        let mut content: Vec<String> = match kind.as_str() {
            "set" => run(connection, &["SMEMBERS", &key]).await,
            _ => vec![run(connection, &["GET", &key]).await],
        };
        content.sort();
        let expires = run::<i64>(connection, &["PTTL", &key]).await >= 0;
        all.insert(key, (kind, content, expires));
    }
    all
}

pub(crate) fn any_effect(keys: &[&'static str]) -> impl Strategy<Value = Effect> + use<> {
    let key = prop::sample::select(keys.to_vec());
    let tag = prop::sample::select(vec!["T", "U"]);
    let ttl = |seconds| Expiry::After { ttl: Duration::from_secs(seconds), jitter: 0.0 };
    let expiry = prop_oneof![
        3 => (1u64..4).prop_map(move |n| ttl(n * 1_000)),
        1 => Just(Expiry::At(1)),
        1 => (1i64..3).prop_map(|n| Expiry::At(32_503_680_000_000 + n)),
    ];
    let lasting = prop_oneof![4 => expiry.clone(), 1 => Just(Expiry::Never)];
    let tags = prop::sample::subsequence(vec!["T", "U"], 0..=2);
    let text = prop::sample::select(vec!["x", "7"]);
    let version = (
        prop::sample::select(vec!["F", "{G}"]),
        prop::sample::select(vec!["8", "9", "10", "9007199254740992", "9007199254740993"]),
        1u64..3,
        1u32..3,
    );
    let effects = prop_oneof![
        3 => key.clone().prop_map(|key| effect(0, key, Action::Delete)),
        3 => tag.prop_map(|tag| effect(1, tag, Action::InvalidateTag)),
        3 => (key.clone(), any_warm()).prop_map(|(key, action)| effect(5, key, action)),
        2 => key.clone().prop_map(|key| effect(2, key, Action::BumpVersion)),
        2 => (key.clone(), expiry).prop_map(|(key, expiry)| effect(3, key, Action::Expire(expiry))),
        4 => (key, text, lasting, tags).prop_map(|(key, text, expiry, tags)| {
            let tags: Vec<&'static str> = tags;
            effect(4, key, write(text, expiry, &tags))
        }),
    ];
    (effects, prop::option::weighted(0.6, version)).prop_map(|(effect, version)| {
        match (version, &effect.action) {
            (
                Some((family, digits, event, place)),
                Action::Delete | Action::Write(_) | Action::Warm(_),
            ) => at((family, digits), (event, place), effect),
            _ => effect,
        }
    })
}

/// Effects as events have them: one place of an event has one effect for a key, however often the
/// event comes.
pub(crate) fn any_effects(
    keys: &[&'static str],
    count: std::ops::Range<usize>,
) -> impl Strategy<Value = Vec<Effect>> + use<> {
    prop::collection::vec(any_effect(keys), count).prop_map(|effects| {
        let mut kept: Vec<Effect> = Vec::new();
        for effect in effects {
            let place = |effect: &Effect| {
                effect
                    .version
                    .as_ref()
                    .map(|version| (version.family.clone(), version.event, version.place))
            };
            let is_of_one_place = |one: &&Effect| {
                place(one).is_some() && place(one) == place(&effect) && one.target == effect.target
            };
            if kept.iter().find(is_of_one_place).is_none_or(|one| *one == effect) {
                kept.push(effect);
            }
        }
        kept
    })
}

fn any_warm() -> impl Strategy<Value = Action> {
    let stale = prop::sample::select(vec![Stale::Drop, Stale::Serve]);
    (stale, prop::sample::select(vec![Only::Always, Only::Present])).prop_map(|(stale, only)| {
        Action::Warm(Box::new(Warm {
            loader: LoaderId(0),
            url: String::new(),
            expiry: Expiry::Never,
            tags: vec![],
            stale,
            only,
        }))
    })
}

/// The keys that are still to be loaded.
fn loads(applied: &Applied, effects: &[Effect]) -> impl Iterator<Item = String> {
    let slow = applied.unsettled.iter().filter(|(_, outcome)| *outcome == EffectOutcome::Slow);
    slow.map(|(slot, _)| effects[slot.position as usize].target.clone())
}

#[test]
fn a_batch_has_the_same_result_as_its_effects_one_by_one() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(Redis::start());
    let (together, singly) = runtime.block_on(async {
        (cache(&server.db_url(1), "q").await, cache(&server.db_url(2), "q").await)
    });
    let before = prop::collection::vec(
        (
            prop::sample::select(vec!["a", "{b}", "c}d"]),
            prop::bool::ANY,
            prop::option::of(0..2usize),
        ),
        0..6,
    );
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(
            &(before, any_effects(&["a", "{b}", "c}d", "cache_tag:T"], 0..14)),
            |(before, effects)| {
                let (expected, found) = runtime.block_on(async {
                    let mut dumps = Vec::new();
                    for db in [1, 2] {
                        let client = redis::Client::open(server.db_url(db)).unwrap();
                        let mut redis = support::redis::connect(&client).await.unwrap();
                        run::<()>(&mut redis, &["FLUSHDB"]).await;
                        for (key, number, tag) in &before {
                            run::<()>(
                                &mut redis,
                                &["SET", key, if *number { "3" } else { "old" }, "PX", "5000000"],
                            )
                            .await;
                            if let Some(tag) = tag {
                                run::<()>(
                                    &mut redis,
                                    &["SADD", ["cache_tag:T", "cache_tag:U"][*tag], key],
                                )
                                .await;
                            }
                        }
                        let mut to_load = BTreeSet::new();
                        if db == 1 {
                            to_load.extend(loads(&apply(&together, &effects).await, &effects));
                        } else {
                            for effect in &effects {
                                let effect = std::slice::from_ref(effect);
                                to_load.extend(loads(&apply(&singly, effect).await, effect));
                            }
                        }
                        dumps.push((dump(&mut redis).await, to_load));
                    }
                    let found = dumps.remove(0);
                    (dumps.remove(0), found)
                });
                prop_assert_eq!(found, expected);
                Ok(())
            },
        )
        .unwrap();
}
