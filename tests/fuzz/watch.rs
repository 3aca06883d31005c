//! Ends the search loudly where an event does not come to its end: without it the seed of a hang would never be known.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// The longest that an event, or loading its rules, may take by the clock on the wall.
const PATIENCE: Duration = Duration::from_secs(180);

/// The seed that a thread plays, and when it began with the present event.
pub(crate) struct Watch(Arc<Mutex<Option<(u64, Instant)>>>);

impl Watch {
    /// Starts a thread that watches over this one.
    pub(crate) fn start() -> Self {
        let watch = Self(Arc::default());
        let watched = Arc::downgrade(&watch.0);
        std::thread::spawn(move || look(&watched));
        watch
    }

    pub(crate) fn begin(&self, seed: u64) {
        *self.0.lock().unwrap() = Some((seed, Instant::now()));
    }
}

fn look(watched: &Weak<Mutex<Option<(u64, Instant)>>>) {
    while let Some(watched) = watched.upgrade() {
        if let Some((seed, began)) = *watched.lock().unwrap()
            && began.elapsed() > PATIENCE
        {
            eprintln!("FUZZ_SEED={seed}: an event takes longer than {PATIENCE:?}");
            std::process::abort();
        }
        drop(watched);
        std::thread::sleep(Duration::from_secs(1));
    }
}
