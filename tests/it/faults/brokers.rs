//! Every kind of fault of RabbitMQ, under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::QueueDeleteOptions;

use super::load::{Kinds, Pages, SETTINGS, no_blame, stage};
use super::wire::Deliveries;
use crate::end_to_end::stage::SOON;
use crate::support::{Flow, Proxy, RabbitMq, Tap, Way, Worker, rabbitmq, wait_until};

const EVENTS: u32 = 3_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_under_load() {
    let broker = RabbitMq::start().await;
    let mut stage = stage(&broker.url()).await;
    let pages = Pages::serve().await;
    let settings: Vec<(&str, &str)> =
        SETTINGS.iter().copied().chain([("UNSTALE_VAR_PAGES_URL", pages.as_str())]).collect();
    Kinds::MIXED.seed(&stage, 0..EVENTS).await;
    let (one, two) = (stage.worker(&settings).await, stage.worker(&settings).await);
    broker.flush_declarations().await;
    let redis = stage.connection().await;
    let publishing = async {
        Kinds::MIXED.publish(&mut stage, 0..EVENTS, Duration::from_millis(50)).await;
        stage
    };
    let breaking = async {
        Kinds::MIXED.reached(&redis, 500).await;
        broker.restart().await;
    };
    let (stage, ()) = tokio::join!(publishing, breaking);
    Kinds::MIXED.settled(&stage, &[&one, &two], 0..EVENTS).await;
    assert_eq!(stage.ready(".dead").await, 0);
    assert_eq!(one.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_then_stalled_in_the_middle_of_whatever_was_being_said() {
    let broker = rabbitmq().await;
    let mut stage = stage(&broker.url()).await;
    let pages = Pages::serve().await;
    let proxy = Proxy::start(&broker.addr()).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    let settings: Vec<(&str, &str)> = SETTINGS
        .iter()
        .copied()
        .chain([("UNSTALE_VAR_PAGES_URL", pages.as_str()), ("UNSTALE_AMQP_URL", &amqp_url)])
        .collect();
    Kinds::MIXED.seed(&stage, 0..EVENTS).await;
    let worker = stage.worker(&settings).await;
    let third = EVENTS / 3;
    for cut in 0..4 {
        Kinds::MIXED
            .publish(&mut stage, cut * third / 4..(cut + 1) * third / 4, Duration::ZERO)
            .await;
        proxy.cut().await;
    }
    Kinds::MIXED.publish(&mut stage, third..2 * third, Duration::ZERO).await;
    wait_until(SOON, "it consumes", async || matches!(worker.get("/readyz").await, Some((200, _))))
        .await;
    proxy.stall();
    Kinds::MIXED.publish(&mut stage, 2 * third..EVENTS, Duration::ZERO).await;
    wait_until(SOON, "the silence is noticed", async || {
        matches!(worker.get("/readyz").await, Some((503, _)))
    })
    .await;
    proxy.resume().await;
    Kinds::MIXED.settled(&stage, &[&worker], 0..EVENTS).await;
    assert_eq!(stage.ready(".dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_frozen_in_the_middle_of_a_frame() {
    let broker = rabbitmq().await;
    let mut stage = stage(&broker.url()).await;
    let proxy = Proxy::start(&broker.addr()).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    let settings: Vec<(&str, &str)> = SETTINGS
        .iter()
        .copied()
        .chain([("UNSTALE_VAR_PAGES_URL", "http://127.0.0.1:9"), ("UNSTALE_AMQP_URL", &amqp_url)])
        .collect();
    Kinds::QUICK.seed(&stage, 0..EVENTS).await;
    let worker = stage.worker(&settings).await;
    Kinds::QUICK.publish(&mut stage, 0..EVENTS / 2, Duration::ZERO).await;
    proxy.stall_half_way();
    Kinds::QUICK.publish(&mut stage, EVENTS / 2..EVENTS, Duration::ZERO).await;
    wait_until(Duration::from_secs(31), "the silence is noticed", async || {
        matches!(worker.get("/readyz").await, Some((503, _)))
    })
    .await;
    // The old connections are dropped; new ones get through.
    proxy.resume().await;
    Kinds::QUICK.settled(&stage, &[&worker], 0..EVENTS).await;
    no_blame(&stage, &[&worker]).await;
}

/// The broker's acknowledgement timeout, 30 minutes by default, ends a channel with a delivery that
/// stays in flight.
///
/// Here an outage of Redis causes it within a second. A longer timeout would not work: RabbitMQ
/// 3.10 does not check a channel that hibernates.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_closed_by_the_broker_during_an_outage_of_redis() {
    let broker = RabbitMq::start_with(&[], "consumer_timeout = 700").await;
    broker.eval("application:set_env(rabbit, channel_tick_interval, 100).").await;
    let mut stage = stage(&broker.url()).await;
    let deliveries = Deliveries::default();
    let proxy = Proxy::start_tapped(&broker.addr(), deliveries.tap(0)).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    let settings: Vec<(&str, &str)> = SETTINGS
        .iter()
        .copied()
        .chain([("UNSTALE_VAR_PAGES_URL", "http://127.0.0.1:9"), ("UNSTALE_AMQP_URL", &amqp_url)])
        .collect();
    Kinds::QUICK.seed(&stage, 0..EVENTS).await;
    let worker = stage.worker(&settings).await;
    Kinds::QUICK.publish(&mut stage, 0..100, Duration::ZERO).await;
    let before = deliveries.worst("", |seen| seen.in_vain).in_vain;
    stage.redis.kill();
    Kinds::QUICK.publish(&mut stage, 100..EVENTS, Duration::ZERO).await;
    wait_until(SOON, "the broker closes the channel", async || {
        matches!(stage.look(&stage.queue).await, Some((_, 0)))
    })
    .await;
    wait_until(SOON, "the session ends for it", async || {
        worker.stderr().contains("PRECONDITION_FAILED")
    })
    .await;
    wait_until(SOON, "the next one consumes nothing", async || {
        said(&worker, &["consuming: RabbitMQ answers", "redis: "]).await
    })
    .await;
    assert_eq!(stage.look(&stage.queue).await.unwrap().1, 0);
    stage.redis.restart().await;
    Kinds::QUICK.settled(&stage, &[&worker], 0..EVENTS).await;
    no_blame(&stage, &[&worker]).await;
    let in_vain = deliveries.worst("", |seen| seen.in_vain).in_vain;
    assert!(
        in_vain <= before + 1,
        "a message was redelivered {in_vain} times, and {before} times before"
    );
}

/// Returns whether the worker reports that it is not ready for all of these causes.
async fn said(worker: &Worker, causes: &[&str]) -> bool {
    worker.get("/readyz").await.is_some_and(|(status, says)| {
        status == 503 && causes.iter().all(|cause| says.contains(cause))
    })
}

/// A queue is deleted with deliveries in flight, and again while no worker consumes, and the broker
/// is killed. Events that arrive meanwhile find their queue.
#[tokio::test(flavor = "multi_thread")]
async fn queues_and_the_broker_lost_during_an_outage_of_redis() {
    let broker = RabbitMq::start().await;
    let mut stage = stage(&broker.url()).await;
    let settings: Vec<(&str, &str)> =
        SETTINGS.iter().copied().chain([("UNSTALE_VAR_PAGES_URL", "http://127.0.0.1:9")]).collect();
    Kinds::QUICK.seed(&stage, 0..EVENTS).await;
    let worker = stage.worker(&settings).await;
    stage.redis.kill();
    Kinds::QUICK.publish(&mut stage, 0..200, Duration::ZERO).await;
    wait_until(SOON, "deliveries are held", async || {
        said(&worker, &["redis: "]).await
            && worker.metrics().await.sum("unstale_in_flight", &[]) > 0.0
    })
    .await;
    for _ in 0..2 {
        let channel = stage.new_channel().await;
        channel
            .queue_delete(stage.queue.as_str().into(), QueueDeleteOptions::default())
            .await
            .unwrap();
        wait_until(SOON, "the queue is back, without a consumer", async || {
            stage.look(&stage.queue).await == Some((0, 0))
                && said(&worker, &["consuming: RabbitMQ answers", "redis: "]).await
        })
        .await;
    }
    // The deletion removes the contents of the queue on purpose. Later events must not be lost.
    Kinds::QUICK.publish(&mut stage, 0..EVENTS / 2, Duration::ZERO).await;
    broker.flush_declarations().await;
    broker.kill();
    wait_until(SOON, "both are out", async || {
        said(&worker, &["consuming: ", "redis: "]).await
            && !said(&worker, &["RabbitMQ answers"]).await
    })
    .await;
    broker.restart().await;
    wait_until(SOON, "RabbitMQ is back", async || {
        said(&worker, &["consuming: RabbitMQ answers", "redis: "]).await
    })
    .await;
    Kinds::QUICK.publish(&mut stage, EVENTS / 2..EVENTS, Duration::ZERO).await;
    stage.redis.restart().await;
    Kinds::QUICK.settled(&stage, &[&worker], 0..EVENTS).await;
    no_blame(&stage, &[&worker]).await;
}

/// The connection is open and alive. Only the confirms of republished messages are missing.
#[tokio::test(flavor = "multi_thread")]
async fn copies_that_are_never_confirmed_are_made_again() {
    /// Class and method of `basic.ack`.
    const CONFIRM: [u8; 4] = [0, 60, 0, 80];
    let broker = rabbitmq().await;
    let stage = stage(&broker.url()).await;
    let silent = Arc::new(AtomicBool::new(true));
    let confirms = Arc::clone(&silent);
    // RabbitMQ sends `basic.ack` to a client on the publishing connection alone.
    let tap = Tap::new(move |_, way, bytes| {
        let is_confirm = way == Way::ToClient && bytes.windows(4).any(|window| window == CONFIRM);
        if is_confirm && confirms.load(Ordering::Relaxed) { Flow::Swallow } else { Flow::Pass }
    });
    let proxy = Proxy::start_tapped(&broker.addr(), tap).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    let worker = stage
        .worker(&[("UNSTALE_VAR_PAGES_URL", "http://127.0.0.1:9"), ("UNSTALE_AMQP_URL", &amqp_url)])
        .await;
    stage.publish("user.updated", "no JSON").await;
    wait_until(Duration::from_secs(40), "it is given up", async || {
        worker.stderr().contains("no publisher confirm within")
    })
    .await;
    silent.store(false, Ordering::Relaxed);
    stage.set("user:1", "old").await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    stage.wait_gone("user:1").await;
    stage.wait_settled(&[&worker]).await;
    // One dead letter is the one whose confirm was lost, one was published again. No program can
    // avoid that.
    assert_eq!(stage.dead_letters(2).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_deleted_under_load_are_declared_again() {
    let mut stage = stage(&rabbitmq().await.url()).await;
    let pages = Pages::serve().await;
    let settings: Vec<(&str, &str)> =
        SETTINGS.iter().copied().chain([("UNSTALE_VAR_PAGES_URL", pages.as_str())]).collect();
    Kinds::MIXED.seed(&stage, 0..EVENTS).await;
    let worker = stage.worker(&settings).await;
    for (round, suffix) in ["", ".slow", ".retry.50ms"].into_iter().enumerate() {
        let channel = stage.new_channel().await;
        let queue = format!("{}{suffix}", stage.queue);
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        // The deletion removes the contents of a queue on purpose. Later events must not be lost.
        let from = u32::try_from(round).unwrap() * 1_000;
        let came_back =
            async || worker.get("/readyz").await.is_some_and(|(status, _)| status == 200);
        if suffix.is_empty() {
            wait_until(SOON, "the queue is back", async || {
                stage.try_reconnect().await && came_back().await && stage.exists_queue(&queue).await
            })
            .await;
        }
        Kinds::MIXED.publish(&mut stage, from..from + 1_000, Duration::ZERO).await;
        Kinds::MIXED.settled(&stage, &[&worker], from..from + 1_000).await;
    }
    assert_eq!(stage.ready(".dead").await, 0);
}

/// The broker announces the block to a connection only once that publishes. The alarm lasts longer
/// than the timeout for any answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_memory_alarm_while_copies_must_be_published() {
    let broker = RabbitMq::start().await;
    let mut stage = stage(&broker.url()).await;
    let pages = Pages::serve().await;
    let settings: Vec<(&str, &str)> =
        SETTINGS.iter().copied().chain([("UNSTALE_VAR_PAGES_URL", pages.as_str())]).collect();
    Kinds::MIXED.seed(&stage, 0..EVENTS).await;
    // First the queues must exist and be full.
    assert_eq!(stage.worker(&settings).await.terminate().await.code(), Some(0));
    Kinds::MIXED.publish(&mut stage, 0..EVENTS, Duration::ZERO).await;
    broker.set_memory_limit(0.000001).await;
    let worker = stage.worker(&settings).await;
    wait_until(SOON, "the broker blocks it", async || {
        worker.stderr().contains("blocked publishing")
    })
    .await;
    // Everything before the first event that needs to be republished is done and acknowledged.
    stage.wait_gone("user:2").await;
    // Nothing happens, for longer than the timeout for any answer.
    tokio::time::sleep(Duration::from_secs(35)).await;
    let sessions = worker.stderr().matches("consuming queue").count();
    assert_eq!(sessions, 1, "{}", worker.stderr());
    assert!(
        worker.metrics().await.sum("unstale_paused", &[("cause", "broker")]) > 0.0,
        "{}",
        worker.get("/metrics").await.unwrap().1
    );
    broker.set_memory_limit(0.6).await;
    Kinds::MIXED.settled(&stage, &[&worker], 0..EVENTS).await;
    assert_eq!(stage.ready(".dead").await, 0);
    let retried = worker.metrics().await.sum("unstale_retries_total", &[]);
    assert!(retried <= 8.0, "{retried} retries: only what the loader failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_broker_costs_nothing() {
    let broker = RabbitMq::start().await;
    let mut stage = stage(&broker.url()).await;
    Kinds::QUICK.seed(&stage, 0..EVENTS).await;
    let settings: Vec<(&str, &str)> =
        SETTINGS.iter().copied().chain([("UNSTALE_VAR_PAGES_URL", "http://127.0.0.1:9")]).collect();
    let worker = stage.worker(&settings).await;
    Kinds::QUICK.publish(&mut stage, 0..EVENTS, Duration::ZERO).await;
    broker.freeze();
    wait_until(Duration::from_secs(31), "the silence is noticed", async || {
        matches!(worker.get("/readyz").await, Some((503, _)))
    })
    .await;
    broker.thaw();
    wait_until(SOON, "the broker answers", async || stage.try_reconnect().await).await;
    Kinds::QUICK.settled(&stage, &[&worker], 0..EVENTS).await;
    no_blame(&stage, &[&worker]).await;
}
