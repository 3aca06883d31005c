//! A batch in a cluster has the same result as its effects one by one.

use proptest::prelude::*;
use redis::AsyncCommands;
use redis::cluster_async::ClusterConnection;
use unstale::cache::Cache;
use unstale::registry::{Action, Effect};

use super::cache;
use crate::cache::apply;
use crate::cache::law::{Dump, any_effects, dump};
use crate::support::RedisCluster;

const KEYS: [&str; 4] = ["a", "b", "{b}", "{c}d"];

/// A cluster of the test's own: the shared one, and its connections, live in another test's
/// runtime.
struct Scene {
    runtime: tokio::runtime::Runtime,
    cluster: RedisCluster,
    cache: Cache,
    client: ClusterConnection,
}

/// A key, whether it holds a number, and which tag it is in.
type Before = Vec<(&'static str, bool, Option<usize>)>;

impl Scene {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let cluster = runtime.block_on(RedisCluster::start());
        let (cache, client) =
            runtime.block_on(async { (cache(&cluster, "q").await, cluster.client().await) });
        Self { runtime, cluster, cache, client }
    }

    /// What is in all three after the effects were applied, all at once or one by one.
    async fn after(&self, before: &Before, effects: &[Effect], together: bool) -> Dump {
        let mut redis = self.client.clone();
        for node in 0..3 {
            self.cluster.ask::<()>(node, &["FLUSHALL"]).await;
        }
        for (key, number, tag) in before {
            let _: () =
                redis.pset_ex(key, if *number { "3" } else { "old" }, 5_000_000).await.unwrap();
            if let Some(tag) = tag {
                let _: () = redis.sadd(["cache_tag:T", "cache_tag:U"][*tag], key).await.unwrap();
            }
        }
        for effects in effects.chunks(if together { effects.len().max(1) } else { 1 }) {
            apply(&self.cache, effects).await;
        }
        let mut all = Dump::new();
        for node in 0..3 {
            all.extend(dump(&mut self.cluster.connection(node).await).await);
        }
        all
    }

    /// Compares both for some cases.
    fn compare(&self, prepare: impl Fn(&mut Vec<Effect>), holds: impl Fn(&Dump, &Dump) -> bool) {
        let before = prop::collection::vec(
            (prop::sample::select(KEYS.to_vec()), prop::bool::ANY, prop::option::of(0..2usize)),
            0..6,
        );
        let config =
            ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let outcome = runner.run(&(before, any_effects(&KEYS, 0..14)), |(before, mut effects)| {
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

#[test]
fn a_batch_in_a_cluster_has_the_same_result_as_its_effects_one_by_one() {
    let unversioned =
        |effects: &mut Vec<Effect>| effects.iter_mut().for_each(|effect| effect.version = None);
    Scene::new().compare(unversioned, |together, singly| together == singly);
}

/// A write that its fence refuses has joined its tags' sets by then, unless a newer one of its
/// batch made it unseen: an invalidation may turn the value that is there into a miss. Never may
/// there be another value, nor another fence.
#[test]
fn a_versioned_batch_leaves_the_same_fences_and_values() {
    // A counter that is such a miss starts anew.
    let without_counters =
        |effects: &mut Vec<Effect>| effects.retain(|effect| effect.action != Action::BumpVersion);
    Scene::new().compare(without_counters, |together, singly| {
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
        fences(together) == fences(singly) && KEYS.iter().all(|key| same(key))
    });
}
