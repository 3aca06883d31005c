//! One round: one rule file, random events, then variations of the most expensive one.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;
use unstale::config::Vars;
use unstale::registry::{Diagnostics, LoadOptions, LoadedRegistry, MissingVars, Registry};

use super::corpus;
use super::cost::{Clock, Cost, LOAD_CPU, measure};
use super::payload::Genome;
use super::rules;
use super::watch::{Step, Watch};

/// Number of events in a round whose rules load.
const EVENTS_PER_ROUND: u64 = 1_000;

/// Number of variations among them, until one has spent its budget.
const CLIMBS: u64 = 12;

/// Number of rule files to try until one loads.
const TRIES: u64 = 50;

/// Number of events over budget after which a round ends, since more of them add nothing.
const ENOUGH_SPENT: u64 = 20;

/// Totals of all rounds.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) rounds: u64,
    pub(crate) loaded: u64,
    pub(crate) events: u64,
    spent: u64,
    effects: u64,
    worst_cpu: Duration,
    worst_bytes: u64,
    worst_load: Duration,
    /// The seeds of the three.
    worst: [u64; 3],
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.loaded += other.loaded;
        self.events += other.events;
        self.spent += other.spent;
        self.effects += other.effects;
        if other.worst_cpu > self.worst_cpu {
            (self.worst_cpu, self.worst[0]) = (other.worst_cpu, other.worst[0]);
        }
        if other.worst_bytes > self.worst_bytes {
            (self.worst_bytes, self.worst[1]) = (other.worst_bytes, other.worst[1]);
        }
        if other.worst_load > self.worst_load {
            (self.worst_load, self.worst[2]) = (other.worst_load, other.worst[2]);
        }
    }

    fn note(&mut self, seed: u64, cost: &Cost) {
        let worst = if cost.cpu > self.worst_cpu { cost.cpu } else { self.worst_cpu };
        self.add(&Self {
            events: 1,
            spent: u64::from(cost.is_spent),
            effects: cost.effects as u64,
            worst_cpu: worst,
            worst_bytes: cost.bytes,
            worst: [seed, seed, 0],
            ..Self::default()
        });
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rounds,
            loaded,
            events,
            spent,
            effects,
            worst_cpu,
            worst_bytes,
            worst_load,
            worst,
        } = self;
        write!(
            f,
            "{events} events in {rounds} rounds ({loaded} loaded), {effects} effects, {spent} budgets spent; the worst took {worst_cpu:.1?} \
             of CPU (seed {}) and {} KiB (seed {}), the slowest load {worst_load:.1?} (seed {})",
            worst[0],
            worst_bytes >> 10,
            worst[1],
            worst[2]
        )
    }
}

/// Loads a rule file as a worker does. Returns the rules or their problems, and the CPU time.
pub(crate) fn load(clock: &Clock, file: &Value) -> (Result<LoadedRegistry, Diagnostics>, Duration) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("rules.json"), file.to_string()).expect("the folder is ours");
    let before = clock.now();
    let loaded = Registry::load(&LoadOptions {
        schemas: folder.path().to_owned(),
        key_prefix: String::new(),
        vars: Vars::default(),
        tag_prefix: "cache_tag:".to_owned(),
        max_keys_per_event: 10_000,
        missing_vars: MissingVars::Refuse,
    });
    (loaded, clock.now().saturating_sub(before))
}

/// Plays the round of a seed, or the beginning of it if the time is over.
///
/// # Errors
/// A text with the problem and the place of the saved case.
pub(crate) fn play(
    seed: u64,
    clock: &Clock,
    watch: &Watch,
    end: Option<Instant>,
) -> Result<Tally, String> {
    let mut rng = Rng::with_seed(seed);
    let mut tally = Tally { rounds: 1, ..Tally::default() };
    let is_over = || end.is_some_and(|end| Instant::now() >= end);
    let mut found = None;
    for attempt in 0..TRIES {
        let file = Arc::new(rules::file(&mut rng));
        watch.begin(Step::Load { seed, attempt, file: file.clone() });
        let (loaded, cpu) = load(clock, &file);
        if cpu > LOAD_CPU {
            let path = corpus::save(seed, &file, None);
            return Err(format!(
                "loading the rules took {cpu:?} of CPU; saved as {}",
                path.display()
            ));
        }
        tally.add(&Tally { worst_load: cpu, worst: [0, 0, seed], ..Tally::default() });
        if let Ok(loaded) = loaded {
            found = Some((file, loaded));
            break;
        }
        if is_over() {
            tally.rounds = 0;
            return Ok(tally);
        }
    }
    let Some((file, loaded)) = found else { return Ok(tally) };
    tally.loaded = 1;
    let mut costliest: Option<(f64, Genome)> = None;
    for number in 0..EVENTS_PER_ROUND {
        let genome = match &costliest {
            Some((_, genome)) if number >= EVENTS_PER_ROUND - CLIMBS && tally.spent == 0 => {
                genome.mutated(&mut rng)
            }
            _ => Genome::random(&mut rng),
        };
        watch.begin(Step::Event { seed, number, file: file.clone(), genome: genome.clone() });
        let cost = measure(clock, &loaded.registry, &genome.body()).map_err(|problem| {
            let path = corpus::save(seed, &file, Some(&genome));
            format!("event {number}: {problem}; saved as {}", path.display())
        })?;
        tally.note(seed, &cost);
        if costliest.as_ref().is_none_or(|(height, _)| cost.height() > *height) {
            costliest = Some((cost.height(), genome));
        }
        if tally.spent >= ENOUGH_SPENT || is_over() {
            break;
        }
    }
    Ok(tally)
}
