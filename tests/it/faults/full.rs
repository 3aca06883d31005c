//! Queues that a policy fills: the worker names them, applies neighbours and loses nothing.

use super::deleted::{RULES, publish, seeded};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Worker, rabbitmq, wait_until};

async fn paused(worker: &Worker) -> f64 {
    worker.metrics().await.sum("unstale_paused", &[("cause", "queue")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_dead_letter_queue_is_named_until_it_takes_messages_again() {
    let stage = Stage::new(&[("users.yaml", RULES)]).await;
    let mut worker = stage.worker(&[]).await;
    let (broker, dead) = (rabbitmq().await, format!("{}.dead", stage.queue));
    let limit = r#"{"max-length":1,"overflow":"reject-publish"}"#;
    broker.ctl(&["set_policy", &dead, &format!("^{dead}$"), limit]).await;
    for _ in 0..5 {
        stage.publish("user.updated", r#"{"id":[]}"#).await;
    }
    let named = format!("republishing: the queue `{dead}` takes no messages");
    wait_until(
        SOON,
        "readyz names the queue",
        async || matches!(worker.get("/readyz").await, Some((503, text)) if text.contains(&named)),
    )
    .await;
    assert_eq!(paused(&worker).await, 1.0);
    seeded(&stage, 0..20).await;
    publish(&stage, 0..20).await;
    stage.wait_gone("user:19").await;
    assert_eq!(worker.stderr().matches("stores no more messages").count(), 1);

    broker.ctl(&["clear_policy", &dead]).await;
    worker.wait_ready().await;
    wait_until(SOON, "all are dead letters", async || stage.ready(".dead").await == 5).await;
    assert_eq!(paused(&worker).await, 0.0);
    stage.wait_settled(&[&worker]).await;
}
