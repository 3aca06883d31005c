//! The history, applied again: at any time, over any span, twice, beside live workers. It never makes anything staler; it may cost misses.
//!
//! The stream is read once, from the span's beginning to where it ended at the start: what is behind the span, or of other types, is not
//! applied, but what is applied gives way to it (see [`Fold`](crate::plan::Fold)). Then what stands goes straight to Redis.

mod apply;
mod intake;
mod report;
mod span;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use report::{Problem, Report, Rest};
pub use span::Span;

use crate::broker::{Backoff, BrokerError, History, Place};
use crate::cache::Cache;
use crate::config::UnknownPolicy;
use crate::event::Reading;
use crate::ops::Pace;
use crate::plan::FoldLimits;
use crate::quantity::Rate;
use crate::registry::{Pattern, Registry};
use apply::Applier;
use intake::Intake;

/// A write is one only while its fence surely stands: this much before fences run out, it is a deletion.
const FENCE_MARGIN: Duration = Duration::from_secs(3_600);

/// Messages handled between two looks at the signal to stop.
const BATCH: usize = 1_000;

/// The cause of a rest.
const INTERRUPTED: &str = "interrupted";

/// What is to be replayed, and how.
#[derive(Debug, Clone)]
pub struct Replay {
    /// From where to where.
    pub span: Span,
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
}

/// Who is told how far it is.
pub trait Observer: Send {
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
    /// Replays; without a cache it only finds out what would be done. Waits for servers that go away meanwhile, until told to stop.
    ///
    /// # Errors
    /// [`BrokerError`] before anything is done: there is no such stream, or it cannot be read. What ends it later stands in [`Report::rest`].
    pub async fn run(
        &self,
        history: &mut History,
        registry: &Registry,
        cache: Option<&Cache>,
        observer: &mut impl Observer,
        stop: &CancellationToken,
    ) -> Result<Report, BrokerError> {
        let fenced_until = Instant::now() + FENCE_MARGIN / 2;
        let survey = history.survey(&[self.span.first(), self.span.end(), self.oldest_fence()]).await?;
        let [from, to, fenced_from] = survey.places[..] else { return Err(BrokerError::Unreachable("an incomplete survey".into())) };
        let to = to.max(from);
        let begun = Instant::now();
        let mut report = Report::new(registry.rules().len(), from, to, survey.end);
        report.cut = self.span.is_cut(from, survey.first);
        let mut intake = Intake::new(self, registry, from..to, fenced_from);
        let mut applier = Applier { registry, cache, observer, stop, pace: Pace::new(self.rate), fenced_until, begun };
        // What is behind the span can only be given way to.
        let end = if from < to { survey.end } else { from };
        let (mut next, mut applied_to) = (from, from);
        history.read_from(next);
        while next < end {
            let read = tokio::select! {
                biased;
                () = stop.cancelled() => Err(INTERRUPTED.to_owned()),
                read = history.next_batch(BATCH) => match read {
                    Ok(batch) => Ok(batch),
                    Err(error) => reconnect(history, error, applier.observer, stop).await.map(|()| Vec::new()),
                },
            };
            let batch = match read {
                Ok(batch) => batch,
                Err(cause) => {
                    report.rest = Some(Rest { since: applied_to, cause });
                    return Ok(report);
                }
            };
            for (offset, delivery) in batch {
                // One offset is the stream's own at the beginning of each segment; retention takes whole segments.
                let gap = offset.min(end).saturating_sub(next);
                report.missing += if gap > 1 { gap } else { 0 };
                next = offset + 1;
                if offset < end {
                    intake.take(offset, &delivery, &mut report);
                }
            }
            applier.observer.read(next.min(end) - from, end - from);
            if intake.fold.is_full(self.limits) && next < end {
                history.pause();
                report.rest = applier.apply(intake.fold.take(false), &mut report).await;
                if report.rest.is_some() {
                    return Ok(report);
                }
                applied_to = next;
            }
        }
        history.pause();
        report.rest = applier.apply(intake.fold.take(true), &mut report).await;
        report.gave_way = intake.fold.gave_way();
        Ok(report)
    }

    /// Where the events begin whose fences surely stand.
    fn oldest_fence(&self) -> Place {
        let young = SignedDuration::try_from(self.fence_ttl.saturating_sub(FENCE_MARGIN)).unwrap_or(SignedDuration::ZERO);
        // None is that young where the margin is all there is: a time in the future is behind the end.
        let now = Timestamp::now();
        let since = if young.is_zero() { now.checked_add(SignedDuration::from_hours(24)) } else { now.checked_sub(young) };
        Place::Time(since.unwrap_or(now))
    }
}

/// Until the broker is there again; an error says why it will not be, or that we are to stop.
async fn reconnect(
    history: &mut History,
    mut error: BrokerError,
    observer: &mut impl Observer,
    stop: &CancellationToken,
) -> Result<(), String> {
    let mut backoff = Backoff::new();
    loop {
        if error.is_final() {
            return Err(error.to_string());
        }
        observer.waiting(&error.to_string());
        let again = async {
            tokio::time::sleep(backoff.next_delay(fastrand::f64())).await;
            history.reconnect().await
        };
        match stop.run_until_cancelled(again).await {
            None => return Err(INTERRUPTED.to_owned()),
            Some(Ok(())) => return Ok(()),
            Some(Err(next)) => error = next,
        }
    }
}
