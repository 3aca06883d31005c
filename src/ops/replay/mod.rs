//! A replay: the history is applied again. It never makes the cache more stale, at any time, over
//! any span, and beside live workers, but it may cost cache misses.
//!
//! The stream is read once, from the span's beginning to the end that it had at the start. Events
//! behind the span or of other types are not applied, but they supersede older effects (see
//! [`Fold`](crate::plan::Fold)). The remaining effects go straight to Redis.
//!
//! Files, in reading order:
//! - `span`: the part of the history to apply.
//! - `run`: reads the history in batches and applies it, with reconnects.
//! - `resolver`: resolves messages on a thread of its own.
//! - `intake`: folds resolved messages into effects.
//! - `apply`: sends effects to Redis.
//! - `report`: the outcome.
//! - `progress`: what an interrupted replay leaves to the next one. For heals only.
//! - `clock`: turns times into places of the history. For heals only.
//!
//! Absent on purpose: loads and republished messages. A `warm` effect becomes a delete, and a
//! failed event is reported.

mod apply;
mod clock;
mod intake;
mod progress;
mod report;
mod resolver;
mod run;
mod span;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

pub use clock::{Beginning, beginning};
pub use progress::{DEATHS_MAX, Died, Step, TakenOver};
pub use report::{ReplayProblem, ReplayReport, Rest};
pub use span::Span;

use crate::broker::Place;
use crate::config::UnknownPolicy;
use crate::event::Reading;
use crate::plan::FoldLimits;
use crate::quantity::Rate;
use crate::registry::Pattern;

/// Time before the expiry of fences from which on a write becomes a deletion. A write is safe only
/// while its fence certainly exists.
const FENCE_MARGIN: Duration = Duration::from_secs(3_600);

/// Maximum time by which the broker's clock may be ahead. Beyond it, the age of events counts as
/// unknown.
const CLOCKS_APART_MAX: SignedDuration = SignedDuration::from_mins(10);

/// The description of a replay.
#[derive(Debug, Clone)]
pub struct Replay {
    /// The part of the history to apply.
    pub span: Span,
    /// True if events behind the span supersede older effects. If false, these events are not read,
    /// and a write becomes a deletion.
    pub gives_way: bool,
    /// The offset from which on the caller wants events applied, if it also wants those that a
    /// recorded replay applied. The replay ends at the record of one that began earlier.
    pub records_before: Option<u64>,
    /// Patterns of event types to apply; empty for all.
    pub types: Vec<Pattern>,
    /// Names of the rules whose effects are sent to Redis; empty for all. Effects of other rules
    /// still supersede them.
    pub only_rules: Vec<String>,
    /// Maximum rate of effects sent to Redis.
    pub rate: Option<Rate>,
    /// The setting `UNSTALE_TAG_PREFIX`.
    pub tag_prefix: String,
    /// The settings `UNSTALE_MAX_BODY_BYTES` and `UNSTALE_TYPE_FROM`.
    pub reading: Reading,
    /// The setting `UNSTALE_UNKNOWN`. With `drop`, unknown events are not a problem.
    pub unknown: UnknownPolicy,
    /// The setting `UNSTALE_FENCE_TTL`.
    pub fence_ttl: Duration,
    /// Limits of the effects that are kept before they are applied.
    pub limits: FoldLimits,
    /// Maximum time for which effects are kept before they are applied.
    pub apply_every: Option<Duration>,
    /// Maximum time without a message from the broker. `None` to wait without a limit.
    pub patience: Option<Duration>,
    /// State of earlier replays that did not finish.
    pub taken_over: TakenOver,
}

/// Follows the progress of a replay.
pub trait Observer: Send {
    /// Records the progress before more work is done. An error ends the replay.
    fn note(&mut self, _step: Step) -> impl Future<Output = Result<(), String>> + Send {
        std::future::ready(Ok(()))
    }

    /// Reports that `done` of `of` messages are read.
    fn read(&mut self, _done: u64, _of: u64) {}
    /// Reports that `done` of `of` effects are applied.
    fn applied(&mut self, _done: u64, _of: u64) {}
    /// Reports that the replay waits for a server.
    fn waiting(&mut self, _cause: &str) {}
    /// Reports that Redis answers although effects have lost a connection to it. An error ends the
    /// replay.
    fn answers_again(&mut self) -> impl Future<Output = Result<(), String>> + Send {
        std::future::ready(Ok(()))
    }
}

/// Ignores the progress.
impl Observer for () {}

impl Replay {
    /// Returns two places by this machine's clock. From the first on, fences of events certainly
    /// still exist. The second is behind the end, unless the broker's clock is far ahead.
    fn fences(&self) -> (Place, Place) {
        let young = SignedDuration::try_from(self.fence_ttl.saturating_sub(FENCE_MARGIN))
            .unwrap_or(SignedDuration::ZERO);
        // If the margin uses up the whole lifetime of fences, no event is young enough. A time in
        // the future is behind the end.
        let now = Timestamp::now();
        let since = if young.is_zero() {
            now.checked_add(SignedDuration::from_hours(24))
        } else {
            now.checked_sub(young)
        };
        let ahead = now.checked_add(CLOCKS_APART_MAX).unwrap_or(Timestamp::MAX);
        (Place::Time(since.unwrap_or(now)), Place::Time(ahead))
    }
}
