//! Ends the search loudly where loading rules or resolving an event does not come to its end:
//! without it nobody would know the seed.

use std::io::Write as _;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use serde_json::Value;

use super::corpus;
use super::cost::{CPU, Clock, LOAD_CPU};
use super::payload::Genome;

/// How many times its limit of CPU a step may take before the search ends. A step that ends by
/// itself has a better message.
const PATIENCE: u32 = 3;

/// What a thread does at present.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Loads the rule file.
    Load { seed: u64, attempt: u64, file: Arc<Value> },
    /// Resolves an event.
    Event { seed: u64, number: u64, file: Arc<Value>, genome: Genome },
}

/// The present step of a thread, and the CPU that the thread had taken when the step began.
pub(crate) struct Watch(Arc<Watched>);

struct Watched {
    clock: Arc<Clock>,
    present: Mutex<Option<(Step, Duration)>>,
}

impl Watch {
    /// Starts a thread that watches over this one, which the clock measures.
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
                // A test's `eprintln!` is captured, and lost when the process ends.
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
    /// Names the step, and saves what it takes to repeat it.
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
