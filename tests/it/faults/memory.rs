//! A Redis that refuses all that needs memory, and takes deletions.

use crate::end_to_end::catalogue::Catalogue;
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Worker, wait_until};

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { catalogue: { url: "{vars.CATALOGUE_URL}", timeout: 30s } }
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  page.changed: { effects: [ { warm: "page:{id}", from: "catalogue:/{id}", only: present } ] }
  list.changed: { effects: [ { each: "data.xs.filter(p, p > 9)", delete: "list:{item}" } ] }
  state.changed: { effects: [ { write: "state:{id}", value: "{n}", encoding: raw } ] }
"#;

async fn start() -> (Stage, Catalogue, Worker) {
    let catalogue = Catalogue::open(0).await;
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let worker = worker(&stage, &catalogue).await;
    (stage, catalogue, worker)
}

async fn worker(stage: &Stage, catalogue: &Catalogue) -> Worker {
    stage.worker(&[("UNSTALE_VAR_CATALOGUE_URL", catalogue.url.as_str())]).await
}

async fn limit_memory(stage: &Stage, bytes: u32) {
    redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", &bytes.to_string()])
        .exec_async(&mut stage.connection().await)
        .await
        .unwrap();
}

/// Takes the memory, and waits until the worker knows.
async fn out_of_memory(stage: &Stage, worker: &Worker) {
    limit_memory(stage, 1).await;
    wait_until(SOON, "the worker knows", async || {
        worker
            .get("/readyz")
            .await
            .is_some_and(|(status, cause)| status == 503 && cause.contains("OOM"))
    })
    .await;
}

async fn delete_user(stage: &Stage, id: u32) {
    stage.publish("user.updated", &format!(r#"{{"id":{id}}}"#)).await;
}

async fn write_state(stage: &Stage, n: u32) {
    stage.publish("state.changed", &format!(r#"{{"id":1,"n":{n}}}"#)).await;
}

/// Publishes an event that the lane's loop does not resolve, beyond 256 KiB.
async fn publish_heavy(stage: &Stage, routing_key: &str, fields: &str) {
    let padding = "x".repeat(300_000);
    stage.publish(routing_key, &format!(r#"{{{fields},"padding":"{padding}"}}"#)).await;
}

async fn wait_warm(stage: &Stage, key: &str) {
    wait_until(SOON, "the key is warm", async || stage.get(key).await.as_deref() == Some("new"))
        .await;
}

/// The worker deletes the key before it applies the event, and the event warms what was present.
#[tokio::test(flavor = "multi_thread")]
async fn without_memory_a_key_that_was_deleted_early_is_warmed_all_the_same() {
    let (stage, catalogue, worker) = start().await;
    for id in ["1", "2"] {
        stage.set(&format!("page:{id}"), "old").await;
        catalogue.set(id, "new");
    }
    out_of_memory(&stage, &worker).await;
    stage.publish("page.changed", r#"{"id":1}"#).await;
    stage.wait_gone("page:1").await;
    limit_memory(&stage, 0).await;
    wait_warm(&stage, "page:1").await;
    stage.wait_settled(&[&worker]).await;

    // The same where the worker requeues the event meanwhile, and another worker applies it.
    out_of_memory(&stage, &worker).await;
    stage.publish("page.changed", r#"{"id":2}"#).await;
    stage.wait_gone("page:2").await;
    assert_eq!(worker.terminate().await.code(), Some(0));
    wait_until(SOON, "it is requeued", async || stage.ready("").await == 1).await;
    limit_memory(&stage, 0).await;
    let worker = self::worker(&stage, &catalogue).await;
    wait_warm(&stage, "page:2").await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0, "{}", worker.stderr());
}

/// A heavy event needs memory that only the held batches give back: it waits behind them, and what
/// comes behind it waits too.
#[tokio::test(flavor = "multi_thread")]
async fn without_memory_a_heavy_event_and_its_neighbours_keep_their_order() {
    let (stage, catalogue, worker) = start().await;
    for key in ["user:1", "user:2", "list:10"] {
        stage.set(key, "old").await;
    }
    out_of_memory(&stage, &worker).await;
    write_state(&stage, 1).await;
    delete_user(&stage, 1).await;
    stage.wait_gone("user:1").await;
    publish_heavy(&stage, "list.changed", r#""xs":[1,10]"#).await;
    publish_heavy(&stage, "state.changed", r#""id":1,"n":2"#).await;
    write_state(&stage, 3).await;
    delete_user(&stage, 2).await;
    wait_until(SOON, "all are in flight", async || {
        worker.metrics().await.sum("unstale_in_flight", &[]) >= 6.0
    })
    .await;
    assert!(stage.exists("list:10").await, "it is resolved once Redis has memory");
    assert!(stage.exists("user:2").await, "and so is what came behind it");
    limit_memory(&stage, 0).await;
    for key in ["user:2", "list:10"] {
        stage.wait_gone(key).await;
    }
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.get("state:1").await.as_deref(), Some("3"));

    // The same, and the worker stops meanwhile: nothing is lost, and nothing is done twice.
    for key in ["user:3", "list:10"] {
        stage.set(key, "old").await;
    }
    out_of_memory(&stage, &worker).await;
    delete_user(&stage, 3).await;
    stage.wait_gone("user:3").await;
    publish_heavy(&stage, "list.changed", r#""xs":[1,10]"#).await;
    wait_until(SOON, "both are in flight", async || {
        worker.metrics().await.sum("unstale_in_flight", &[]) >= 2.0
    })
    .await;
    assert_eq!(worker.terminate().await.code(), Some(0));
    wait_until(SOON, "both are requeued", async || stage.ready("").await == 2).await;
    limit_memory(&stage, 0).await;
    let worker = self::worker(&stage, &catalogue).await;
    stage.wait_gone("list:10").await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0, "{}", worker.stderr());
}
