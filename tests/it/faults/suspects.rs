//! Many redelivered messages, none of which is poison.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::end_to_end::stage::Stage;
use crate::support::{Worker, wait_until};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

const SUSPECTS: u32 = 1_000;

/// Maximum time for short work: seconds on two idle cores, more on a busy machine.
const SHORT_WORK: Duration = Duration::from_secs(120);

async fn seeded(users: u32) -> Stage {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    assert_eq!(stage.worker(&[]).await.terminate().await.code(), Some(0), "it declared the queues");
    let old: Vec<(String, &str)> = (0..users).map(|id| (format!("user:{id}"), "old")).collect();
    let _: () =
        redis::cmd("MSET").arg(old).query_async(&mut stage.connection().await).await.unwrap();
    stage
}

/// Publishes `user.updated`; those chosen by `is_suspect` look like messages that a worker has set
/// aside.
async fn publish(stage: &Stage, ids: impl Iterator<Item = u32>, is_suspect: impl Fn(u32) -> bool) {
    let mut confirms = Vec::new();
    let signer = stage.signer().await;
    for id in ids {
        let (mut exchange, mut routing_key, mut headers) =
            (stage.exchange.as_str(), "user.updated", FieldTable::default());
        let body = format!(r#"{{"id":{id}}}"#);
        if is_suspect(id) {
            headers.insert("unstale-exchange".into(), AMQPValue::LongString(exchange.into()));
            headers.insert("unstale-routing-key".into(), AMQPValue::LongString(routing_key.into()));
            headers.insert("unstale-redelivered".into(), AMQPValue::LongLongInt(2));
            signer.sign(&mut headers, body.as_bytes());
            (exchange, routing_key) = ("", &stage.queue);
        }
        let properties = BasicProperties::default().with_headers(headers);
        confirms.push(stage.send(exchange, routing_key, properties, body.as_bytes()).await);
    }
    for confirm in confirms {
        assert!(matches!(confirm.await, Ok(lapin::Confirmation::Ack(None))));
    }
}

/// Takes that many messages as another consumer, and disconnects without an acknowledgement.
async fn take_without_ack(stage: &Stage, count: u32) {
    let channel = stage.new_channel().await;
    channel.basic_qos(u16::try_from(count).unwrap(), BasicQosOptions::default()).await.unwrap();
    let queue = stage.queue.as_str().into();
    let consumer = channel
        .basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .unwrap();
    let taken = consumer.take(count as usize).count();
    assert_eq!(
        tokio::time::timeout(SHORT_WORK, taken).await.expect("they are there"),
        count as usize
    );
    channel.close(200, "".into()).await.unwrap();
}

/// Waits until all are applied, and each suspected message was begun alone. Returns the time that
/// it took.
#[expect(clippy::print_stderr, reason = "what it came to")]
async fn all_begun(stage: &Stage, worker: &Worker, begun: Instant, what: &str) {
    wait_until(SHORT_WORK, what, async || {
        let left: Vec<String> = redis::cmd("KEYS")
            .arg("user:*")
            .query_async(&mut stage.connection().await)
            .await
            .unwrap();
        left.is_empty()
    })
    .await;
    eprintln!("{what}: {:.1} s", begun.elapsed().as_secs_f64());
    stage.wait_settled(&[worker]).await;
    let alone = worker.stderr().matches("handled alone").count();
    assert_eq!(alone, SUSPECTS as usize, "each was begun alone, and once");
    assert_eq!(stage.ready(".dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_innocent_suspects_are_made_short_work_of() {
    let stage = seeded(2 * SUSPECTS).await;
    publish(&stage, 0..SUSPECTS, |_| false).await;
    for _ in 0..2 {
        take_without_ack(&stage, SUSPECTS).await;
    }
    publish(&stage, SUSPECTS..2 * SUSPECTS, |_| false).await;
    let begun = Instant::now();
    let worker = stage.worker(&[]).await;
    all_begun(&stage, &worker, begun, "a thousand suspects, then as many others").await;
}

/// The worker gets many of them together with others at full speed, and most are set aside.
#[tokio::test(flavor = "multi_thread")]
async fn suspects_among_others_are_made_short_work_of() {
    let stage = seeded(10 * SUSPECTS).await;
    let worker = stage.worker(&[]).await;
    publish(&stage, 0..2 * SUSPECTS, |_| false).await;
    stage.wait_settled(&[&worker]).await;
    let begun = Instant::now();
    publish(&stage, 2 * SUSPECTS..10 * SUSPECTS, |id| id.is_multiple_of(8)).await;
    all_begun(&stage, &worker, begun, "a thousand suspects among seven thousand others").await;
}
