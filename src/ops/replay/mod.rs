//! The history, applied again: at any time, over any span, twice, beside live workers. It never
//! makes anything staler; it may cost misses.
//!
//! The stream is read once, from the span's beginning to where it ended at the start: what is
//! behind the span, or of other types, is not applied, but what is applied gives way to it (see
//! [`Fold`](crate::plan::Fold)). Then what stands goes straight to Redis.
//!
//! `run` reads and applies; `resolver` and `intake` are between. `progress` and `clock`
//! serve heals alone.

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
pub use report::{Problem, Report, Rest};
pub use span::Span;

use crate::broker::Place;
use crate::config::UnknownPolicy;
use crate::event::Reading;
use crate::plan::FoldLimits;
use crate::quantity::Rate;
use crate::registry::Pattern;

/// A write is one only while its fence is certainly still there: this much before fences run out,
/// it is a deletion.
const FENCE_MARGIN: Duration = Duration::from_secs(3_600);

/// The broker's clock may be this much ahead of ours before no age is believed.
const CLOCKS_APART_MAX: SignedDuration = SignedDuration::from_mins(10);

/// What is to be replayed, and how.
#[derive(Debug, Clone)]
pub struct Replay {
    /// From where to where.
    pub span: Span,
    /// What is applied gives way to events behind the span. Where it does not, none of these are
    /// read, and a write is a deletion.
    pub gives_way: bool,
    /// Only events of a type that matches one of these; all where there is none.
    pub types: Vec<Pattern>,
    /// Effects sent to Redis at most.
    pub rate: Option<Rate>,
    /// `UNSTALE_TAG_PREFIX`
    pub tag_prefix: String,
    /// `UNSTALE_MAX_BODY_BYTES` and `UNSTALE_TYPE_FROM`
    pub reading: Reading,
    /// `UNSTALE_UNKNOWN`: with `drop`, unknown events are no problem.
    pub unknown: UnknownPolicy,
    /// `UNSTALE_FENCE_TTL`
    pub fence_ttl: Duration,
    /// How much is kept before it is applied.
    pub limits: FoldLimits,
    /// For how long it is kept before it is applied.
    pub apply_every: Option<Duration>,
    /// For how long a broker that gives no message is waited for; for ever where there is none.
    pub patience: Option<Duration>,
    /// State taken over from replays before it.
    pub taken_over: TakenOver,
}

/// Who is told how far it is.
pub trait Observer: Send {
    /// Notes how far it is, before more is done. An error ends the replay.
    fn note(&mut self, _step: Step) -> impl Future<Output = Result<(), String>> + Send {
        std::future::ready(Ok(()))
    }

    /// So many messages of so many are read.
    fn read(&mut self, _done: u64, _of: u64) {}
    /// So many effects of so many are applied.
    fn applied(&mut self, _done: u64, _of: u64) {}
    /// A server is away: it is waited for.
    fn waiting(&mut self, _cause: &str) {}
}

/// Nobody.
impl Observer for () {}

impl Replay {
    /// Where the events begin whose fences are certainly still there, by our clock; and a place
    /// that is behind the end unless the broker's clock is ahead of ours.
    fn fences(&self) -> (Place, Place) {
        let young = SignedDuration::try_from(self.fence_ttl.saturating_sub(FENCE_MARGIN))
            .unwrap_or(SignedDuration::ZERO);
        // None is that young where the margin is all there is: a time in the future is behind the
        // end.
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
