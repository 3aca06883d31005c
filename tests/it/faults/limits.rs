//! A worker dead-letters a message at its delivery limit, before the broker does.

use lapin::BasicProperties;
use lapin::options::BasicGetOptions;
use lapin::types::{AMQPValue, FieldArray, FieldTable};

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::wait_until;

const USERS: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// Deliveries after which a worker dead-letters a message: one less than `x-delivery-limit`.
const DELIVERIES: u32 = 19;

/// Takes one message, and disconnects without an acknowledgement.
async fn take_without_ack(stage: &Stage) {
    let channel = stage.new_channel().await;
    wait_until(SOON, "it is there", async || {
        channel
            .basic_get(stage.queue.as_str().into(), BasicGetOptions { no_ack: false })
            .await
            .unwrap()
            .is_some()
    })
    .await;
    channel.close(200, "".into()).await.unwrap();
}

/// The message has a header with which a publisher breaks the dead-lettering of RabbitMQ up to
/// 3.13.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_dead_lettered_unread_before_the_broker_does_it() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    assert_eq!(stage.worker(&[]).await.terminate().await.code(), Some(0), "it declared the queues");
    stage.set("user:1", "old").await;
    stage.set("user:2", "old").await;
    let mut odd = FieldTable::default();
    odd.insert("queue".into(), AMQPValue::LongInt(5));
    let mut headers = FieldTable::default();
    let deaths = vec![AMQPValue::LongInt(1), AMQPValue::LongInt(2), AMQPValue::FieldTable(odd)];
    headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(deaths)));
    stage
        .publish_with(
            "user.updated",
            BasicProperties::default().with_headers(headers),
            br#"{"id":1}"#,
        )
        .await;
    for _ in 0..DELIVERIES {
        take_without_ack(&stage).await;
    }
    stage.publish("user.updated", r#"{"id":2}"#).await;
    let worker = stage.worker(&[]).await;
    stage.wait_gone("user:2").await;
    let letter = stage.dead_letters(1).await.pop().unwrap();
    assert_eq!(letter.body, br#"{"id":1}"#);
    assert_eq!(letter.header("unstale-reason").as_deref(), Some("delivery_limit"));
    let error = letter.header("unstale-error").unwrap();
    assert!(error.contains("delivered 19 times"), "{error}");
    assert_eq!(stage.get("user:1").await.as_deref(), Some("old"), "nothing of it was begun");
    assert_eq!(
        worker.metrics().await.sum("unstale_dead_total", &[("reason", "delivery_limit")]),
        1.0
    );
    stage.wait_settled(&[&worker]).await;
}
