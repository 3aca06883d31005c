//! A load that is overtaken by an invalidation fills nothing.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use tokio::sync::Notify;

use super::stage::{SOON, Stage};
use crate::support::wait_until;

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { catalogue: { url: "{vars.CATALOGUE_URL}", timeout: 30s } }
events:
  page.changed: { effects: [ { warm: "page:{id}", from: "catalogue:/{id}", tags: ["pages"] } ] }
  page.removed: { effects: [ { delete: ["page:{id}", "marker"] } ] }
  pages.imported: { effects: [ { invalidate_tags: "pages" }, { delete: "marker" } ] }
"#;

/// A loader that answers each request when it is told to.
struct Catalogue {
    url: String,
    asked: Arc<Notify>,
    answer: Arc<Notify>,
}

impl Catalogue {
    async fn start() -> Self {
        let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let app = Router::new().route(
            "/{id}",
            get({
                let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
                move || async move {
                    asked.notify_one();
                    answer.notified().await;
                    "loaded before the invalidation"
                }
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, asked, answer }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidation_by_whichever_worker_voids_the_load() {
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let catalogue = Catalogue::start().await;
    let settings = [("UNSTALE_VAR_CATALOGUE_URL", catalogue.url.as_str())];
    let (one, two) = (stage.worker(&settings).await, stage.worker(&settings).await);
    for (id, routing_key) in [(1, "page.removed"), (2, "pages.imported")] {
        let key = format!("page:{id}");
        stage.set(&key, "old").await;
        stage.set("marker", "there").await;
        stage.publish("page.changed", &format!(r#"{{"id":{id}}}"#)).await;
        tokio::time::timeout(SOON, catalogue.asked.notified()).await.expect("the load has begun");
        // The tag reaches the key although the fill, which adds it, is still to come.
        stage.publish(routing_key, &format!(r#"{{"id":{id}}}"#)).await;
        stage.wait_gone("marker").await;
        catalogue.answer.notify_one();
        stage.wait_settled(&[&one, &two]).await;
        assert_eq!(stage.get(&key).await, None, "{routing_key}");
    }
    // Left alone, a load fills.
    stage.publish("page.changed", r#"{"id":3}"#).await;
    catalogue.answer.notify_one();
    wait_until(SOON, "the page is filled", async || stage.exists("page:3").await).await;
    assert_eq!(stage.ready(".dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_events_on_one_key_loads_it_once_a_batch() {
    let stage = Stage::new(&[("pages.yaml", RULES)]).await;
    let catalogue = Catalogue::start().await;
    let settings = [("UNSTALE_VAR_CATALOGUE_URL", catalogue.url.as_str())];
    let once = stage.worker(&settings).await;
    // The backlog forms while nobody consumes, so that it arrives as one batch.
    assert_eq!(once.terminate().await.code(), Some(0));
    for _ in 0..40 {
        stage.publish("page.changed", r#"{"id":1}"#).await;
    }
    for _ in 0..40 {
        catalogue.answer.notify_one();
    }
    let worker = stage.worker(&settings).await;
    wait_until(SOON, "the page is filled", async || {
        catalogue.answer.notify_one();
        stage.exists("page:1").await
    })
    .await;
    wait_until(SOON, "all of it is settled", async || {
        catalogue.answer.notify_one();
        let metrics = worker.metrics().await;
        stage.ready("").await + stage.ready(".slow").await == 0 && metrics.sum("unstale_in_flight", &[]) == 0.0
    })
    .await;
    let slow = worker.metrics().await.sum("unstale_events_total", &[("outcome", "slow")]);
    assert!(slow < 40.0, "{slow} loads for 40 events");
}
