//! `unstale replay`: beside live workers, and over a history that is not whole.

use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::{declare, publish_users, replay, wait_recorded};
use crate::end_to_end::stage::Stage;

const NOTES: &str = r##"
defaults: { ttl: 1h }
events:
  note.updated:
    version: "{rev}"
    effects:
      - delete: "note:{id}:html"
      - bump_version: "notes:version"
      - write: "note:{id}"
        value: "{rev}"
        tags: ["notes"]
"##;

#[tokio::test(flavor = "multi_thread")]
async fn beside_live_workers_nothing_becomes_staler() {
    const NOTES_COUNT: u32 = 10;
    const REVISIONS: u32 = 60;
    let stage = Stage::new(&[("notes.yaml", NOTES)]).await;
    let (first, second) = (stage.worker(&[]).await, stage.worker(&[]).await);
    let publish = async {
        for rev in 1..=REVISIONS {
            for id in 0..NOTES_COUNT {
                stage.publish("note.updated", &format!(r#"{{"id":{id},"rev":{rev}}}"#)).await;
            }
        }
    };
    let replay_often = async {
        let mut replayed = 0;
        for _ in 0..6 {
            replayed += replay(&stage, &["--since", "1h", "--json"]).await.clean().json()["events"]
                .as_u64()
                .unwrap();
        }
        replayed
    };
    let ((), replayed) = tokio::join!(publish, replay_often);
    assert!(replayed > 0, "the replays came too early to show anything");
    stage.wait_settled(&[&first, &second]).await;
    for id in 0..NOTES_COUNT {
        let rev = stage.get(&format!("note:{id}")).await;
        assert!(rev.is_none() || rev == Some(REVISIONS.to_string()), "note:{id} is {rev:?}");
    }
    let version: u32 = stage.get("notes:version").await.unwrap().parse().unwrap();
    assert!(version > REVISIONS * NOTES_COUNT, "{version}");
    assert_eq!(stage.ready(".dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_warns_of_a_span_that_retention_has_cut() {
    let stage = Stage::new(&[(
        "user.yaml",
        r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#,
    )])
    .await;
    let channel = stage.new_channel().await;
    let queue = format!("{}.history", stage.queue);
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(20_000));
    arguments.insert("x-stream-max-segment-size-bytes".into(), AMQPValue::LongLongInt(10_000));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();
    let (exchange, all) = (stage.exchange.as_str(), QueueBindOptions::default());
    channel
        .queue_bind(queue.as_str().into(), exchange.into(), "#".into(), all, FieldTable::default())
        .await
        .unwrap();
    publish_users(&stage, 0..3_000).await;
    // Segments go when one is full: how many of the first are left is the broker's business.
    publish_users(&stage, 3_000..3_100).await;
    let cut = replay(&stage, &["--since", "offset:0", "--json"]).await.clean();
    let json = cut.json();
    let (events, first, end) = (
        json["events"].as_u64().unwrap(),
        json["begins_late_at"].as_u64().unwrap(),
        json["end"].as_u64().unwrap(),
    );
    // At the beginning of each segment the stream takes an offset for itself.
    assert!(first > 1_000 && (1..=end - first).contains(&events) && end >= 3_100, "{json}");
    assert!(
        cut.err.contains(&format!("warning: the history begins at offset:{first}")),
        "{}",
        cut.err
    );
    let by_time = replay(&stage, &["--since", "1h"]).await.clean();
    assert!(by_time.err.contains("which is later than --since"), "{}", by_time.err);
    let whole = replay(&stage, &["--since", &format!("offset:{first}")]).await.clean();
    assert!(!whole.err.contains("warning: the history"), "{}", whole.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_reads_large_bodies_in_smaller_windows() {
    let stage = Stage::new(&[(
        "user.yaml",
        r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#,
    )])
    .await;
    declare(&stage).await;
    let padding = "x".repeat(200_000);
    for id in 0..100 {
        stage.publish("user.updated", &format!(r#"{{"id":{id},"padding":"{padding}"}}"#)).await;
    }
    wait_recorded(&stage, 100).await;
    let json = replay(&stage, &["--since", "1h", "--json"]).await.clean().json();
    assert_eq!(
        (&json["events"], &json["sent"], &json["missing"]),
        (&100.into(), &100.into(), &0.into()),
        "{json}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_refuses_a_history_that_is_not_a_stream() {
    let stage = Stage::new(&[(
        "user.yaml",
        r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#,
    )])
    .await;
    let channel = stage.new_channel().await;
    let queue = format!("{}.history", stage.queue);
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), durable, FieldTable::default()).await.unwrap();
    stage.send("", &queue, lapin::BasicProperties::default(), b"{}").await.await.unwrap();
    let refused = replay(&stage, &["--since", "1h"]).await;
    assert!(
        refused.code == 69 && refused.err.contains("a queue of another type has that name"),
        "{}",
        refused.err
    );
    crate::support::wait_until(crate::end_to_end::stage::SOON, "its message is back", async || {
        stage.ready(".history").await == 1
    })
    .await;
}
