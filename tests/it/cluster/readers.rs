//! Readers with leases beside invalidations, while slots move and primaries are replaced. A read is
//! never older than the last invalidation that had taken effect when it began.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use unstale::cache::Cache;
use unstale::registry::{Action, Effect};
use unstale_reader::{Options, Outcome, Reader};

use super::cache;
use crate::cache::{effect, try_apply};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{RedisCluster, wait_until};

const KEYS: usize = 24;
const TAGS: usize = 4;
const READERS: usize = 12;
const HOUR: Duration = Duration::from_secs(3_600);

fn key(n: usize) -> String {
    format!("page:{n}")
}

fn tag(n: usize) -> String {
    format!("shelf:{}", n % TAGS)
}

/// What keys are loaded from: how often each has changed, and the change whose invalidation has
/// taken effect.
#[derive(Default)]
struct Source {
    changes: [AtomicU64; KEYS],
    invalidated: [AtomicU64; KEYS],
    stale: Mutex<Vec<String>>,
    outcomes: Mutex<Vec<Outcome>>,
    ended: AtomicBool,
}

impl Source {
    /// Changes a row, or all of a tag, and invalidates; over and over.
    async fn change(&self, cache: &Cache) {
        while !self.ended.load(SeqCst) {
            let n = fastrand::usize(..KEYS);
            let whole_tag = fastrand::u8(..3) == 0;
            let changed = (0..KEYS)
                .filter(|&other| if whole_tag { tag(other) == tag(n) } else { other == n });
            let changed: Vec<(usize, u64)> =
                changed.map(|n| (n, self.changes[n].fetch_add(1, SeqCst) + 1)).collect();
            let invalidation = if whole_tag {
                effect(0, tag(n), Action::InvalidateTag)
            } else {
                effect(0, key(n), Action::Delete)
            };
            apply(cache, &[invalidation]).await;
            changed.into_iter().for_each(|(n, change)| self.invalidated[n].store(change, SeqCst));
        }
    }

    /// Reads whose outcome is known.
    fn reads(&self) -> usize {
        self.outcomes.lock().unwrap().len()
    }

    /// Returns whether later reads have found a value, have cached one, and have lost one to an
    /// invalidation.
    fn saw_all_from(&self, read: usize) -> bool {
        let outcomes = self.outcomes.lock().unwrap();
        [Outcome::Hit, Outcome::Filled, Outcome::Void]
            .iter()
            .all(|expected| outcomes[read..].contains(expected))
    }

    async fn read(&self, reader: &Reader<redis::cluster_async::ClusterConnection>, n: usize) {
        let least = self.invalidated[n].load(SeqCst);
        let load = async || {
            let change = self.changes[n].load(SeqCst);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..8))).await;
            Ok::<_, ()>(Some(change.to_string().into_bytes()))
        };
        let value = reader.get_or_load(&key(n), load, HOUR, [tag(n)]).await.unwrap().unwrap();
        let value: u64 = String::from_utf8(value).unwrap().parse().unwrap();
        if value < least {
            self.stale.lock().unwrap().push(format!(
                "{}: change {value} was read after {least} had been invalidated",
                key(n)
            ));
        }
    }
}

/// As a worker does, repeats after an outage the work that the outage interrupted.
async fn apply(cache: &Cache, effects: &[Effect]) {
    while try_apply(cache, effects).await.is_err() {
        while cache.probe().await.is_err() {}
    }
}

/// Reads and invalidates while `trouble` goes on.
async fn nothing_stale_is_read_while(cluster: &RedisCluster, trouble: impl AsyncFnOnce(&Source)) {
    let source = Arc::new(Source::default());
    let cache = cache(cluster, "q").await;
    let observe = {
        let source = Arc::clone(&source);
        Arc::new(move |outcome| source.outcomes.lock().unwrap().push(outcome))
    };
    let options = Options { cluster: true, observe: Some(observe), ..Options::default() };
    let reader = Reader::new(cluster.client().await, options);
    let reading = join_all((0..READERS).map(|_| async {
        while !source.ended.load(SeqCst) {
            source.read(&reader, fastrand::usize(..KEYS)).await;
        }
    }));
    let trouble = async {
        trouble(&source).await;
        wait_until(SOON, "readers hit, fill, and are overtaken", async || source.saw_all_from(0))
            .await;
        source.ended.store(true, SeqCst);
    };
    tokio::join!(source.change(&cache), reading, trouble);
    for n in 0..KEYS {
        source.read(&reader, n).await;
    }
    assert_eq!(*source.stale.lock().unwrap(), <[String; 0]>::default());
}

const PAGES: &str = r#"
events:
  page.changed:
    effects: [ { invalidate_tags: "shelf:{shelf}" }, { delete: "page:{id}" } ]
