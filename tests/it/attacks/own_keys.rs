//! Events, tags and rules that target unstale's own keys.

use std::time::Duration;

use lapin::BasicProperties;
use redis::AsyncCommands;

use super::Victim;
use crate::support::wait_until;

const RULES: &str = r#"
defaults: { ttl: 1h }
loaders: { pages: { url: "http://127.0.0.1:1" } }
events:
  cache.deleted: { effects: [ { delete: "{keys[]}" } ] }
  cache.deleted_again: { effects: [ { delete: "{keys[]}", again: 100ms } ] }
  cache.expired: { effects: [ { expire: "{keys[]}", ttl: 1s } ] }
  cache.bumped: { effects: [ { bump_version: "{keys[]}" } ] }
  cache.written: { effects: [ { write: "{keys[]}", value: "{id}" } ] }
  cache.warmed: { effects: [ { warm: "{keys[]}", from: "pages:/{id}" } ] }
  cache.served: { effects: [ { warm: "{keys[]}", from: "pages:/{id}", stale: serve } ] }
  cache.ordered: { version: "{id}", effects: [ { write: "{keys[]}", value: "{id}" }, { delete: "{keys[]}" } ] }
  cache.looped: { effects: [ { each: "data.keys.map(key, key)", delete: "{item}" } ] }
  cache.joined: { effects: [ { delete: "{first}{second}" } ] }
  tag.invalidated: { effects: [ { invalidate_tags: "{tags[]}" } ] }
"#;

