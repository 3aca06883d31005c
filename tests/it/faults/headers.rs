//! Headers that RabbitMQ accepts and cannot write into a stream.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldTable};

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::wait_until;

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

fn with_a_decimal() -> BasicProperties {
    let mut headers = FieldTable::default();
    headers
        .insert("total".into(), AMQPValue::DecimalValue(DecimalValue { scale: 3, value: 12_345 }));
    BasicProperties::default().with_headers(headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_with_a_decimal_header_is_confirmed_only_where_it_is_applied() {
    let mut stage = Stage::new(&[("user.yaml", RULES)]).await;
    for key in ["user:1", "user:2", "user:3"] {
        stage.set(key, "old").await;
    }
    // RabbitMQ ends the connection of a publisher whose message a stream should have stored.
    let worker = stage.worker(&[]).await;
    let confirm = match stage
        .try_send(&stage.exchange, "user.updated", with_a_decimal(), br#"{"id":1}"#)
        .await
    {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    match confirm {
        Ok(_) => stage.wait_gone("user:1").await,
        Err(error) => assert!(error.to_string().contains("INTERNAL_ERROR"), "{error}"),
    }
    wait_until(SOON, "a new connection", async || stage.try_reconnect().await).await;
    stage.publish("user.updated", r#"{"id":2}"#).await;
    stage.wait_gone("user:2").await;
    assert!(worker.terminate().await.success());

    // The solution that docs/reference/rabbitmq.md names.
    let history = format!("{}.history", stage.queue);
    stage
        .new_channel()
        .await
        .queue_delete(history.into(), lapin::options::QueueDeleteOptions::default())
        .await
        .unwrap();
    let worker = stage.worker(&[("UNSTALE_HISTORY", "off")]).await;
    stage.publish_with("user.updated", with_a_decimal(), br#"{"id":3}"#).await;
    stage.wait_gone("user:3").await;
    // A republished message keeps it.
    stage.publish_with("user.updated", with_a_decimal(), b"not JSON").await;
    let letter = stage.dead_letters(1).await.pop().unwrap();
    assert_eq!(
        letter.headers.inner().get("total"),
        with_a_decimal().headers().as_ref().unwrap().inner().get("total")
    );
    assert!(worker.terminate().await.success());
}
