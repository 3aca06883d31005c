//! `unstale replay`: which events are selected, and which effects are superseded by others.

use super::{declare, flush, replay, wait_recorded};
use crate::end_to_end::stage::Stage;

const RULES: &str = r##"
defaults: { ttl: 1h }
events:
  user.updated:
    effects: [ { delete: "user:{id}" } ]
  user.renamed:
    version: "{rev}"
    effects:
      - write: "name:{id}"
        value: "{name}"
        encoding: raw
        tags: ["names"]
  team.left:
    effects: [ { delete: ["user:{id}", "name:{id}"] } ]
  names.changed:
    effects: [ { invalidate_tags: "names" } ]
  product.updated:
    effects:
      - invalidate_tags: "category:{category}"
      - invalidate_tags: "category:{previous.category?}"
        when: changed("category")
  order.paid:
    data: { type: object, required: [id] }
    effects: [ { delete: "order:{id}" } ]
  order.refunded:
    effects: [ { delete: "order:{nothing}" } ]
"##;

#[tokio::test(flavor = "multi_thread")]
async fn replay_of_one_type_is_superseded_by_later_events_of_others() {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    declare(&stage).await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    stage.publish("user.updated", r#"{"id":2}"#).await;
    stage.publish("user.renamed", r#"{"id":1,"rev":1,"name":"Ann"}"#).await;
    stage.publish("user.renamed", r#"{"id":2,"rev":1,"name":"Bob"}"#).await;
    stage.publish("team.left", r#"{"id":1}"#).await;
    wait_recorded(&stage, 5).await;
    for key in ["user:1", "user:2"] {
        stage.set(key, "old").await;
    }
    let json =
        replay(&stage, &["--since", "1h", "--type", "user.*", "--json"]).await.clean().json();
    assert_eq!(
        (&json["events"], &json["effects"], &json["sent"], &json["gave_way"]),
        (&4.into(), &4.into(), &2.into(), &2.into()),
        "{json}"
    );
    assert!(stage.exists("user:1").await, "what came later stands for it");
    assert!(!stage.exists("user:2").await);
    assert!(!stage.exists("name:1").await, "a later event deleted it");
    assert_eq!(stage.get("name:2").await.as_deref(), Some("Bob"));
    replay(&stage, &["--since", "1h", "--type", "team.*", "--type", "nobody"]).await.clean();
    assert!(!stage.exists("user:1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_of_a_span_is_superseded_by_events_behind_it() {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    declare(&stage).await;
    stage.publish("user.renamed", r#"{"id":1,"rev":1,"name":"Ann"}"#).await;
    stage.publish("names.changed", "{}").await;
    wait_recorded(&stage, 2).await;
    flush(&stage).await;
    replay(&stage, &["--since", "offset:0", "--until", "offset:1"]).await.clean();
    assert!(!stage.exists("name:1").await, "its tag was invalidated later");
    stage.publish("user.renamed", r#"{"id":1,"rev":2,"name":"Anna"}"#).await;
    // Each replay has left its record.
    wait_recorded(&stage, 4).await;
    replay(&stage, &["--since", "offset:0"]).await.clean();
    assert_eq!(stage.get("name:1").await.as_deref(), Some("Anna"));
    stage.publish("user.renamed", r#"{"id":1,"rev":3,"name":"Annie"}"#).await;
    wait_recorded(&stage, 6).await;
    flush(&stage).await;
    replay(&stage, &["--since", "offset:0", "--until", "offset:5"]).await.clean();
    assert!(
        !stage.exists("name:1").await,
        "an older name is not written where a newer one is known"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_rules_see_the_previous_state_of_an_event() {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    declare(&stage).await;
    let moved =
        r#"{"type":"product.updated","data":{"category":"toys"},"previous":{"category":"games"}}"#;
    stage.publish("product.updated", moved).await;
    wait_recorded(&stage, 1).await;
    let mut redis = stage.connection().await;
    for (tag, key) in [("toys", "a"), ("games", "b"), ("books", "c")] {
        stage.set(key, "old").await;
        let _: () =
            redis::AsyncCommands::sadd(&mut redis, format!("cache_tag:category:{tag}"), key)
                .await
                .unwrap();
    }
    replay(&stage, &["--since", "1h"]).await.clean();
    assert_eq!(
        (stage.exists("a").await, stage.exists("b").await, stage.exists("c").await),
        (false, false, true)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_counts_events_that_cannot_be_applied_and_applies_the_rest() {
    let stage = Stage::new(&[("rules.yaml", RULES)]).await;
    declare(&stage).await;
    stage.publish("order.paid", r#"{"no":"id"}"#).await;
    stage.publish("order.refunded", r#"{"id":1}"#).await;
    stage.publish("order.refunded", r#"{"id":2}"#).await;
    stage.publish("order.paid", "not JSON").await;
    stage.publish("names.changed", "{}").await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    wait_recorded(&stage, 6).await;
    stage.set("user:1", "old").await;
    stage.set("cache_tag:names", "no set").await;
    let partial = replay(&stage, &["--since", "1h"]).await;
    assert_eq!(partial.code, 1, "{}", partial.err);
    for line in [
        "not replayed: 1 malformed; the first at offset:3: ",
        "not replayed: 1 invalid_data; the first at offset:0: rules.yaml#order.paid: ",
        "not replayed: 2 unresolvable; the first at offset:1: rules.yaml#order.refunded/0",
        "not replayed: 1 redis_refused; the first at offset:4: rules.yaml#names.changed/0: ",
        "replayed 6 events: 2 effects folded into 2",
    ] {
        assert!(partial.err.contains(line), "{line}\n{}", partial.err);
    }
    assert!(!partial.err.contains("no set"), "no values");
    assert!(!stage.exists("user:1").await);
    stage.write_schema(
        "rules.yaml",
        r#"events: { order.paid: { retired: true }, order.refunded: { effects: [ { delete: "order:{id}" } ] } }"#,
    );
    let json =
        replay(&stage, &["--since", "1h", "--type", "order.*", "--json"]).await.clean().json();
    assert_eq!(
        (&json["events"], &json["retired"], &json["sent"]),
        (&3.into(), &1.into(), &2.into()),
        "{json}"
    );
    let unknown = replay(&stage, &["--since", "offset:5", "--json"]).await;
    assert_eq!(
        (unknown.code, &unknown.json()["problems"][0]["reason"]),
        (1, &"unknown_event".into())
    );
}
