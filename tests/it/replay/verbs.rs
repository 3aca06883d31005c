//! `unstale replay`: the folded effects of each verb.

use redis::AsyncCommands as _;

use super::{declare, replay, wait_recorded};
use crate::end_to_end::stage::Stage;

const RULES: &str = r##"
defaults: { ttl: 1h }
loaders:
  catalogue: { url: "http://127.0.0.1:1" }
events:
  user.updated:
    effects:
      - delete: "user:{id}"
      - bump_version: "users:version"
      - expire: "user:{id}:related"
        ttl: 30s
  team.updated:
    effects: [ { invalidate_tags: "team:{id}" } ]
  note.updated:
    effects:
      - write: "note:{id}"
        value: "{text}"
        encoding: raw
  page.updated:
    effects: [ { warm: "page:{id}", from: "catalogue:/pages/{id}" } ]
"##;

#[tokio::test(flavor = "multi_thread")]
async fn replay_folds_and_applies_every_verb() {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    declare(&stage).await;
    for id in 0..50 {
        stage.publish("user.updated", &format!(r#"{{"id":{}}}"#, id % 5)).await;
    }
    stage.publish("team.updated", r#"{"id":"red"}"#).await;
    stage.publish("note.updated", r#"{"id":1,"text":"new"}"#).await;
    stage.publish("page.updated", r#"{"id":1}"#).await;
    wait_recorded(&stage, 53).await;
    for key in ["user:0", "user:4", "user:0:related", "note:1", "page:1", "member", "other"] {
        stage.set(key, "old").await;
    }
    stage.set("users:version", "7").await;
    let mut redis = stage.connection().await;
    let _: () = redis.sadd("cache_tag:team:red", "member").await.unwrap();

    let dry = replay(&stage, &["--since", "1h", "--dry-run"]).await.clean();
    assert!(
        dry.err.contains("would replay 53 events: 153 effects folded into 14"),
        "{}{}",
        dry.out,
        dry.err
    );
    assert!(dry.out.contains("user.updated/0") && dry.out.contains("5 delete"), "{}", dry.out);
    assert_eq!(stage.get("user:0").await.as_deref(), Some("old"), "a dry run changes nothing");

    let json = replay(&stage, &["--since", "1h", "--json"]).await.clean().json();
    assert_eq!(
        (&json["events"], &json["effects"], &json["sent"]),
        (&53.into(), &153.into(), &14.into()),
        "{json}"
    );
    for key in ["user:0", "user:4", "note:1", "page:1", "member"] {
        assert!(!stage.exists(key).await, "{key}");
    }
    assert_eq!(stage.get("other").await.as_deref(), Some("old"));
    assert_eq!(stage.get("users:version").await.as_deref(), Some("8"), "one bump a counter");
    let left_s: i64 = redis.ttl("user:0:related").await.unwrap();
    assert!((1..=30).contains(&left_s), "{left_s}");

    replay(&stage, &["--since", "offset:0"]).await.clean();
    assert_eq!(stage.get("users:version").await.as_deref(), Some("9"), "twice does no harm");
}
