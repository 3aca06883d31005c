//! A refusal of Redis fails its own effect and no other.

use std::time::Duration;

use unstale::causes::Explain;
use unstale::plan::EffectOutcome;
use unstale::reason::Reason;
use unstale::registry::{Action, Expiry};

use super::{HOUR, apply, cache, effect, run, slot, write};
use crate::end_to_end::stage::{SOON, Stage};
use crate::permissions::documented_acl;
use crate::support::{Redis, wait_until};

fn refused(message: &str) -> EffectOutcome {
    EffectOutcome::Dead {
        reason: Reason::RedisRefused,
        message: message.into(),
        may_be_permitted: false,
    }
}

fn not_permitted(message: &str) -> EffectOutcome {
    EffectOutcome::Dead {
        reason: Reason::RedisRefused,
        message: message.into(),
        may_be_permitted: true,
    }
}

#[tokio::test]
async fn a_key_refused_by_the_acl_fails_only_its_own_effect() {
    let server = Redis::start().await;
    let mut redis = server.connection().await;
    let acl =
        ["ACL", "SETUSER", "worker", "on", ">pw", "+@all", "~unstale:*", "~ours:*", "~cache_tag:*"];
    run::<()>(&mut redis, &acl).await;
    let cache = cache(&format!("redis://worker:pw@{}/0", server.addr()), "q").await;
    run::<()>(&mut redis, &["MSET", "ours:a", "1", "ours:b", "1", "ours:w", "1", "theirs:x", "1"])
        .await;
    let effects = [
        effect(0, "ours:a", Action::Delete),
        effect(0, "theirs:x", Action::Delete),
        effect(0, "ours:w", Action::Delete),
        effect(0, "ours:b", Action::Delete),
        effect(1, "ours:w", write("new", HOUR, &[])),
        effect(1, "theirs:y", write("new", HOUR, &["t"])),
        effect(
            1,
            "theirs:x",
            Action::Expire(Expiry::After { ttl: Duration::from_secs(1), jitter: 0.0 }),
        ),
    ];
    let mut applied = apply(&cache, &effects).await;
    applied.unsettled.sort_by_key(|(slot, _)| *slot);
    let slots: Vec<_> = applied.unsettled.iter().map(|(slot, _)| slot.position).collect();
    assert_eq!(slots, [1, 5, 6], "{:?}", applied.unsettled);
    assert_eq!(applied.unsettled[0].1, not_permitted("UNLINK: NOPERM"));
    assert!(applied.unsettled.iter().all(|(_, outcome)| matches!(
        outcome,
        EffectOutcome::Dead { reason: Reason::RedisRefused, .. }
    )));
    assert_eq!(
        run::<Vec<Option<String>>>(&mut redis, &["MGET", "ours:a", "ours:b"]).await,
        [None, None]
    );
    assert_eq!(
        run::<String>(&mut redis, &["GET", "ours:w"]).await,
        "new",
        "the deletion before it is not done after it"
    );
    assert_eq!(applied.hits[0].yes, 2, "{:?}", applied.hits);
}

#[tokio::test]
async fn a_member_refused_by_the_acl_fails_only_its_own_tag() {
    let server = Redis::start().await;
    let mut redis = server.connection().await;
    run::<()>(
        &mut redis,
        &[
            "ACL",
            "SETUSER",
            "worker",
            "on",
            ">pw",
            "+@all",
            "~unstale:*",
            "~ours:*",
            "~cache_tag:*",
        ],
    )
    .await;
    let cache = cache(&format!("redis://worker:pw@{}/0", server.addr()), "q").await;
    run::<()>(
        &mut redis,
        &["MSET", "ours:a", "1", "ours:b", "1", "theirs:x", "1", "cache_tag:no-set", "1"],
    )
    .await;
    for (tag, member) in
        [("cache_tag:A", "ours:a"), ("cache_tag:X", "theirs:x"), ("cache_tag:B", "ours:b")]
    {
        run::<()>(&mut redis, &["SADD", tag, member]).await;
    }
    let effects = ["A", "X", "no-set", "B"].map(|tag| effect(0, tag, Action::InvalidateTag));
    let mut applied = apply(&cache, &effects).await;
    applied.unsettled.sort_by_key(|(slot, _)| *slot);
    assert_eq!(
        applied.unsettled,
        [
            (slot(1), not_permitted("invalidate_tag: ERR no permission")),
            (slot(2), refused("invalidate_tag: WRONGTYPE"))
        ]
    );
    assert_eq!(
        run::<u64>(&mut redis, &["EXISTS", "ours:a", "ours:b", "cache_tag:A", "cache_tag:B"]).await,
        0
    );
    assert_eq!(run::<u64>(&mut redis, &["EXISTS", "theirs:x"]).await, 1);
}

#[tokio::test]
async fn a_renamed_command_is_refused_for_good_even_within_a_script() {
    let server =
        Redis::start_with(&["--rename-command", "TIME", "", "--rename-command", "INCRBY", ""])
            .await;
    let mut redis = server.connection().await;
    let cache = cache(&server.url(), "q").await;
    run::<()>(&mut redis, &["SADD", "cache_tag:t", "k"]).await;
    let effects = [
        effect(0, "t", Action::InvalidateTag),
        effect(0, "n", Action::BumpVersion),
        effect(0, "k", Action::Delete),
    ];
    let mut applied = apply(&cache, &effects).await;
    applied.unsettled.sort_by_key(|(slot, _)| *slot);
    let words = |command: &str| {
        not_permitted(&format!(
            "{command}: ERR unknown command: Redis 7.0 or newer is needed, with no command renamed"
        ))
    };
    assert_eq!(applied.unsettled, [(slot(0), words("invalidate_tag")), (slot(1), words("INCRBY"))]);
}

#[tokio::test]
async fn a_probe_without_rights_names_what_to_grant() {
    let server = Redis::start().await;
    let mut redis = server.connection().await;
    run::<()>(&mut redis, &["ACL", "SETUSER", "worker", "on", ">pw", "+@all", "~ours:*"]).await;
    let url = format!("redis://worker:pw@{}/0", server.addr());
    let outage = unstale::cache::Cache::connect(&super::config(&url), "q")
        .unwrap()
        .probe()
        .await
        .unwrap_err();
    assert!(outage.needs_person && outage.in_full().contains("~unstale:*"), "{outage}");
}

#[tokio::test]
async fn keys_refused_by_the_acl_are_reported_at_start() {
    let rules = r#"
events:
  shop.changed: { effects: [ { delete: "shop:{id}" }, { invalidate_tags: "shop:{id}" } ] }
  blog.changed: { effects: [ { delete: "{id}" }, { expire: "blog:{id}", ttl: 1s } ] }
"#;
    let stage = Stage::new(&[("rules.yaml", rules)]).await;
    let mut redis = stage.connection().await;
    let acl = documented_acl("secret", "shop:");
    run::<()>(
        &mut redis,
        &[
            &["ACL", "SETUSER", "unstale"],
            acl.iter().map(String::as_str).collect::<Vec<_>>().as_slice(),
        ]
        .concat(),
    )
    .await;
    let url = format!("redis://unstale:secret@{}/0", stage.redis.addr());
    let worker = stage.worker(&[("UNSTALE_REDIS_URL", &url)]).await;
    wait_until(SOON, "it warns", async || {
        worker.stderr().contains("rule=rules.yaml#blog.changed/1")
    })
    .await;
    let log = worker.stderr();
    assert!(
        log.contains("\"blog:1\"")
            && !log.contains("rules.yaml#shop.changed")
            && !log.contains("rules.yaml#blog.changed/0"),
        "{log}"
    );
}
