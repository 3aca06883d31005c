//! Every kind of outage of Redis, under load.

use std::time::{Duration, Instant};

use redis::AsyncCommands;

use super::load::{Kinds, SETTINGS, no_blame, stage, stage_with};
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Proxy, Redis, Worker, rabbitmq, wait_until};

const EVENTS: u32 = 3_000;

/// Maximum time until work resumes: two seconds by contract, and as much again for a busy machine.
const RESUMES: Duration = Duration::from_secs(4);

/// Publishes while `trouble` comes and goes. Then work must have resumed, and the result must be
/// the same as without the trouble.
async fn through(
    settings: &[(&str, &str)],
    mut stage: Stage,
    trouble: impl AsyncFnOnce(&Scene<'_>),
) {
    Kinds::QUICK.seed(&stage, 0..EVENTS).await;
    let settings: Vec<(&str, &str)> = SETTINGS
        .iter()
        .copied()
        .chain([("UNSTALE_VAR_PAGES_URL", "http://127.0.0.1:9")])
        .chain(settings.iter().copied())
        .collect();
    let worker = stage.worker(&settings).await;
    Kinds::QUICK.publish(&mut stage, 0..EVENTS / 3, Duration::ZERO).await;
    trouble(&Scene { stage: &stage, worker: &worker }).await;
    let answered = Instant::now();
    wait_until(SOON, "consuming resumed", async || {
        matches!(worker.get("/readyz").await, Some((200, _)))
    })
    .await;
    Kinds::QUICK.publish(&mut stage, EVENTS - 100..EVENTS, Duration::ZERO).await;
    wait_until(SOON, "an event is applied", async || {
        let first: Option<String> = stage
            .connection()
            .await
            .get(format!("user:{}", EVENTS - 100))
            .await
            .unwrap_or(Some("away".into()));
        first.is_none()
    })
    .await;
    assert!(answered.elapsed() < RESUMES, "it took {:?}:\n{}", answered.elapsed(), worker.stderr());
    Kinds::QUICK.publish(&mut stage, EVENTS / 3..EVENTS - 100, Duration::ZERO).await;
    Kinds::QUICK.settled(&stage, &[&worker], 0..EVENTS).await;
    no_blame(&stage, &[&worker]).await;
}

/// Objects that a trouble may touch.
struct Scene<'s> {
    stage: &'s Stage,
    worker: &'s Worker,
}

