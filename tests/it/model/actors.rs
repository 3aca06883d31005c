//! Who acts: writers at the source, readers that take leases or take no part, and workers, replays and second passes with the production code.

use std::time::Duration;

use redis::{Cmd, Value};
use tokio_util::sync::CancellationToken;
use unstale::cache::{Again, Cache, Fill, Grant, READER_SCRIPTS};
use unstale::plan::{Batch, EffectOutcome, Plan, Slot};
use unstale::reader::{Options, Reader};
use unstale::registry::{Action, Effect, LoaderId, Only, Stale, Warm, Write};

use super::seat::Seat;
use super::tap::Tap;
use super::turns::Turns;
use super::world::{Change, Event, KEYS, TAGS, World, loaded, stored, written};
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
            let Value::BulkString(sha) = world.ask_all(&command).await else { panic!("no name") };
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

/// How the reader reads; of one key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) key: usize,
    pub(super) life: Life,
    /// In the steps of a cluster, which are right on a single server too.
    pub(super) in_steps: bool,
    /// Loads before the value's end, whenever that is.
    pub(super) early: bool,
    pub(super) fails: bool,
}

/// The shipped reader.
pub(super) async fn reader(world: &World, turns: Turns, how: Reading) {
    let forever = Duration::from_secs(86_400);
    let options = Options {
        cluster: how.in_steps,
        lease: Duration::from_millis(LEASE_MS),
        // Nobody waits by the clock: where another loads, it loads for itself.
        wait: Duration::ZERO,
        stale: if how.early { forever } else { Duration::ZERO },
        jitter: 0.0,
        timeout: forever,
        ..Options::default()
    };
    let load = async || {
        turns.next().await;
        let tags = world.load(how.key);
        let value = loaded(turns.now(), &tags).into_bytes();
        if how.fails { Err("the source is away") } else { Ok(Some(value)) }
    };
    // Only the value tells.
    let tags = |value: &Vec<u8>| {
        let text = String::from_utf8_lossy(value);
        let numbers = text.rsplit(':').next().unwrap().split(',').filter_map(|tag| tag.parse::<usize>().ok());
        numbers.map(|tag| TAGS[tag].to_owned()).collect::<Vec<_>>()
    };
    let life = Duration::from_millis(how.life.0);
    let _value =
        Seat::with(world, &turns, async |seat| Reader::new(seat, options).get_or_load(KEYS[how.key], load, life, tags).await).await;
    world.check().await;
}

/// A reader that takes no part: `GET`, load, `SETEX`.
pub(super) async fn stranger(world: &World, turns: Turns, key: usize) {
    turns.next().await;
    if world.ask(redis::cmd("GET").arg(KEYS[key])).await != Value::Nil {
        return;
    }
    turns.next().await;
    turns.next().await;
    world.ask(redis::cmd("SETEX").arg(KEYS[key]).arg(3_600).arg(stored(turns.now()))).await;
    world.check().await;
}

/// Applies events in batches, some of them again, as the worker does: one plan, one pipeline, then what it cannot finish.
pub(super) async fn worker(world: &World, cache: &Cache, tap: &Tap, turns: Turns, mut random: fastrand::Rng) {
    loop {
        turns.next().await;
        let Some(deliveries) = world.take(&mut random) else { return };
        if deliveries.is_empty() {
            continue;
        }
        let effects: Vec<(usize, bool)> =
            deliveries.iter().flat_map(|delivery| delivery.effects.iter().map(|&effect| (effect, delivery.is_copy))).collect();
        let applications = world.begin(effects.iter().map(|(event, _)| *event), turns.now());
        let events: Vec<(usize, Event, bool)> = effects.iter().map(|&(at, is_copy)| (at, world.event(at), is_copy)).collect();
        let warms = apply(cache, tap, &turns, &events).await;
        world.ended(&applications, turns.now());
        world.redeliver(deliveries, &mut random);
        world.check().await;
        for key in warms {
            warm(world, cache, tap, &turns, key).await;
        }
    }
}

