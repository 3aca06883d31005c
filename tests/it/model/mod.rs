//! What must hold under any interleaving, tried on many: readers, writers, workers, redeliveries, retries of parts, warms, drains, replays and second
//! passes as actors that a seed lets take their steps, one round trip each, against a real Redis and a real Redis Cluster. They are the production
//! code, its pipelines passed on command by command. The same driver over the seed's own snippets, and over plausible protocols that lose, must find
//! them out.
//!
//! - A value loaded before an invalidation of its key, or of any of its tags, is never read after that invalidation took hold.
//! - An older write never stands where a newer event of its entity took hold.
//! - No invalidation is skipped for being old; not even a value that a stranger stored outlives one that began after it, a second pass for instance.
#![allow(clippy::print_stdout, reason = "`make model` shows what it found")]

mod actors;
mod replay;
mod seat;
mod tap;
mod turns;
mod world;
mod wrong;

use std::collections::BTreeMap;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::task::LocalSet;
use unstale::cache::Cache;
use unstale::config::{RedisConfig, RedisMode, SecretUrl};

use self::actors::{Life, Reading, Scripts};
use self::tap::Tap;
use self::turns::{Actor, interleave};
use self::world::{KEYS, OLDER_WRITE, SKIPPED, STALE_LOAD, TAGS, World};
use self::wrong::{WrongReader, WrongWorker};
use crate::support::{Redis, RedisCluster};

/// Of `make model`.
const SEEDS: u64 = 10;
const HOUR: Life = Life(3_600_000);
const MOMENT: Life = Life(2);

/// What of it is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Right,
    Seed,
    Reader(WrongReader),
    Worker(WrongWorker),
}

/// Each loses something that nothing else of it does.
const CONTROLS: [Protocol; 12] = [
    Protocol::Seed,
    Protocol::Reader(WrongReader::LeaseAlone),
    Protocol::Reader(WrongReader::GenerationFirst),
    Protocol::Reader(WrongReader::ExpiringSets),
    Protocol::Worker(WrongWorker::KeyBeforeLease),
    Protocol::Worker(WrongWorker::MembersWithoutLeases),
    Protocol::Worker(WrongWorker::OneNameForAll),
    Protocol::Worker(WrongWorker::Numbers),
    Protocol::Worker(WrongWorker::FirstOfEqual),
    Protocol::Worker(WrongWorker::WritesAloneRaise),
    Protocol::Worker(WrongWorker::SkipsOld),
    Protocol::Worker(WrongWorker::NoFences),
];

impl Protocol {
    /// What it is to be found out by; anything, where it must lose nothing.
    fn is_found_out_by(self, violation: &str) -> bool {
        match self {
            Self::Right => true,
            Self::Seed | Self::Reader(_) => violation == STALE_LOAD,
            Self::Worker(WrongWorker::KeyBeforeLease | WrongWorker::MembersWithoutLeases | WrongWorker::OneNameForAll) => {
                violation == STALE_LOAD
            }
            Self::Worker(WrongWorker::SkipsOld) => violation == SKIPPED,
            Self::Worker(_) => violation == OLDER_WRITE,
        }
    }
}

/// What is played on.
#[derive(Debug)]
enum Server {
    Single(Redis),
    Cluster(RedisCluster),
}

/// Servers and what stands before them, for as many interleavings as one likes.
struct Bench {
    server: Server,
    taps: Vec<Tap>,
    caches: Vec<Cache>,
    /// Values live for long, and nobody does second passes: nothing depends on the clock.
    is_timeless: bool,
}

impl Bench {
    async fn single() -> Self {
        Self::over(Server::Single(Redis::start().await)).await
    }

    async fn cluster() -> Self {
        let cluster = RedisCluster::start().await;
        // Nobody fails over here, and replicas take their share of the machine.
        cluster.nodes[3..].iter().for_each(Redis::kill);
        Self::over(Server::Cluster(cluster)).await
    }

    /// The servers that take writes.
    fn primaries(&self) -> &[Redis] {
        match &self.server {
            Server::Single(redis) => std::slice::from_ref(redis),
            Server::Cluster(cluster) => &cluster.nodes[..3],
        }
    }

