//! Every verb, alone and combined.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use redis::AsyncCommands;

use super::stage::{SOON, Stage};
use crate::support::wait_until;

const SHOP: &str = r#"
defaults: { ttl: 1h }
loaders:
  catalogue: { url: "{vars.CATALOGUE_URL}" }
events:
  user.deleted:
    effects: [ { delete: ["user:{id}", "user:{id}:profile"] } ]
  products.imported:
    effects: [ { invalidate_tags: "products" } ]
  prices.changed:
    effects: [ { bump_version: "prices:version" } ]
  article.corrected:
    effects: [ { expire: "article:{id}", ttl: 30s } ]
  user.renamed:
    effects:
      - write: "user:{id}:name"
        value: { id: "{id}", name: "{name}" }
        tags: ["users"]
  page.changed:
    effects: [ { warm: "page:{id}", from: "catalogue:/pages/{id}", tags: ["pages"] } ]
  shop.closed:
    effects:
      - delete: "shop:{id}"
      - invalidate_tags: "shop:{id}"
      - bump_version: "shop:{id}:version"
      - expire: "shop:{id}:hours"
        ttl: 5s
      - write: "shop:{id}:state"
        value: "closed"
        encoding: raw
      - warm: "shop:{id}:page"
        from: "catalogue:/pages/{id}"
"#;

