//! What must hold under any interleaving, tried on many: readers, writers, workers, redeliveries, warms and drains as actors that a seed lets take
//! their steps, one round trip each, against real Redis. Workers are the production code, its pipelines passed on command by command. The same driver
//! over the seed's own snippets, and over plausible protocols that lose, must find them out.
//!
//! - A value loaded before an invalidation of its key, or of any of its tags, is never read after that invalidation took hold.
//! - An older write never stands where a newer event of its entity took hold.
//! - No invalidation is skipped for being old.
#![allow(clippy::print_stdout, reason = "`make model` shows what it found")]

mod actors;
mod tap;
mod turns;
mod world;
mod wrong;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::LocalSet;
use unstale::cache::Cache;

use self::actors::{Life, Scripts};
use self::tap::Tap;
use self::turns::{Actor, interleave};
use self::world::{KEYS, TAGS, World};
use self::wrong::{WrongReader, WrongWorker};
use crate::cache::cache;
use crate::support::Redis;

/// Of `make model`; `make test` has time for some.
const SEEDS: u64 = 10;
const SEEDS_OF_CONTROLS: u64 = 2;
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

/// A server and what stands before it, for as many interleavings as one likes.
struct Bench {
    server: Redis,
    taps: Vec<Tap>,
    caches: Vec<Cache>,
}

impl Bench {
    async fn new() -> Self {
        let server = Redis::start().await;
        let (mut taps, mut caches) = (Vec::new(), Vec::new());
        for n in 0..2 {
            let tap = Tap::start(server.addr()).await;
            caches.push(cache(&format!("redis://127.0.0.1:{}/0", tap.port), &format!("q{n}")).await);
            taps.push(tap);
        }
        Self { server, taps, caches }
    }

    /// Runs the interleaving of that number: what must not have been read, and how many steps it took.
    async fn run(&self, world: &World, scripts: &Scripts, protocol: Protocol, random: &mut fastrand::Rng) -> u64 {
        let fork = |random: &mut fastrand::Rng| fastrand::Rng::with_seed(random.u64(..));
        let mut actors: Vec<Actor<'_>> = Vec::new();
        // Time is short now and then: values end, and a set must not end before its longest member.
        let is_short = random.u8(..4) == 0;
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
        for (cache, tap) in self.caches.iter().zip(&self.taps) {
            let random = fork(random);
            actors.push(match worker {
                None => Box::new(move |turns| Box::pin(actors::worker(world, cache, tap, turns, random))),
                Some(wrong) => Box::new(move |turns| Box::pin(wrong::worker(world, cache, tap, turns, random, wrong))),
            });
        }
        for _ in 0..random.usize(2..=4) {
            let (key, in_steps) = (random.usize(..KEYS.len()), random.bool());
            let life = if is_short && random.bool() { MOMENT } else { HOUR };
            actors.push(match reader {
                None => Box::new(move |turns| Box::pin(actors::reader(world, scripts, turns, key, life, in_steps))),
                Some(wrong) => Box::new(move |turns| Box::pin(wrong::reader(world, scripts, turns, key, life, wrong))),
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
        let mut choice = fork(random);
        interleave(actors, |waiting| choice.usize(..waiting)).await
    }

    /// Up to so many interleavings of a seed, until one finds a violation: how many were run, how many steps they took, and what was found.
    async fn search(&self, protocol: Protocol, seed: u64, most: u64) -> Found {
        // A busy machine may stall for longer than the client's own patience.
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let connection = self.server.client().get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        let mut found = Found::default();
        let scripts = Scripts::load(&World::new(connection.clone(), 0, &mut fastrand::Rng::with_seed(0))).await;
        for n in 0..most {
            let mut random = fastrand::Rng::with_seed(seed << 32 | n);
            let world = World::new(connection.clone(), 2, &mut random);
            world.ask(&redis::cmd("FLUSHDB")).await;
            if random.u8(..32) == 0 {
                fill_tags(&world).await;
            }
            found.steps += self.run(&world, &scripts, protocol, &mut random).await;
            found.interleavings += 1;
            world.check().await;
            for violation in world.violations() {
                *found.violations.entry(violation).or_default() += 1;
                found.first.get_or_insert_with(|| (n, format!("{world:?}")));
            }
            if found.first.is_some() && protocol != Protocol::Right {
                break;
            }
        }
        found
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

#[derive(Debug, Default)]
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

fn play(game: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, game);
}

#[test]
fn nothing_stale_is_read_and_nothing_older_stands_whatever_the_order() {
    play(async {
        let bench = Bench::new().await;
        let (mut all, mut steps) = (0, 0);
        for seed in 0..SEEDS {
            let found = bench.search(Protocol::Right, seed, asked_for().unwrap_or(600) / SEEDS).await;
            assert_eq!(found.violations, BTreeMap::new(), "seed {seed}, interleaving {:?}", found.first);
            all += found.interleavings;
            steps += found.steps;
            println!("seed {seed}: {} interleavings, {} steps, no violation", found.interleavings, found.steps);
        }
        println!("{all} interleavings, {steps} steps");
    });
}

#[test]
fn the_seeds_snippets_and_each_plausible_protocol_are_found_out() {
    use Protocol::{Reader, Worker};
    let seeds = if asked_for().is_some() { SEEDS } else { SEEDS_OF_CONTROLS };
    play(async {
        let bench = Bench::new().await;
        for protocol in [
            Protocol::Seed,
            Reader(WrongReader::LeaseAlone),
            Reader(WrongReader::GenerationFirst),
            Reader(WrongReader::ExpiringSets),
            Worker(WrongWorker::KeyBeforeLease),
            Worker(WrongWorker::Numbers),
            Worker(WrongWorker::SkipsOld),
            Worker(WrongWorker::NoFences),
        ] {
            for seed in 0..seeds {
                let found = bench.search(protocol, seed, 20_000).await;
                assert!(found.first.is_some(), "{protocol:?} lost nothing in {} interleavings of seed {seed}", found.interleavings);
                println!("{protocol:?}, seed {seed}: interleaving {}: {:?}", found.interleavings, found.violations);
            }
        }
    });
}
