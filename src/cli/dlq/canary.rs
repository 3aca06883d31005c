//! A replay in growing parts, each of which shows whether its events fail again before the next one
//! goes.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::super::{CommandError, Exit};
use crate::broker::DeadLetters;
use crate::ops::dead_letters::Letter;

/// Letters of the first part.
const FIRST: usize = 10;

/// How many times as many the next part has.
const GROWTH: usize = 10;

/// Maximum time that workers may take for a part.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// Time between two looks at their queues.
const LOOKS: Duration = Duration::from_millis(200);

/// Time that the queues must have been empty: then the last events are settled, or on the retry
/// schedule.
const QUIET: Duration = Duration::from_secs(2);

/// What went so far.
#[derive(Debug)]
pub(super) struct Canary {
    began: Timestamp,
    next: usize,
    gone: HashSet<u64>,
    hasher: RandomState,
}

impl Canary {
    pub(super) fn new() -> Self {
        Self {
            began: Timestamp::now(),
            next: FIRST,
            gone: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// Returns how many go now.
    pub(super) fn next_size(&mut self) -> usize {
        let size = self.next;
        self.next = size.saturating_mul(GROWTH);
        size
    }

    /// Notes that a letter goes.
    pub(super) fn goes(&mut self, letter: &Letter) {
        self.gone.insert(self.identity(letter));
    }

    /// Returns whether the letter is one that went, and came back since.
    pub(super) fn is_failure(&self, letter: &Letter) -> bool {
        letter.time.is_some_and(|time| time >= self.began)
            && self.gone.contains(&self.identity(letter))
    }

    /// What stays of an event that fails again.
    fn identity(&self, letter: &Letter) -> u64 {
        self.hasher.hash_one((&letter.id, &letter.event_type, letter.body_bytes))
    }

    /// Waits until workers have settled what went.
    pub(super) async fn settled(&self, letters: &DeadLetters) -> Result<(), CommandError> {
        let (began, mut quiet_since) = (Instant::now(), None);
        loop {
            let waiting = letters.waiting_for_workers().await.map_err(CommandError::unavailable)?;
            let now = Instant::now();
            if waiting > 0 {
                quiet_since = None;
            } else if *quiet_since.get_or_insert(now) + QUIET <= now {
                return Ok(());
            }
            if waiting > 0 && began.elapsed() > SETTLES_WITHIN {
                let message = format!(
                    "stopped: after {} s workers have not taken what was replayed, {waiting} wait",
                    SETTLES_WITHIN.as_secs()
                );
                return Err(CommandError { exit: Exit::No, message });
            }
            sleep(LOOKS).await;
        }
    }
}
