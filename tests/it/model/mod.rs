//! Model test: properties that must hold under any interleaving, checked on many interleavings.
//!
//! The actors are readers, writers, workers, redeliveries, partial retries, warms, drains, replays
//! and second deletes. A seed decides the order of their steps, one round trip each, against a real
//! Redis and a real Redis Cluster. They are the production code, with its pipelines passed on
//! command by command. The same driver must also find the faults of wrong protocols that lose
//! writes.
//!
//! - A value loaded before an invalidation of its key, or of any of its tags, is never read after
//!   that invalidation took effect.
//! - An older write never remains after a newer event of its entity took effect.
//! - No invalidation is skipped for being old. Even a value that a stranger stored does not outlive
//!   one that began after it, such as a second delete.
//!
//! In reading order:
//! - The world and its rules: `event`, `world`, `judge`.
//! - Order of the steps: `turns`, `tap`, `seat`.
//! - Actors: `actors`, `worker`, `replay`.
//! - Wrong protocols: `wrong`.
//!
//! Deliberately absent: RabbitMQ, whose queues `world` models.
#![allow(clippy::print_stdout, reason = "`make model` shows what it found")]

mod actors;
mod event;
mod judge;
mod replay;
mod seat;
mod tap;
mod turns;
mod worker;
mod world;
mod wrong;

use std::collections::BTreeMap;
use std::ops::Range;

use redis::aio::MultiplexedConnection;
use tokio::task::LocalSet;
use unstale::config::{RedisConfig, RedisMode, SecretUrl};

use self::actors::{Hands, Process, Reading, Scripts};
use self::event::Life;
use self::replay::{Past, Replay};
use self::tap::Tap;
use self::turns::{Actor, interleave};
use self::world::{KEYS, Leaning, TAGS, World};
use self::wrong::{Wrong, WrongReplay};
use crate::support::{Redis, RedisCluster};

/// Seeds of `make model`.
const SEEDS: u64 = 10;

/// Servers of an interleaving.
#[derive(Debug)]
enum Server {
    Single(Redis),
    Cluster(RedisCluster),
}

/// Servers and the taps before them, for any number of interleavings.
struct Bench {
    server: Server,
    taps: Vec<Tap>,
    processes: Vec<Process>,
}

impl Bench {
    async fn single() -> Self {
        Self::over(Server::Single(Redis::start().await)).await
    }

    async fn cluster() -> Self {
        let cluster = RedisCluster::start().await;
        // No failover happens here, and replicas take their share of the machine.
        cluster.nodes[3..].iter().for_each(Redis::kill);
        Self::over(Server::Cluster(cluster)).await
    }

    /// Returns the servers that accept writes.
    fn primaries(&self) -> &[Redis] {
        match &self.server {
            Server::Single(redis) => std::slice::from_ref(redis),
            Server::Cluster(cluster) => &cluster.nodes[..3],
        }
    }

    async fn over(server: Server) -> Self {
        let mut bench = Self { server, taps: Vec::new(), processes: Vec::new() };
        let ports: Vec<u16> = bench.primaries().iter().map(Redis::port).collect();
        let mode = if ports.len() > 1 { RedisMode::Cluster } else { RedisMode::Single };
        for _ in 0..3 {
            let tap = Tap::start(&ports).await;
            let urls = tap
                .ports
                .iter()
                .map(|port| SecretUrl::new(format!("redis://127.0.0.1:{port}").parse().unwrap()))
                .collect();
            let config =
                RedisConfig { urls, mode: mode.clone(), ..crate::cache::config("redis://h/") };
            bench.processes.push(Process::start(config).await);
            bench.taps.push(tap);
        }
        bench
    }

    async fn connections(&self) -> Vec<MultiplexedConnection> {
        // A busy machine may stall for longer than the client's own timeout.
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let mut connections = Vec::new();
        for server in self.primaries() {
            connections.push(
                server
                    .client()
                    .get_multiplexed_async_connection_with_config(&patient)
                    .await
                    .unwrap(),
            );
        }
        connections
    }

