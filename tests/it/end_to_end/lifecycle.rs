//! Starts, stops and reloads of workers, and servers that come and go.

use std::time::Duration;

use redis::AsyncCommands;

use super::stage::{SOON, Stage};
use crate::status::json;
use crate::support::{Proxy, RabbitMq, wait_until};

const USERS: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

async fn publish_users(stage: &Stage, ids: std::ops::Range<u32>) {
    for id in ids {
        stage.publish("user.updated", &format!(r#"{{"id":{id}}}"#)).await;
    }
}

async fn seed_users(stage: &Stage, ids: std::ops::Range<u32>) {
    let mut redis = stage.connection().await;
    for id in ids {
        let _: () = redis.set(format!("user:{id}"), "old").await.unwrap();
    }
}

async fn wait_no_users(stage: &Stage) {
    wait_until(SOON, "every user is gone", async || {
        let Some(mut redis) = stage.redis.try_connection().await else { return false };
        redis.keys::<_, Vec<String>>("user:*").await.is_ok_and(|keys| keys.is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_settles_and_ends_with_0() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let worker = stage.worker(&[]).await;
    seed_users(&stage, 0..200).await;
    publish_users(&stage, 0..200).await;
    assert_eq!(worker.terminate().await.code(), Some(0));
    // The next worker takes what this one had not taken. Nothing is half done.
    let _next = stage.worker(&[]).await;
    wait_no_users(&stage).await;
    assert_eq!(stage.ready(".dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_nothing() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    seed_users(&stage, 0..500).await;
    let first = stage.worker(&[]).await;
    publish_users(&stage, 0..250).await;
    first.kill();
    publish_users(&stage, 250..500).await;
    let _second = stage.worker(&[]).await;
    wait_no_users(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_for_its_servers_at_start() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let (broker, cache) = (crate::support::rabbitmq().await, &stage.redis);
    let (amqp, redis) = (Proxy::start(&broker.addr()).await, Proxy::start(&cache.addr()).await);
    amqp.refuse().await;
    redis.refuse().await;
    let amqp_url = broker.url().replace(&broker.addr(), &amqp.addr());
    let redis_url = format!("redis://{}/0", redis.addr());
    let mut worker =
        stage.start_worker(&[("UNSTALE_AMQP_URL", &amqp_url), ("UNSTALE_REDIS_URL", &redis_url)]);
    wait_until(SOON, "it lives", async || matches!(worker.get("/livez").await, Some((200, _))))
        .await;
    assert!(matches!(worker.get("/readyz").await, Some((503, _))));
    wait_until(SOON, "the log says what is waited for", async || {
        worker.stderr().contains("waiting for Redis")
    })
    .await;
    redis.resume().await;
    wait_until(SOON, "it waits for the broker alone", async || {
        worker
            .get("/readyz")
            .await
            .is_some_and(|(status, cause)| status == 503 && cause.contains("RabbitMQ"))
    })
    .await;
    amqp.resume().await;
    worker.wait_ready().await;
    seed_users(&stage, 0..3).await;
    publish_users(&stage, 0..3).await;
    wait_no_users(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_at_start_end_with_69() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let broker = crate::support::rabbitmq().await;
    let wrong = broker.url_as("guest", "a-wrong-secret", "%2f");
    let mut worker = stage.start_worker(&[("UNSTALE_AMQP_URL", &wrong)]);
    assert_eq!(worker.wait_exit(SOON).await.code(), Some(69), "{}", worker.stderr());
    assert!(!worker.stderr().contains("a-wrong-secret"));
    assert!(worker.stderr().contains("UNSTALE_AMQP_URL"), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_registry_ends_with_64_and_says_where() {
    let stage = Stage::new(&[(
        "users.yaml",
        "events:\n  user.updated:\n    effects:\n      - delete: {id}\n",
    )])
    .await;
    let mut worker = stage.start_worker(&[]);
    assert_eq!(worker.wait_exit(SOON).await.code(), Some(64));
    assert!(worker.stderr().contains("users.yaml:4:"), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_redis_costs_nothing() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let worker = stage.worker(&[]).await;
    seed_users(&stage, 0..100).await;
    let _: () = redis::cmd("SAVE").query_async(&mut stage.connection().await).await.unwrap();
    stage.redis.kill();
    publish_users(&stage, 0..100).await;
    wait_until(SOON, "it says that Redis is out", async || {
        worker
            .get("/readyz")
            .await
            .is_some_and(|(status, cause)| status == 503 && cause.contains("Redis"))
    })
    .await;
    stage.redis.restart().await;
    wait_no_users(&stage).await;
    stage.wait_settled(&[&worker]).await;
    let metrics = worker.metrics().await;
    assert_eq!(
        metrics.sum("unstale_retries_total", &[]) + metrics.sum("unstale_dead_total", &[]),
        0.0,
        "no attempt is spent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_broker_costs_nothing() {
    let broker = RabbitMq::start().await;
    let mut stage = Stage::on_broker(&broker, &[("users.yaml", USERS)]).await;
    let mut worker = stage.worker(&[]).await;
    seed_users(&stage, 0..300).await;
    publish_users(&stage, 0..200).await;
    broker.flush_declarations().await;
    broker.kill();
    broker.restart().await;
    stage.reconnect().await;
    publish_users(&stage, 200..300).await;
    wait_no_users(&stage).await;
    worker.wait_ready().await;
    assert_eq!(worker.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_costs_nothing() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let broker = crate::support::rabbitmq().await;
    let proxy = Proxy::start(&broker.addr()).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    let _worker = stage.worker(&[("UNSTALE_AMQP_URL", &amqp_url)]).await;
    seed_users(&stage, 0..300).await;
    for round in 0..3 {
        publish_users(&stage, round * 100..(round + 1) * 100).await;
        proxy.cut().await;
    }
    wait_no_users(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_registry_is_taken_and_a_broken_one_is_not() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let worker = stage.worker(&[]).await;
    let digests = async || {
        let (_, metrics) = worker.get("/metrics").await.unwrap();
        metrics
            .lines()
            .filter(|line| line.starts_with("unstale_registry_info{") && line.ends_with(" 1"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let before = digests().await;
    assert_eq!(before.len(), 1, "{before:?}");

    stage.write_schema("users.yaml", "events: { user.updated: { effects: [ { delete: {id} } ] } }");
    wait_until(SOON, "the broken registry is counted", async || {
        worker.metrics().await.sum("unstale_registry_reload_failures_total", &[]) >= 1.0
    })
    .await;
    let failing = r#"{ effects: [ { delete: "user:{id}" } ], examples: [ { data: { id: 1 }, expect: ["delete member:1"] } ] }"#;
    stage.write_schema("users.yaml", &format!("events: {{ user.updated: {failing} }}"));
    wait_until(SOON, "so is the one that fails its own example", async || {
        worker.metrics().await.sum("unstale_registry_reload_failures_total", &[]) >= 2.0
    })
    .await;
    assert_eq!(digests().await, before);
    let refused =
        async || json(&stage, &[]).await.1["redis"]["workers"][0]["refused_registry"].clone();
    wait_until(SOON, "`unstale status` tells", async || {
        refused().await.as_str().is_some_and(|cause| cause.contains("users.yaml"))
    })
    .await;
    assert_eq!(json(&stage, &[]).await.0, 1, "it needs a person");
    stage.set("user:1", "old").await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    stage.wait_gone("user:1").await;

    stage.write_schema(
        "users.yaml",
        r#"events: { member.updated: { effects: [ { delete: "member:{id}" } ] } }"#,
    );
    wait_until(SOON, "the changed registry is in use", async || digests().await != before).await;
    wait_until(SOON, "`unstale status` has no more to tell", async || refused().await.is_null())
        .await;
    stage.set("member:1", "old").await;
    wait_until(SOON, "its routing key is bound", async || {
        worker.stderr().contains("member.updated")
    })
    .await;
    stage.publish("member.updated", r#"{"id":1}"#).await;
    stage.wait_gone("member:1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_retry_queue_does_not_stop_a_running_worker() {
    let rules = r#"
defaults: { ttl: 1h }
loaders: { away: { url: "http://127.0.0.1:1" } }
events:
  user.updated: { effects: [ { delete: "user:{id}" } ] }
  page.changed: { effects: [ { warm: "page", from: "away:/" } ] }
"#;
    let stage = Stage::new(&[("users.yaml", rules)]).await;
    let delays = ("UNSTALE_RETRY_DELAYS", "1s,10m");
    assert_eq!(stage.worker(&[delays]).await.terminate().await.code(), Some(0));
    let broker = crate::support::rabbitmq().await;
    let proxy = Proxy::start(&broker.addr()).await;
    let amqp_url = broker.url().replace(&broker.addr(), &proxy.addr());
    // Like a broker at its limit of queues, this one declares nothing.
    let settings = [delays, ("UNSTALE_AMQP_URL", amqp_url.as_str()), ("UNSTALE_DECLARE", "none")];
    let worker = stage.worker(&settings).await;
    let step = format!("{}.retry.1s", stage.queue);
    let channel = stage.new_channel().await;
    channel.queue_delete(step.as_str().into(), Default::default()).await.unwrap();
    proxy.cut().await;
    seed_users(&stage, 0..50).await;
    publish_users(&stage, 0..50).await;
    wait_no_users(&stage).await;
    stage.publish("page.changed", "{}").await;
    wait_until(SOON, "the next retry step has the event", async || {
        stage.ready(".retry.10m").await == 1
    })
    .await;
    wait_until(
        2 * SOON,
        "the missing queue is reported",
        async || matches!(worker.get("/readyz").await, Some((503, body)) if body.contains(&step)),
    )
    .await;
    // A start refuses: somebody is looking at it.
    let mut second = stage.start_worker(&settings);
    let refused = second.wait_exit(SOON).await;
    assert!(!refused.success() && second.stderr().contains(&step), "{}", second.stderr());

    let other = stage.worker(&[delays]).await;
    wait_until(SOON, "once it is declared, the worker is ready", async || {
        matches!(worker.get("/readyz").await, Some((200, _)))
    })
    .await;
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let rules = r#"
defaults: { ttl: 1h }
loaders: { slow: { url: "{vars.SLOW_URL}", timeout: 30s } }
events: { page.changed: { effects: [ { warm: "page", from: "slow:/" } ] } }
"#;
    let stage = Stage::new(&[("pages.yaml", rules)]).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut worker = stage.worker(&[("UNSTALE_VAR_SLOW_URL", &url)]).await;
    stage.publish("page.changed", "{}").await;
    let (_loading, _) = tokio::time::timeout(SOON, silent.accept()).await.unwrap().unwrap();
    worker.signal("TERM");
    wait_until(SOON, "it stops consuming", async || stage.consumers(&stage.queue).await == 0).await;
    worker.signal("INT");
    assert_eq!(
        worker.wait_exit(Duration::from_secs(5)).await.code(),
        Some(75),
        "{}",
        worker.stderr()
    );
    let slow = format!("{}.slow", stage.queue);
    wait_until(SOON, "what was in hand is back", async || {
        matches!(stage.look(&slow).await, Some((1, 0)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_period_ends_what_does_not_end() {
    let rules = r#"
defaults: { ttl: 1h }
loaders: { slow: { url: "{vars.SLOW_URL}", timeout: 30s } }
events: { page.changed: { effects: [ { warm: "page", from: "slow:/" } ] } }
"#;
    let stage = Stage::new(&[("pages.yaml", rules)]).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut worker =
        stage.worker(&[("UNSTALE_VAR_SLOW_URL", &url), ("UNSTALE_SHUTDOWN_GRACE", "300ms")]).await;
    stage.publish("page.changed", "{}").await;
    let (_loading, _) = tokio::time::timeout(SOON, silent.accept()).await.unwrap().unwrap();
    worker.signal("TERM");
    assert_eq!(
        worker.wait_exit(Duration::from_secs(10)).await.code(),
        Some(75),
        "{}",
        worker.stderr()
    );
}
