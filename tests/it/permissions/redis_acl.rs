//! Documented Redis ACL, against every command that the cache sends and every one that its scripts
//! call.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio_util::sync::CancellationToken;
use unstale::cache::{
    Cache, CommandError, FillOutcome, Grant, HealTurn, LoadToken, Outage, WorkerReport, new_token,
};
use unstale::causes::{Explain, chain};
use unstale::config::{RedisConfig, RedisMode, SecretUrl, TlsConfig};
use unstale::plan::{Batch, EffectOutcome, EffectRef};
use unstale::registry::{Action, Effect, Expiry, RuleId, Version, Write};

use super::{REDIS, documented_acl};
use crate::support::Redis;

const HOUR: Expiry = Expiry::After { ttl: Duration::from_secs(3_600), jitter: 0.0 };
/// The year 2100.
const THEN: Expiry = Expiry::At(4_102_444_800_000);

fn connect(server: &Redis) -> Cache {
    let url = format!("redis://unstale:secret@{}/0", server.addr());
    let config = RedisConfig {
        urls: vec![SecretUrl::new(url.parse().unwrap())],
        mode: RedisMode::Single,
        tls: TlsConfig::default(),
        tag_prefix: "cache_tag:".into(),
        fence_ttl: Duration::from_secs(86_400),
    };
    Cache::connect(&config, "q").unwrap()
}

/// Gives the user these rules and no others, in an empty Redis.
async fn grant(admin: &mut MultiplexedConnection, rules: &[String]) {
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("unstale").arg("reset").arg(rules);
    command.exec_async(admin).await.unwrap();
    redis::cmd("FLUSHALL").exec_async(admin).await.unwrap();
}

fn write(expiry: Expiry, tags: &[&str]) -> Action {
    Action::Write(Box::new(Write {
        value: "v".into(),
        expiry,
        tags: tags.iter().map(|&tag| tag.into()).collect(),
    }))
}

/// Features that a registry uses, beside deletes, expiries and writes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Uses {
    bump: bool,
    tags: bool,
    warm: bool,
}

const ALL: Uses = Uses { bump: true, tags: true, warm: true };