    async fn over(server: Server) -> Self {
        let mut bench = Self { server, taps: Vec::new(), caches: Vec::new(), is_timeless: false };
        let ports: Vec<u16> = bench.primaries().iter().map(Redis::port).collect();
        let mode = if ports.len() > 1 { RedisMode::Cluster } else { RedisMode::Single };
        for _ in 0..3 {
            let tap = Tap::start(&ports).await;
            let urls = tap.ports.iter().map(|port| SecretUrl::new(format!("redis://127.0.0.1:{port}").parse().unwrap())).collect();
            let config = RedisConfig { urls, mode: mode.clone(), ..crate::cache::config("redis://h/") };
            let cache = Cache::connect(&config, "q").unwrap();
            cache.probe().await.unwrap();
            bench.caches.push(cache);
            bench.taps.push(tap);
        }
        bench
    }

    async fn connections(&self) -> Vec<MultiplexedConnection> {
        // A busy machine may stall for longer than the client's own patience.
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let mut connections = Vec::new();
        for server in self.primaries() {
            connections.push(server.client().get_multiplexed_async_connection_with_config(&patient).await.unwrap());
        }
        connections
    }

    /// Runs an interleaving: how many steps it took.
    async fn run(&self, world: &World, scripts: &Scripts, protocol: Protocol, random: &mut fastrand::Rng) -> u64 {
        let fork = |random: &mut fastrand::Rng| fastrand::Rng::with_seed(random.u64(..));
        self.taps.iter().for_each(|tap| tap.shuffle(fork(random)));
        let mut actors: Vec<Actor<'_>> = Vec::new();
        // Time is short now and then: values end, and a set must not end before its longest member.
        let is_short = (random.u8(..4) == 0 || protocol == Protocol::Reader(WrongReader::ExpiringSets)) && !self.is_timeless;
        let worker = match protocol {
            Protocol::Seed => Some(WrongWorker::Seed),
            Protocol::Worker(wrong) => Some(wrong),
            Protocol::Right | Protocol::Reader(_) => None,
        };
        let reader = match protocol {
            Protocol::Seed => Some(WrongReader::Seed),
            Protocol::Reader(wrong) => Some(wrong),
            Protocol::Right | Protocol::Worker(_) => None,
        };
        for _ in 0..2 {
            let random = fork(random);
            actors.push(Box::new(move |turns| Box::pin(actors::writer(world, turns, random))));
        }
        let (tap, cache) = (&self.taps[0], &self.caches[0]);
        for (tap, cache) in self.taps.iter().zip(&self.caches).skip(1) {
            let random = fork(random);
            actors.push(match worker {
                None => Box::new(move |turns| Box::pin(actors::worker(world, cache, tap, turns, random))),
                Some(wrong) => Box::new(move |turns| Box::pin(wrong::worker(world, cache, tap, turns, random, wrong))),
            });
        }
        for _ in 0..random.usize(2..=4) {
            let life = if is_short && random.bool() { MOMENT } else { HOUR };
            let in_steps = self.primaries().len() > 1 || random.bool();
            let how = Reading { key: random.usize(..KEYS.len()), life, in_steps, early: random.u8(..4) == 0, fails: random.u8(..16) == 0 };
            actors.push(match reader {
                None => Box::new(move |turns| Box::pin(actors::reader(world, turns, how))),
                Some(wrong) => Box::new(move |turns| Box::pin(wrong::reader(world, scripts, turns, how.key, how.life, wrong))),
            });
        }
        if is_short {
            actors.push(Box::new(|turns| {
                Box::pin(async move {
                    turns.next().await;
                    tokio::time::sleep(Duration::from_millis(MOMENT.0 + 2)).await;
                })
            }));
        }
        // One replays, or does second passes, if anybody does.
        let has_second_passes = protocol == Protocol::Right && world.has_second_passes() && !self.is_timeless;
        if has_second_passes {
            let key = random.usize(..KEYS.len());
            actors.push(Box::new(move |turns| Box::pin(actors::stranger(world, turns, key))));
            actors.push(Box::new(move |turns| Box::pin(actors::second_passes(world, cache, tap, turns, 1))));
        } else if protocol == Protocol::Right && random.u8(..3) == 0 {
            let random = fork(random);
            actors.push(Box::new(move |turns| Box::pin(replay::replay(world, cache, tap, turns, random))));
        }
        let mut choice = fork(random);
        let mut steps = interleave(actors, |waiting| choice.usize(..waiting)).await;
        if has_second_passes {
            steps = interleave(
                vec![Box::new(move |turns: turns::Turns| Box::pin(actors::second_passes(world, cache, tap, turns.after(steps), 1)))],
                |_| 0,
            )
            .await;
        }
        steps
    }

