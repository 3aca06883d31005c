//! A node of a RabbitMQ cluster without a replica of any queue: everything but the history works
//! there.

use std::process::{Command, Stdio};

use super::load::SETTINGS;
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::{RabbitMq, wait_until};

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// Runs one of our commands; returns its exit code and its output.
async fn unstale(stage: &Stage, amqp_url: &str, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
    command
        .args(args)
        .env_clear()
        .envs(stage.broker_settings())
        .env("UNSTALE_AMQP_URL", amqp_url)
        .env("UNSTALE_REDIS_URL", stage.redis.url())
        .env("UNSTALE_SCHEMAS", stage.schemas.path())
        .env("UNSTALE_LOG", "warn")
        .envs(SETTINGS.iter().copied())
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_replicas_serves_all_but_the_history() {
    let nodes = RabbitMq::start_cluster().await;
    let [with, _, without] = nodes.each_ref().map(RabbitMq::url);
    let stage =
        Stage::with(&without, crate::support::Redis::start().await, &[("users.yaml", RULES)]).await;
    let at = |url| SETTINGS.iter().copied().chain([("UNSTALE_AMQP_URL", url)]).collect::<Vec<_>>();
    // The leaders are on the node where a worker declares the queues.
    assert_eq!(stage.worker(&at(&with)).await.terminate().await.code(), Some(0));
    let mut forget = String::new();
    for suffix in ["", ".slow", ".dead", ".retry.50ms", ".history"] {
        let (queue, node) = (format!("{}{suffix}", stage.queue), nodes[2].name());
        let forgets = if suffix == ".history" {
            "rabbit_stream_queue:delete_replica"
        } else {
            "rabbit_quorum_queue:delete_member"
        };
        forget += &format!("ok = {forgets}(<<\"/\">>, <<\"{queue}\">>, '{node}'), ");
    }
    nodes[0].eval(&format!("{forget} ok.")).await;

    stage.set("user:1", "old").await;
    let worker = stage.worker(&at(&without)).await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    stage.publish("user.updated", "no JSON").await;
    stage.wait_gone("user:1").await;
    wait_until(SOON, "the letter is written", async || stage.ready(".dead").await == 1).await;
    assert_eq!(worker.terminate().await.code(), Some(0));

    let (code, said) = unstale(&stage, &without, &["dlq", "list"]).await;
    assert!(code == 0 && said.contains("malformed"), "{code}: {said}");
    let (code, said) = unstale(&stage, &without, &["dlq", "replay", "--reason", "malformed"]).await;
    assert_eq!(code, 0, "{said}");
    wait_until(SOON, "the letter is back in its queue", async || {
        (stage.ready("").await, stage.ready(".dead").await) == (1, 0)
    })
    .await;

    stage.set("user:1", "old").await;
    let replay = ["replay", "--since", "offset:0"];
    let (code, said) = unstale(&stage, &without, &replay).await;
    assert!(
        code == 69
            && said.contains("replica on the local node")
            && said.contains("UNSTALE_AMQP_URL"),
        "{code}: {said}"
    );
    let (code, said) = unstale(&stage, &without, &["status"]).await;
    assert!(code == 1 && said.contains("replica on the local node"), "{code}: {said}");
    // The next node of the list has one.
    let (code, said) = unstale(&stage, &format!("{without},{with}"), &replay).await;
    assert!(!stage.exists("user:1").await, "{code}: {said}");
}