/// Does everything that unstale does with Redis, and returns what was refused.
async fn everything(
    cache: &Cache,
    admin: &mut MultiplexedConnection,
    uses: Uses,
) -> Result<Vec<String>, Outage> {
    cache.probe().await?;
    let mut refused = Vec::new();
    note(&mut refused, cache.report("worker", Some(&WorkerReport::default())).await)?;
    note(&mut refused, cache.reports().await)?;
    note(&mut refused, cache.report("worker", None).await)?;
    marks(cache, &mut refused).await?;
    let mut members = redis::cmd("SADD");
    members.arg("cache_tag:big");
    members.arg((0..600).map(|n| format!("shop:member:{n}")).collect::<Vec<_>>());
    members.exec_async(admin).await.unwrap();
    redis::cmd("SADD").arg("cache_tag:small").arg("shop:a").exec_async(admin).await.unwrap();

    let effects = [
        ("shop:a", Action::Delete),
        ("small", Action::InvalidateTag),
        ("big", Action::InvalidateTag),
        ("shop:version", Action::BumpVersion),
        ("shop:b", Action::Expire(HOUR)),
        ("shop:b", Action::Expire(THEN)),
        ("shop:b", write(HOUR, &[])),
        ("shop:b", write(THEN, &[])),
        ("shop:c", write(HOUR, &["t"])),
        ("shop:d", write(THEN, &["t"])),
        ("shop:e", write(Expiry::Never, &["t"])),
    ];
    let is_used = |action: &Action| match action {
        Action::BumpVersion => uses.bump,
        Action::InvalidateTag => uses.tags,
        Action::Write(write) => uses.tags || write.tags.is_empty(),
        _ => true,
    };
    let used = effects.into_iter().filter(|(_, action)| is_used(action));
    let version = |place| Version { family: "f".into(), digits: "1".into(), event: 1, place };
    let ordered = |place, target: &str, action| {
        let has_version = matches!(action, Action::Delete | Action::Write(_));
        Effect {
            rule: RuleId(0),
            target: target.into(),
            action,
            version: has_version.then(|| Box::new(version(place))),
            again: None,
        }
    };
    let effects: Vec<Effect> = (1_u32..)
        .zip(used)
        .map(|(place, (target, action))| ordered(place, target, action))
        .collect();
    let mut batch = Batch::new(cache.tag_prefix(), effects.len());
    for (position, effect) in (0_u32..).zip(&effects) {
        batch.push(EffectRef { event: 0, position }, effect);
    }
    for (_, outcome) in cache.apply(&batch.finish()).await?.unsettled {
        match outcome {
            EffectOutcome::Slow => {}
            EffectOutcome::Dead { message, .. }
            | EffectOutcome::Retry { message, .. }
            | EffectOutcome::NotTried { message, .. } => refused.push(message),
        }
    }
    if uses.tags {
        note(&mut refused, cache.drain_tag("big", &CancellationToken::new(), |_, _| {}).await)?;
        note(&mut refused, cache.drain_all(&CancellationToken::new(), |_, _| {}).await)?;
        note(&mut refused, cache.lock_tag_maintenance("token", Duration::from_secs(10)).await)?;
        note(&mut refused, cache.tag_sets(0).await)?;
        redis::cmd("SADD").arg("cache_tag:gone").arg("shop:gone").exec_async(admin).await.unwrap();
        let pruned = note(&mut refused, cache.maintain_slice(b"cache_tag:gone", 0, false).await)?;
        assert!(pruned.is_none_or(|pruned| pruned.gone == 1 || !refused.is_empty()), "{pruned:?}");
    }
    if !uses.warm {
        return Ok(refused);
    }
    let lease = Duration::from_secs(10);
    let load = LoadToken::new(1, 1, "worker");
    note(&mut refused, cache.claim_load("shop:page", &load, lease, true).await)?;
    note(
        &mut refused,
        cache.claim_load("shop:page", &LoadToken::new(1, 2, "worker"), lease, true).await,
    )?;
    note(&mut refused, cache.lease_is_held("shop:page").await)?;
    note(&mut refused, cache.has_value("shop:page").await)?;
    note(&mut refused, cache.keep_load("shop:page", &load, lease).await)?;
    note(&mut refused, cache.end_load("shop:page", &load, Some(Duration::from_secs(5))).await)?;
    let token = new_token();
    if let Some(Grant::Granted { since }) =
        note(&mut refused, cache.grant_lease("shop:page", &token, lease).await)?
    {
        let tags = if uses.tags { vec!["t".to_owned()] } else { vec![] };
        let filled =
            note(&mut refused, cache.fill("shop:page", &token, since, b"v", HOUR, &tags).await)?;
        assert!(filled.is_none_or(|filled| filled == FillOutcome::Filled));
        let _ = note(&mut refused, cache.grant_lease("shop:other", &token, lease).await)?;
        note(&mut refused, cache.release_lease("shop:other", &token).await)?;
    }
    Ok(refused)
}

/// Runs a worker's first start, a heal with nothing to do, and a command's checkpoint.
async fn marks(cache: &Cache, refused: &mut Vec<String>) -> Result<(), Outage> {
    note(refused, cache.enter(1).await)?;
    if let Some(HealTurn::Ours(_)) = note(refused, cache.take_heal().await)? {
        match cache.renew_heal().await {
            Ok(()) => {}
            // A refusal here keeps a worker from working.
            Err(outage) if outage.needs_person => refused.push(outage.in_full()),
            Err(outage) => return Err(outage),
        }
        note(refused, cache.forward_sequence().await)?;
        note(refused, cache.finish_heal(None, &[], 1).await)?;
        note(refused, cache.tick(1).await)?;
    }
    note(refused, cache.hold_checkpoint("replay", 1).await)?;
    note(refused, cache.release_checkpoint("replay").await)?;
    note(refused, cache.read_checkpoints().await)?;
    cache.give_up(&Outage::new("the rest is done without marks"));
    cache.probe().await
}

fn note<T>(
    refused: &mut Vec<String>,
    result: Result<T, CommandError>,
) -> Result<Option<T>, Outage> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(CommandError::Outage(outage)) => Err(outage),
        Err(
            CommandError::Refused(cause)
            | CommandError::NotPermitted(cause)
            | CommandError::Failed(cause),
        ) => {
            refused.push(chain(&cause).to_string());
            Ok(None)
        }
    }
}