"#;

/// The replica that takes over may lack what its primary had confirmed: leases that were void,
/// values that were gone. Once the worker has applied all, and is ready again, nothing of that is
/// left at the keys that its events name.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_stale_is_left_when_a_primary_is_killed() {
    let cluster = RedisCluster::start_with(Duration::from_secs(3), &[]).await;
    let stage = Stage::new(&[("pages.yaml", PAGES)]).await;
    let mut worker = stage
        .worker(&[("UNSTALE_REDIS_MODE", "cluster"), ("UNSTALE_REDIS_URL", &cluster.urls())])
        .await;
    let source = Arc::new(Source::default());
    let reader = async || {
        let source = Arc::clone(&source);
        let observe = Arc::new(move |outcome| source.outcomes.lock().unwrap().push(outcome));
        Reader::new(
            cluster.client().await,
            Options { cluster: true, observe: Some(observe), ..Options::default() },
        )
    };
    let changes = async {
        while !source.ended.load(SeqCst) {
            let n = fastrand::usize(..KEYS);
            source.changes[n].fetch_add(1, SeqCst);
            let body = format!(r#"{{"id":{n},"shelf":{}}}"#, n % TAGS);
            stage
                .send(&stage.exchange, "page.changed", Default::default(), body.as_bytes())
                .await
                .await
                .unwrap();
        }
    };
    let first = reader().await;
    let reading = join_all((0..READERS).map(|_| async {
        while !source.ended.load(SeqCst) {
            source.read(&first, fastrand::usize(..KEYS)).await;
        }
    }));
    let trouble = async {
        wait_until(SOON, "readers hit, fill, and are overtaken", async || source.saw_all_from(0))
            .await;
        cluster.nodes[1].kill();
        wait_until(SOON, "the replica has taken its place", async || {
            let replication: String = cluster.ask(4, &["INFO", "replication"]).await;
            replication.contains("role:master")
                && cluster.ask::<String>(0, &["CLUSTER", "INFO"]).await.contains("cluster_state:ok")
        })
        .await;
        // On a new connection: one that saw a primary die may never recover.
        source.outcomes.lock().unwrap().clear();
        let second = reader().await;
        wait_until(SOON, "readers do so again", async || {
            join_all((0..READERS).map(|_| source.read(&second, fastrand::usize(..KEYS)))).await;
            source.saw_all_from(0)
        })
        .await;
        source.ended.store(true, SeqCst);
    };
    tokio::join!(changes, reading, trouble);
    stage.wait_settled(&[&worker]).await;
    worker.wait_ready().await;
    let last = reader().await;
    for n in 0..KEYS {
        source.invalidated[n].store(source.changes[n].load(SeqCst), SeqCst);
        source.read(&last, n).await;
    }
    assert_eq!(*source.stale.lock().unwrap(), <[String; 0]>::default(), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stale_is_read_while_slots_move() {
    let cluster = RedisCluster::start().await;
    let moves = async |source: &Source| {
        let mover = cluster.mover().await;
        let names = (0..KEYS)
            .map(key)
            .chain((0..TAGS).map(|n| format!("cache_tag:{}", tag(n))))
            .chain(["unstale:seq".to_owned()]);
        for name in names {
            let slot = cluster.slot(&name).await;
            let from = cluster.owner(slot, 0).await;
            for (from, to) in [(from, (from + 1) % 3), ((from + 1) % 3, from)] {
                mover.begin(slot, from, to).await;
                let reads = source.reads();
                wait_until(SOON, "both are asked for a while", async || {
                    source.reads() >= reads + READERS
                })
                .await;
                mover.end(slot, from, to).await;
            }
        }
    };
    nothing_stale_is_read_while(&cluster, moves).await;
}

/// Each primary hands over to its replica, and no write is lost, since readers cannot prevent the
/// losses of a failover.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_stale_is_read_while_primaries_are_replaced() {
    let cluster = RedisCluster::start().await;
    let replacements = async |source: &Source| {
        for replica in 3..6 {
            let reads = source.reads();
            cluster.ask::<()>(replica, &["CLUSTER", "FAILOVER"]).await;
            wait_until(SOON, "it is a primary, and all know", async || {
                for node in 0..6 {
                    let nodes: String = cluster.ask(node, &["CLUSTER", "NODES"]).await;
                    let id = cluster.id(replica).await;
                    if !nodes.lines().any(|line| line.starts_with(&id) && line.contains("master")) {
                        return false;
                    }
                }
                true
            })
            .await;
            wait_until(SOON, "readers hit, fill, and are overtaken again", async || {
                source.saw_all_from(reads)
            })
            .await;
        }
    };
    nothing_stale_is_read_while(&cluster, replacements).await;
}
