//! Who acts: writers at the source, readers that take leases, and workers with the production code.

use redis::{Cmd, Value};
use tokio_util::sync::CancellationToken;
use unstale::cache::{Cache, Fill, Grant, READER_SCRIPTS};
use unstale::plan::{Batch, EffectOutcome, Slot};
use unstale::registry::{Action, Effect, LoaderId, Only, Stale, Warm, Write};

use super::tap::Tap;
use super::turns::Turns;
use super::world::{Change, Event, KEYS, TAGS, World, loaded, written};
use crate::cache::{HOUR, at, effect};

/// Commits a few changes.
pub(super) async fn writer(world: &World, turns: Turns, mut random: fastrand::Rng) {
    for _ in 0..random.usize(1..=3) {
        turns.next().await;
        world.commit(&mut random);
    }
    world.writer_ended();
}

const LEASE_MS: u64 = 60_000;

/// For how long what is filled lives; in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life(pub(super) u64);

/// The readers' scripts, by their names in Redis' cache.
#[derive(Debug)]
pub(super) struct Scripts {
    shas: Vec<(&'static str, String)>,
}

impl Scripts {
    pub(super) async fn load(world: &World) -> Self {
        let mut shas = Vec::new();
        for (name, source) in READER_SCRIPTS {
            let mut command = redis::cmd("SCRIPT");
            command.arg("LOAD").arg(source);
            let Value::BulkString(sha) = world.ask(&command).await else { panic!("no name") };
            shas.push((name, String::from_utf8(sha).unwrap()));
        }
        Self { shas }
    }

    pub(super) fn call(&self, name: &str, keys: &[String]) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        let (_, sha) = self.shas.iter().find(|(known, _)| *known == name).unwrap();
        command.arg(sha).arg(keys.len()).arg(keys);
        command
    }
}

pub(super) fn lease(key: usize) -> String {
    format!("unstale:lease/{{{}}}", KEYS[key])
}

pub(super) fn set(tag: usize) -> String {
    format!("cache_tag:{}", TAGS[tag])
}

pub(super) fn generation(tag: usize) -> String {
    format!("unstale:gen/{{{}}}", set(tag))
}

/// The lease of a key and what the sequence had come to, where the reader is to load.
pub(super) async fn take_lease(world: &World, scripts: &Scripts, turns: &Turns, key: usize, token: &str) -> Option<u64> {
    turns.next().await;
    let mut command = scripts.call("read", &[KEYS[key].to_owned(), lease(key), "unstale:seq".to_owned()]);
    command.arg(token).arg(LEASE_MS).arg(0);
    let Value::Array(answer) = world.ask(&command).await else { panic!("no answer of the protocol") };
    match &answer[..] {
        [Value::BulkString(kind), Value::BulkString(since), ..] if kind == b"lease" => {
            Some(String::from_utf8_lossy(since).parse().unwrap())
        }
        _ => None,
    }
}

/// Reads a key, and loads it where nobody else does. All at once as on a single server, or in the steps of a cluster.
pub(super) async fn reader(world: &World, scripts: &Scripts, turns: Turns, key: usize, life: Life, in_steps: bool) {
    let token = turns.token();
    let Some(since) = take_lease(world, scripts, &turns, key, &token).await else { return };
    turns.next().await;
    let (value, tags) = {
        let tags = world.load(key);
        (loaded(turns.now(), &tags), tags)
    };
    let mut keys = vec![KEYS[key].to_owned(), lease(key)];
    if in_steps {
        for &tag in &tags {
            turns.next().await;
            let mut join = scripts.call("join", &[set(tag), generation(tag)]);
            // The value is stored later than this, and as late as the lease lets it: the set must not end first.
            join.arg(KEYS[key]).arg(since).arg("PX").arg(life.0 + LEASE_MS);
            if world.ask(&join).await == Value::Int(0) {
                turns.next().await;
                world.ask(scripts.call("release", &[lease(key)]).arg(&token)).await;
                return;
            }
        }
    } else {
        keys.extend(tags.iter().flat_map(|&tag| [set(tag), generation(tag)]));
    }
    turns.next().await;
    let mut fill = scripts.call("fill", &keys);
    fill.arg(&token).arg(since).arg(&value).arg("PX").arg(life.0).arg(life.0);
    world.ask(&fill).await;
    world.check().await;
}

