//! `unstale publish` against a real broker.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use super::stage::Stage;

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

fn publish(stage: &Stage, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"))
        .arg("publish")
        .args(arguments)
        .env_clear()
        .envs(stage.broker_settings())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    command.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    command.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_applied() {
    let stage = Stage::new(&[("users.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    for id in 1..=4 {
        stage.set(&format!("user:{id}"), "old").await;
    }
    let published = publish(&stage, &["user.updated", r#"{"id":1}"#], "");
    assert_eq!(published.status.code(), Some(0), "{}", String::from_utf8_lossy(&published.stderr));
    stage.wait_gone("user:1").await;

    let published = publish(&stage, &["user.updated"], r#"{"id":2}"#);
    assert_eq!(published.status.code(), Some(0), "{}", String::from_utf8_lossy(&published.stderr));
    stage.wait_gone("user:2").await;

    let lines = stage.schemas.path().join("events.jsonl");
    let whole = r#"{"routing_key":"user.updated","body":"{\"id\":3}"}"#;
    std::fs::write(
        &lines,
        format!("{whole}\n{{\"type\":\"user.updated\",\"data\":{{\"id\":4}}}}\n"),
    )
    .unwrap();
    let published = publish(&stage, &["--file", lines.to_str().unwrap()], "");
    assert_eq!(published.status.code(), Some(0), "{}", String::from_utf8_lossy(&published.stderr));
    stage.wait_gone("user:3").await;
    stage.wait_gone("user:4").await;
    assert_eq!(stage.ready(".dead").await, 0, "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_exits_with_1_if_no_queue_takes_the_event() {
    let stage = Stage::new(&[("users.yaml", RULES)]).await;
    let published = publish(&stage, &["user.forgotten", r#"{"id":1}"#], "");
    assert_eq!(published.status.code(), Some(1));
    let told = String::from_utf8_lossy(&published.stderr);
    assert!(told.contains("no queue"), "{told}");
    assert!(!told.contains(r#"{"id":1}"#), "no payload: {told}");
}
