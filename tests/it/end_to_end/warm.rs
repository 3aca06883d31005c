//! Loads that an invalidation overtakes: they fill nothing and run again. One key has one load at a
//! time.

use std::collections::HashMap;
use std::time::Duration;

use unstale::cache::{Cache, Grant, new_token};
use unstale::config::{RedisConfig, RedisMode, SecretUrl, TlsConfig};
use unstale::registry::Expiry;

use super::catalogue::Catalogue;
use super::stage::{SOON, Stage};
use crate::support::wait_until;

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { catalogue: { url: "{vars.CATALOGUE_URL}", timeout: 30s } }
events:
  page.changed: { effects: [ { warm: "page:{id}", from: "catalogue:/{id}", tags: ["pages"] }, { delete: "marker:{n?}" } ] }
  page.removed: { effects: [ { delete: ["page:{id}", "marker:0"] } ] }
  pages.imported: { effects: [ { invalidate_tags: "pages" }, { delete: "marker:0" } ] }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidation_by_whichever_worker_voids_the_load_and_it_is_made_again() {
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let catalogue = Catalogue::gated().await;
    let settings = [("UNSTALE_VAR_CATALOGUE_URL", catalogue.url.as_str())];
    let (one, two) = (stage.worker(&settings).await, stage.worker(&settings).await);
    for (id, routing_key) in [("1", "page.removed"), ("2", "pages.imported")] {
        let key = format!("page:{id}");
        stage.set(&key, "old").await;
        stage.set("marker:0", "there").await;
        catalogue.set(id, "before");
        stage.publish("page.changed", &format!(r#"{{"id":{id}}}"#)).await;
        catalogue.wait_asked(id, 1).await;
        // The tag reaches the key although the fill, which adds it, is still to come.
        catalogue.set(id, "after");
        stage.publish(routing_key, &format!(r#"{{"id":{id}}}"#)).await;
        stage.wait_gone("marker:0").await;
        catalogue.answer(1);
        catalogue.wait_asked(id, 2).await;
        assert_eq!(
            stage.get(&key).await,
            None,
            "{routing_key}: what was loaded before is thrown away"
        );
        catalogue.answer(1);
        stage.wait_settled(&[&one, &two]).await;
        assert_eq!(stage.get(&key).await.as_deref(), Some("after"), "{routing_key}");
        assert_eq!((catalogue.loads(id), catalogue.most_at_once(id)), (2, 1));
    }
    // A key that is deleted meanwhile stays deleted.
    catalogue.set("3", "before");
    stage.publish("page.changed", r#"{"id":3}"#).await;
    catalogue.wait_asked("3", 1).await;
    catalogue.remove("3");
    stage.set("marker:0", "there").await;
    stage.publish("page.removed", r#"{"id":3}"#).await;
    stage.wait_gone("marker:0").await;
    catalogue.answer(2);
    stage.wait_settled(&[&one, &two]).await;
    assert_eq!((stage.get("page:3").await, catalogue.loads("3")), (None, 2));
    assert_eq!(stage.ready(".dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_is_loaded_once_at_a_time_and_as_often_as_needed() {
    const EVENTS: usize = 200;
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let catalogue = Catalogue::gated().await;
    let settings = [
        ("UNSTALE_VAR_CATALOGUE_URL", catalogue.url.as_str()),
        ("UNSTALE_BATCH", "4"),
        ("UNSTALE_WARM_CONCURRENCY", "2"),
    ];
    let (one, two) = (stage.worker(&settings).await, stage.worker(&settings).await);
    catalogue.set("1", "0");
    stage.publish("page.changed", r#"{"id":1}"#).await;
    catalogue.wait_asked("1", 1).await;
    for n in 1..=EVENTS {
        catalogue.set("1", &n.to_string());
        stage.set(&format!("marker:{n}"), "there").await;
        stage.publish("page.changed", &format!(r#"{{"id":1,"n":{n}}}"#)).await;
    }
    for n in 1..=EVENTS {
        stage.wait_gone(&format!("marker:{n}")).await;
    }
    // All deletions took effect during the first load. All others are done except the one that
    // waits for it. They delay nothing: another key has a turn.
    wait_until(SOON, "at most two of them are left", async || {
        let in_hand = one.metrics().await.sum("unstale_in_flight", &[])
            + two.metrics().await.sum("unstale_in_flight", &[]);
        in_hand <= 2.0 && stage.ready("").await + stage.ready(".slow").await == 0
    })
    .await;
    catalogue.set("2", "other");
    stage.publish("page.changed", r#"{"id":2}"#).await;
    catalogue.wait_asked("2", 1).await;
    assert_eq!(catalogue.loads("1"), 1);
    catalogue.answer(EVENTS);
    stage.wait_settled(&[&one, &two]).await;
    assert_eq!(stage.get("page:1").await, Some(EVENTS.to_string()));
    assert_eq!(
        (catalogue.loads("1"), catalogue.most_at_once("1")),
        (2, 1),
        "one that was overtaken, and one for all that came since"
    );
    assert_eq!(stage.get("page:2").await.as_deref(), Some("other"));
    assert_eq!(stage.ready(".dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_middle_of_a_load_is_followed_soon() {
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let catalogue = Catalogue::gated().await;
    let settings = [("UNSTALE_VAR_CATALOGUE_URL", catalogue.url.as_str())];
    let first = stage.worker(&settings).await;
    catalogue.set("1", "value");
    stage.publish("page.changed", r#"{"id":1}"#).await;
    catalogue.wait_asked("1", 1).await;
    let second = stage.worker(&settings).await;
    let killed = std::time::Instant::now();
    first.kill();
    // The same load is requested once more meanwhile. Neither may depend on a dead worker.
    stage.publish("page.changed", r#"{"id":1,"n":1}"#).await;
    catalogue.wait_asked("1", 2).await;
    assert!(
        killed.elapsed() < Duration::from_secs(20),
        "far below the loader's 30 s: {:?}",
        killed.elapsed()
    );
    catalogue.answer(10);
    stage.wait_settled(&[&second]).await;
    assert_eq!(stage.get("page:1").await.as_deref(), Some("value"));
    assert!(
        catalogue.loads("1") <= 3 && catalogue.most_at_once("1") <= 2,
        "{}",
        catalogue.loads("1")
    );
}

async fn reader(stage: &Stage) -> Cache {
    let config = RedisConfig {
        urls: vec![SecretUrl::new(stage.redis.url().parse().unwrap())],
        mode: RedisMode::Single,
        tls: TlsConfig::default(),
        tag_prefix: "cache_tag:".into(),
        fence_ttl: Duration::from_secs(86_400),
    };
    let cache = Cache::connect(&config, "reader").unwrap();
    cache.probe().await.unwrap();
    cache
}

#[tokio::test(flavor = "multi_thread")]
async fn a_readers_load_counts_and_is_waited_for_without_a_place() {
    const LEASE: Duration = Duration::from_secs(60);
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let catalogue = Catalogue::gated().await;
    let worker = stage
        .worker(&[("UNSTALE_VAR_CATALOGUE_URL", &catalogue.url), ("UNSTALE_WARM_CONCURRENCY", "1")])
        .await;
    let reader = reader(&stage).await;
    let hour = Expiry::After { ttl: Duration::from_secs(3_600), jitter: 0.0 };
    for (id, fills, expected, loads) in
        [("1", true, "by the reader", 0), ("2", false, "by the worker", 1)]
    {
        let (key, before, behind) = (format!("page:{id}"), format!("{id}00"), format!("{id}01"));
        catalogue.set(id, "by the worker");
        catalogue.set(&before, "another");
        catalogue.set(&behind, "another");
        stage.publish("page.changed", &format!(r#"{{"id":{before}}}"#)).await;
        catalogue.wait_asked(&before, 1).await;
        // The load has the only place. The tested one is deleted, and waits in line.
        stage.set("marker:1", "there").await;
        stage.publish("page.changed", &format!(r#"{{"id":{id},"n":1}}"#)).await;
        stage.wait_gone("marker:1").await;
        let token = new_token();
        let Grant::Granted { since } = reader.grant_lease(&key, &token, LEASE).await.unwrap()
        else {
            panic!("nobody loads it yet")
        };
        stage.publish("page.changed", &format!(r#"{{"id":{behind}}}"#)).await;
        catalogue.answer(1);
        catalogue.wait_asked(&behind, 1).await;
        assert_eq!(catalogue.loads(id), 0, "the reader loads it, and the place went to another");
        if fills {
            reader.fill(&key, &token, since, b"by the reader", hour, &[]).await.unwrap();
        } else {
            reader.release_lease(&key, &token).await.unwrap();
        }
        catalogue.answer(1 + loads);
        stage.wait_settled(&[&worker]).await;
        assert_eq!(stage.get(&key).await.as_deref(), Some(expected));
        assert_eq!(catalogue.loads(id), loads);
    }
}

/// Sources change, events follow, loads take time, and tags are invalidated in between. Once an
/// event's deletion took effect, no value loaded earlier is read any more. In the end the cache has
/// the last value.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_loaded_before_an_invalidation_is_read_after_it() {
    const KEYS: u64 = 4;
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let catalogue = Catalogue::open(60).await;
    let settings = [
        ("UNSTALE_VAR_CATALOGUE_URL", catalogue.url.as_str()),
        ("UNSTALE_RETRY_DELAYS", "50ms,100ms,200ms"),
    ];
    let (one, two) = (stage.worker(&settings).await, stage.worker(&settings).await);
    let mut holds: HashMap<u64, u64> = HashMap::new();
    for n in 1..=400_u64 {
        let id = fastrand::u64(0..KEYS);
        let marker = format!("marker:{n}");
        catalogue.set(&id.to_string(), &n.to_string());
        stage.set(&marker, "there").await;
        stage.publish("page.changed", &format!(r#"{{"id":{id},"n":{n}}}"#)).await;
        if fastrand::u8(0..10) == 0 {
            stage.publish("pages.imported", "{}").await;
        }
        if fastrand::bool() {
            stage.wait_gone(&marker).await;
            holds.insert(id, n);
        }
        for (id, n) in &holds {
            let read = stage.get(&format!("page:{id}")).await;
            assert!(
                read.as_ref().is_none_or(|read| read.parse::<u64>().unwrap() >= *n),
                "page:{id} is {read:?}, and {n} took effect"
            );
        }
    }
    stage.wait_settled(&[&one, &two]).await;
    for id in 0..KEYS {
        let id = id.to_string();
        let read = stage.get(&format!("page:{id}")).await;
        assert!(
            catalogue.most_at_once(&id) <= 1,
            "page:{id}: {} loads at once",
            catalogue.most_at_once(&id)
        );
        // A tag that was invalidated last leaves a miss, if the load had ended before.
        if let Some(read) = read {
            let (code, now) = crate::support::worker::http_get(
                catalogue.url.trim_start_matches("http://"),
                &format!("/{id}"),
            )
            .await
            .unwrap();
            assert_eq!((code, now.trim()), (200, read.as_str()));
        }
    }
    assert_eq!(stage.ready(".dead").await, 0);
}

/// An overtaken load would run again, and a waiting load would run later. Both continue in the slow
/// lane of the next worker, at no cost.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_the_load_under_way_and_begins_no_other() {
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let catalogue = Catalogue::gated().await;
    let settings =
        [("UNSTALE_VAR_CATALOGUE_URL", catalogue.url.as_str()), ("UNSTALE_WARM_CONCURRENCY", "1")];
    let mut first = stage.worker(&settings).await;
    catalogue.set("1", "before");
    catalogue.set("2", "another");
    stage.publish("page.changed", r#"{"id":1}"#).await;
    catalogue.wait_asked("1", 1).await;
    stage.publish("page.changed", r#"{"id":2}"#).await;
    stage.set("marker:0", "there").await;
    catalogue.set("1", "after");
    stage.publish("page.removed", r#"{"id":1}"#).await;
    stage.wait_gone("marker:0").await;
    wait_until(SOON, "both are in the slow lane", async || {
        first.metrics().await.sum("unstale_in_flight", &[]) >= 2.0
    })
    .await;
    first.signal("TERM");
    wait_until(SOON, "it is told to", async || first.stderr().contains("SIGTERM")).await;
    catalogue.answer(1);
    let told = std::time::Instant::now();
    assert_eq!(first.wait_exit(SOON).await.code(), Some(0), "{}", first.stderr());
    assert!(told.elapsed() < Duration::from_secs(15), "it took {:?}", told.elapsed());
    assert_eq!((catalogue.loads("1"), catalogue.loads("2"), stage.ready(".slow").await), (1, 0, 2));
    assert_eq!(stage.highest_delivery_count(&format!("{}.slow", stage.queue)).await, 0);
    catalogue.answer(2);
    let second = stage.worker(&settings).await;
    wait_until(SOON, "the pages are warm", async || {
        stage.exists("page:1").await && stage.exists("page:2").await
    })
    .await;
    stage.wait_settled(&[&second]).await;
    assert_eq!(stage.get("page:1").await.as_deref(), Some("after"));
    assert_eq!((catalogue.loads("1"), catalogue.loads("2")), (2, 1));
    assert_eq!(stage.ready(".dead").await, 0);
    let blamed = second.metrics().await.sum("unstale_retries_total", &[]);
    assert!(blamed.abs() < f64::EPSILON, "an attempt was spent");
}
