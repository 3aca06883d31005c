//! An outage of Redis fails no event, and ends by itself.

use std::time::Duration;

use unstale::cache::{Cache, CacheError, Outage};
use unstale::causes::Explain;
use unstale::registry::{Action, Effect};

use super::{HOUR, apply, cache, config, effect, run, try_apply, try_run, write};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Redis, wait_until};

fn effects() -> [Effect; 2] {
    [effect(0, "k", Action::Delete), effect(0, "w", write("v", HOUR, &["t"]))]
}

async fn outage(cache: &Cache) -> Outage {
    let outage = try_apply(cache, &effects()).await.unwrap_err();
    assert!(!cache.state().is_up());
    outage
}

async fn recovers(cache: &Cache) {
    wait_until(Duration::from_secs(10), "a probe succeeds", async || cache.probe().await.is_ok())
        .await;
    assert!(cache.state().is_up());
    assert_eq!(apply(cache, &effects()).await.unsettled, []);
}

#[tokio::test]
async fn a_killed_redis_is_an_outage_until_it_returns() {
    let server = Redis::start().await;
    let cache = cache(&server.url(), "q").await;
    apply(&cache, &effects()).await;
    server.kill();
    let lost = outage(&cache).await;
    assert!(!lost.needs_person && lost.in_full().contains("connection"), "{lost}");
    assert!(cache.probe().await.unwrap_err().in_full().contains("refused"));
    server.restart().await;
    assert!(try_apply(&cache, &effects()).await.is_err(), "nothing is applied before a probe");
    recovers(&cache).await;
}