    /// Up to so many interleavings of a seed, until one finds a violation: how many were run, how many steps they took, and what was found.
    async fn search(&self, protocol: Protocol, seed: u64, most: u64) -> Found {
        let connections = self.connections().await;
        let mut found = Found::default();
        let scripts = Scripts::load(&World::new(connections.clone(), 0, &mut fastrand::Rng::with_seed(0))).await;
        for n in 0..most {
            let mut random = fastrand::Rng::with_seed(seed << 32 | n);
            let world = World::new(connections.clone(), 2, &mut random);
            world.ask_all(&redis::cmd("FLUSHDB")).await;
            if random.u8(..32) == 0 {
                fill_tags(&world).await;
            }
            found.steps += self.run(&world, &scripts, protocol, &mut random).await;
            found.interleavings += 1;
            world.check().await;
            for violation in world.violations().into_iter().filter(|violation| protocol.is_found_out_by(violation)) {
                *found.violations.entry(violation).or_default() += 1;
                found.first.get_or_insert_with(|| (n, format!("{world:?}")));
            }
            if found.first.is_some() && protocol != Protocol::Right {
                break;
            }
        }
        found
    }

    /// Searches so many interleavings, or as many as were asked for, and finds nothing.
    async fn finds_nothing(&self, interleavings: u64) {
        let (mut all, mut steps) = (0, 0);
        for seed in seeds() {
            let found = self.search(Protocol::Right, seed, asked_for().unwrap_or(interleavings) / SEEDS).await;
            assert_eq!(found.violations, BTreeMap::new(), "seed {seed}, interleaving {:?}", found.first);
            all += found.interleavings;
            steps += found.steps;
            println!("seed {seed}: {} interleavings, {} steps, no violation", found.interleavings, found.steps);
        }
        println!("{all} interleavings, {steps} steps");
    }

    /// Finds every protocol that loses out, with each of these seeds, or with all where many interleavings were asked for.
    async fn finds_all_out(&self, few: &[u64]) {
        let seeds = if asked_for().is_some() { seeds() } else { few.to_vec() };
        for protocol in CONTROLS {
            for &seed in &seeds {
                let found = self.search(protocol, seed, 20_000).await;
                assert!(found.first.is_some(), "{protocol:?} lost nothing in {} interleavings of seed {seed}", found.interleavings);
                println!("{protocol:?}, seed {seed}: interleaving {}: {:?}", found.interleavings, found.violations);
            }
        }
    }
}

/// Tags too big to go at once: their invalidation is a drain.
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
    /// The interleaving that showed the first, and the world as it was then.
    first: Option<(u64, String)>,
}

/// How many interleavings in all `make model` asks for.
fn asked_for() -> Option<u64> {
    std::env::var("MODEL_INTERLEAVINGS").ok().map(|text| text.parse().expect("MODEL_INTERLEAVINGS is a number"))
}

/// Those in `MODEL_SEEDS`, or all.
fn seeds() -> Vec<u64> {
    let Ok(text) = std::env::var("MODEL_SEEDS") else { return (0..SEEDS).collect() };
    text.split(',').map(|seed| seed.trim().parse().expect("MODEL_SEEDS are numbers with commas between")).collect()
}

fn play(game: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, game);
}

#[test]
fn nothing_stale_is_read_and_nothing_older_stands_whatever_the_order() {
    play(async { Bench::single().await.finds_nothing(600).await });
}

#[test]
fn nor_in_a_cluster() {
    play(async { Bench::cluster().await.finds_nothing(300).await });
}

#[test]
fn the_seeds_snippets_and_each_plausible_protocol_are_found_out() {
    play(async { Bench::single().await.finds_all_out(&[0, 1]).await });
}

#[test]
fn they_are_found_out_in_a_cluster() {
    play(async { Bench::cluster().await.finds_all_out(&[1]).await });
}

#[test]
fn a_seed_gives_the_same_interleaving_again() {
    play(async {
        for bench in [Bench::single().await, Bench::cluster().await] {
            let bench = Bench { is_timeless: true, ..bench };
            let run = async || bench.search(Protocol::Right, 77, 30).await;
            // The first teaches the servers their scripts.
            let [_, once, again] = [run().await, run().await, run().await];
            assert_eq!(once, again);
        }
    });
}
