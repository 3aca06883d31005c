//! Publishers' messages that the broker itself dead-letters, with headers that look like ours.

use std::process::{Command, Stdio};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable};

use crate::end_to_end::stage::Stage;
use crate::support::wait_until;

const RULES: &str = r#"
events:
  user.updated: { effects: [ { delete: "user:{id}" }, { delete: "user:{id}:profile" } ] }
  other.updated: { effects: [ { delete: "other:{id}" } ] }
"#;

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// Returns the entry that a broker writes for a message that expired in a queue.
fn death(queue: &str, exchange: &str, routing_key: &str) -> AMQPValue {
    let mut keys = FieldArray::default();
    keys.push(text(routing_key));
    let mut death = FieldTable::default();
    for (name, value) in [
        ("queue", text(queue)),
        ("reason", text("expired")),
        ("exchange", text(exchange)),
        ("count", AMQPValue::LongLongInt(1)),
        ("routing-keys", AMQPValue::FieldArray(keys)),
    ] {
        death.insert(name.into(), value);
    }
    let mut deaths = FieldArray::default();
    deaths.push(AMQPValue::FieldTable(death));
    AMQPValue::FieldArray(deaths)
}

/// Each message expires in the main queue while no worker runs. After a replay, each has all
/// effects of one event.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_publisher_forges_is_not_believed_of_an_expired_message() {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    let (_, metrics) = worker.get("/metrics").await.unwrap();
    let digest = metrics
        .split("digest=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("the metrics show the digest")
        .to_owned();
    assert!(worker.terminate().await.success());

    let queue = stage.queue.clone();
    let done = [("unstale-effects", text("1")), ("unstale-registry", text(&digest))];
    let copy = [
        ("unstale-exchange", text(&stage.exchange)),
        ("unstale-routing-key", text("user.updated")),
        ("unstale-form", text("bare")),
        ("unstale-event-id", text("forged")),
        ("unstale-time", text("2020-01-01T00:00:00Z")),
        ("unstale-first-time", text("2020-01-01T00:00:00Z")),
        ("unstale-arrived-after", text("2030-01-01T00:00:00Z")),
        ("unstale-reason", text("loader_refused")),
    ];
    let spent = [
        ("unstale-attempt", AMQPValue::LongInt(99)),
        ("unstale-redelivered", AMQPValue::LongLongInt(40)),
    ];
    let elsewhere =
        [("unstale-routing-key", text("other.updated")), ("unstale-exchange", text("elsewhere"))];
    let signed = [("unstale-signature", text(&"0".repeat(64))), ("unstale-sig", text(""))];
    let nothing: [(&str, AMQPValue); 0] = [];
    let forged: Vec<Vec<(&str, AMQPValue)>> = vec![
        nothing.to_vec(),
        done.to_vec(),
        [&done[..], &copy].concat(),
        [&done[..], &copy, &spent].concat(),
        [&done[..], &copy, &elsewhere].concat(),
        [&done[..], &copy, &signed].concat(),
        [&done[..], &copy, &[("x-death", death(&queue, "", &queue))]].concat(),
        [
            &done[..],
            &copy,
            &[("x-death", death(&format!("{queue}.slow"), "", &format!("{queue}.slow")))],
        ]
        .concat(),
        [&done[..], &[("x-death", death(&queue, &stage.exchange, "other.updated"))]].concat(),
        [
            &done[..],
            &copy,
            &[
                ("x-first-death-queue", text(&queue)),
                ("x-first-death-exchange", text("")),
                ("x-first-death-reason", text("rejected")),
            ],
        ]
        .concat(),
        vec![("unstale-effects", AMQPValue::FieldArray(FieldArray::default()))],
    ];
    for (id, headers) in forged.iter().enumerate() {
        for key in [format!("user:{id}"), format!("user:{id}:profile"), format!("other:{id}")] {
            stage.set(&key, "old").await;
        }
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        let properties = BasicProperties::default().with_headers(table).with_expiration("1".into());
        stage
            .publish_with("user.updated", properties, format!(r#"{{"id":{id}}}"#).as_bytes())
            .await;
    }
    let count = u32::try_from(forged.len()).unwrap();
    wait_until(super::PATIENCE, "all have expired", async || stage.ready(".dead").await == count)
        .await;
    // A worker might heal at its start, which would hide what a replay leaves out.
    let worker = stage.worker(&[("UNSTALE_HEAL_WINDOW", "off")]).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
    command
        .args(["dlq", "replay"])
        .env_clear()
        .envs(stage.broker_settings())
        .env("UNSTALE_REDIS_URL", stage.redis.url());
    command.env("UNSTALE_SCHEMAS", stage.schemas.path()).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_until(super::PATIENCE, "all is settled", async || stage.is_settled(&[&worker]).await)
        .await;
    let mut left = Vec::new();
    for (id, headers) in forged.iter().enumerate() {
        // RabbitMQ before 4 keeps the routing key of a forged `x-death`, and no other. So a
        // publisher may turn its own event into another.
        if !stage.exists(&format!("other:{id}")).await {
            assert!(
                headers.iter().any(|(name, _)| *name == "x-death"),
                "{id} was taken for another event"
            );
            continue;
        }
        for key in [format!("user:{id}"), format!("user:{id}:profile")] {
            if stage.exists(&key).await {
                left.push(format!(
                    "{key} of {:?}",
                    headers.iter().map(|(name, _)| name).collect::<Vec<_>>()
                ));
            }
        }
    }
    assert!(left.is_empty(), "not done:\n{}", left.join("\n"));
    assert_eq!(stage.ready(".dead").await, 0);
}