    fn hands(&self, place: usize) -> Hands<'_> {
        Hands { process: &self.processes[place], tap: &self.taps[place] }
    }

    /// Runs an interleaving; returns its number of steps.
    async fn run(
        &self,
        world: &World,
        scripts: &Scripts,
        cast: Cast,
        random: &mut fastrand::Rng,
    ) -> u64 {
        self.taps.iter().for_each(|tap| tap.shuffle(fork(random)));
        let mut actors = self.writers(world, cast, 2, random);
        actors.extend(self.workers(world, cast, 2, random));
        actors.extend(self.readers(world, scripts, cast, 2..=4, random));
        if cast.has_clock {
            let random = fork(random);
            actors.push(Box::new(move |turns| Box::pin(actors::clock(world, turns, random))));
        }
        let hands = self.hands(0);
        match cast.extra {
            Extra::None | Extra::LaterReplay(_) => {}
            Extra::SecondDeletes => {
                let (key, its) = (random.usize(..KEYS.len()), fork(random));
                actors.push(Box::new(move |turns| {
                    Box::pin(actors::stranger(world, turns, key, its))
                }));
                let dies = random.bool() || cast.wrong.is_some();
                let dies_after = dies.then(|| random.u32(..6));
                actors.push(match cast.wrong {
                    Some(Wrong::PopsFirst) => Box::new(move |turns| {
                        Box::pin(wrong::second_passes(world, hands, turns, dies))
                    }),
                    _ => Box::new(move |turns| {
                        Box::pin(actors::second_passes(world, hands, turns, dies_after))
                    }),
                });
            }
            Extra::Upkeep => {
                let random = fork(random);
                actors.push(match cast.wrong {
                    Some(Wrong::Upkeep(wrong)) => {
                        Box::new(move |turns| Box::pin(wrong::upkeep(world, turns, random, wrong)))
                    }
                    _ => {
                        Box::new(move |turns| Box::pin(actors::upkeep(world, hands, turns, random)))
                    }
                });
            }
            Extra::Replay => actors.push(self.replay(world, cast, Past::Kept, random)),
        }
        let mut choice = fork(random);
        let mut choose = |waiting| choice.usize(..waiting);
        let mut steps = interleave(actors, 0, cast.is_shown, &mut choose).await;
        if let Extra::LaterReplay(is_lost) = cast.extra {
            let past = if is_lost {
                world.lose_all().await;
                Past::Lost
            } else {
                world.end_fences().await;
                Past::Unfenced { before: world.published() + 1 }
            };
            let mut actors = self.writers(world, cast, 1, random);
            actors.extend(self.workers(world, cast, 1, random));
            actors.extend(self.readers(world, scripts, cast, 1..=1, random));
            actors.push(self.replay(world, cast, past, random));
            steps = interleave(actors, steps, cast.is_shown, &mut choose).await;
        }
        if cast.extra == Extra::SecondDeletes {
            let last: Actor<'_> =
                Box::new(|turns| Box::pin(actors::second_passes(world, hands, turns, None)));
            steps = interleave(vec![last], steps, cast.is_shown, choose).await;
        }
        world.check_at_last().await;
        steps
    }

    fn writers<'w>(
        &self,
        world: &'w World,
        cast: Cast,
        count: usize,
        random: &mut fastrand::Rng,
    ) -> Vec<Actor<'w>> {
        world.writers_begin(count);
        let writer = |_| -> Actor<'w> {
            let random = fork(random);
            Box::new(move |turns| Box::pin(actors::writer(world, turns, random, cast.is_slow)))
        };
        (0..count).map(writer).collect()
    }

    fn workers<'w>(
        &'w self,
        world: &'w World,
        cast: Cast,
        count: usize,
        random: &mut fastrand::Rng,
    ) -> Vec<Actor<'w>> {
        let worker = |place| -> Actor<'w> {
            let (random, hands) = (fork(random), self.hands(place));
            match cast.wrong.and_then(Wrong::worker) {
                None => Box::new(move |turns| {
                    Box::pin(worker::worker(world, hands, turns, random, cast.is_mortal))
                }),
                Some(wrong) => Box::new(move |turns| {
                    Box::pin(wrong::worker(world, hands, turns, random, wrong))
                }),
            }
        };
        (1..=count).map(worker).collect()
    }

    fn readers<'w>(
        &self,
        world: &'w World,
        scripts: &'w Scripts,
        cast: Cast,
        count: std::ops::RangeInclusive<usize>,
        random: &mut fastrand::Rng,
    ) -> Vec<Actor<'w>> {
        let count = random.usize(count);
        let reader = |_| -> Actor<'w> {
            let (key, life) = (random.usize(..KEYS.len()), Life::any(random));
            let in_steps = self.primaries().len() > 1 || random.bool();
            let (early, fails) = (random.u8(..4) == 0, random.u8(..16) == 0);
            let dies_after = (cast.is_mortal && random.u8(..8) == 0).then(|| random.u32(..6));
            let how = Reading { key, life, in_steps, early, fails, dies_after };
            match cast.wrong.and_then(Wrong::reader) {
                None => Box::new(move |turns| Box::pin(actors::reader(world, turns, how))),
                Some(wrong) => Box::new(move |turns| {
                    Box::pin(wrong::reader(world, scripts, turns, key, life, wrong))
                }),
            }
        };
        (0..count).map(reader).collect()
    }

    fn replay<'w>(
        &'w self,
        world: &'w World,
        cast: Cast,
        past: Past,
        random: &mut fastrand::Rng,
    ) -> Actor<'w> {
        let (random, hands, wrong) =
            (fork(random), self.hands(0), cast.wrong.and_then(Wrong::replay));
        Box::new(move |turns| Box::pin(Replay { world, hands, turns, random, past, wrong }.run()))
    }

    /// Runs up to `most` interleavings of a seed, until one finds a violation.
    ///
    /// Returns the number of interleavings, their steps, and the violations. With `MODEL_ONLY` it
    /// runs that one alone and prints its steps.
    async fn search(&self, wrong: Option<Wrong>, seed: u64, most: u64) -> Found {
        let Some(only) = number_in("MODEL_ONLY") else {
            return self.play(wrong, seed, 0..most, false).await;
        };
        for _teaches_the_servers_their_scripts in 0..2 {
            self.play(wrong, seed, only..only + 1, false).await;
        }
        self.play(wrong, seed, only..only + 1, true).await
    }

    async fn play(
        &self,
        wrong: Option<Wrong>,
        seed: u64,
        interleavings: Range<u64>,
        is_shown: bool,
    ) -> Found {
        let connections = self.connections().await;
        let mut found = Found::default();
        let scripts = Scripts::load(&World::new(
            connections.clone(),
            Leaning::Rows,
            false,
            &mut fastrand::Rng::with_seed(0),
        ))
        .await;
        for n in interleavings {
            let mut random = fastrand::Rng::with_seed(seed << 32 | n);
            let cast = Cast { is_shown, ..Cast::new(wrong, &mut random) };
            let world = World::new(
                connections.clone(),
                cast.leaning,
                cast.extra == Extra::SecondDeletes,
                &mut random,
            );
            world.ask_all(&redis::cmd("FLUSHDB")).await;
            if random.u8(..32) == 0 {
                fill_tags(&world).await;
            }
            found.steps += self.run(&world, &scripts, cast, &mut random).await;
            found.interleavings += 1;
            let counts =
                |violation: &&str| wrong.is_none_or(|wrong| wrong.is_found_out_by(violation));
            for violation in world.violations().into_iter().filter(counts) {
                *found.violations.entry(violation).or_default() += 1;
                found.first.get_or_insert_with(|| (n, format!("{world:?}")));
            }
            if found.first.is_some() && wrong.is_some() {
                break;
            }
        }
        found
    }

    /// Searches that many interleavings, or as many as were asked for, and finds nothing.
    async fn finds_nothing(&self, interleavings: u64) {
        let (mut all, mut steps) = (0, 0);
        for seed in seeds() {
            let found = self.search(None, seed, asked_for().unwrap_or(interleavings) / SEEDS).await;
            assert_eq!(
                found.violations,
                BTreeMap::new(),
                "seed {seed}, interleaving {:?}",
                found.first
            );
            all += found.interleavings;
            steps += found.steps;
            println!(
                "seed {seed}: {} interleavings, {} steps, no violation",
                found.interleavings, found.steps
            );
        }
        println!("{all} interleavings, {steps} steps");
    }

    /// Finds the fault of every wrong protocol.
    ///
    /// It uses a seed that finds it soon, or all seeds if many interleavings were asked for.
    async fn finds_all_out(&self) {
        let place = usize::from(self.primaries().len() > 1);
        for (wrong, soonest) in Wrong::ALL.into_iter().filter(|(wrong, _)| is_asked_for(wrong)) {
            let seeds = if asked_for().is_some() { seeds() } else { vec![soonest[place]] };
            for seed in seeds {
                let found = self.search(Some(wrong), seed, 20_000).await;
                assert!(
                    found.first.is_some(),
                    "{wrong:?} lost nothing in {} interleavings of seed {seed}",
                    found.interleavings
                );
                println!(
                    "{wrong:?}, seed {seed}: interleaving {}: {:?}",
                    found.interleavings, found.violations
                );
            }
        }
    }
}

