//! The sentinels decide which server the cache works with.

use std::time::Duration;

use unstale::cache::Cache;
use unstale::causes::Explain;
use unstale::config::{RedisConfig, RedisMode, SecretUrl};
use unstale::registry::Action;

use crate::cache::{HOUR, apply, config, effect, run, write};
use crate::support::{self, Redis, Sentinels, port, sentinels, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn watched(urls: &str, master: &str) -> RedisConfig {
    let rest = urls.strip_prefix("redis://").unwrap();
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = hosts
        .rsplit_once('@')
        .map_or((String::new(), hosts), |(user, hosts)| (format!("{user}@"), hosts));
    let urls = hosts
        .split(',')
        .map(|host| SecretUrl::new(format!("redis://{user}{host}/{path}").parse().unwrap()))
        .collect();
    RedisConfig {
        urls,
        mode: RedisMode::Sentinel { master: master.into() },
        ..config("redis://h/")
    }
}

async fn stands(cache: &Cache) {
    wait_until(SOON, "a probe succeeds", async || cache.probe().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_primary_is_given_up_without_any_request() {
    let watch = Sentinels::start().await;
    let cache = Cache::connect(&watched(&watch.urls(), sentinels::NAME), "q").unwrap();
    stands(&cache).await;
    apply(&cache, &[effect(0, "k", write("1", HOUR, &["t"]))]).await;
    assert_eq!(run::<String>(&mut watch.servers[0].connection().await, &["GET", "k"]).await, "1");

    // While it is frozen, it answers no client. After that, it still acts as the primary for a
    // while.
    watch.servers[0].freeze();
    wait_until(SOON, "the replica is the primary", async || watch.is_primary(1).await).await;
    wait_until(SOON, "the cache has left the old primary", async || !cache.state().is_up()).await;
    watch.servers[0].thaw();
    stands(&cache).await;
    apply(&cache, &[effect(0, "k", write("2", HOUR, &["t"]))]).await;
    assert_eq!(run::<String>(&mut watch.servers[1].connection().await, &["GET", "k"]).await, "2");

    wait_until(SOON, "the old primary is a replica", async || !watch.is_primary(0).await).await;
    // And back again, in good order.
    wait_until(SOON, "the sentinels take the order", async || watch.try_fail_over().await).await;
    wait_until(SOON, "the first is the primary again", async || watch.is_primary(0).await).await;
    wait_until(SOON, "the cache works with it", async || {
        stands(&cache).await;
        let effects = [effect(0, "k", Action::Delete), effect(0, "moved", write("3", HOUR, &[]))];
        crate::cache::try_apply(&cache, &effects).await.is_ok()
            && run::<Option<String>>(&mut watch.servers[0].connection().await, &["GET", "moved"])
                .await
                .is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_and_refusals_of_sentinels_are_reported() {
    let nobody = Cache::connect(
        &watched(&format!("redis://127.0.0.1:{},127.0.0.1:{}", port::free(), port::free()), "main"),
        "q",
    )
    .unwrap();
    let away = nobody.probe().await.unwrap_err();
    assert!(!away.needs_person && away.in_full().contains("no sentinel"), "{away}");

    // Any Redis answers SENTINEL with an error.
    let server = Redis::start().await;
    let refused =
        Cache::connect(&watched(&server.url(), "main"), "q").unwrap().probe().await.unwrap_err();
    assert!(refused.needs_person && refused.in_full().contains("sentinel"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_sent_to_servers_and_to_sentinels_that_require_one() {
    let secured = ["--requirepass", "secret", "--masterauth", "secret"];
    let lines = format!("sentinel auth-pass {} secret\nrequirepass secret", sentinels::NAME);
    let watch = Sentinels::start_secured(&secured, &lines, "secret").await;
    let with = |password: &str| {
        watch.urls().replace("redis://", &format!("redis://:{password}@")).replace("/0", "/3")
    };
    let cache = Cache::connect(&watched(&with("secret"), sentinels::NAME), "q").unwrap();
    stands(&cache).await;
    apply(&cache, &[effect(0, "k", write("1", HOUR, &[]))]).await;
    let url = format!("redis://:secret@{}/3", watch.servers[0].addr());
    let mut database = support::redis::connect(&redis::Client::open(url).unwrap()).await.unwrap();
    assert_eq!(run::<String>(&mut database, &["GET", "k"]).await, "1", "the database of the URL");

    let refused = Cache::connect(&watched(&with("wrong"), sentinels::NAME), "q")
        .unwrap()
        .probe()
        .await
        .unwrap_err();
    assert!(refused.needs_person && !refused.in_full().contains("wrong"), "{refused}");
    let unknown =
        Cache::connect(&watched(&with("secret"), "other"), "q").unwrap().probe().await.unwrap_err();
    assert!(
        unknown.needs_person && unknown.in_full().contains("UNSTALE_REDIS_SENTINEL_MASTER"),
        "{unknown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_that_monitor_a_replica_are_reported_after_a_minute() {
    let watch = Sentinels::start_at_replica().await;
    let cache = Cache::connect(&watched(&watch.urls(), sentinels::NAME), "q").unwrap();
    let cause =
        async || cache.probe().await.err().map_or_else(String::new, |error| error.in_full());
    wait_until(SOON, "the replica is reported", async || cause().await.contains("failover")).await;
    wait_until(Duration::from_secs(100), "the advice names the setting", async || {
        cause().await.contains("sentinel monitor")
    })
    .await;
    let replica = format!("127.0.0.1:{}", watch.servers[1].port());
    assert!(cause().await.contains(&replica), "{}", cause().await);
}
