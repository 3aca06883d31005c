//! An outage of the cluster fails no event, and ends by itself.

use std::time::Duration;

use unstale::cache::{Cache, CacheError};
use unstale::causes::Explain;
use unstale::config::{RedisConfig, SecretUrl};
use unstale::registry::Action;

use super::{cache, config};
use crate::cache::{Names, apply, effect, try_apply};
use crate::support::{self, RedisCluster, wait_until};

/// Events reach all primaries, so the outage of one is an outage of the whole cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_is_an_outage_until_its_replica_takes_over() {
    let cluster = RedisCluster::start_with(Duration::from_secs(3), &[]).await;
    let cache = cache(&cluster, "q").await;
    let effects: Vec<_> = (0..100).map(|n| effect(0, format!("k{n}"), Action::Delete)).collect();
    apply(&cache, &effects).await;
    // The node that was asked first, one of those in the settings.
    cluster.nodes[1].kill();
    let outage = try_apply(&cache, &effects).await.unwrap_err();
    assert!(!outage.needs_person, "{outage}");
    assert!(!cache.state().is_up());
    wait_until(Duration::from_secs(20), "the replica takes writes", async || {
        cache.probe().await.is_ok()
    })
    .await;
    assert_eq!(apply(&cache, &effects).await.unsettled, []);
    cluster.nodes[1].restart().await;
    assert_eq!(apply(&cache, &effects).await.unsettled, []);
}

#[tokio::test]
async fn slots_without_a_node_are_reported() {
    let server =
        crate::support::redis_cluster::lone_node(&["--cluster-require-full-coverage", "no"]).await;
    let mut redis = server.connection().await;
    crate::cache::run::<()>(&mut redis, &["CLUSTER", "ADDSLOTSRANGE", "0", "16000"]).await;
    let settings = RedisConfig {
        urls: vec![SecretUrl::new(server.url().parse().unwrap())],
        ..config(support::redis_cluster().await)
    };
    let cache = Cache::connect(&settings, "q").unwrap();
    let outage = cache.probe().await.unwrap_err();
    assert!(!outage.needs_person && outage.in_full().contains("383"), "{outage}");
    crate::cache::run::<()>(&mut redis, &["CLUSTER", "ADDSLOTSRANGE", "16001", "16383"]).await;
    wait_until(Duration::from_secs(10), "a probe succeeds", async || cache.probe().await.is_ok())
        .await;
    assert_eq!(
        apply(&cache, &[effect(0, Names::new().of("k"), Action::Delete)]).await.unsettled,
        []
    );
}

#[tokio::test]
async fn a_single_server_and_wrong_urls_are_refused_as_a_cluster() {
    let server = support::redis().await;
    let urls = |url: String| vec![SecretUrl::new(url.parse().unwrap())];
    let settings = |url: String| RedisConfig {
        urls: urls(url),
        mode: unstale::config::RedisMode::Cluster,
        ..crate::cache::config("redis://h/")
    };
    let outage = Cache::connect(&settings(server.url()), "q").unwrap().probe().await.unwrap_err();
    assert!(
        outage.needs_person && outage.in_full().contains("check that it is a cluster"),
        "{outage}"
    );
    let error = Cache::connect(&settings(server.db_url(3)), "q").unwrap_err();
    assert!(
        matches!(&error, CacheError::Url(cause) if cause.to_string().contains("database 0")),
        "{error}"
    );
}