/// Actors beside writers, workers and readers.
#[derive(Debug, Clone, Copy)]
struct Cast {
    wrong: Option<Wrong>,
    has_clock: bool,
    /// Writers pause.
    is_slow: bool,
    is_mortal: bool,
    leaning: Leaning,
    extra: Extra,
    /// The steps are printed.
    is_shown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extra {
    None,
    SecondDeletes,
    Upkeep,
    Replay,
    /// Replay after everything is done. Redis has lost everything, or only its fences.
    LaterReplay(bool),
}

impl Cast {
    fn new(wrong: Option<Wrong>, random: &mut fastrand::Rng) -> Self {
        let extra = match random.u8(..12) {
            0..=2 => Extra::SecondDeletes,
            3 | 4 => Extra::Upkeep,
            5..=7 => Extra::Replay,
            8 => Extra::LaterReplay(false),
            9 => Extra::LaterReplay(true),
            _ => Extra::None,
        };
        let (is_mortal, has_clock) = (random.u8(..3) == 0, random.u8(..3) == 0);
        let leaning = if random.u8(..3) == 0 { Leaning::Tags } else { Leaning::Rows };
        let is_slow = has_clock && random.bool();
        let Some(known) = wrong else {
            return Self { wrong, has_clock, is_slow, is_mortal, leaning, extra, is_shown: false };
        };
        let extra = match known {
            Wrong::Upkeep(_) => Extra::Upkeep,
            Wrong::PopsFirst => Extra::SecondDeletes,
            Wrong::Replay(WrongReplay::AppliesUnversioned) => Extra::Replay,
            Wrong::Replay(WrongReplay::AppliesOld) => Extra::LaterReplay(false),
            Wrong::Replay(WrongReplay::GivesNoWay | WrongReplay::CutsAsIfWhole) => {
                Extra::LaterReplay(true)
            }
            Wrong::Seed | Wrong::Reader(_) | Wrong::Worker(_) => Extra::None,
        };
        let leaning = if known.is_of_tags() { Leaning::Tags } else { Leaning::Rows };
        let (has_clock, is_slow) =
            (known.needs_clock(), known.needs_clock() && known.reader().is_some());
        Self { wrong, has_clock, is_slow, is_mortal: false, leaning, extra, is_shown: false }
    }
}

fn fork(random: &mut fastrand::Rng) -> fastrand::Rng {
    fastrand::Rng::with_seed(random.u64(..))
}

/// Fills tags that are too big to delete at once: their invalidation is a drain.
async fn fill_tags(world: &World) {
    for tag in 0..TAGS.len() {
        let mut add = redis::cmd("SADD");
        add.arg(actors::set(tag)).arg((0..501).map(|n| format!("other:{n}")).collect::<Vec<_>>());
        world.ask(&add).await;
    }
}

#[derive(Debug, Default, PartialEq)]
struct Found {
    interleavings: u64,
    steps: u64,
    violations: BTreeMap<&'static str, u64>,
    /// Interleaving that showed the first violation, and the world at that time.
    first: Option<(u64, String)>,
}

/// Returns the total number of interleavings that `make model` asks for.
fn asked_for() -> Option<u64> {
    number_in("MODEL_INTERLEAVINGS")
}

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// Returns the seeds in `MODEL_SEEDS`, or all.
fn seeds() -> Vec<u64> {
    let Ok(text) = std::env::var("MODEL_SEEDS") else { return (0..SEEDS).collect() };
    text.split(',')
        .map(|seed| seed.trim().parse().expect("MODEL_SEEDS are numbers with commas between"))
        .collect()
}

/// Returns whether `MODEL_CONTROLS` names it by a part of its name, or is unset.
fn is_asked_for(wrong: &Wrong) -> bool {
    let name = format!("{wrong:?}");
    std::env::var("MODEL_CONTROLS")
        .map_or(true, |parts| parts.split(',').any(|part| name.contains(part)))
}

fn play(game: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, game);
}

#[test]
fn nothing_stale_is_read_and_nothing_older_remains_in_any_order() {
    play(async { Bench::single().await.finds_nothing(2_000).await });
}

#[test]
fn nor_in_a_cluster() {
    play(async { Bench::cluster().await.finds_nothing(800).await });
}

#[test]
fn the_seeds_snippets_and_each_plausible_protocol_are_found_out() {
    play(async { Bench::single().await.finds_all_out().await });
}

#[test]
fn they_are_found_out_in_a_cluster() {
    play(async { Bench::cluster().await.finds_all_out().await });
}

#[test]
fn a_seed_gives_the_same_interleaving_again() {
    play(async {
        for bench in [Bench::single().await, Bench::cluster().await] {
            let run = async || bench.search(None, 77, 30).await;
            // The first run loads the scripts into the servers.
            let [_, once, again] = [run().await, run().await, run().await];
            assert_eq!(once, again);
        }
    });
}
