//! `unstale replay`: a dead letter that was replayed is in the history a second time, at its end.
//! It is older than its place.

use super::{flush, replay, wait_recorded};
use crate::dlq::{dlq, publish_letter};
use crate::end_to_end::stage::Stage;

const RULES: &str = r#"
defaults: { ttl: 1h }
events:
  note.updated:
    version: "{rev}"
    effects: [ { write: "note:{id}", value: "{text}", encoding: raw, tags: ["notes"] } ]
  note.dropped:
    effects: [ { delete: "note:{id}" } ]
  note.seen:
    effects: [ { bump_version: "notes:version" } ]
"#;

/// Replays the letter of an event that is older than all others.
async fn replay_letter(stage: &Stage, event_type: &str, body: &str) {
    publish_letter(stage, event_type, body).await;
    let (code, _, err) = dlq(stage, &["replay"]).await;
    assert!(code == 0 && err.contains("replayed 1 dead letter "), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_replayed_late_never_wins_over_a_newer_write() {
    let stage = Stage::new(&[("notes.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    stage.publish("note.updated", r#"{"id":1,"rev":2,"text":"second"}"#).await;
    stage.wait_settled(&[&worker]).await;
    replay_letter(&stage, "note.updated", r#"{"id":1,"rev":1,"text":"first"}"#).await;
    stage.wait_settled(&[&worker]).await;
    assert_eq!(stage.get("note:1").await.as_deref(), Some("second"));
    wait_recorded(&stage, 2).await;
    // Without the letter's place, and with it; beside the fences, and after their loss.
    for span in [&["--since", "offset:0", "--until", "offset:1"][..], &["--since", "offset:0"]] {
        for is_lost in [false, true] {
            if is_lost {
                flush(&stage).await;
                stage.set("note:1", "older").await;
            }
            replay(&stage, span).await.clean();
            let value = stage.get("note:1").await;
            assert!(matches!(value.as_deref(), None | Some("second")), "{span:?}: {value:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_replayed_late_does_not_supersede_a_deletion() {
    let stage = Stage::new(&[("notes.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    stage.publish("note.dropped", r#"{"id":1}"#).await;
    stage.wait_settled(&[&worker]).await;
    replay_letter(&stage, "note.updated", r#"{"id":1,"rev":1,"text":"first"}"#).await;
    stage.wait_settled(&[&worker]).await;
    wait_recorded(&stage, 2).await;
    for choice in [["--until", "offset:1"], ["--type", "note.dropped"]] {
        stage.set("note:1", "older").await;
        replay(&stage, &[&["--since", "offset:0"][..], &choice].concat()).await.clean();
        assert_eq!(stage.get("note:1").await, None, "{choice:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_and_its_replayed_letter_bump_a_counter_once() {
    let stage = Stage::new(&[("notes.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    stage.publish("note.seen", r#"{"id":1}"#).await;
    stage.wait_settled(&[&worker]).await;
    replay_letter(&stage, "note.seen", r#"{"id":1}"#).await;
    stage.wait_settled(&[&worker]).await;
    wait_recorded(&stage, 2).await;
    let json = replay(&stage, &["--since", "offset:0", "--json"]).await.clean().json();
    assert_eq!(json["events"], 2, "{json}");
    assert_eq!(json["rules"][0]["sent"], serde_json::json!({ "bump_version": 1 }), "{json}");
}