impl Scene<'_> {
    /// Waits until the worker notices. A few more events arrive meanwhile, so that it has a reason
    /// to ask.
    async fn noticed(&self) {
        self.poke().await;
        wait_until(SOON, "the worker says that Redis is out", async || {
            self.worker
                .get("/readyz")
                .await
                .is_some_and(|(status, cause)| status == 503 && cause.contains("Redis"))
        })
        .await;
    }

    async fn poke(&self) {
        for n in [3, 2, 201] {
            let routing_key = if n == 2 {
                "user.updated"
            } else if n == 3 {
                "price.changed"
            } else {
                "tag.changed"
            };
            self.stage.publish(routing_key, &format!(r#"{{"id":{n},"cents":{n}}}"#)).await;
        }
    }

    async fn config(&self, name: &str, value: &str) {
        let _: () = redis::cmd("CONFIG")
            .arg("SET")
            .arg(name)
            .arg(value)
            .query_async(&mut self.stage.connection().await)
            .await
            .unwrap();
    }

    async fn replica_of(&self, host: &str, port: &str) {
        let _: () = redis::cmd("REPLICAOF")
            .arg(host)
            .arg(port)
            .query_async(&mut self.stage.connection().await)
            .await
            .unwrap();
    }
}

async fn on_shared_broker() -> Stage {
    stage(&rabbitmq().await.url()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_killed_and_started_again() {
    through(&[], on_shared_broker().await, async |on| {
        on.stage.redis.kill();
        on.noticed().await;
        on.stage.redis.restart().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_frozen_and_thawed() {
    through(&[], on_shared_broker().await, async |on| {
        on.stage.redis.freeze();
        on.noticed().await;
        on.stage.redis.thaw();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_made_a_replica_and_a_primary_again() {
    through(&[], on_shared_broker().await, async |on| {
        // A replica of no server: its data stay.
        on.replica_of("127.0.0.1", "1").await;
        on.noticed().await;
        on.replica_of("NO", "ONE").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_out_of_memory_and_relieved() {
    through(&[], on_shared_broker().await, async |on| {
        on.config("maxmemory", "1").await;
        on.noticed().await;
        on.config("maxmemory", "0").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_flushed_again_and_again() {
    through(&[], on_shared_broker().await, async |on| {
        for _ in 0..50 {
            let _: () = redis::cmd("SCRIPT")
                .arg("FLUSH")
                .query_async(&mut on.stage.connection().await)
                .await
                .unwrap();
            on.poke().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_to_redis_cut_and_stalled() {
    let stage = on_shared_broker().await;
    let proxy = Proxy::start(&stage.redis.addr()).await;
    let url = format!("redis://{}/0", proxy.addr());
    through(&[("UNSTALE_REDIS_URL", &url)], stage, async |on| {
        for _ in 0..5 {
            proxy.cut().await;
            on.poke().await;
        }
        proxy.stall();
        on.noticed().await;
        proxy.resume().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_takes_seconds_to_load_its_data() {
    let stage = stage_with(
        &rabbitmq().await.url(),
        &["--enable-debug-command", "yes", "--loading-process-events-interval-bytes", "1024"],
    )
    .await;
    through(&[], stage, async |on| {
        on.config("key-load-delay", "300").await;
        let mut redis = on.stage.connection().await;
        let reload = tokio::spawn(async move {
            // Takes longer than a client waits.
            let _ = redis::cmd("DEBUG").arg("RELOAD").query_async::<()>(&mut redis).await;
        });
        on.noticed().await;
        let cause = on.worker.get("/readyz").await.unwrap().1;
        assert!(cause.contains("LOADING"), "{cause}");
        reload.await.unwrap();
        wait_until(SOON, "Redis has loaded", async || {
            let Some(mut redis) = on.stage.redis.try_connection().await else { return false };
            redis::cmd("PING").query_async::<String>(&mut redis).await.is_ok()
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_redis_closed_at_random() {
    let stage = on_shared_broker().await;
    let proxy = Proxy::start(&stage.redis.addr()).await;
    let url = format!("redis://{}/0", proxy.addr());
    through(&[("UNSTALE_REDIS_URL", &url)], stage, async |on| {
        for _ in 0..30 {
            on.poke().await;
            // The test has no condition to wait for, since it may go on at any moment.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..150))).await;
            proxy.cut().await;
        }
    })
    .await;
}

/// The outage is longer than the worker holds its deliveries in flight.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_outage_requeues_once_and_leaves_no_consumer() {
    let mut stage = on_shared_broker().await;
    let pages = super::load::Pages::serve().await;
    Kinds::MIXED.seed(&stage, 0..EVENTS).await;
    let settings: Vec<(&str, &str)> =
        SETTINGS.iter().copied().chain([("UNSTALE_VAR_PAGES_URL", pages.as_str())]).collect();
    let worker = stage.worker(&settings).await;
    Kinds::MIXED.publish(&mut stage, 0..EVENTS / 2, Duration::ZERO).await;
    stage.redis.kill();
    Kinds::MIXED.publish(&mut stage, EVENTS / 2..EVENTS, Duration::ZERO).await;
    let out = Instant::now();
    let (main, slow) = (stage.queue.clone(), format!("{}.slow", stage.queue));
    wait_until(Duration::from_secs(75), "no consumer stands", async || {
        stage.consumers(&main).await + stage.consumers(&slow).await == 0
    })
    .await;
    assert!(out.elapsed() > Duration::from_secs(50), "given back after {:?}", out.elapsed());
    let given_back = worker.stderr().matches("requeued until Redis answers").count();
    assert_eq!(given_back, 1, "{}", worker.stderr());
    // Probes continue. No worker consumes while they fail.
    let listener = tokio::net::TcpListener::bind(stage.redis.addr()).await.unwrap();
    for _ in 0..3 {
        tokio::time::timeout(SOON, listener.accept()).await.expect("the worker probes").unwrap();
    }
    drop(listener);
    assert_eq!(stage.consumers(&main).await + stage.consumers(&slow).await, 0);
    assert!(stage.highest_delivery_count(&main).await <= 1);
    stage.redis.restart().await;
    Kinds::MIXED.settled(&stage, &[&worker], 0..EVENTS).await;
    assert_eq!(stage.ready(".dead").await, 0);
}

/// The interrupted load's lease is our own, so no reader waits for its expiry.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_interrupted_by_an_outage_is_done_again_at_once() {
    let rules = r#"
defaults: { ttl: 1h }
loaders: { pages: { url: "{vars.PAGES_URL}", timeout: 25s } }
events: { page.changed: { effects: [ { warm: "page:{id}", from: "pages:/{id}" } ] } }
"#;
    let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let stage = Stage::with(&rabbitmq().await.url(), redis, &[("pages.yaml", rules)]).await;
    let (asked, mut loads) = tokio::sync::mpsc::channel::<()>(1);
    let (answer, answers) = tokio::sync::watch::channel(false);
    let app = axum::Router::new().route(
        "/{id}",
        axum::routing::get(move || {
            let (asked, mut answers) = (asked.clone(), answers.clone());
            async move {
                let _ = asked.try_send(());
                let _ = answers.wait_for(|answer| *answer).await;
                "fresh"
            }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let worker = stage.worker(&[("UNSTALE_VAR_PAGES_URL", &url)]).await;
    stage.publish("page.changed", r#"{"id":1}"#).await;
    tokio::time::timeout(SOON, loads.recv()).await.unwrap().unwrap();
    stage.redis.kill();
    answer.send_replace(true);
    wait_until(SOON, "the worker says that Redis is out", async || {
        worker
            .get("/readyz")
            .await
            .is_some_and(|(status, cause)| status == 503 && cause.contains("Redis"))
    })
    .await;
    stage.redis.restart().await;
    let answered = Instant::now();
    wait_until(SOON, "the page is warm", async || {
        stage.get("page:1").await.as_deref() == Some("fresh")
    })
    .await;
    assert!(answered.elapsed() < RESUMES, "it took {:?}", answered.elapsed());
    no_blame(&stage, &[&worker]).await;
}

/// Dead letters in flight when Redis goes away are confirmed, and their events acknowledged
/// meanwhile. If they were requeued, they would be published twice.
#[tokio::test(flavor = "multi_thread")]
async fn copies_under_way_are_settled_during_an_outage() {
    let broker = rabbitmq().await;
    let stage = stage(&broker.url()).await;
    let proxy = Proxy::start(&broker.addr()).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    let worker = stage
        .worker(&[("UNSTALE_VAR_PAGES_URL", "http://127.0.0.1:9"), ("UNSTALE_AMQP_URL", &amqp_url)])
        .await;
    // The first delivery makes the worker ask for more than one at a time.
    stage.publish("user.updated", r#"{"id":99}"#).await;
    wait_until(SOON, "it is settled", async || {
        worker.metrics().await.sum("unstale_events_total", &[]) > 0.0
    })
    .await;
    // The confirms must take time.
    proxy.delay(Duration::from_millis(400));
    for n in 0..5 {
        stage.publish("user.updated", &format!("not JSON {n}")).await;
    }
    wait_until(SOON, "they are in hand", async || {
        worker.metrics().await.sum("unstale_in_flight", &[]) >= 3.0
    })
    .await;
    stage.redis.kill();
    for n in 0..5 {
        stage.publish("user.updated", &format!(r#"{{"id":{n}}}"#)).await;
    }
    wait_until(SOON, "the worker says that Redis is out", async || {
        worker
            .get("/readyz")
            .await
            .is_some_and(|(status, cause)| status == 503 && cause.contains("Redis"))
    })
    .await;
    wait_until(Duration::from_secs(10), "the malformed are acknowledged", async || {
        worker.metrics().await.sum("unstale_in_flight", &[]) <= 5.0
    })
    .await;
    assert_eq!(worker.terminate().await.code(), Some(0));
    let letters = stage.dead_letters(5).await;
    assert_eq!(letters.len(), 5, "none is there twice");
    wait_until(SOON, "the others are given back", async || stage.ready("").await == 5).await;
}
