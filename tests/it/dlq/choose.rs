//! The selection of letters, which is the same in every command, and after any number of reads.

use serde_json::Value;

use super::{GIVEN, Given, declare, dlq, publish_given};
use crate::end_to_end::stage::{SOON, Stage};
use crate::status;
use crate::support::wait_until;

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// Returns the ids that `dlq list` prints, in its order.
async fn listed(stage: &Stage, args: &[&str]) -> Vec<String> {
    let (code, out, err) = dlq(stage, &[&["list", "--json"], args].concat()).await;
    assert_eq!(code, 0, "{err}");
    let id = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["headers"]["unstale-event-id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    out.lines().map(id).collect()
}

/// Returns a stage with four letters. The oldest is neither the first nor the last of the queue.
async fn four_letters() -> Stage {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    let at = |id, time| Given { id, time, ..GIVEN };
    let letters = [
        at("e3", "2020-01-03T00:00:00Z"),
        at("e1", "2020-01-01T00:00:00Z"),
        at("e4", "2020-01-04T00:00:00Z"),
        at("e2", "2020-01-02T00:00:00Z"),
    ];
    publish_given(&stage, &letters).await;
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_oldest_dead_letter_each_time() {
    let stage = four_letters().await;
    assert_eq!(listed(&stage, &[]).await, ["e1", "e2", "e3", "e4"]);
    for _ in 0..4 {
        let (_, status) = status::json(&stage, &[]).await;
        assert_eq!(
            status["rabbitmq"]["oldest_dead_letter"]["time"], "2020-01-01T00:00:00Z",
            "{status:#}"
        );
    }
    let order = stage.dead_letters(4).await;
    let ids: Vec<_> =
        order.iter().map(|letter| letter.header("unstale-event-id").unwrap()).collect();
    assert_eq!(ids, ["e3", "e1", "e4", "e2"], "the queue's order has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_selects_the_oldest_letters_in_every_dlq_command() {
    let stage = four_letters().await;
    let _ = listed(&stage, &[]).await;
    let _ = status::json(&stage, &[]).await;
    let (_, shown, _) = dlq(&stage, &["show", "--limit", "2"]).await;
    let is_shown: Vec<bool> = ["e1", "e2", "e3", "e4"]
        .iter()
        .map(|id| shown.contains(&format!("id             {id}\n")))
        .collect();
    assert_eq!(is_shown, [true, true, false, false], "{shown}");
    let (code, out, err) = dlq(&stage, &["replay", "--limit", "2", "--dry-run"]).await;
    assert!(code == 0 && out.contains("2020-01-01T00:00:00Z  2020-01-02T00:00:00Z"), "{out}{err}");
    assert!(!err.contains("warning:"), "{err}");
    let ignored = ["--rate", "9/s", "--stop-after-failures", "1"];
    let (code, _, err) = dlq(&stage, &[&["replay", "--dry-run"], &ignored[..]].concat()).await;
    let warning = "warning: --dry-run ignores --rate and --stop-after-failures\n";
    assert!(code == 0 && err.contains(warning), "{err}");
    let (code, _, err) = dlq(&stage, &["replay", "--limit", "2"]).await;
    assert!(code == 0 && err.contains("replayed 2 dead letters"), "{err}");
    assert_eq!(listed(&stage, &[]).await, ["e3", "e4"], "the oldest two were replayed");
    let (code, _, err) = dlq(&stage, &["drop", "--limit", "1", "--yes"]).await;
    assert_eq!((code, listed(&stage, &[]).await), (0, vec!["e4".to_owned()]), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_broker_dead_lettered_has_reason_type_and_time_in_every_output() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    let began = jiff::Timestamp::now().as_second();
    let properties = lapin::BasicProperties::default()
        .with_expiration("1".into())
        .with_message_id("gone".into());
    stage.publish_with("user.updated", properties, br#"{"id":1}"#).await;
    wait_until(SOON, "it has expired", async || stage.ready(".dead").await == 1).await;
    let check = |letter: &Value| {
        assert_eq!(
            (&letter["reason"], &letter["type"]),
            (&"expired".into(), &"user.updated".into()),
            "{letter}"
        );
        assert_eq!((&letter["id"], &letter["error"]), (&"gone".into(), &Value::Null), "{letter}");
        let time: jiff::Timestamp = letter["time"].as_str().unwrap().parse().unwrap();
        assert!(time.as_second() >= began, "{letter}");
    };
    let (_, out, err) = dlq(&stage, &["list", "--json"]).await;
    let listed: Value =
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    check(&listed["dead_letter"]);
    let (_, out, err) = dlq(&stage, &["show", "--json"]).await;
    let shown: Value =
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    check(&shown["dead_letter"]);
    for args in [&["list"][..], &["show"]] {
        let (_, out, _) = dlq(&stage, args).await;
        assert!(
            out.contains("expired") && out.contains("user.updated") && out.contains("gone"),
            "{out}"
        );
        assert!(out.contains(&jiff::Timestamp::now().strftime("%Y-%m-%dT").to_string()), "{out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_list_selects_and_counts_letters_by_rule_error_and_time() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    let failed = |id, error, time| Given { id, error, time, ..GIVEN };
    let letters = [
        failed("e1", "user.yaml#user.updated/0: the loader answered 404", "2020-01-01T00:00:00Z"),
        failed("e2", "user.yaml#user.updated/10: the loader answered 404", "2020-01-02T00:00:00Z"),
        failed(
            "e3",
            "user.yaml#user.updated/0: The loader's answer is too large",
            "2020-01-03T00:00:00Z",
        ),
        failed("e4", "no rule", "2020-01-04T00:00:00Z"),
    ];
    publish_given(&stage, &letters).await;
    for (filter, found) in [
        (&["--rule", "user.yaml#user.updated/0"][..], &["e1", "e3"][..]),
        (&["--rule", "user.yaml#user.updated/1"], &[]),
        (&["--rule", "user.yaml"], &["e1", "e2", "e3"]),
        (&["--error", "ANSWERED"], &["e1", "e2"]),
        (&["--error", "answered", "--error", "no rule"], &["e1", "e2", "e4"]),
        (&["--until", "2020-01-03T00:00:00Z"], &["e1", "e2"]),
        (&["--since", "2020-01-02T00:00:00Z", "--until", "2020-01-04T00:00:00Z"], &["e2", "e3"]),
    ] {
        assert_eq!(listed(&stage, filter).await, found, "{filter:?}");
    }
    let (_, out, _) = dlq(&stage, &["list", "--group-by", "error,rule"]).await;
    let heads: Vec<&str> = out.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(heads, ["count", "error", "rule", "first", "last"], "{out}");
    let squeezed: Vec<String> =
        out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for group in [
        "1 the loader answered 404 user.yaml#user.updated/10 2020-01-02T00:00:00Z",
        "1 no rule - 2020-01-04T00:00:00Z",
    ] {
        assert!(squeezed.iter().any(|line| line.starts_with(group)), "{group}: {out}");
    }
    assert!(!squeezed.iter().any(|line| line.starts_with("time ")), "only groups: {out}");
    let (_, out, _) = dlq(&stage, &["list", "--group-by", "error"]).await;
    assert!(out.contains("    2  the loader answered 404  "), "{out}");
    let (code, _, err) = dlq(&stage, &["list", "--group-by", "colour"]).await;
    assert!(code == 64 && err.contains("reason, type, rule, error"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_list_cuts_a_long_id_which_the_filter_accepts() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    let id = "0123456789abcdef".repeat(4);
    publish_given(&stage, &[Given { id: &id, ..GIVEN }, GIVEN]).await;
    let (_, out, _) = dlq(&stage, &["list"]).await;
    assert!(
        out.contains("  0123456789abcdef…  the loader")
            && !out.contains(&id)
            && !out.contains('\x1b'),
        "{out}"
    );
    assert_eq!(
        listed(&stage, &["--id", "0123456789abcdef…"]).await,
        std::slice::from_ref(&id),
        "--json has it whole"
    );
    assert!(listed(&stage, &["--id", "0123456789abcdef"]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_replay_and_dlq_drop_print_their_result_as_json() {
    let stage = four_letters().await;
    let run = async |args: &[&str]| -> Value {
        let (code, out, err) = dlq(&stage, args).await;
        assert_eq!((code, out.lines().count()), (0, 1), "{args:?}: {out}{err}");
        serde_json::from_str(&out).unwrap()
    };
    let group = |count: u32, first: &str, last: &str| serde_json::json!([{ "count": count, "reason": "loader_refused", "type": "user.updated", "first": first, "last": last }]);
    let would = run(&["replay", "--json", "--dry-run", "--limit", "3"]).await;
    assert_eq!(
        (&would["would_replay"], &would["groups"]),
        (&3.into(), &group(3, "2020-01-01T00:00:00Z", "2020-01-03T00:00:00Z"))
    );
    let replayed = run(&["replay", "--json", "--limit", "1"]).await;
    assert_eq!(
        replayed,
        serde_json::json!({ "queue": stage.queue, "replayed": 1, "left_behind": 0, "ended_by": null })
    );
    let would = run(&["drop", "--json", "--dry-run", "--limit", "1"]).await;
    assert_eq!(
        (&would["would_drop"], &would["groups"]),
        (&1.into(), &group(1, "2020-01-02T00:00:00Z", "2020-01-02T00:00:00Z"))
    );
    let dropped = run(&["drop", "--json", "--yes"]).await;
    assert_eq!(
        (&dropped["dropped"], &dropped["groups"]),
        (&3.into(), &group(3, "2020-01-02T00:00:00Z", "2020-01-04T00:00:00Z"))
    );
    assert_eq!((stage.ready("").await, stage.ready(".dead").await), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_replay_stops_after_too_many_failures() {
    let stage = Stage::new(&[(
        "user.yaml",
        r#"events: { user.updated: { effects: [ { delete: "user:{nothing}" } ] } }"#,
    )])
    .await;
    let worker = stage.worker(&[]).await;
    super::publish_letters(&stage, 0..40).await;
    let (code, out, err) = dlq(&stage, &["replay", "--stop-after-failures", "5", "--json"]).await;
    assert!(
        code == 1 && err.contains("stopped: 10 of 10 dead letters became dead letters again"),
        "{code} {err}"
    );
    let report: Value = serde_json::from_str(&out).unwrap();
    assert!(
        report["replayed"] == 10 && report["ended_by"].as_str().unwrap().starts_with("stopped: "),
        "{report}"
    );
    let (_, out, _) = dlq(&stage, &["list"]).await;
    assert!(out.contains("30  loader_refused") && out.contains("10  unresolvable"), "{out}");

    // With better rules few letters fail. Letters that came back are not replayed twice.
    stage.write_schema("user.yaml", RULES);
    wait_until(SOON, "the worker has the better rules", async || {
        worker.stderr().contains("registry reloaded")
    })
    .await;
    let (code, _, err) = dlq(&stage, &["replay", "--stop-after-failures", "1"]).await;
    assert!(code == 0 && err.contains("replayed 40 dead letters"), "{err}");
    assert_eq!(stage.ready(".dead").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn dlq_list_shows_events_that_wait_for_a_retry() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let _worker = stage.worker(&[("UNSTALE_BIND", "#"), ("UNSTALE_RETRY_DELAYS", "1m")]).await;
    for (routing_key, id) in [("user.moved", 1), ("user.moved", 2), ("user.left", 3)] {
        stage.publish(routing_key, &format!("{{\"id\":{id}}}")).await;
    }
    wait_until(SOON, "all wait", async || stage.ready(".retry.1m").await == 3).await;
    let (code, out, err) = dlq(&stage, &["list", "--waiting"]).await;
    assert!(
        code == 0 && out.starts_with("3 events wait on the retry schedule (1m: 3)\n"),
        "{out}{err}"
    );
    let words: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[2], ["count", "error", "type", "first", "last"], "{out}");
    assert!(words[3][0] == "2" && words[3].contains(&"user.moved"), "{out}");
    assert!(words[4][0] == "1" && words[4].contains(&"user.left"), "{out}");
    let (_, out, _) = dlq(&stage, &["list", "--waiting", "--json", "--type", "user.left"]).await;
    let line: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(line["dead_letter"]["reason"], "waiting", "{line}");
    assert!(
        line["dead_letter"]["type"] == "user.left"
            && line["dead_letter"]["error"].as_str().unwrap().contains("matches"),
        "{line}"
    );
    assert_eq!(
        (stage.ready(".retry.1m").await, stage.ready(".dead").await),
        (3, 0),
        "nothing was taken"
    );
}
