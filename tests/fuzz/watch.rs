//! Ends the search with a message if loading rules or resolving an event does not end. Otherwise
//! nothing would show the seed.

use std::io::Write as _;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use serde_json::Value;

use super::corpus;
use super::cost::{CPU, Clock, LOAD_CPU};
use super::payload::Genome;

/// Time limit of a step, as a multiple of its CPU limit. A step that ends by itself has a better
/// message.
const PATIENCE: u32 = 3;

/// The present step of a thread.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Loads the rule file.
    Load { seed: u64, attempt: u64, file: Arc<Value> },
    /// Resolves an event.
    Event { seed: u64, number: u64, file: Arc<Value>, genome: Genome },
}

/// The present step of a thread, and the thread's CPU time when the step began.
pub(crate) struct Watch(Arc<Watched>);

struct Watched {
    clock: Arc<Clock>,
    present: Mutex<Option<(Step, Duration)>>,
}

impl Watch {
    /// Starts a thread that watches this one, whose CPU time the clock measures.
    pub(crate) fn start(clock: Arc<Clock>) -> Self {
        let watch = Self(Arc::new(Watched { clock, present: Mutex::default() }));
        let watched = Arc::downgrade(&watch.0);
        std::thread::spawn(move || look(&watched));
        watch
    }

    pub(crate) fn begin(&self, step: Step) {
        *self.0.present.lock().unwrap() = Some((step, self.0.clock.now()));
    }
}

fn look(watched: &Weak<Watched>) {
    while let Some(watched) = watched.upgrade() {
        let present = watched.present.lock().unwrap().clone();
        if let Some((step, began)) = present {
            let taken = watched.clock.now().saturating_sub(began);
            if taken > PATIENCE * step.limit() {
                // The test harness captures `eprintln!`, and loses it when the process ends.
                let _ = writeln!(
                    std::io::stderr(),
                    "{step} has taken {taken:.0?} of CPU, and is not done"
                );
                std::process::exit(101);
            }
        }
        drop(watched);
        std::thread::sleep(Duration::from_secs(1));
    }
}

impl Step {
    fn limit(&self) -> Duration {
        match self {
            Self::Load { .. } => LOAD_CPU,
            Self::Event { .. } => CPU,
        }
    }
}

impl std::fmt::Display for Step {
    /// Names the step, and saves the case for repetition.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Load { seed, attempt, file } => {
                write!(
                    f,
                    "FUZZ_SEED={seed}: loading rule file {attempt}, saved as {},",
                    corpus::save(*seed, file, None).display()
                )
            }
            Self::Event { seed, number, file, genome } => {
                write!(
                    f,
                    "FUZZ_SEED={seed}: event {number}, saved as {},",
                    corpus::save(*seed, file, Some(genome)).display()
                )
            }
        }
    }
}
