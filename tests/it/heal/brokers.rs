//! Workers of two brokers that share a Redis and a queue name.
//!
//! Each would heal for the other, from the wrong history.

use super::{USERS, heals, mark_fields, publish, stage, wait_marks};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{RabbitMq, Worker, rabbitmq, unique, wait_until};

/// Returns the URL of a virtual host of its own, on the shared broker.
async fn other_vhost() -> String {
    rabbitmq().await.add_vhost(&unique("elsewhere")).await
}

async fn field(stage: &Stage, name: &str) -> Option<String> {
    mark_fields(stage).await.into_iter().find(|(field, _)| field == name).map(|(_, value)| value)
}

async fn consumes(worker: &Worker) -> bool {
    matches!(worker.get("/readyz").await, Some((200, _)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_another_broker_does_not_start_beside_living_ones() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    let before = field(&stage, "broker").await.expect("it names its broker");
    let mut stranger = stage.start_worker(&[("UNSTALE_AMQP_URL", &other_vhost().await)]);
    assert_eq!(stranger.wait_exit(SOON).await.code(), Some(64), "{}", stranger.stderr());
    assert!(stranger.stderr().contains("set another UNSTALE_QUEUE"), "{}", stranger.stderr());
    assert_eq!(field(&stage, "broker").await, Some(before));
    assert!(
        consumes(&worker).await && !worker.stderr().contains("another broker"),
        "{}",
        worker.stderr()
    );
    assert_eq!(heals(&worker).await, 0.0);
    // A second worker of the same broker starts.
    stage.worker(&[]).await;
}

/// A move to another broker: the workers of the former one have ended.
#[tokio::test(flavor = "multi_thread")]
async fn marks_of_another_broker_are_taken_over_with_a_heal() {
    let stage = stage().await;
    let worker = stage.worker(&[]).await;
    publish(&stage, 5).await;
    stage.wait_settled(&[&worker]).await;
    let before = field(&stage, "broker").await;
    assert!(worker.terminate().await.success());
    let next = stage.worker(&[("UNSTALE_AMQP_URL", &other_vhost().await)]).await;
    wait_until(SOON, "it heals by its own history", async || heals(&next).await == 1.0).await;
    assert!(
        next.stderr().contains("the checkpoints in Redis are of another broker"),
        "{}",
        next.stderr()
    );
    let now = field(&stage, "broker").await;
    assert!(now.is_some() && now != before, "{now:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_renamed_locks_no_worker_out() {
    let broker = RabbitMq::start().await;
    let stage = Stage::on_broker(&broker, &[("users.yaml", USERS)]).await;
    let worker = stage.worker(&[]).await;
    wait_marks(&stage, 1).await;
    broker.ctl(&["set_cluster_name", "renamed"]).await;
    let next = stage.worker(&[]).await;
    wait_until(SOON, "the marks have the new name", async || {
        field(&stage, "broker").await.is_some_and(|name| name.starts_with("renamed "))
    })
    .await;
    assert!(consumes(&worker).await && consumes(&next).await);
    assert!(!worker.stderr().contains("use the same UNSTALE_QUEUE"), "{}", worker.stderr());
}