async fn catalogue() -> String {
    let app = Router::new()
        .route(
            "/pages/{id}",
            get(|axum::extract::Path(id): axum::extract::Path<String>| async move {
                format!("<h1>{id}</h1>")
            }),
        )
        .route("/pages/gone", get(|| async { StatusCode::NOT_FOUND }))
        .route("/pages/refused", get(|| async { StatusCode::FORBIDDEN }))
        .route("/pages/broken", get(|| async { StatusCode::SERVICE_UNAVAILABLE }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn each_verb_changes_what_it_says() {
    let stage = Stage::new(&[("shop.yaml", SHOP)]).await;
    let catalogue = catalogue().await;
    let worker = stage
        .worker(&[("UNSTALE_VAR_CATALOGUE_URL", &catalogue), ("UNSTALE_RETRY_DELAYS", "100ms")])
        .await;
    let mut redis = stage.connection().await;

    for key in ["user:1", "user:1:profile", "user:2", "a", "b", "page:7"] {
        stage.set(key, "old").await;
    }
    let _: () = redis.sadd("cache_tag:products", &["a", "b"]).await.unwrap();
    let _: () = redis.set_ex("article:1", "old", 3_600).await.unwrap();
    let _: () = redis.set_ex("article:2", "old", 10).await.unwrap();

    stage.publish("user.deleted", r#"{"id":1}"#).await;
    stage.wait_gone("user:1").await;
    stage.wait_gone("user:1:profile").await;
    assert!(stage.exists("user:2").await);

    stage.publish("products.imported", "{}").await;
    stage.wait_gone("cache_tag:products").await;
    assert!(!stage.exists("a").await && !stage.exists("b").await);

    for version in ["2", "3"] {
        stage.publish("prices.changed", "{}").await;
        wait_until(SOON, "the counter is bumped", async || {
            stage.get("prices:version").await.as_deref() == Some(version)
        })
        .await;
    }

    for id in ["1", "2"] {
        stage.publish("article.corrected", &format!(r#"{{"id":{id}}}"#)).await;
    }
    wait_until(SOON, "the TTL is shortened", async || {
        let ttl: i64 = stage.connection().await.pttl("article:1").await.unwrap();
        (26_000..=30_000).contains(&ttl)
    })
    .await;
    let ttl: i64 = redis.pttl("article:2").await.unwrap();
    assert!(ttl <= 10_000, "never lengthened: {ttl}");

    stage.publish("user.renamed", r#"{"id":3,"name":"Zoë"}"#).await;
    wait_until(SOON, "the value is written", async || {
        stage.get("user:3:name").await.as_deref() == Some(r#"{"id":3,"name":"Zoë"}"#)
    })
    .await;
    let ttl: i64 = redis.pttl("user:3:name").await.unwrap();
    assert!((3_230_000..=3_600_000).contains(&ttl), "{ttl}");
    let tagged: bool = redis.sismember("cache_tag:users", "user:3:name").await.unwrap();
    assert!(tagged);

    stage.publish("page.changed", r#"{"id":7}"#).await;
    wait_until(SOON, "the page is warmed", async || {
        stage.get("page:7").await.as_deref() == Some("<h1>7</h1>")
    })
    .await;
    let tagged: bool = redis.sismember("cache_tag:pages", "page:7").await.unwrap();
    assert!(tagged);
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0, "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_verbs_of_one_event_take_hold() {
    let stage = Stage::new(&[("shop.yaml", SHOP)]).await;
    let catalogue = catalogue().await;
    let worker = stage.worker(&[("UNSTALE_VAR_CATALOGUE_URL", &catalogue)]).await;
    let mut redis = stage.connection().await;
    for key in ["shop:9", "shelf:1", "shop:9:hours", "shop:9:page"] {
        stage.set(key, "old").await;
    }
    let _: () = redis.sadd("cache_tag:shop:9", "shelf:1").await.unwrap();
    let _: () = redis.set("shop:9:version", 41).await.unwrap();

    stage.publish("shop.closed", r#"{"id":9}"#).await;
    wait_until(SOON, "the page is warmed", async || {
        stage.get("shop:9:page").await.as_deref() == Some("<h1>9</h1>")
    })
    .await;
    assert!(
        !stage.exists("shop:9").await
            && !stage.exists("shelf:1").await
            && !stage.exists("cache_tag:shop:9").await
    );
    assert_eq!(stage.get("shop:9:version").await.as_deref(), Some("42"));
    assert_eq!(stage.get("shop:9:state").await.as_deref(), Some("closed"));
    let ttl: i64 = redis.pttl("shop:9:hours").await.unwrap();
    assert!((1..=5_000).contains(&ttl), "{ttl}");
    stage.wait_settled(&[&worker]).await;
    assert_eq!(worker.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loader_that_fails_leaves_a_miss_and_a_dead_letter() {
    let stage = Stage::new(&[("shop.yaml", SHOP)]).await;
    let catalogue = catalogue().await;
    let worker = stage
        .worker(&[
            ("UNSTALE_VAR_CATALOGUE_URL", &catalogue),
            ("UNSTALE_RETRY_DELAYS", "50ms,100ms"),
        ])
        .await;
    for id in ["gone", "refused", "broken"] {
        stage.set(&format!("page:{id}"), "old").await;
        stage.publish("page.changed", &format!(r#"{{"id":"{id}"}}"#)).await;
    }
    let mut letters: Vec<(String, String, String)> = stage
        .dead_letters(2)
        .await
        .iter()
        .map(|letter| {
            let body = String::from_utf8_lossy(&letter.body).into_owned();
            (
                body,
                letter.header("unstale-reason").unwrap(),
                letter.header("unstale-attempt").unwrap(),
            )
        })
        .collect();
    letters.sort();
    let expected = [
        (r#"{"id":"broken"}"#, "attempts_exhausted", "3"),
        (r#"{"id":"refused"}"#, "loader_refused", "1"),
    ];
    assert_eq!(
        letters,
        expected.map(|(body, reason, attempt)| (
            body.to_owned(),
            reason.to_owned(),
            attempt.to_owned()
        ))
    );
    for id in ["gone", "refused", "broken"] {
        assert!(!stage.exists(&format!("page:{id}")).await, "a miss, not a stale page");
    }
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0);
    let metrics = worker.metrics().await;
    assert_eq!(
        metrics.sum("unstale_effects_total", &[("verb", "warm")]),
        1.0,
        "the effect on the missing page is counted once"
    );
    assert_eq!(metrics.sum("unstale_retries_total", &[]), 2.0);
    assert_eq!(metrics.sum("unstale_dead_total", &[]), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_of_what_cannot_be_done_are_done() {
    let rules = r#"
events:
  mixed:
    effects:
      - delete: "first:{id}"
      - delete: "second:{absent}"
      - bump_version: "text"
      - delete: "third:{id}"
"#;
    let stage = Stage::new(&[("mixed.yaml", rules)]).await;
    let _worker = stage.worker(&[]).await;
    for key in ["first:1", "third:1"] {
        stage.set(key, "old").await;
    }
    stage.set("text", "not a counter").await;
    stage.publish("mixed", r#"{"id":1}"#).await;
    stage.wait_gone("first:1").await;
    stage.wait_gone("third:1").await;
    let letters = stage.dead_letters(1).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].header("unstale-reason").as_deref(), Some("unresolvable"));
    assert_eq!(letters[0].body, br#"{"id":1}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_of_100_000_keys_is_drained_by_whoever_is_left() {
    let rules = "events: { big.changed: { effects: [ { invalidate_tags: big } ] } }";
    let stage = Stage::new(&[("big.yaml", rules)]).await;
    let mut redis = stage.connection().await;
    for chunk in 0..100 {
        let mut pipe = redis::pipe();
        let keys: Vec<String> = (0..1_000).map(|n| format!("k:{chunk}:{n}")).collect();
        for key in &keys {
            pipe.set(key, "old").ignore();
        }
        pipe.sadd("cache_tag:big", keys).ignore();
        let _: () = pipe.query_async(&mut redis).await.unwrap();
    }
    let victim = stage.worker(&[]).await;
    stage.publish("big.changed", "{}").await;
    wait_until(SOON, "the drain has begun", async || {
        stage.connection().await.dbsize_now().await < 99_000
    })
    .await;
    victim.kill();
    let _heir = stage.worker(&[]).await;
    wait_until(SOON, "every member is gone", async || {
        let keys: Vec<String> = stage.connection().await.keys("k:*").await.unwrap();
        keys.is_empty()
    })
    .await;
    wait_until(SOON, "no trace of the tag is left", async || {
        let keys: Vec<String> = stage.connection().await.keys("*").await.unwrap();
        !keys.iter().any(|key| key.starts_with("unstale:drain") || key == "cache_tag:big")
    })
    .await;
    assert_eq!(stage.ready(".dead").await, 0);
}

trait DbSize {
    async fn dbsize_now(&mut self) -> i64;
}

impl DbSize for redis::aio::MultiplexedConnection {
    async fn dbsize_now(&mut self) -> i64 {
        redis::cmd("DBSIZE").query_async(self).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_without_a_set_is_a_miss() {
    let stage = Stage::new(&[(
        "user.yaml",
        r#"events: { user.updated: { effects: [ { invalidate_tags: "{tags[]}" } ] } }"#,
    )])
    .await;
    let mut redis = stage.connection().await;
    let () =
        redis::pipe().sadd("cache_tag:a", "k1").set("k1", 1).query_async(&mut redis).await.unwrap();
    let worker = stage.worker(&[]).await;
    stage.publish("user.updated", r#"{"tags":["a","none","nor"]}"#).await;
    stage.wait_gone("k1").await;
    let counted = async |hit| {
        worker
            .metrics()
            .await
            .sum("unstale_keys_total", &[("verb", "invalidate_tags"), ("hit", hit)])
    };
    wait_until(SOON, "they are counted", async || {
        (counted("yes").await, counted("no").await) == (1.0, 2.0)
    })
    .await;
}