/// Tries every verb with every kind of own key. Each is refused, the key stays unchanged, and
/// nothing is healed.
#[tokio::test(flavor = "multi_thread")]
async fn no_verb_reaches_an_own_key() {
    let victim = Victim::new(&[("rules.yaml", RULES)], &[]).await;
    let queue = victim.stage.queue.clone();
    let mut redis = victim.stage.connection().await;
    let _: () = redis.set("unstale:untouched", "as it was").await.unwrap();
    let own = [
        format!("unstale:mark:{queue}"),
        format!("unstale:mark:{{a}}:{queue}"),
        format!("unstale:workers:{queue}"),
        "unstale:seq".to_owned(),
        "unstale:drains".to_owned(),
        "unstale:lease/{user:1}".to_owned(),
        "unstale:untouched".to_owned(),
        "unstale:".to_owned(),
    ];
    let keys = serde_json::to_string(&own).unwrap();
    let verbs = [
        "deleted",
        "deleted_again",
        "expired",
        "bumped",
        "written",
        "warmed",
        "served",
        "ordered",
        "looped",
    ];
    for verb in verbs {
        let name = format!("cache.{verb}");
        victim
            .suffers(
                &name,
                &name,
                BasicProperties::default(),
                format!(r#"{{"id":7,"keys":{keys}}}"#).as_bytes(),
            )
            .await;
        let letters = victim.dead_letters().await;
        let reasons: Vec<_> =
            letters.iter().filter_map(|letter| letter.header("unstale-reason")).collect();
        assert_eq!(reasons, ["unresolvable"], "{name}");
        let value: String = redis.get("unstale:untouched").await.unwrap();
        let lasts: i64 = redis.ttl("unstale:untouched").await.unwrap();
        assert_eq!((value.as_str(), lasts), ("as it was", -1), "{name}");
    }
    let joined = br#"{"first":"unst","second":"ale:untouched"}"#;
    victim.suffers("a key in two halves", "cache.joined", BasicProperties::default(), joined).await;
    assert_eq!(victim.dead_letters().await.len(), 1);
    assert!(victim.stage.exists("unstale:untouched").await);
    // A key that only looks like an own key is an ordinary key.
    for key in [
        "UNSTALE:untouched",
        "unstale\u{200b}:untouched",
        " unstale:untouched",
        "\u{fe0f}unstale:untouched",
        "unstal\u{435}:untouched",
    ] {
        victim.stage.set(key, "old").await;
        let body = serde_json::json!({ "id": 7, "keys": [key] }).to_string();
        victim.suffers(key, "cache.deleted", BasicProperties::default(), body.as_bytes()).await;
        assert!(!victim.stage.exists(key).await, "{key:?}");
    }
    victim.survived().await;
}

/// If a rule could delete or write a tag's set as a key, no invalidation would find the members.
#[tokio::test(flavor = "multi_thread")]
async fn a_tags_set_is_no_key() {
    let victim = Victim::new(&[("rules.yaml", RULES)], &[]).await;
    let mut redis = victim.stage.connection().await;
    victim.stage.set("page:1", "old").await;
    let _: () = redis.sadd("cache_tag:pages", "page:1").await.unwrap();
    let body = br#"{"id":7,"keys":["cache_tag:pages"]}"#;
    for verb in ["deleted", "expired", "written", "warmed", "bumped"] {
        victim.suffers(verb, &format!("cache.{verb}"), BasicProperties::default(), body).await;
    }
    victim
        .suffers("the tag", "tag.invalidated", BasicProperties::default(), br#"{"tags":["pages"]}"#)
        .await;
    assert!(!victim.stage.exists("page:1").await, "a member that its tag no longer finds");
    victim.survived().await;
}

/// An application may put any name into a tag's set. An invalidation removes own keys from the set
/// and does not delete them. It deletes the other members.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_tag_is_never_an_own_key() {
    let victim = Victim::new(&[("rules.yaml", RULES)], &[]).await;
    let mut redis = victim.stage.connection().await;
    let own = [
        format!("unstale:mark:{}", victim.stage.queue),
        "unstale:seq".to_owned(),
        "unstale:untouched".to_owned(),
    ];
    let _: () = redis.set("unstale:untouched", "as it was").await.unwrap();
    for (tag, neighbours) in [("few", 3), ("many", 1_200), ("none", 0)] {
        let set = format!("cache_tag:{tag}");
        let keys: Vec<String> = (0..neighbours).map(|n| format!("{tag}:{n}")).collect();
        for key in &keys {
            victim.stage.set(key, "old").await;
        }
        let _: () = redis.sadd(&set, own.iter().chain(&keys).collect::<Vec<_>>()).await.unwrap();
        victim
            .suffers(
                tag,
                "tag.invalidated",
                BasicProperties::default(),
                format!(r#"{{"tags":["{tag}"]}}"#).as_bytes(),
            )
            .await;
        wait_until(super::PATIENCE, "the neighbours are gone", async || {
            let mut redis = victim.stage.connection().await;
            keys.is_empty() || redis.exists::<_, usize>(&keys).await.unwrap() == 0
        })
        .await;
        for key in &own {
            assert!(victim.stage.exists(key).await, "{key} was deleted as a member of {tag}");
        }
        assert!(!victim.stage.exists(&set).await, "{set} is left");
        let record = [format!("unstale:drain/{{{set}}}"), "unstale:drains".to_owned()];
        assert_eq!(redis.exists::<_, usize>(&record).await.unwrap(), 0, "a drain of {tag} is left");
    }
    assert_eq!(victim.dead_letters().await.len(), 0);
    wait_until(Duration::from_secs(10), "the log names the tag", async || {
        let log = victim.worker.stderr();
        ["few", "many", "none"].iter().all(|tag| {
            log.lines().any(|line| {
                line.contains("own keys removed from a tag's set") && line.contains(tag)
            })
        })
    })
    .await;
    victim.survived().await;
}

/// Readers may write to the sequence. A wrong value there breaks neither tags nor heals for longer
/// than one invalidation.
#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_another_program_wrote_is_begun_anew() {
    let mut victim = Victim::new(&[("rules.yaml", RULES)], &[]).await;
    let mut redis = victim.stage.connection().await;
    for value in [
        "abc",
        "",
        "inf",
        "nan",
        "1e300",
        "-5",
        "1.5",
        "0x10",
        " 7",
        "9223372036854775807",
        "9007199254740992",
        "a set",
    ] {
        if value == "a set" {
            let _: () = redis.del("unstale:seq").await.unwrap();
            let _: () = redis.sadd("unstale:seq", "7").await.unwrap();
        } else {
            let _: () = redis.set("unstale:seq", value).await.unwrap();
        }
        victim.stage.set("page:1", "old").await;
        let _: () = redis.sadd("cache_tag:pages", "page:1").await.unwrap();
        victim
            .suffers(value, "tag.invalidated", BasicProperties::default(), br#"{"tags":["pages"]}"#)
            .await;
        assert!(!victim.stage.exists("page:1").await, "{value:?} keeps values");
        let number: u64 =
            redis.get("unstale:seq").await.unwrap_or_else(|error| panic!("{value:?}: {error}"));
        assert!((1_000_000_000_000_000..1 << 52).contains(&number), "{value:?} became {number}");
    }
    assert_eq!(victim.dead_letters().await.len(), 0);
    victim.survived().await;
    // The heal continues from the sequence too.
    let _: () = redis.set("unstale:seq", "abc").await.unwrap();
    let _: () = redis.del(format!("unstale:mark:{}", victim.stage.queue)).await.unwrap();
    let stopped = std::mem::replace(&mut victim.worker, victim.stage.worker(&[]).await);
    assert!(stopped.terminate().await.success());
    victim.passes_harmless("the broken sequence").await;
}
