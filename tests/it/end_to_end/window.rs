//! Prefetch in use, and the size of acknowledgements.
//!
//! The prefetch is the setting, or six times the default while a backlog waits.

use std::sync::{Arc, Mutex};

use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::BasicProperties;

use super::stage::{SOON, Stage};
use crate::support::{Flow, Proxy, Tap, Way, rabbitmq, wait_until};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

const BACKLOG: u32 = 40_000;

async fn with_a_backlog() -> Stage {
    let stage = Stage::new(&[("users.yaml", RULES)]).await;
    // Declares the queues.
    stage.worker(&[]).await.terminate().await;
    let bodies: Vec<String> = (0..BACKLOG).map(|id| format!(r#"{{"id":{id}}}"#)).collect();
    let mut confirms = FuturesUnordered::new();
    for body in &bodies {
        confirms.push(
            stage
                .send(&stage.exchange, "user.updated", BasicProperties::default(), body.as_bytes())
                .await,
        );
    }
    while confirms.next().await.is_some() {}
    wait_until(SOON, "the backlog waits", async || stage.ready("").await == BACKLOG).await;
    stage
}

/// Returns the deliveries in flight when a worker meets a backlog and Redis stops answering
/// meanwhile.
async fn in_flight_of_a_backlog(settings: &[(&str, &str)], wanted: u32) {
    let stage = with_a_backlog().await;
    let proxy = Proxy::start(&stage.redis.addr()).await;
    let redis_url = format!("redis://{}", proxy.addr());
    let mut all = vec![("UNSTALE_REDIS_URL", redis_url.as_str())];
    all.extend_from_slice(settings);
    let worker = stage.worker(&all).await;
    wait_until(SOON, "it is under way", async || stage.ready("").await < BACKLOG - 8_000).await;
    proxy.stall();
    wait_until(SOON, "so much is in hand", async || {
        rabbitmq().await.queue_figure(&stage.queue, "messages_unacknowledged").await == Some(wanted)
    })
    .await;
    assert!(stage.ready("").await >= 1_000, "a backlog is left");
    proxy.resume().await;
    stage.wait_settled(&[&worker]).await;
    wait_until(SOON, "1000 again once more comes", async || {
        stage.publish("user.updated", r#"{"id":0}"#).await;
        rabbitmq().await.prefetch(&stage.queue).await == Some(1_000)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_has_six_times_as_much_in_flight() {
    in_flight_of_a_backlog(&[], 6_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_that_is_set_is_kept_to() {
    in_flight_of_a_backlog(&[("UNSTALE_PREFETCH", "1000")], 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_acknowledged_by_an_eighth_of_the_deliveries_in_flight() {
    /// End of an AMQP frame's head, with the length, and head of `basic.ack` (class 60, method 80).
    const ACK: &[u8] = &[0, 0, 0, 13, 0, 60, 0, 80];
    let stage = with_a_backlog().await;
    let acks: Arc<Mutex<Vec<u64>>> = Arc::default();
    let seen = Arc::clone(&acks);
    let reads = Tap::new(move |_, way, bytes| {
        if way == Way::ToServer {
            let acks = bytes
                .windows(ACK.len() + 8)
                .filter_map(|window| window.strip_prefix(ACK)?.first_chunk().copied());
            seen.lock().unwrap().extend(acks.map(u64::from_be_bytes));
        }
        Flow::Pass
    });
    let broker = rabbitmq().await;
    let proxy = Proxy::start_tapped(&broker.addr(), reads).await;
    let worker = stage
        .worker(&[("UNSTALE_AMQP_URL", &broker.url().replace(&broker.addr(), &proxy.addr()))])
        .await;
    stage.wait_settled(&[&worker]).await;
    let mut tags = acks.lock().unwrap().clone();
    tags.sort_unstable();
    let steps: Vec<u64> = std::iter::once(0)
        .chain(tags.iter().copied())
        .zip(&tags)
        .map(|(before, tag)| tag - before)
        .collect();
    let most = *steps.iter().max().unwrap();
    assert!(most < 750 + 256, "a batch more at most: {steps:?}");
    // If the worker has nothing in flight for 2 ms, they are smaller. They are never this large
    // with 1,000 in flight.
    let by_an_eighth: u64 = steps.iter().filter(|step| **step >= 750).sum();
    assert!(by_an_eighth >= u64::from(BACKLOG) / 3, "{steps:?}");
}
