//! Searches for events that cost more than their budget: generated rules, generated payloads,
//! measured CPU and memory.
//!
//! Read [`round`] first: one set of rules, and many events.
//!
//! - [`rules`], [`expressions`] and [`schemas`] generate what a tenant writes.
//! - [`payload`] generates what a publisher sends.
//! - [`cost`] measures, and [`watch`] ends a search that hangs.
//! - [`corpus`] keeps earlier findings, and [`kinds`] varies them.
//!
//! | variable | meaning |
//! |---|---|
//! | `FUZZ_SECONDS` | duration of the search; 5 by default |
//! | `FUZZ_EVENTS` | number of events to try, instead of a duration |
//! | `FUZZ_SEED` | the first seed; alone it plays that one round |
//! | `FUZZ_VARIANTS` | variants of each kind to try; 3 by default, 1,000 in `make fuzz` |
//! | `FUZZ_THREADS` | number of threads; one for each core by default |
//!
//! A failure prints its seed, and leaves a file for the corpus in `target/fuzz/`.

#![expect(clippy::print_stderr, reason = "figures for who reads the output")]
#![expect(clippy::disallowed_methods, reason = "it reads its settings and watches from a thread")]

mod corpus;
mod cost;
mod expressions;
mod kinds;
mod payload;
mod round;
mod rules;
mod schemas;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cost::Clock;
use round::{Tally, play};
use watch::Watch;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no whole number")))
}

/// End of the search.
enum Until {
    Time(Instant),
    Events(u64),
    Rounds(u64),
}

#[test]
fn no_generated_event_costs_more_than_its_budget() {
    let (seconds, events, seed) =
        (setting("FUZZ_SECONDS"), setting("FUZZ_EVENTS"), setting("FUZZ_SEED"));
    let until = match (seconds, events, seed) {
        (None, None, Some(_)) => Until::Rounds(1),
        (_, Some(events), _) => Until::Events(events),
        (seconds, None, _) => {
            Until::Time(Instant::now() + Duration::from_secs(seconds.unwrap_or(5)))
        }
    };
    let first = seed.unwrap_or_else(|| fastrand::u64(..1 << 48));
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let threads = if matches!(until, Until::Rounds(_)) {
        1
    } else {
        setting("FUZZ_THREADS").unwrap_or(cores)
    };
    let end = if let Until::Time(end) = until { Some(end) } else { None };
    let (next, failed, total) =
        (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(Tally::default()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let clock = Arc::new(Clock::of_this_thread());
                let watch = Watch::start(clock.clone());
                while !failed.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = match until {
                        Until::Time(end) => Instant::now() >= end,
                        Until::Events(count) => total.lock().unwrap().events >= count,
                        Until::Rounds(count) => at >= count,
                    };
                    if is_over {
                        break;
                    }
                    match play(first.wrapping_add(at), &clock, &watch, end) {
                        Ok(tally) => total.lock().unwrap().add(&tally),
                        Err(problem) => {
                            eprintln!("FUZZ_SEED={}: {problem}", first.wrapping_add(at));
                            failed.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    eprintln!("FUZZ_SEED={first}: {total} in {:.0?}", began.elapsed());
    assert!(
        !failed.load(Ordering::Relaxed),
        "an event cost more than its budget, or was wrong: see above"
    );
    if !matches!(until, Until::Rounds(_)) {
        assert!(total.loaded * 5 > total.rounds, "too few of the generated rules load: {total}");
    }
}

#[test]
fn variants_of_each_kind_of_cost_stay_within_the_budget() {
    let seed = setting("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..1 << 48));
    let variants = setting("FUZZ_VARIANTS").unwrap_or(3);
    if let Err(problem) = kinds::play(seed, variants) {
        panic!("FUZZ_SEED={seed} FUZZ_VARIANTS={variants}: {problem}");
    }
}

#[test]
fn the_corpus_of_earlier_findings_stays_within_the_budget() {
    corpus::replay();
}
