//! The reader on a Redis Cluster, beside a worker in cluster mode: the fill in its three steps, and
//! in one if a hash tag permits.

use futures_util::future::join_all;
use redis::AsyncCommands;
use redis::cluster_async::ClusterConnection;
use unstale_reader::{Options, Outcome, Reader};

use super::{HOUR, Held, Outcomes, Source};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{RedisCluster, Worker, wait_until};

const RULES: &str = r#"
defaults: { ttl: 1h }
events:
  product.changed: { effects: [ { delete: ["product:{id}", "{{shop}}:product:{id}", "product:{{{id}}}", "marker"] } ] }
  products.imported: { effects: [ { invalidate_tags: ["products", "{{shop}}:products"] }, { delete: "marker" } ] }
  product.priced: { effects: [ { write: ["product:{id}", "{{shop}}:product:{id}", "product:{{{id}}}"], value: "new" }, { delete: "marker" } ] }
"#;

/// Forms of a key with a tag: in other slots, in one slot, with a hash tag of the key's own.
const FORMS: [(&str, &str); 3] = [
    ("product:7", "products"),
    ("{shop}:product:7", "{shop}:products"),
    ("product:{7}", "products"),
];

struct Scene {
    cluster: RedisCluster,
    stage: Stage,
    worker: Worker,
    redis: ClusterConnection,
}

impl Scene {
    async fn start() -> Self {
        let cluster = RedisCluster::start().await;
        let stage = Stage::new(&[("products.yaml", RULES)]).await;
        let urls = cluster.urls();
        let worker =
            stage.worker(&[("UNSTALE_REDIS_URL", &urls), ("UNSTALE_REDIS_MODE", "cluster")]).await;
        let redis = cluster.client().await;
        Self { cluster, stage, worker, redis }
    }

    async fn reader(&self, outcomes: &Outcomes) -> Reader<ClusterConnection> {
        Reader::new(self.cluster.client().await, Options { cluster: true, ..outcomes.options() })
    }

    /// Publishes an event and waits until it has taken effect.
    async fn applied(&mut self, event: &str, data: &str) {
        let _: () = self.redis.set("marker", "there").await.unwrap();
        self.stage.publish(event, data).await;
        let redis = &mut self.redis;
        wait_until(SOON, "the event is applied", async || {
            !redis.exists::<_, bool>("marker").await.unwrap()
        })
        .await;
        self.stage.wait_settled(&[&self.worker]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_during_the_load_voids_it_in_a_cluster() {
    let mut scene = Scene::start().await;
    let outcomes = Outcomes::default();
    let reader = scene.reader(&outcomes).await;
    for (key, tag) in FORMS {
        for (event, left) in [
            ("product.changed", None),
            ("products.imported", None),
            ("product.priced", Some("\"new\"")),
        ] {
            for known in [false, true] {
                let what = format!("{key}, {event}, known: {known}");
                let _: () = scene.redis.del(key).await.unwrap();
                let held = Held::default();
                let read = tokio::spawn({
                    let (reader, held) = (reader.clone(), held.clone());
                    async move {
                        let load = || held.load("old");
                        match known {
                            true => reader.get_or_load(key, load, HOUR, [tag]).await,
                            false => {
                                reader
                                    .get_or_load(key, load, HOUR, |_: &Vec<u8>| {
                                        vec![tag.to_owned()]
                                    })
                                    .await
                            }
                        }
                    }
                });
                tokio::time::timeout(SOON, held.begun.notified())
                    .await
                    .expect("the load has begun");
                scene.applied(event, r#"{"id":7}"#).await;
                held.end.notify_one();
                assert_eq!(read.await.unwrap().unwrap().as_deref(), Some(&b"old"[..]), "{what}");
                assert_eq!(outcomes.take(), [Outcome::Void], "{what}");
                assert_eq!(
                    scene.redis.get::<_, Option<String>>(key).await.unwrap().as_deref(),
                    left,
                    "{what}"
                );
            }
        }
        let _: () = scene.redis.del(key).await.unwrap();
        for _ in 0..2 {
            reader
                .get_or_load(key, async || Ok::<_, ()>(Some(b"v".to_vec())), HOUR, [tag])
                .await
                .unwrap();
        }
        assert_eq!(outcomes.take(), [Outcome::Filled, Outcome::Hit], "{key}");
        assert!(
            scene.redis.sismember::<_, _, bool>(format!("cache_tag:{tag}"), key).await.unwrap()
        );
        scene.applied("products.imported", "{}").await;
        assert!(!scene.redis.exists::<_, bool>(key).await.unwrap(), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_costs_one_load_a_key() {
    let mut scene = Scene::start().await;
    let outcomes = Outcomes::default();
    let (reader, source) = (scene.reader(&outcomes).await, Source::default());
    let keys: Vec<String> = (0..300).map(|n| format!("product:{n}")).collect();
    let read_all = async || {
        let reads = (0..3)
            .flat_map(|_| &keys)
            .map(|key| reader.get_or_load(key, || source.load("v"), HOUR, ["products"]));
        assert!(
            join_all(reads)
                .await
                .iter()
                .all(|read| read.as_ref().unwrap().as_deref() == Some(b"v"))
        );
    };
    read_all().await;
    assert_eq!(source.loads(), 300);
    scene.applied("products.imported", "{}").await;
    read_all().await;
    assert_eq!(source.loads(), 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_a_side_key_in_its_slot_is_loaded_and_not_cached() {
    let cluster = RedisCluster::start().await;
    let outcomes = Outcomes::default();
    let reader =
        Reader::new(cluster.client().await, Options { cluster: true, ..outcomes.options() });
    let load = async || Ok::<_, ()>(Some(b"v".to_vec()));
    reader.get_or_load("a}b", load, HOUR, ()).await.unwrap();
    reader.get_or_load("k", load, HOUR, ["a}b"]).await.unwrap();
    assert_eq!(outcomes.take(), [Outcome::Away; 2]);
    let mut redis = cluster.client().await;
    for key in ["a}b", "k", "unstale:lease/{k}"] {
        assert!(!redis.exists::<_, bool>(key).await.unwrap(), "{key}");
    }
}
