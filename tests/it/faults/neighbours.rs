//! Delay of other messages while a worker handles a suspected poison message, harmful or not.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::mpsc;

use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Flow, Proxy, Tap, Way, Worker, wait_until};

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { pages: { url: "{vars.PAGES_URL}", timeout: 20s } }
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  page.changed: { effects: [ { warm: "page:{id}", from: "pages:/{id}" } ] }
"#;

const LOADS: u32 = 100;

/// Starts a loader that takes 3 s, and returns the number of loads it was asked for.
async fn slow_pages() -> (String, Arc<AtomicU32>) {
    let begun = Arc::<AtomicU32>::default();
    let counter = Arc::clone(&begun);
    let page = move || async move {
        counter.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(3)).await;
        "{}"
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(
        async move { axum::serve(listener, Router::new().route("/{id}", get(page))).await },
    );
    (url, begun)
}

async fn publish(stage: &Stage, routing_key: &str, ids: impl Iterator<Item = String>) {
    let mut confirms = Vec::new();
    for id in ids {
        confirms.push(
            stage
                .send(
                    &stage.exchange,
                    routing_key,
                    Default::default(),
                    format!(r#"{{"id":"{id}"}}"#).as_bytes(),
                )
                .await,
        );
    }
    for confirm in confirms {
        assert!(matches!(confirm.await, Ok(lapin::Confirmation::Ack(None))));
    }
}

/// Returns the longest time of thirty plain deletes, one after another.
#[expect(clippy::print_stderr, reason = "what it came to")]
async fn longest_delete(stage: &Stage, what: &str) -> Duration {
    let mut longest = Duration::ZERO;
    for id in 0..30 {
        let key = format!("user:{what}-{id}");
        stage.set(&key, "old").await;
        let began = Instant::now();
        stage.publish("user.updated", &format!(r#"{{"id":"{what}-{id}"}}"#)).await;
        wait_until(Duration::from_secs(60), "it is deleted", async || !stage.exists(&key).await)
            .await;
        longest = longest.max(began.elapsed());
    }
    eprintln!("{what}: the longest of thirty deletes took {:.2} s", longest.as_secs_f64());
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_that_outlive_lost_connections_do_not_hold_plain_deletes() {
    let (pages, begun) = slow_pages().await;
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let broker = crate::support::rabbitmq().await;
    let proxy = Proxy::start(&broker.addr()).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    let settings = [
        ("UNSTALE_AMQP_URL", amqp_url.as_str()),
        ("UNSTALE_VAR_PAGES_URL", &pages),
        ("UNSTALE_WARM_CONCURRENCY", "50"),
        ("UNSTALE_WARM_RATE", "off"),
    ];
    let mut worker = stage.worker(&settings).await;
    publish(&stage, "page.changed", (0..LOADS).map(|id| id.to_string())).await;
    for round in 1..=2 {
        let slow = format!("{}.slow", stage.queue);
        wait_until(SOON, "all loads are in flight", async || {
            begun.load(Ordering::SeqCst) > 0 && matches!(stage.look(&slow).await, Some((0, 1..)))
        })
        .await;
        begun.store(0, Ordering::SeqCst);
        proxy.cut().await;
        wait_until(SOON, "it notices", async || {
            worker.stderr().matches("no session with RabbitMQ").count() >= round
        })
        .await;
        worker.wait_ready().await;
    }
    let longest = longest_delete(&stage, "lost-connections").await;
    assert!(longest < Duration::from_secs(3), "{longest:?}\n{}", worker.stderr());
    assert!(
        !worker.stderr().contains("handled alone"),
        "a lost connection is no sign of poison:\n{}",
        worker.stderr()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_that_outlive_killed_workers_do_not_hold_plain_deletes() {
    let (pages, begun) = slow_pages().await;
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let settings = [
        ("UNSTALE_VAR_PAGES_URL", pages.as_str()),
        ("UNSTALE_WARM_CONCURRENCY", "50"),
        ("UNSTALE_WARM_RATE", "off"),
    ];
    let mut worker = stage.worker(&settings).await;
    publish(&stage, "page.changed", (0..LOADS).map(|id| id.to_string())).await;
    for _ in 0..2 {
        let slow = format!("{}.slow", stage.queue);
        wait_until(SOON, "all loads are in flight", async || {
            begun.load(Ordering::SeqCst) > 0 && matches!(stage.look(&slow).await, Some((0, 1..)))
        })
        .await;
        worker.kill();
        worker = stage.worker(&settings).await;
        begun.store(0, Ordering::SeqCst);
    }
    wait_until(SOON, "the loads are suspected", async || worker.stderr().contains("handled alone"))
        .await;
    let longest = longest_delete(&stage, "killed-workers").await;
    assert!(longest < Duration::from_secs(3), "{longest:?}\n{}", worker.stderr());
}

/// Starts a loader that takes 20 s for the first load of a page, and no time later. Returns the
/// number of loads that began.
async fn pages_slow_at_first() -> (String, Arc<AtomicU32>) {
    let begun = Arc::<AtomicU32>::default();
    let (counter, known) = (Arc::clone(&begun), Arc::<Mutex<HashSet<String>>>::default());
    let page = move |Path(id): Path<String>| async move {
        counter.fetch_add(1, Ordering::SeqCst);
        if known.lock().unwrap().insert(id) {
            tokio::time::sleep(Duration::from_secs(19)).await;
        }
        "{}"
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(
        async move { axum::serve(listener, Router::new().route("/{id}", get(page))).await },
    );
    (url, begun)
}

/// Publishes a message that a worker has set aside as a suspected poison message.
async fn publish_suspected(stage: &Stage, suffix: &str, routing_key: &str, body: &str) {
    let mut headers = FieldTable::default();
    headers
        .insert("unstale-exchange".into(), AMQPValue::LongString(stage.exchange.as_str().into()));
    headers.insert("unstale-routing-key".into(), AMQPValue::LongString(routing_key.into()));
    headers.insert("unstale-redelivered".into(), AMQPValue::LongLongInt(2));
    stage.signer().await.sign(&mut headers, body.as_bytes());
    let queue = format!("{}{suffix}", stage.queue);
    let confirm = stage
        .send("", &queue, BasicProperties::default().with_headers(headers), body.as_bytes())
        .await;
    assert!(matches!(confirm.await, Ok(lapin::Confirmation::Ack(None))));
}

/// Loads run, one of them begun alone, when the main lane gets a suspected message.
async fn deletes_beside_a_suspected_message(load_is_suspected: bool, what: &str) {
    let (pages, begun) = pages_slow_at_first().await;
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let worker = stage.worker(&[("UNSTALE_VAR_PAGES_URL", pages.as_str())]).await;
    let loads = if load_is_suspected { 1 } else { 4 };
    if load_is_suspected {
        publish_suspected(&stage, ".slow", "page.changed", r#"{"id":"0"}"#).await;
    } else {
        publish(&stage, "page.changed", (0..loads).map(|id| id.to_string())).await;
    }
    wait_until(SOON, "all loads are under way", async || begun.load(Ordering::SeqCst) == loads)
        .await;
    stage.set("user:suspected", "old").await;
    let began = Instant::now();
    publish_suspected(&stage, "", "user.updated", r#"{"id":"suspected"}"#).await;
    let longest = longest_delete(&stage, what).await;
    assert!(longest < Duration::from_secs(3), "{longest:?}\n{}", worker.stderr());
    stage.wait_gone("user:suspected").await;
    for id in 0..loads {
        wait_until(SOON, "the load is made again", async || {
            stage.exists(&format!("page:{id}")).await
        })
        .await;
    }
    assert!(
        began.elapsed() < Duration::from_secs(18),
        "the loads were not waited for: {:?}",
        began.elapsed()
    );
    stage.wait_settled(&[&worker]).await;
    assert_eq!(
        worker.metrics().await.sum("unstale_retries_total", &[]),
        0.0,
        "no attempt is spent"
    );
    assert_eq!(stage.ready(".dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspected_message_does_not_hold_plain_deletes_until_loads_end() {
    deletes_beside_a_suspected_message(false, "beside-loads").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspected_message_does_not_hold_plain_deletes_until_a_suspected_load_ends() {
    deletes_beside_a_suspected_message(true, "beside-a-suspected-load").await;
}

/// One worker is killed whenever it begins the poison message. Other messages do not wait until
/// that is dead-lettered.
#[tokio::test(flavor = "multi_thread")]
async fn the_neighbours_of_a_poison_message_are_applied_before_it_is_begun_again() {
    const NEIGHBOURS: u32 = 60;
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    let (tell, mut begun) = mpsc::unbounded_channel();
    let tripwire = Tap::new(move |connection, way, bytes| {
        let poisoned = way == Way::ToServer && bytes.windows(6).any(|window| window == b"poison");
        if poisoned {
            tell.send(connection).unwrap();
        }
        if poisoned { Flow::Halt } else { Flow::Pass }
    });
    let redis = Proxy::start_tapped(&stage.redis.addr(), tripwire).await;
    let redis_url = format!("redis://{}/0", redis.addr());
    let settings = [
        ("UNSTALE_REDIS_URL", redis_url.as_str()),
        ("UNSTALE_VAR_PAGES_URL", "http://127.0.0.1:9"),
    ];
    let start = async || -> Worker { stage.worker(&settings).await };
    let worker = start().await;
    assert_eq!(worker.terminate().await.code(), Some(0), "it declared the queues");
    for id in 0..NEIGHBOURS {
        stage.set(&format!("user:{id}"), "old").await;
    }
    let ids = (0..10)
        .map(|id| id.to_string())
        .chain(["poison".to_owned()])
        .chain((10..NEIGHBOURS).map(|id| id.to_string()));
    publish(&stage, "user.updated", ids).await;
    let mut died = 0;
    let mut worker = stage.start_worker(&settings);
    loop {
        let gone = async {
            for id in 0..NEIGHBOURS {
                stage.wait_gone(&format!("user:{id}")).await;
            }
        };
        tokio::select! {
            () = gone => break,
            connection = begun.recv() => {
                connection.unwrap();
                worker.kill();
                died += 1;
                assert!(died <= 5, "{died} workers died, and neighbours are not applied");
                // It may have tried again before it was killed, which is not a second death.
                while begun.try_recv().is_ok() {}
                worker = stage.start_worker(&settings);
            }
        }
    }
    worker.kill();
}
