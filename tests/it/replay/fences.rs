//! `unstale replay`: a value is written only if a fence orders it.

use redis::AsyncCommands as _;

use super::{command, declare, flush, replay, run, wait_recorded};
use crate::end_to_end::stage::Stage;

const RULES: &str = r##"
defaults: { ttl: 1h }
events:
  note.updated:
    version: "{rev}"
    effects:
      - write: "note:{id}"
        value: "{text}"
        encoding: raw
        tags: ["notes"]
  note.deleted:
    version: "{rev}"
    effects: [ { delete: "note:{id}" } ]
"##;

#[tokio::test(flavor = "multi_thread")]
async fn replay_writes_a_lost_value_again_and_keeps_a_newer_one() {
    let stage = Stage::new(&[("notes.yaml", RULES)]).await;
    let worker = stage.worker(&[]).await;
    stage.publish("note.updated", r#"{"id":1,"rev":1,"text":"first"}"#).await;
    stage.publish("note.updated", r#"{"id":1,"rev":2,"text":"second"}"#).await;
    stage.publish("note.updated", r#"{"id":2,"rev":1,"text":"gone"}"#).await;
    stage.publish("note.deleted", r#"{"id":2,"rev":2}"#).await;
    stage.wait_settled(&[&worker]).await;
    wait_recorded(&stage, 4).await;
    flush(&stage).await;
    replay(&stage, &["--since", "1h"]).await.clean();
    assert_eq!(stage.get("note:1").await.as_deref(), Some("second"));
    assert!(!stage.exists("note:2").await);
    let mut redis = stage.connection().await;
    assert!(redis.sismember::<_, _, bool>("cache_tag:notes", "note:1").await.unwrap());

    // What a live worker wrote meanwhile is newer than all that the history tells of this span.
    stage.publish("note.updated", r#"{"id":1,"rev":3,"text":"third"}"#).await;
    stage.wait_settled(&[&worker]).await;
    replay(&stage, &["--since", "offset:0", "--until", "offset:2"]).await.clean();
    assert_eq!(stage.get("note:1").await.as_deref(), Some("third"));

    // The fence came back with the replay: an older event that is redelivered now revives nothing.
    stage.publish("note.updated", r#"{"id":2,"rev":1,"text":"gone"}"#).await;
    stage.wait_settled(&[&worker]).await;
    assert!(!stage.exists("note:2").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_deletes_instead_of_writing_if_the_fence_may_have_expired() {
    let stage = Stage::new(&[("notes.yaml", RULES)]).await;
    declare(&stage).await;
    stage.publish("note.updated", r#"{"id":1,"rev":1,"text":"first"}"#).await;
    wait_recorded(&stage, 1).await;
    stage.set("note:1", "old").await;
    let mut command = command(&stage, &["--since", "1h", "--json"]);
    command.env("UNSTALE_FENCE_TTL", "1h");
    let json = run(command).await.clean().json();
    assert_eq!(json["rules"][0]["sent"], serde_json::json!({ "delete": 1 }), "{json}");
    assert!(!stage.exists("note:1").await);
}