#[tokio::test]
async fn a_frozen_redis_is_given_up_with_all_commands_in_flight() {
    let server = Redis::start().await;
    let cache = cache(&server.url(), "q").await;
    server.freeze();
    let (effects, others) = (effects(), [effect(0, "x", Action::Delete)]);
    let (first, second) = tokio::join!(try_apply(&cache, &effects), try_apply(&cache, &others));
    assert!(first.unwrap_err().in_full().contains("not answered"));
    second.unwrap_err();
    cache.probe().await.unwrap_err();
    server.thaw();
    recovers(&cache).await;
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_is_an_outage() {
    let (server, other) = (Redis::start().await, Redis::start().await);
    let (cache, mut redis) = (cache(&server.url(), "q").await, server.connection().await);
    run::<()>(&mut redis, &["REPLICAOF", "127.0.0.1", &other.port().to_string()]).await;
    let readonly = outage(&cache).await;
    assert!(readonly.in_full().contains("READONLY"), "{readonly}");
    let probed = cache.probe().await.unwrap_err();
    assert!(["READONLY", "LOADING"].iter().any(|code| probed.in_full().contains(code)), "{probed}");
    run::<()>(&mut redis, &["REPLICAOF", "NO", "ONE"]).await;
    recovers(&cache).await;
}

#[tokio::test]
async fn a_redis_out_of_memory_is_an_outage() {
    let server = Redis::start().await;
    let (cache, mut redis) = (cache(&server.url(), "q").await, server.connection().await);
    run::<()>(&mut redis, &["CONFIG", "SET", "maxmemory", "1"]).await;
    for effects in [
        effects().to_vec(),
        vec![effect(0, "t", Action::InvalidateTag)],
        vec![effect(0, "v", Action::BumpVersion)],
    ] {
        let oom = try_apply(&cache, &effects).await.unwrap_err();
        assert!(oom.in_full().contains("OOM"), "{oom}");
        assert!(cache.probe().await.unwrap_err().in_full().contains("OOM"));
        run::<()>(&mut redis, &["CONFIG", "SET", "maxmemory", "0"]).await;
        recovers(&cache).await;
        run::<()>(&mut redis, &["CONFIG", "SET", "maxmemory", "1"]).await;
    }
}

#[tokio::test]
async fn too_few_replicas_are_an_outage() {
    let server = Redis::start().await;
    let (cache, mut redis) = (cache(&server.url(), "q").await, server.connection().await);
    run::<()>(&mut redis, &["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    assert!(outage(&cache).await.in_full().contains("NOREPLICAS"));
    assert!(cache.probe().await.unwrap_err().in_full().contains("NOREPLICAS"));
    run::<()>(&mut redis, &["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    recovers(&cache).await;
}

#[tokio::test]
async fn a_loading_redis_is_an_outage() {
    let server = Redis::start_with(&[
        "--enable-debug-command",
        "yes",
        "--key-load-delay",
        "2000",
        "--loading-process-events-interval-bytes",
        "1024",
    ])
    .await;
    let (cache, mut redis) = (cache(&server.url(), "q").await, server.connection().await);
    run::<()>(&mut redis, &["DEBUG", "POPULATE", "500", "filler", "200"]).await;
    let reload = tokio::spawn(async move {
        // Takes longer than a client waits.
        let _ = try_run::<()>(&mut redis, &["DEBUG", "RELOAD"]).await;
    });
    let mut seen = String::new();
    wait_until(Duration::from_secs(10), "an outage for LOADING", async || {
        let found = match try_apply(&cache, &effects()).await {
            Ok(_) => Ok(()),
            Err(outage) if outage.in_full().contains("LOADING") => Err(outage),
            Err(_) => cache.probe().await,
        };
        seen = found.err().map(|outage| outage.in_full()).unwrap_or_default();
        seen.contains("LOADING")
    })
    .await;
    reload.await.unwrap();
    recovers(&cache).await;
}

#[tokio::test]
async fn wrong_credentials_need_an_operator() {
    let server = Redis::start().await;
    run::<()>(&mut server.connection().await, &["CONFIG", "SET", "requirepass", "right"]).await;
    for (url, code) in
        [(server.url(), "NOAUTH"), (format!("redis://:wrong@{}/0", server.addr()), "credentials")]
    {
        let cache = Cache::connect(&config(&url), "q").unwrap();
        let outage = cache.probe().await.unwrap_err();
        assert!(outage.needs_person && outage.in_full().contains(code), "{outage}");
        assert!(!outage.in_full().contains("wrong@"));
    }
    let other =
        Cache::connect(&config(&format!("redis://:right@{}/99", server.addr())), "q").unwrap();
    let outage = other.probe().await.unwrap_err();
    assert!(
        outage.needs_person
            && outage.in_full().contains("refuses the database in UNSTALE_REDIS_URL"),
        "{outage}"
    );
    recovers(
        &Cache::connect(&config(&format!("redis://:right@{}/0", server.addr())), "q").unwrap(),
    )
    .await;
}

#[tokio::test]
async fn unusable_redis_settings_are_refused_by_name() {
    let mut two = config("redis://h/");
    two.urls.push(two.urls[0].clone());
    assert!(matches!(Cache::connect(&two, "q"), Err(CacheError::Url(_))));
    let error = Cache::connect(&config("redis://:hunter2@h/notadb"), "q").unwrap_err();
    assert!(!error.in_full().contains("hunter2"), "{error}");
    let mut tls = config("rediss://h/");
    tls.tls.cert_pem = Some("x".into());
    assert!(matches!(Cache::connect(&tls, "q"), Err(CacheError::Tls(_))));
}

#[tokio::test]
async fn a_connection_closed_by_redis_is_one_outage() {
    let server = Redis::start().await;
    let (cache, mut redis) = (cache(&server.url(), "q").await, server.connection().await);
    try_run::<()>(&mut redis, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        .await
        .unwrap();
    outage(&cache).await;
    recovers(&cache).await;
}

#[tokio::test]
async fn many_waiting_callers_share_one_probe() {
    let server = Redis::start().await;
    let cache = Cache::connect(&config(&server.url()), "q").unwrap();
    server.freeze();
    let asked = std::time::Instant::now();
    let results = futures_util::future::join_all((0..32).map(|_| cache.probe())).await;
    assert!(results.iter().all(Result::is_err));
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "{:?}: one after the other",
        asked.elapsed()
    );
    server.thaw();
    recovers(&cache).await;
}

/// A node of a cluster may own the probe's slot and not the key's: the probe promises what no work
/// can keep.
#[tokio::test]
async fn a_redis_that_fails_after_good_probes_is_not_flooded() {
    // Without these commands it does not show that it is a node of a cluster.
    let hidden = [
        "--cluster-require-full-coverage",
        "no",
        "--rename-command",
        "INFO",
        "",
        "--rename-command",
        "EXISTS",
        "",
    ];
    let server = crate::support::redis_cluster::lone_node(&hidden).await;
    let mut redis = server.connection().await;
    run::<()>(&mut redis, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    let cache = Cache::connect(&config(&server.url()), "q").unwrap();
    wait_until(Duration::from_secs(10), "the node takes writes", async || {
        cache.probe().await.is_ok()
    })
    .await;
    let slot: i64 = run(&mut redis, &["CLUSTER", "KEYSLOT", "k"]).await;
    run::<()>(&mut redis, &["CLUSTER", "DELSLOTS", &slot.to_string()]).await;
    let since = std::time::Instant::now();
    let mut outages = 0;
    while since.elapsed() < Duration::from_secs(3) {
        if cache.probe().await.is_ok()
            && try_apply(&cache, &[effect(0, "k", Action::BumpVersion)]).await.is_err()
        {
            outages += 1;
        }
    }
    assert!((2..=12).contains(&outages), "{outages} outages in 3 s");
}

/// A cluster of one shard serves every slot, and refuses only what touches two of them.
#[tokio::test]
async fn a_cluster_of_one_shard_is_refused_as_a_single_server() {
    let server = crate::support::redis_cluster::lone_node(&[]).await;
    let mut redis = server.connection().await;
    run::<()>(&mut redis, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    wait_until(Duration::from_secs(10), "the node takes writes", async || {
        redis::cmd("SET").arg("k").arg("v").exec_async(&mut server.connection().await).await.is_ok()
    })
    .await;
    run::<()>(&mut redis, &["ACL", "SETUSER", "worker", "on", ">pw", "~*", "+@all", "-info"]).await;
    for url in [server.url(), format!("redis://worker:pw@{}/0", server.addr())] {
        let outage = Cache::connect(&config(&url), "q").unwrap().probe().await.unwrap_err();
        assert!(
            outage.needs_person && outage.in_full().contains("set UNSTALE_REDIS_MODE=cluster"),
            "{outage}"
        );
    }
    let stage =
        Stage::new(&[("rules.yaml", "events: { del: { effects: [ { delete: k } ] } }")]).await;
    let url = server.url();
    let mut worker = stage.start_worker(&[("UNSTALE_REDIS_URL", &url)]);
    assert_eq!(worker.wait_exit(SOON).await.code(), Some(69), "{}", worker.stderr());
    assert!(worker.stderr().contains("set UNSTALE_REDIS_MODE=cluster"), "{}", worker.stderr());
}

/// Redis takes deletions while it refuses all that needs memory, and they give it memory.
#[tokio::test]
async fn without_memory_a_plain_deletion_takes_effect() {
    let stage =
        Stage::new(&[("rules.yaml", "events: { del: { effects: [ { delete: \"{key}\" } ] } }")])
            .await;
    let mut redis = stage.connection().await;
    let worker = stage.worker(&[]).await;
    run::<()>(&mut redis, &["MSET", "a", "1", "b", "1", "c", "1"]).await;
    run::<()>(&mut redis, &["CONFIG", "SET", "maxmemory", "1"]).await;
    wait_until(SOON, "the worker knows", async || {
        worker
            .get("/readyz")
            .await
            .is_some_and(|(status, cause)| status == 503 && cause.contains("OOM"))
    })
    .await;
    for key in ["a", "b"] {
        stage.publish("del", &format!(r#"{{"key":"{key}"}}"#)).await;
        stage.wait_gone(key).await;
    }
    assert!(stage.exists("c").await);
    // They are acknowledged only once the checkpoint after them is written.
    run::<()>(&mut redis, &["CONFIG", "SET", "maxmemory", "0"]).await;
    stage.publish("del", r#"{"key":"c"}"#).await;
    stage.wait_gone("c").await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0, "{}", worker.stderr());
}