#[tokio::test]
async fn the_documented_acl_is_enough_and_nothing_in_it_is_too_much() {
    let server = Redis::start().await;
    let mut admin = server.connection().await;
    let rules = documented_acl("secret", "shop:");
    grant(&mut admin, &rules).await;
    assert_eq!(everything(&connect(&server), &mut admin, ALL).await.unwrap(), [""; 0]);
    // Since 7.2 the list would also hold a refused `CLIENT SETINFO`.
    let noted: Vec<redis::Value> =
        redis::cmd("ACL").arg("LOG").query_async(&mut admin).await.unwrap();
    assert!(noted.is_empty(), "the ACL log: {noted:?}");

    // INFO only reports the version: without it nothing is refused, and nothing is checked.
    let least = rules.iter().filter(|rule| rule.starts_with(['+', '~']) && *rule != "+info");
    for rule in least {
        let others: Vec<String> = rules.iter().filter(|other| *other != rule).cloned().collect();
        grant(&mut admin, &others).await;
        match everything(&connect(&server), &mut admin, ALL).await {
            Ok(refused) => {
                assert!(!refused.is_empty(), "{rule} is not needed");
                let told = refused
                    .iter()
                    .any(|message| message.contains("NOPERM") || message.contains("no permission"));
                assert!(told, "without {rule} the messages are {refused:?}");
            }
            Err(outage) => {
                assert!(
                    ["~unstale:*", "+set"].contains(&rule.as_str()),
                    "without {rule}: {outage}"
                );
                assert!(
                    outage.needs_person
                        && outage.in_full().contains("the ACL of our user needs ~unstale:*"),
                    "without {rule}: {outage}"
                );
            }
        }
    }
}

/// Returns the rules that the page removes in the row that begins so, as they are in the ACL.
fn taken_away(row: &str) -> Vec<String> {
    let row = REDIS
        .lines()
        .find(|line| line.starts_with(row))
        .unwrap_or_else(|| panic!("no row begins with `{row}`"));
    let cell = row.split(" | ").nth(1).expect("a second cell");
    let rules = cell.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
    rules
        .map(|rule| {
            rule.strip_prefix('-').map_or_else(|| rule.to_owned(), |command| format!("+{command}"))
        })
        .collect()
}

#[tokio::test]
async fn what_the_page_leaves_out_for_smaller_registries_is_not_needed_there() {
    let server = Redis::start().await;
    let mut admin = server.connection().await;
    for (row, uses) in [
        ("| no rule has `bump_version` |", Uses { bump: false, ..ALL }),
        ("| no tag anywhere", Uses { tags: false, ..ALL }),
    ] {
        let taken = taken_away(row);
        let documented = documented_acl("secret", "shop:");
        let rules: Vec<String> =
            documented.iter().filter(|rule| !taken.contains(rule)).cloned().collect();
        assert_eq!(
            rules.len() + taken.len(),
            documented.len(),
            "{row} takes away what is not there: {taken:?}"
        );
        grant(&mut admin, &rules).await;
        assert_eq!(
            everything(&connect(&server), &mut admin, uses).await.unwrap(),
            [""; 0],
            "{row}"
        );
    }
}

#[tokio::test]
async fn the_acl_for_second_deletes_is_enough_and_grants_nothing_more() {
    let server = Redis::start().await;
    let mut admin = server.connection().await;
    let added = taken_away("| some rule has `again` |");
    let documented: Vec<String> = documented_acl("secret", "shop:")
        .into_iter()
        .filter(|rule| !added.contains(rule))
        .collect();
    for left_out in std::iter::once(None).chain(added.iter().map(Some)) {
        let rules: Vec<String> = documented
            .iter()
            .chain(added.iter().filter(|rule| Some(*rule) != left_out))
            .cloned()
            .collect();
        grant(&mut admin, &rules).await;
        let cache = connect(&server);
        cache.probe().await.unwrap();
        let again = Some(Duration::from_millis(1));
        let effect = Effect {
            rule: RuleId(0),
            target: "shop:a".into(),
            action: Action::Delete,
            version: None,
            again,
        };
        let mut batch = Batch::new(cache.tag_prefix(), 1);
        batch.push(EffectRef { event: 0, position: 0 }, &effect);
        let mut refused: Vec<_> = cache
            .apply(&batch.finish())
            .await
            .unwrap()
            .unsettled
            .into_iter()
            .map(|(_, outcome)| format!("{outcome:?}"))
            .collect();
        if refused.is_empty() {
            let mut passes = Vec::new();
            while let Some(due) =
                note(&mut refused, cache.due_second_deletes("token").await).unwrap()
            {
                if !due.is_empty() {
                    passes = due;
                    break;
                }
            }
            note(&mut refused, cache.finish_second_deletes(&passes).await).unwrap();
        }
        assert_eq!(refused.is_empty(), left_out.is_none(), "without {left_out:?}: {refused:?}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_reported() {
    let server = Redis::start().await;
    let outage = connect(&server).probe().await.unwrap_err();
    assert!(
        outage.needs_person && outage.in_full().contains("refuses the credentials"),
        "{outage}"
    );
}
