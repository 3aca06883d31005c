//! A batch has the same result as its effects one by one: the tests apply the same effects together
//! and singly, to empty servers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use unstale::cache::{Applied, Cache};
use unstale::plan::EffectOutcome;
use unstale::registry::{Action, Effect, Expiry, LoaderId, Only, Stale, Warm};

use super::deployment::{Client, Deployment, Kind};
use crate::cache::{apply, at, effect, run, write};

super::on_both! {
    blocking:
        a_batch_has_the_same_result_as_its_effects_one_by_one,
        a_versioned_batch_leaves_the_same_fences_and_values;
}

type Dump = BTreeMap<String, (String, Vec<String>, bool)>;

/// Type, content and whether it will go, of every key that is not ours, and of every fence.
async fn dump(connection: &mut MultiplexedConnection) -> Dump {
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

fn any_effect(keys: &[&'static str]) -> impl Strategy<Value = Effect> + use<> {
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
fn any_effects(
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

/// A key, whether it holds a number, and which tag it is in.
type Before = Vec<(&'static str, bool, Option<usize>)>;

/// Contents of Redis afterwards, and the keys that are still to be loaded.
type After = (Dump, BTreeSet<String>);

/// Servers of the test's own, and connections that live in the test's runtime.
struct Scene {
    runtime: tokio::runtime::Runtime,
    on: Deployment,
    cache: Cache,
    client: Client,
    keys: Vec<&'static str>,
}

impl Scene {
    fn new(kind: Kind) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (on, cache, client) = runtime.block_on(async {
            let on = Deployment::own(kind).await;
            let (_, cache, client) = on.scene().await;
            (on, cache, client)
        });
        let keys = match kind {
            Kind::Single => vec!["a", "{b}", "c}d"],
            Kind::Cluster => vec!["a", "b", "{b}", "{c}d"],
        };
        Self { runtime, on, cache, client, keys }
    }

    /// Applies effects to servers that are empty before, all at once or one by one.
    async fn after(&self, before: &Before, effects: &[Effect], together: bool) -> After {
        let mut redis = self.client.clone();
        let mut servers = self.on.servers().await;
        for server in &mut servers {
            run::<()>(server, &["FLUSHALL"]).await;
        }
        for (key, number, tag) in before {
            let _: () =
                redis.pset_ex(key, if *number { "3" } else { "old" }, 5_000_000).await.unwrap();
            if let Some(tag) = tag {
                let _: () = redis.sadd(["cache_tag:T", "cache_tag:U"][*tag], key).await.unwrap();
            }
        }
        let mut to_load = BTreeSet::new();
        for effects in effects.chunks(if together { effects.len().max(1) } else { 1 }) {
            to_load.extend(loads(&apply(&self.cache, effects).await, effects));
        }
        let mut all = Dump::new();
        for server in &mut servers {
            all.extend(dump(server).await);
        }
        (all, to_load)
    }

    /// Compares both for some cases.
    fn compare(
        &self,
        cases: u32,
        targets: &[&'static str],
        prepare: impl Fn(&mut Vec<Effect>),
        holds: impl Fn(&After, &After) -> bool,
    ) {
        let before = prop::collection::vec(
            (prop::sample::select(self.keys.clone()), prop::bool::ANY, prop::option::of(0..2usize)),
            0..6,
        );
        let config =
            ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let targets = [&self.keys, targets].concat();
        let outcome =
            runner.run(&(before, any_effects(&targets, 0..14)), |(before, mut effects)| {
                prepare(&mut effects);
                let both = async {
                    (
                        self.after(&before, &effects, true).await,
                        self.after(&before, &effects, false).await,
                    )
                };
                let (together, singly) = self.runtime.block_on(both);
                prop_assert!(
                    holds(&together, &singly),
                    "together {together:#?}\none by one {singly:#?}"
                );
                Ok(())
            });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    }
}

fn a_batch_has_the_same_result_as_its_effects_one_by_one(kind: Kind) {
    let unversioned =
        |effects: &mut Vec<Effect>| effects.iter_mut().for_each(|effect| effect.version = None);
    Scene::new(kind).compare(96, &[], unversioned, |together, singly| together.0 == singly.0);
}

/// A write that its fence refuses has joined its tags' sets by then in a cluster, unless a newer one
/// of its batch made it unseen: an invalidation may turn the value that is there into a miss. Never
/// may there be another value, nor another fence.
fn a_versioned_batch_leaves_the_same_fences_and_values(kind: Kind) {
    // A counter that is such a miss starts anew.
    let without_counters =
        |effects: &mut Vec<Effect>| effects.retain(|effect| effect.action != Action::BumpVersion);
    let scene = Scene::new(kind);
    scene.compare(96, &[], without_counters, |(together, _), (singly, _)| {
        let fences = |dump: &Dump| {
            dump.iter()
                .filter(|(key, _)| key.starts_with("unstale:"))
                .map(|(key, it)| (key.clone(), it.clone()))
                .collect::<Dump>()
        };
        let same = |key: &str| match (together.get(key), singly.get(key)) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        fences(together) == fences(singly) && scene.keys.iter().all(|key| same(key))
    });
}

/// A single server has no exception, neither for versions nor for a key that is a tag's set.
#[test]
fn any_batch_on_a_single_server_has_the_same_result_as_its_effects_one_by_one() {
    let same = |together: &After, singly: &After| together == singly;
    // A write whose tag Redis refuses is deleted instead, after the batch. So a versioned write of
    // that key in the same batch may be gone: a miss. Such batches are tried without versions.
    let without_versions_beside_a_refused_tag = |effects: &mut Vec<Effect>| {
        if effects.iter().any(|effect| &*effect.target == "cache_tag:T") {
            effects.iter_mut().for_each(|effect| effect.version = None);
        }
    };
    let scene = Scene::new(Kind::Single);
    scene.compare(400, &["cache_tag:T"], without_versions_beside_a_refused_tag, same);
}