/// Applies events in batches, some of them again, as the worker does: one plan, one pipeline, then what it cannot finish.
pub(super) async fn worker(world: &World, cache: &Cache, tap: &Tap, turns: Turns, mut random: fastrand::Rng) {
    loop {
        turns.next().await;
        let Some(events) = world.take(&mut random) else { return };
        if events.is_empty() {
            continue;
        }
        let applications = world.begin(&events, turns.now());
        let events: Vec<Event> = events.into_iter().map(|event| world.event(event)).collect();
        let warms = apply(cache, tap, &turns, &events).await;
        world.end(&applications, turns.now(), &mut random).await;
        for key in warms {
            warm(world, cache, tap, &turns, key).await;
        }
    }
}

/// The keys that are still to be loaded.
pub(super) async fn apply(cache: &Cache, tap: &Tap, turns: &Turns, events: &[Event]) -> Vec<usize> {
    let effects: Vec<Effect> = events.iter().map(as_effect).collect();
    let mut batch = Batch::new(cache.tag_prefix(), effects.len());
    for (event, effect) in (0_u32..).zip(&effects) {
        batch.push(Slot { event, position: 0 }, effect);
    }
    tap.seat(Some(turns.clone()));
    let mut warms = Vec::new();
    for (slot, outcome) in cache.apply(&batch.finish()).await.unwrap().unsettled {
        assert_eq!(outcome, EffectOutcome::Slow);
        match events[slot.event as usize].change {
            Change::Warm { key, .. } => warms.push(key),
            Change::InvalidateTag(tag) => {
                assert!(cache.drain_tag(TAGS[tag], &CancellationToken::new(), |_, _| {}).await.unwrap().complete);
            }
            _ => panic!("{outcome:?}"),
        }
    }
    tap.seat(None);
    warms.sort_unstable();
    warms.dedup();
    warms
}

fn as_effect(event: &Event) -> Effect {
    let ordered = |version: u64, action| {
        let digits = version.to_string();
        move |key: usize| at(("row", &digits), (event.id, 1), effect(0, KEYS[key], action))
    };
    match &event.change {
        Change::Write { key, version, tags } => {
            let names = tags.iter().map(|&tag| TAGS[tag].to_owned()).collect();
            ordered(*version, Action::Write(Box::new(Write { value: written(event.id, tags), expiry: HOUR, tags: names })))(*key)
        }
        Change::Delete { key, version } => ordered(*version, Action::Delete)(*key),
        Change::Warm { key, version } => {
            let warm =
                Warm { loader: LoaderId(0), url: String::new(), expiry: HOUR, tags: Vec::new(), stale: Stale::Drop, only: Only::Always };
            ordered(*version, Action::Warm(Box::new(warm)))(*key)
        }
        Change::InvalidateTag(tag) => effect(0, TAGS[*tag], Action::InvalidateTag),
    }
}

async fn warm(world: &World, cache: &Cache, tap: &Tap, turns: &Turns, key: usize) {
    let token = turns.token();
    tap.seat(Some(turns.clone()));
    let granted = cache.grant_lease(KEYS[key], &token, std::time::Duration::from_secs(60)).await.unwrap();
    if let Grant::Granted { since } = granted {
        turns.next().await;
        let tags = world.load(key);
        let names: Vec<String> = tags.iter().map(|&tag| TAGS[tag].to_owned()).collect();
        let value = loaded(turns.now(), &tags);
        let filled = cache.fill(KEYS[key], &token, since, value.as_bytes(), HOUR, &names).await.unwrap();
        assert!(matches!(filled, Fill::Filled | Fill::Refused));
    }
    tap.seat(None);
    world.check().await;
}
