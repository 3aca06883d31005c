//! The options `stale` and `only` of a `warm`.

use super::catalogue::Catalogue;
use super::stage::{SOON, Stage};
use crate::support::{Worker, wait_until};

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { catalogue: { url: "{vars.CATALOGUE_URL}", timeout: 30s } }
events:
  served.changed: { effects: [ { warm: "served:{id}", from: "catalogue:/{id}", stale: serve } ] }
  served.removed: { effects: [ { delete: "served:{id}" } ] }
  present.changed: { effects: [ { warm: "present:{id}", from: "catalogue:/{id}", only: present } ] }
  both.changed: { effects: [ { warm: "both:{id}", from: "catalogue:/{id}", stale: serve, only: present } ] }
"#;

async fn start(catalogue: &Catalogue) -> (Stage, Worker) {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let settings = [
        ("UNSTALE_VAR_CATALOGUE_URL", catalogue.url.as_str()),
        ("UNSTALE_RETRY_DELAYS", "50ms,100ms,200ms"),
    ];
    let worker = stage.worker(&settings).await;
    (stage, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_value_is_served_until_the_new_one_is_there() {
    let catalogue = Catalogue::gated().await;
    let (stage, worker) = start(&catalogue).await;
    stage.set("served:1", "old").await;
    catalogue.set("1", "new");
    stage.publish("served.changed", r#"{"id":1}"#).await;
    catalogue.wait_asked("1", 1).await;
    assert_eq!(stage.get("served:1").await.as_deref(), Some("old"));
    let left_ms: i64 = redis::cmd("PTTL")
        .arg("served:1")
        .query_async(&mut stage.connection().await)
        .await
        .unwrap();
    assert!(
        (60_000..120_000).contains(&left_ms),
        "whatever becomes of the worker, it is not served for ever: {left_ms} ms"
    );
    catalogue.answer(1);
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.get("served:1").await.as_deref(), Some("new"));

    // A deletion deletes. A running load is dropped.
    catalogue.set("2", "before");
    stage.set("served:2", "old").await;
    stage.publish("served.changed", r#"{"id":2}"#).await;
    catalogue.wait_asked("2", 1).await;
    catalogue.set("2", "after");
    stage.publish("served.removed", r#"{"id":2}"#).await;
    stage.wait_gone("served:2").await;
    catalogue.answer(1);
    catalogue.wait_asked("2", 2).await;
    assert_eq!(stage.get("served:2").await, None);
    catalogue.answer(1);
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.get("served:2").await.as_deref(), Some("after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_value_is_served_no_longer_once_loading_has_failed_for_good() {
    let catalogue = Catalogue::open(0).await;
    let (stage, worker) = start(&catalogue).await;
    for (id, code, dead) in [("1", 404, 0), ("2", 400, 1), ("3", 503, 1)] {
        let key = format!("served:{id}");
        stage.set(&key, "old").await;
        catalogue.fail_with(code);
        stage.publish("served.changed", &format!(r#"{{"id":{id}}}"#)).await;
        stage.wait_gone(&key).await;
        stage.wait_settled(&[&worker]).await;
        assert_eq!(stage.ready(".dead").await, dead, "{code}");
        let reasons: Vec<_> = stage
            .dead_letters(dead)
            .await
            .iter()
            .map(|letter| letter.header("unstale-reason").unwrap())
            .collect();
        assert!(
            reasons.iter().all(|reason| reason
                == if code == 400 { "loader_refused" } else { "attempts_exhausted" }),
            "{reasons:?}"
        );
    }
    assert_eq!(catalogue.loads("3"), 4, "served while the ladder was climbed");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_cached_is_warmed() {
    let catalogue = Catalogue::open(0).await;
    let (stage, worker) = start(&catalogue).await;
    for (event, cached, expected) in [
        ("present", true, Some("new")),
        ("present", false, None),
        ("both", true, Some("new")),
        ("both", false, None),
    ] {
        let id = format!("{event}-{cached}");
        let key = format!("{event}:{id}");
        catalogue.set(&id, "new");
        if cached {
            stage.set(&key, "old").await;
        }
        stage.publish(&format!("{event}.changed"), &format!(r#"{{"id":"{id}"}}"#)).await;
        wait_until(SOON, "it is as it should be", async || {
            catalogue.loads(&id) == usize::from(cached)
                && stage.get(&key).await.as_deref() == expected
        })
        .await;
        stage.wait_settled(&[&worker]).await;
        assert_eq!(
            (catalogue.loads(&id), stage.get(&key).await.as_deref()),
            (usize::from(cached), expected),
            "{id}"
        );
    }
    // By the second attempt the key is gone, but it was cached before.
    catalogue.set("7", "new");
    catalogue.fail_with(503);
    stage.set("present:7", "old").await;
    stage.publish("present.changed", r#"{"id":7}"#).await;
    catalogue.wait_asked("7", 1).await;
    catalogue.fail_with(None);
    wait_until(SOON, "the retry loads it", async || {
        stage.get("present:7").await.as_deref() == Some("new")
    })
    .await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0);
}
