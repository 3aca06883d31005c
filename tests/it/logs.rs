//! Log lines about events and servers: enough to know what happened, and no line for each event.

use std::time::{Duration, Instant};

use crate::dlq::dlq;
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{Proxy, Worker, wait_until};

const RULES: &str = r#"
loaders: { away: { url: "http://127.0.0.1:1" } }
events:
  user.updated:
    data: { type: object, required: [id], properties: { id: { type: integer } } }
    effects: [ { delete: "user:{id}" }, { invalidate_tags: "users" } ]
  page.changed:
    effects: [ { warm: "page:{id}", from: "away:/{id}", ttl: 1h } ]
"#;

fn lines<'l>(log: &'l str, name: &str) -> Vec<&'l str> {
    log.lines().filter(|line| line.contains(name)).collect()
}

async fn wait_logged(worker: &Worker, name: &str) {
    wait_until(SOON, name, async || worker.stderr().contains(name)).await;
}

/// Ends the worker and returns all that it logged.
async fn ended(mut worker: Worker) -> String {
    worker.signal("TERM");
    assert!(worker.wait_exit(SOON).await.success());
    worker.stderr()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_dead_letter_of_a_rule_is_logged_with_the_command_that_shows_it() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    for id in ["first one", "second", "third"] {
        stage
            .publish(
                "user.updated",
                &format!(r#"{{"type":"user.updated","id":"{id}","data":{{"id":"none"}}}}"#),
            )
            .await;
    }
    stage.publish("user.updated", "no JSON").await;
    wait_until(SOON, "four dead letters", async || stage.ready(".dead").await == 4).await;
    wait_logged(&worker, "reason=\"malformed\"").await;
    let log = ended(worker).await;
    let logged = lines(&log, " dead letter ");
    assert_eq!(logged.len(), 2, "{log}");
    let first = logged[0];
    for part in [
        "WARN",
        r#"reason="invalid_data""#,
        r#"rule="user.yaml#user.updated""#,
        r#"event_type="user.updated""#,
        r#"id="first one""#,
        r#"look="unstale dlq show --id 'first one'""#,
    ] {
        assert!(first.contains(part), "{part}: {first}");
    }
    assert!(!first.contains("none"), "a value of the payload: {first}");
    let counted = lines(&log, "more dead letters");
    assert!(
        counted.len() == 1
            && counted[0].contains("more=2")
            && counted[0].contains("--rule 'user.yaml#user.updated'"),
        "{log}"
    );
    assert_eq!(dlq(&stage, &["show", "--id", "first one"]).await.0, 0);
    let (_, out, _) = dlq(
        &stage,
        &["list", "--reason", "invalid_data", "--rule", "user.yaml#user.updated", "--json"],
    )
    .await;
    assert_eq!(out.lines().count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_of_an_unknown_type_is_logged_with_the_type_that_was_meant() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[("UNSTALE_BIND", "#"), ("UNSTALE_RETRY_DELAYS", "50ms")]).await;
    for (routing_key, id) in [("user.updatd", 1), ("user.updatd", 2), ("something.else", 3)] {
        stage.publish(routing_key, &format!("{{\"id\":{id}}}")).await;
    }
    wait_until(SOON, "three dead letters", async || stage.ready(".dead").await == 3).await;
    wait_logged(&worker, " dead letter ").await;
    let log = ended(worker).await;
    let logged = lines(&log, " unknown event ");
    assert_eq!(logged.len(), 2, "{log}");
    assert!(
        logged[0].contains(r#"event_type="user.updatd""#)
            && logged[0].contains(r#"did_you_mean="user.updated""#),
        "{log}"
    );
    assert!(
        logged[1].contains(r#"event_type="something.else""#) && !logged[1].contains("did_you_mean"),
        "{log}"
    );
    let counted = lines(&log, "more unknown events");
    assert!(
        counted.len() == 1 && counted[0].contains("more=1"),
        "each event counts once, however often it is retried: {log}"
    );
    assert!(lines(&log, "retry scheduled").is_empty(), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_of_a_rule_on_the_retry_schedule_is_logged() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[("UNSTALE_RETRY_DELAYS", "50ms")]).await;
    for id in 0..3 {
        stage
            .publish(
                "page.changed",
                &format!(r#"{{"type":"page.changed","id":"e{id}","data":{{"id":{id}}}}}"#),
            )
            .await;
    }
    wait_until(SOON, "three dead letters", async || stage.ready(".dead").await == 3).await;
    wait_logged(&worker, " dead letter ").await;
    let log = ended(worker).await;
    let logged = lines(&log, "retry scheduled");
    assert_eq!(logged.len(), 1, "{log}");
    for part in [
        "WARN",
        r#"rule="user.yaml#page.changed/0""#,
        r#"event_type="page.changed""#,
        r#"id="e"#,
        "attempt=1",
        "retry_in=50ms",
    ] {
        assert!(logged[0].contains(part), "{part}: {log}");
    }
    assert_eq!(lines(&log, "more retries").len(), 1, "{log}");
    assert!(
        lines(&log, " dead letter ")[0]
            .contains(r#"reason="attempts_exhausted" rule="user.yaml#page.changed/0""#),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_effect_is_a_line_at_debug_and_none_at_info() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    for level in ["debug", "info"] {
        let worker = stage.worker(&[("UNSTALE_LOG", level)]).await;
        stage.set("user:1", "old").await;
        stage.publish("user.updated", r#"{"type":"user.updated","id":"e1","data":{"id":1}}"#).await;
        stage.wait_gone("user:1").await;
        let digest = worker.stderr().split_once("digest=\"").unwrap().1[..12].to_owned();
        let log = ended(worker).await;
        let effects = lines(&log, " effect verb=");
        if level == "info" {
            assert!(effects.is_empty() && !log.contains("user:1"), "{log}");
            continue;
        }
        assert_eq!(effects.len(), 2, "{log}");
        let end = |rule: u8| {
            format!(r#"rule="user.yaml#user.updated/{rule}" digest="{digest}" event="e1""#)
        };
        assert!(effects[0].contains(&format!(r#"verb="delete" key="user:1" {}"#, end(0))), "{log}");
        assert!(
            effects[1].contains(&format!(r#"verb="invalidate_tags" tag="users" {}"#, end(1))),
            "{log}"
        );
    }
}

/// Starts a worker on a used Redis, at an address without RabbitMQ, and waits for its first log
/// line.
async fn says_at_once(stage: &Stage, amqp_url: &str, cause: &str) {
    let redis = stage.redis.url();
    let settings = [
        ("UNSTALE_AMQP_URL", amqp_url),
        ("UNSTALE_REDIS_URL", &redis),
        ("UNSTALE_QUEUE", &stage.queue),
        ("UNSTALE_SCHEMAS", stage.schemas.path().to_str().unwrap()),
    ];
    let worker = Worker::start(&settings);
    wait_until(SOON, "it has started", async || worker.stderr().contains("registry loaded")).await;
    let began = Instant::now();
    wait_logged(&worker, "waiting for RabbitMQ").await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}: {}", began.elapsed(), worker.stderr());
    let log = worker.stderr();
    assert!(lines(&log, "waiting for RabbitMQ")[0].contains(cause), "{log}");
    // It continues to try, and does not repeat the log line.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let log = worker.stderr();
    let (_, log) = log.split_once("registry loaded").unwrap();
    assert!(!log.contains("heal") && !log.contains("history"), "neither server was met: {log}");
    assert!(lines(log, "waiting for RabbitMQ").len() <= 2, "{log}");
    worker.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_within_a_second_that_it_waits_for_rabbitmq() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    assert!(stage.worker(&[]).await.terminate().await.success());
    // No server listens on port 1 of a machine that runs tests.
    says_at_once(&stage, "amqp://guest:guest@127.0.0.1:1/%2f", "refused").await;
    let broker = crate::support::rabbitmq().await;
    let silent = Proxy::start(&broker.addr()).await;
    silent.stall();
    says_at_once(
        &stage,
        &broker.url().replace(&broker.addr(), &silent.addr()),
        "it has not answered yet",
    )
    .await;
}
