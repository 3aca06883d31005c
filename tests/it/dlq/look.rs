//! `unstale dlq list` and `unstale dlq show`: they show every letter, and take none.

use std::io::Write as _;
use std::process::{Command, Stdio};

use lapin::BasicProperties;

use super::dlq;
use crate::end_to_end::stage::{SOON, Stage};
use crate::support::wait_until;

const RULES: &str = r#"
events:
  user.updated:
    data: { type: object, required: [name] }
    effects: [ { delete: "user:{id}" }, { write: "user:{id}:name", value: "{name}", ttl: 1h } ]
"#;

/// Returns a stage with four letters: two of a worker, one of an unknown event, and one that
/// expired before any worker read it.
async fn with_letters() -> Stage {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let worker = stage.worker(&[("UNSTALE_UNKNOWN", "dead"), ("UNSTALE_BIND", "order.*")]).await;
    stage.publish("user.updated", r#"{"type":"user.updated","id":"first","data":{"id":1}}"#).await;
    stage.publish("user.updated", r#"{"type":"user.updated","id":"second","data":{"id":2}}"#).await;
    stage.publish("order.paid", r#"{"type":"order.paid","id":"third","data":{"id":3}}"#).await;
    wait_until(SOON, "three dead letters", async || stage.ready(".dead").await == 3).await;
    assert!(worker.terminate().await.success());
    // The broker's times are whole seconds. The fourth letter must be the last.
    let second = jiff::Timestamp::now().as_second();
    wait_until(SOON, "the next second", async || jiff::Timestamp::now().as_second() > second).await;
    let properties =
        BasicProperties::default().with_expiration("1".into()).with_message_id("fourth".into());
    stage.publish_with("user.updated", properties, br#"{"id":4,"name":"Kate"}"#).await;
    wait_until(SOON, "the fourth has expired", async || stage.ready(".dead").await == 4).await;
    stage
}

fn ids(lines: &str) -> Vec<String> {
    let id = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let told = line["headers"]["unstale-event-id"]
            .as_str()
            .or(line["properties"]["message_id"].as_str());
        told.unwrap().to_owned()
    };
    lines.lines().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_list_and_dlq_show_select_letters_and_take_none() {
    let stage = with_letters().await;
    let (code, out, err) = dlq(&stage, &["list"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        err.contains("reading 4 dead letters") && err.contains("other clients do not see them"),
        "{err}"
    );
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], format!("4 dead letters in `{}.dead`", stage.queue));
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[2]), ["count", "reason", "type", "first", "last"]);
    assert_eq!(
        words(lines[3])[..3],
        ["2", "invalid_data", "user.updated"],
        "the largest group first"
    );
    assert!(
        lines.iter().any(|line| words(line).starts_with(&[
            "1".into(),
            "expired".into(),
            "user.updated".into()
        ])),
        "{out}"
    );
    let one_each: Vec<String> = lines[8..].iter().map(|line| words(line)[3].clone()).collect();
    assert_eq!(one_each, ["first", "second", "third", "fourth"], "{out}");

    for (filter, found) in [
        (&["--reason", "invalid_data"][..], &["first", "second"][..]),
        (&["--reason", "expired", "--reason", "unknown_event"], &["third", "fourth"]),
        (&["--type", "order.*"], &["third"]),
        (&["--type", "user.#", "--reason", "expired"], &["fourth"]),
        (&["--id", "second", "--id", "third"], &["second", "third"]),
        (&["--since", "1h", "--limit", "3"], &["first", "second", "third"]),
        (&["--since", "2100-01-01T00:00:00Z"], &[]),
    ] {
        let (code, out, err) = dlq(&stage, &[&["list", "--json"], filter].concat()).await;
        assert_eq!(
            (code, ids(&out)),
            (0, found.iter().map(|id| (*id).to_owned()).collect()),
            "{filter:?} {err}"
        );
    }
    assert_eq!(stage.ready(".dead").await, 4);

    let (code, out, err) = dlq(&stage, &["show", "--id", "fourth"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains(&format!(
            "published to   exchange {}, routing key user.updated",
            stage.exchange
        )),
        "{out}"
    );
    assert!(out.contains(r#"    {"id":4,"name":"Kate"}"#), "{out}");
    assert!(
        out.contains("delete           user:4") && out.contains(r#"= "Kate""#),
        "what plan says of it: {out}"
    );
    let (code, out, _) = dlq(&stage, &["show", "--redact"]).await;
    assert_eq!(code, 0);
    assert!(
        !out.contains("Kate")
            && !out.contains("\"id\":4")
            && out.contains("bytes: hidden")
            && out.contains("user:4"),
        "{out}"
    );
    assert!(out.contains("dead letter: invalid_data"), "plan says it of the first: {out}");
    let (code, out, _) = dlq(&stage, &["show", "--redact", "--json"]).await;
    assert_eq!((code, out.lines().count()), (0, 4));
    assert!(!out.contains("Kate"), "{out}");
    let fourth: serde_json::Value = serde_json::from_str(out.lines().nth(3).unwrap()).unwrap();
    assert_eq!(fourth["plan"]["effects"][0]["target"], "user:4", "{fourth}");
    let (code, out, err) = dlq(&stage, &["show", "--id", "nobody"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("no dead letter matches"), "{err}");
    assert_eq!(stage.ready(".dead").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_list_and_dlq_show_print_the_same_of_a_letter() {
    let stage = with_letters().await;
    let letters = async |command: &str| -> Vec<serde_json::Value> {
        let (code, out, err) = dlq(&stage, &[command, "--json"]).await;
        assert_eq!(code, 0, "{err}");
        let letter = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["dead_letter"].clone()
        };
        out.lines().map(letter).collect()
    };
    let listed = letters("list").await;
    let attempts: Vec<_> = listed.iter().map(|letter| letter["attempts"].as_u64()).collect();
    assert_eq!(attempts, [Some(1), Some(1), Some(1), Some(0)], "{listed:?}");
    assert_eq!(listed, letters("show").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_reads_the_output_of_dlq_list() {
    let stage = with_letters().await;
    let (code, lines, _) = dlq(&stage, &["list", "--json"]).await;
    assert_eq!(code, 0);
    let mut plan = Command::new(env!("CARGO_BIN_EXE_unstale"))
        .args(["plan", "--json"])
        .env_clear()
        .env("UNSTALE_SCHEMAS", stage.schemas.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    plan.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let planned = String::from_utf8(plan.wait_with_output().unwrap().stdout).unwrap();
    let planned: Vec<serde_json::Value> =
        planned.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let reasons: Vec<_> = planned.iter().map(|plan| plan["error"]["reason"].as_str()).collect();
    assert_eq!(reasons, [Some("invalid_data"), Some("invalid_data"), Some("unknown_event"), None]);
    let read: Vec<_> = planned
        .iter()
        .map(|plan| (plan["event"]["id"].as_str(), plan["event"]["type"].as_str()))
        .collect();
    assert_eq!(read[0], (Some("first"), Some("user.updated")));
    assert_eq!(
        read[3],
        (Some("fourth"), Some("user.updated")),
        "the broker's letter is read as it first arrived"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_names_a_missing_queue_and_refuses_wrong_usage() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    for args in [&["list"][..], &["show"], &["replay"], &["drop", "--yes"]] {
        let (code, out, err) = dlq(&stage, args).await;
        assert_eq!((code, out.as_str()), (69, ""), "{args:?} {err}");
        assert!(
            err.contains(&format!("queue `{}.dead`", stage.queue)) && err.contains("unstale run"),
            "{err}"
        );
    }
    for args in [
        &["list", "--reason", "bored"][..],
        &["list", "--since", "yesterday"],
        &["replay", "--rate", "0/s"],
        &["show", "--limit", "0"],
        &["eat"],
        &[],
    ] {
        let (code, out, err) = dlq(&stage, args).await;
        assert_eq!((code, out.as_str()), (64, ""), "{args:?} {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_exits_with_69_if_the_broker_is_out_of_reach() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    // Nothing listens on port 1 of a machine that runs tests.
    let mut command = super::command(&stage, &["list"]);
    command.env("UNSTALE_AMQP_URL", "amqp://127.0.0.1:1");
    let start = std::time::Instant::now();
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{err}");
    assert!(
        err.contains("RabbitMQ") && start.elapsed() < std::time::Duration::from_secs(15),
        "{err}"
    );
}
