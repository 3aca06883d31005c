//! Actors: writers, readers, strangers, second deletes, tag maintenance and the clock.
//!
//! Writers change the source. Readers take leases, and strangers do not. Second deletes and tag
//! maintenance run production code.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio_util::sync::CancellationToken;
use unstale::cache::{Cache, READER_SCRIPTS, SecondDelete};
use unstale::config::RedisConfig;
use unstale_reader::{Options, Reader};

use super::event::{Change, Life, loaded, stored};
use super::seat::Seat;
use super::tap::Tap;
use super::turns::Turns;
use super::world::{ASIDE_FILLED_FOR, KEYS, TAGS, World};

/// Commits a few changes.
pub(super) async fn writer(world: &World, turns: Turns, mut random: fastrand::Rng, is_slow: bool) {
    for _ in 0..random.usize(1..=3) {
        if is_slow {
            turns.rest(&mut random).await;
        }
        turns.next().await;
        world.commit(&mut random);
    }
    world.writer_ended();
}

pub(super) const LEASE: Duration = Duration::from_secs(60);

/// Production code for an actor, and the tap that its commands pass through.
#[derive(Clone, Copy)]
pub(super) struct Hands<'h> {
    pub(super) process: &'h Process,
    pub(super) tap: &'h Tap,
}

impl Hands<'_> {
    pub(super) fn cache(&self) -> Rc<Cache> {
        Rc::clone(&self.process.cache.borrow())
    }

    /// Starts the next process if this one died. This takes no turn.
    pub(super) async fn begin_anew(&self) {
        let was_dead = self.tap.is_dead();
        self.tap.dies_after(None);
        self.tap.seat(None);
        if was_dead {
            let process = Process::start(self.process.config.clone()).await;
            self.process.cache.swap(&process.cache);
        }
    }
}

/// Knowledge of one process about Redis, which the next process does not have.
///
/// A process that continued would also wait longer before each probe, soon for a real second.
pub(super) struct Process {
    config: RedisConfig,
    cache: RefCell<Rc<Cache>>,
}

impl Process {
    pub(super) async fn start(config: RedisConfig) -> Self {
        let cache = Cache::connect(&config, "q").unwrap().setting_aside_for(ASIDE_FILLED_FOR);
        cache.probe().await.unwrap();
        Self { config, cache: RefCell::new(Rc::new(cache)) }
    }
}

/// Advances the clock. Values and second deletes are due after the short time, and leases also end
/// after the long one.
pub(super) async fn clock(world: &World, turns: Turns, mut random: fastrand::Rng) {
    for _ in 0..random.usize(1..=2) {
        turns.rest(&mut random).await;
        world.advance(Duration::from_secs(if random.bool() { 100 } else { 31 })).await;
    }
}

/// Scripts of the readers, by their names in Redis' cache.
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

/// Mode of the reader, for one key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) key: usize,
    pub(super) life: Life,
    /// Reads in the steps of a cluster, which are right on a single server too.
    pub(super) in_steps: bool,
    /// Loads before the value's end, whenever that is.
    pub(super) early: bool,
    pub(super) fails: bool,
    /// Number of commands after which the reader is dead.
    pub(super) dies_after: Option<u32>,
}

/// Runs the shipped reader.
pub(super) async fn reader(world: &World, turns: Turns, how: Reading) {
    let forever = Duration::from_secs(86_400);
    let options = Options {
        cluster: how.in_steps,
        lease: LEASE,
        // No reader waits by the clock: while another loads, it loads for itself.
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
    // Only the value determines the tags.
    let tags = |value: &Vec<u8>| {
        let text = String::from_utf8_lossy(value);
        let numbers =
            text.rsplit(':').next().unwrap().split(',').filter_map(|tag| tag.parse::<usize>().ok());
        numbers.map(|tag| TAGS[tag].to_owned()).collect::<Vec<_>>()
    };
    let life = how.life.time().unwrap_or(forever);
    let _value = Seat::with(world, &turns, how.dies_after, async |seat| {
        Reader::new(seat, options).get_or_load(KEYS[how.key], load, life, tags).await
    })
    .await;
    world.check().await;
}

/// Runs a reader without leases: `GET`, load, `SETEX`.
pub(super) async fn stranger(world: &World, turns: Turns, key: usize, mut random: fastrand::Rng) {
    turns.rest(&mut random).await;
    if world.ask(redis::cmd("GET").arg(KEYS[key])).await != Value::Nil {
        return;
    }
    turns.next().await;
    turns.next().await;
    world.ask(redis::cmd("SETEX").arg(KEYS[key]).arg(3_600).arg(stored(turns.now()))).await;
    world.check().await;
}

/// Performs the second deletes that are due, as any worker does, even if it dies in the middle.
pub(super) async fn second_passes(
    world: &World,
    hands: Hands<'_>,
    turns: Turns,
    dies_after: Option<u32>,
) {
    turns.next().await;
    world.advance_to_second_passes().await;
    hands.tap.seat(Some(turns.clone()));
    hands.tap.dies_after(dies_after);
    let passes = hands.cache().run_second_deletes("second deletes").await;
    // Time at which it asked for the due ones, which may be long after it was permitted to.
    if let Some(start) = hands.tap.began().filter(|_| !hands.tap.is_dead()) {
        let passes = passes.unwrap();
        assert_eq!((&passes.failed[..], passes.lost), (&[][..], 0));
        let events: Vec<usize> = passes
            .due
            .iter()
            .filter_map(unstale::cache::DueSecondDelete::target)
            .map(|due| world.made(again(due)))
            .collect();
        world.ended(&world.begin(events, start), turns.now());
    }
    hands.begin_anew().await;
    world.check().await;
}

pub(super) fn again(due: SecondDelete<'_>) -> Change {
    let place = |names: &[&str], name: &str| {
        names.iter().position(|other| *other == name).expect("a name of ours")
    };
    match due {
        SecondDelete::Key(key) => Change::Delete { key: place(&KEYS, key), order: None },
        SecondDelete::Tag(tag) => Change::InvalidateTag(place(&TAGS, tag)),
    }
}

/// Maintains the tags' sets, and continues drains that were left.
pub(super) async fn upkeep(
    world: &World,
    hands: Hands<'_>,
    turns: Turns,
    mut random: fastrand::Rng,
) {
    for _ in 0..random.usize(1..=4) {
        turns.rest(&mut random).await;
        hands.tap.seat(Some(turns.clone()));
        hands.tap.dies_after((random.u8(..4) == 0).then(|| random.u32(..6)));
        let cache = hands.cache();
        match random.u8(..6) {
            0 => {
                let drained = cache.drain_all(&CancellationToken::new(), |_, _| {}).await;
                assert!(
                    drained.is_ok_and(|drained| drained.complete && drained.lost == 0)
                        || hands.tap.is_dead()
                );
            }
            1 | 2 => {
                world.advance(ASIDE_FILLED_FOR * 2).await;
                for tag in 0..TAGS.len() {
                    let settled = cache.take_second_look(set(tag).as_bytes()).await;
                    assert!(settled.is_ok() || hands.tap.is_dead(), "{settled:?}");
                }
            }
            _ => {
                let pruned = cache
                    .maintain_slice(set(random.usize(..TAGS.len())).as_bytes(), 0, false)
                    .await;
                assert!(pruned.is_ok() || hands.tap.is_dead(), "{pruned:?}");
            }
        }
        hands.begin_anew().await;
        world.check().await;
    }
}