/// The keys that are still to be loaded.
pub(super) async fn apply(cache: &Cache, tap: &Tap, turns: &Turns, events: &[(usize, Event, bool)]) -> Vec<usize> {
    let effects: Vec<Effect> = events.iter().map(|(at, event, _)| as_effect(*at, event)).collect();
    let mut batch = Batch::new(cache.tag_prefix(), effects.len());
    for ((slot, effect), (_, _, is_copy)) in (0_u32..).zip(&effects).zip(events) {
        let slot = Slot { event: slot, position: 0 };
        if *is_copy { batch.push_again(slot, effect) } else { batch.push(slot, effect) }
    }
    let mut warms = Vec::new();
    for slot in send(cache, tap, turns, &batch.finish(), &effects).await {
        match events[slot.event as usize].1.change {
            Change::Warm { key, .. } => warms.push(key),
            ref other => panic!("{other:?}"),
        }
    }
    warms.sort_unstable();
    warms.dedup();
    warms
}

/// Applies a plan and ends its drains; the loads are left.
pub(super) async fn send(cache: &Cache, tap: &Tap, turns: &Turns, plan: &Plan<'_>, effects: &[Effect]) -> Vec<Slot> {
    tap.seat(Some(turns.clone()));
    let mut left = Vec::new();
    for (slot, outcome) in cache.apply(plan).await.unwrap().unsettled {
        assert_eq!(outcome, EffectOutcome::Slow);
        let Effect { action, target, .. } = &effects[slot.event as usize];
        if *action == Action::InvalidateTag {
            assert!(cache.drain_tag(target, &CancellationToken::new(), |_, _| {}).await.unwrap().complete);
        } else {
            left.push(slot);
        }
    }
    tap.seat(None);
    left
}

/// After how long a second pass is due.
const AGAIN: Duration = Duration::from_millis(1);

pub(super) fn as_effect(place: usize, event: &Event) -> Effect {
    let ordered = |version: u64, action| {
        let digits = version.to_string();
        move |key: usize| at(("row", &digits), (event.id, event.place), effect(0, KEYS[key], action))
    };
    let effect = match &event.change {
        Change::Write { key, version, tags } => {
            let names = tags.iter().map(|&tag| TAGS[tag].to_owned()).collect();
            ordered(*version, Action::Write(Box::new(Write { value: written(place, tags), expiry: HOUR, tags: names })))(*key)
        }
        Change::Delete { key, version } => ordered(*version, Action::Delete)(*key),
        Change::Warm { key, version } => {
            let warm =
                Warm { loader: LoaderId(0), url: String::new(), expiry: HOUR, tags: Vec::new(), stale: Stale::Drop, only: Only::Always };
            ordered(*version, Action::Warm(Box::new(warm)))(*key)
        }
        Change::InvalidateTag(tag) => effect(0, TAGS[*tag], Action::InvalidateTag),
        Change::DeleteAgain(_) => panic!("no event's"),
    };
    let has_again = event.again && matches!(effect.action, Action::Delete | Action::InvalidateTag);
    Effect { again: has_again.then_some(AGAIN), ..effect }
}

async fn warm(world: &World, cache: &Cache, tap: &Tap, turns: &Turns, key: usize) {
    let token = turns.token();
    tap.seat(Some(turns.clone()));
    let granted = cache.grant_lease(KEYS[key], &token, Duration::from_secs(60)).await.unwrap();
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

/// Does the second passes that are due, as any worker does.
pub(super) async fn second_passes(world: &World, cache: &Cache, tap: &Tap, turns: Turns, times: usize) {
    for _ in 0..times {
        turns.next().await;
        // So long that all that were scheduled so far are due, whatever the machine does.
        tokio::time::sleep(AGAIN + Duration::from_millis(2)).await;
        tap.seat(Some(turns.clone()));
        let start = turns.now();
        let passes = cache.pass_again("second passes").await.unwrap();
        tap.seat(None);
        assert_eq!((&passes.failed[..], passes.lost), (&[][..], 0));
        let place = |names: &[&str], name: &str| names.iter().position(|other| *other == name).expect("a name of ours");
        let changes = passes.due.iter().map(|due| match due.target() {
            Some(Again::Key(key)) => Change::DeleteAgain(place(&KEYS, key)),
            Some(Again::Tag(tag)) => Change::InvalidateTag(place(&TAGS, tag)),
            None => panic!("{due:?}"),
        });
        let events: Vec<usize> = changes.map(|change| world.second_pass(change)).collect();
        world.ended(&world.begin(events, start), turns.now());
        world.check().await;
    }
}
