//! A replay in growing parts. Each part shows whether its events fail again, before the next part
//! is sent.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::super::{CliError, Exit};
use crate::broker::DeadLetters;
use crate::ops::dead_letters::Letter;

/// Number of letters of the first part.
const FIRST_PART: usize = 10;

/// Factor by which each part is larger than the one before.
const GROWTH: usize = 10;

/// Maximum time that workers may take for a part.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time between two looks at the queues of the workers.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Time for which the queues must be empty. The last events are then settled, or on the retry
/// schedule.
const QUIET_TIME: Duration = Duration::from_secs(2);

/// The letters that were replayed so far.
#[derive(Debug)]
pub(super) struct Canary {
    began: Timestamp,
    next_size: usize,
    replayed: HashSet<u64>,
    hasher: RandomState,
}

impl Canary {
    pub(super) fn new() -> Self {
        Self {
            began: Timestamp::now(),
            next_size: FIRST_PART,
            replayed: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// Returns the number of letters of the next part.
    pub(super) fn next_size(&mut self) -> usize {
        let size = self.next_size;
        self.next_size = size.saturating_mul(GROWTH);
        size
    }

    /// Records that a letter is replayed.
    pub(super) fn add(&mut self, letter: &Letter) {
        self.replayed.insert(self.identity(letter));
    }

    /// Returns true if the letter was replayed, and has become a dead letter again.
    pub(super) fn is_failure(&self, letter: &Letter) -> bool {
        letter.time.is_some_and(|time| time >= self.began)
            && self.replayed.contains(&self.identity(letter))
    }

    /// Returns a hash of the parts of a letter that do not change when its event fails again.
    fn identity(&self, letter: &Letter) -> u64 {
        self.hasher.hash_one((&letter.id, &letter.event_type, letter.body_bytes))
    }

    /// Waits until workers have settled the replayed events.
    ///
    /// # Errors
    /// The connection has ended, or workers took longer than [`SETTLE_TIMEOUT`].
    pub(super) async fn wait_settled(&self, letters: &DeadLetters) -> Result<(), CliError> {
        let (began, mut quiet_since) = (Instant::now(), None);
        loop {
            let waiting =
                letters.waiting_for_workers().await.map_err(CliError::of(Exit::Unavailable))?;
            let now = Instant::now();
            if waiting > 0 {
                quiet_since = None;
            } else if *quiet_since.get_or_insert(now) + QUIET_TIME <= now {
                return Ok(());
            }
            if waiting > 0 && began.elapsed() > SETTLE_TIMEOUT {
                return Err(CliError::stopped(format!(
                    "stopped: workers have not settled the replayed events within {} s, and {waiting} still wait",
                    SETTLE_TIMEOUT.as_secs()
                ))
                .help("check the workers with `unstale status`, then run the command again for the rest"));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}
