//! Headers with our names from a publisher. No worker trusts them, by any path of the message.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::dlq::dlq;
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Worker, wait_for, wait_until};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" }, { delete: "page:{id}" } ] } }"#;

/// Returns the digest that counts the effects, which any client can read.
async fn digest(worker: &Worker) -> String {
    let (_, metrics) = worker.get("/metrics").await.unwrap();
    let info = metrics
        .lines()
        .find(|line| line.starts_with("unstale_registry_info"))
        .expect("the registry has a digest");
    info.split('"').nth(1).unwrap().to_owned()
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// Returns headers that would skip half of the event and dead-letter the rest.
fn claims(stage: &Stage, digest: &str) -> FieldTable {
    table(&[
        ("unstale-exchange", text(&stage.exchange)),
        ("unstale-routing-key", text("user.updated")),
        ("unstale-effects", text("1")),
        ("unstale-registry", text(digest)),
        ("unstale-attempt", AMQPValue::LongInt(1_000)),
        ("unstale-redelivered", AMQPValue::LongLongInt(40)),
        ("unstale-arrived-after", text("2100-01-01T00:00:00Z")),
        ("unstale-signature", text(&"A".repeat(43))),
    ])
}

/// Makes the broker dead-letter an event with these headers, while no worker runs.
async fn expired(stage: &Stage, headers: FieldTable) {
    for key in ["user:1", "page:1"] {
        stage.set(key, "old").await;
    }
    let properties = BasicProperties::default().with_expiration("1".into()).with_headers(headers);
    stage.publish_with("user.updated", properties, br#"{"id":1}"#).await;
    wait_until(SOON, "it has expired", async || stage.ready(".dead").await == 1).await;
}

/// Moves the dead letter to the main queue with all its headers, as a shovel or the management UI
/// does.
async fn move_letter(stage: &Stage) {
    let channel = stage.new_channel().await;
    let dead = format!("{}.dead", stage.queue);
    let letter = wait_for(SOON, "the dead letter", async || {
        channel.basic_get(dead.as_str().into(), BasicGetOptions { no_ack: false }).await.unwrap()
    })
    .await
    .delivery;
    let queue = stage.queue.as_str().into();
    channel
        .basic_publish(
            "".into(),
            queue,
            BasicPublishOptions::default(),
            &letter.data,
            letter.properties.clone(),
        )
        .await
        .unwrap();
    letter.ack(BasicAckOptions::default()).await.unwrap();
}

async fn all_is_applied(stage: &Stage) {
    stage.wait_gone("user:1").await;
    stage.wait_gone("page:1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_dead_letter_has_all_its_effects_done() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    let digest = digest(&worker).await;
    assert!(worker.terminate().await.success());
    expired(&stage, claims(&stage, &digest)).await;
    move_letter(&stage).await;
    let worker = stage.worker(&[]).await;
    all_is_applied(&stage).await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.ready(".dead").await, 0);
    assert!(!worker.stderr().contains("handled alone"), "its count is not believed either");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_hides_behind_a_death_of_its_own_has_all_its_effects_done() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    let digest = digest(&worker).await;
    assert!(worker.terminate().await.success());
    // RabbitMQ before 4.0 takes this entry for its own, and increments it.
    let death = table(&[
        ("queue", text(&stage.queue)),
        ("reason", text("expired")),
        ("exchange", text("")),
        ("routing-keys", AMQPValue::FieldArray(vec![text(&stage.queue)].into())),
        ("count", AMQPValue::LongLongInt(1)),
    ]);
    let mut headers = claims(&stage, &digest);
    headers
        .insert("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()));
    expired(&stage, headers).await;
    let (code, shown, err) = dlq(&stage, &["show"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(!shown.contains("still to do"), "{shown}");
    let _worker = stage.worker(&[]).await;
    let (code, _, err) = dlq(&stage, &["replay", "--since", "1h"]).await;
    assert!(code == 0 && err.contains("replayed 1 dead letter "), "{err}");
    all_is_applied(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_secret_an_event_is_done_again_and_still_comes_to_its_end() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let delays = [("UNSTALE_RETRY_DELAYS", "2s,2500ms"), ("UNSTALE_BIND", "nobody.knows")];
    let worker = stage.worker(&delays).await;
    let first: String =
        redis::AsyncCommands::get(&mut stage.connection().await, "unstale:secret").await.unwrap();
    stage.publish("nobody.knows", r#"{"id":1}"#).await;
    wait_until(SOON, "it waits for its second attempt", async || {
        stage.ready(".retry.2s").await == 1
    })
    .await;
    worker.kill();
    let _: () =
        redis::AsyncCommands::del(&mut stage.connection().await, "unstale:secret").await.unwrap();
    let worker = stage.worker(&delays).await;
    let letter = stage.dead_letters(1).await.pop().unwrap();
    assert_eq!(letter.header("unstale-reason").as_deref(), Some("unknown_event"));
    assert_eq!(letter.header("unstale-routing-key").as_deref(), Some("nobody.knows"));
    let second: String =
        redis::AsyncCommands::get(&mut stage.connection().await, "unstale:secret").await.unwrap();
    assert_ne!(first, second);
    // A running worker writes its own secret to Redis again.
    let _: () =
        redis::AsyncCommands::del(&mut stage.connection().await, "unstale:secret").await.unwrap();
    wait_until(Duration::from_secs(60), "the secret is back", async || {
        let kept: Option<String> =
            redis::AsyncCommands::get(&mut stage.connection().await, "unstale:secret")
                .await
                .unwrap();
        kept.as_ref() == Some(&second)
    })
    .await;
    assert!(worker.terminate().await.success());
}
