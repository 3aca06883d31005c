//! The history, applied again from before Redis lost writes.

mod guard;

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker::{BrokerError, History, HistoryProblem, Place};
use crate::cache::{Cache, CommandError, ConnectionState, HealFrom, HealProgress, Outage};
use crate::config::Config;
use crate::ops::replay::{Beginning, Died, Observer, Replay, Span, Step, TakenOver, beginning};
use crate::plan::FoldLimits;
use crate::registry::Registry;

pub use guard::Guard;

/// Time after which what was read is applied: a heal that takes over begins behind it.
const APPLY_EVERY: Duration = Duration::from_secs(4);

/// Time without progress after which the broker is given up: the heal's caller finds out
/// whether all of the broker is away, or the history alone.
const PATIENCE: Duration = Duration::from_secs(25);

/// How far back a heal reaches where no setting says so.
const WINDOW: SignedDuration = SignedDuration::from_hours(1);

/// What a heal came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healed {
    /// The history was applied.
    Applied {
        /// Events of the span.
        events: u64,
        /// What they folded into.
        effects: u64,
        /// The offset from which on it was applied, by this heal or by those that it took over.
        begin: u64,
        /// All that was asked for was read and applied: the history reached back so far,
        /// and nothing was passed over.
        complete: bool,
        /// The offset behind the history, as it was when the heal began: all before it is applied.
        end: u64,
        /// Offsets that were passed over, since heals died there, or what is there could not be
        /// resolved or applied in time.
        passed_over: Vec<u64>,
    },
    /// There is none, or not yet.
    NoHistory,
}

impl Healed {
    /// Returns the same as a heal that did not do all that was asked for.
    #[must_use]
    pub fn cut(mut self) -> Self {
        if let Self::Applied { complete, .. } = &mut self {
            *complete = false;
        }
        self
    }
}

/// Why it did not come to its end.
#[derive(Debug)]
pub enum NotHealed {
    /// Redis cannot be worked with, or went back once more.
    Redis(Outage),
    /// The broker cannot be worked with.
    Broker(BrokerError),
    /// The broker answers, and cannot serve the history: it is broken, or our user may not read it.
    /// Waiting may not end it.
    History(String),
}

impl From<Outage> for NotHealed {
    fn from(outage: Outage) -> Self {
        Self::Redis(outage)
    }
}

impl From<BrokerError> for NotHealed {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::History { .. } => Self::History(error.to_string()),
            error => Self::Broker(error),
        }
    }
}

/// Applies the history again, from that place, or from where the heal before this one got to. It
/// ends before that offset, or where the history ends now. Our turn to heal must have come
/// ([`Cache::take_heal`]); `guard` keeps it.
///
/// # Errors
/// [`NotHealed`]: all is to be done again.
pub async fn heal(
    config: &Config,
    registry: &Arc<Registry>,
    cache: &Cache,
    span: (HealFrom, Option<u64>),
    guard: &Guard<'_>,
) -> Result<Healed, NotHealed> {
    if config.amqp.history.is_none() {
        return Ok(Healed::NoHistory);
    }
    let healed = tokio::select! {
        healed = apply(config, registry, cache, span, guard) => healed,
        outage = guard.lost() => return Err(outage.into()),
    };
    match healed {
        // Where no worker has declared one yet, there is nothing to heal from.
        Err(NotHealed::Broker(BrokerError::History {
            problem: HistoryProblem::Missing, ..
        })) => Ok(Healed::NoHistory),
        Err(NotHealed::Broker(error)) => Err(error.into()),
        healed => healed,
    }
}

/// Returns how far back a heal reaches that knows no place.
pub fn window(config: &Config) -> SignedDuration {
    config.heal_window.and_then(|window| SignedDuration::try_from(window).ok()).unwrap_or(WINDOW)
}

async fn apply(
    config: &Config,
    registry: &Arc<Registry>,
    cache: &Cache,
    (from, end_offset): (HealFrom, Option<u64>),
    guard: &Guard<'_>,
) -> Result<Healed, NotHealed> {
    let mut history = History::connect(&config.amqp).await.map_err(NotHealed::Broker)?;
    let begins = beginning(&mut history, from.offset, from.time, window(config))
        .await
        .map_err(NotHealed::Broker)?;
    let Beginning { offset, is_whole, is_empty } = begins;
    if is_empty {
        drain(cache, &CancellationToken::new()).await?;
        let passed_over = guard.found().passed_over.clone();
        return Ok(Healed::Applied {
            events: 0,
            effects: 0,
            begin: 0,
            complete: is_whole,
            end: 0,
            passed_over,
        });
    }
    let replay = Replay {
        span: Span { since: Place::Offset(offset), until: end_offset.map(Place::Offset) },
        // Other workers went by other rules behind it: nothing there tells what is out of date.
        gives_way: end_offset.is_none(),
        types: Vec::new(),
        rate: None,
        tag_prefix: config.redis.tag_prefix.clone(),
        reading: config.reading,
        unknown: config.unknown,
        fence_ttl: config.redis.fence_ttl,
        limits: FoldLimits::default(),
        apply_every: Some(APPLY_EVERY),
        patience: Some(PATIENCE),
        taken_over: taken_over(guard.found()),
    };
    let stop = CancellationToken::new();
    let mut watch = Watch { cache, stop: &stop, guard, outage: None };
    let report = replay
        .run(&mut history, registry, Some(cache), &mut watch, &stop)
        .await
        .map_err(NotHealed::Broker)?;
    history.close().await;
    if let Some(rest) = report.rest {
        return Err(match (watch.outage, cache.state()) {
            (Some(outage), _) | (None, ConnectionState::Down(outage)) => outage.into(),
            (None, ConnectionState::Up) => NotHealed::Broker(BrokerError::Unreachable(rest.cause)),
        });
    }
    for (reason, problem) in &report.problems {
        warn!(
            reason = reason.as_str(), count = problem.count, first_offset = problem.offset, first = %problem.message,
            "the heal could not apply everything"
        );
    }
    drain(cache, &stop).await?;
    Ok(Healed::Applied {
        events: report.events,
        effects: report.sent.values().sum(),
        begin: guard.found().first.map_or(offset, |first| first.min(offset)),
        complete: is_whole && report.cut.is_none() && report.missing == 0 && report.is_complete(),
        end: report.end,
        passed_over: report.left_out(),
    })
}

/// Ends drains: one whose end was lost has its record back.
async fn drain(cache: &Cache, stop: &CancellationToken) -> Result<(), Outage> {
    let drained = cache.drain_all(stop, |_, _| {}).await;
    drained.map(drop).map_err(|error| match error {
        CommandError::Outage(outage) => outage,
        CommandError::Refused(cause) | CommandError::Failed(cause) => Outage::new(cause),
    })
}

/// Returns what heals before this one have noted.
fn taken_over(found: &HealProgress) -> TakenOver {
    TakenOver {
        applied_to: found.applied_to,
        end: found.end,
        died: found
            .died
            .as_ref()
            .map(|died| Died { range: died.first..died.end, deaths: died.deaths() }),
        passed_over: found.passed_over.clone(),
        undone: found.undone.clone(),
    }
}

/// Notes the progress, and stops when Redis is away: nobody knows what the lock is worth then.
struct Watch<'h> {
    cache: &'h Cache,
    stop: &'h CancellationToken,
    guard: &'h Guard<'h>,
    outage: Option<Outage>,
}

impl Observer for Watch<'_> {
    async fn note(&mut self, step: Step) -> Result<(), String> {
        let mut progress = self.guard.found().clone();
        if progress.end.is_some_and(|end| end > step.end) {
            // The stream is another one.
            progress.forget_troubles();
        }
        progress.first = Some(progress.first.unwrap_or(step.first).min(step.first));
        progress.applied_to = Some(step.applied_to);
        progress.end = Some(step.end);
        progress.in_work = Some((step.in_work.start, step.in_work.end));
        (progress.passed_over, progress.undone) = (step.passed_over, step.undone);
        match self.guard.note(&progress).await {
            Ok(()) => Ok(()),
            Err(outage) => {
                let cause = outage.cause.clone();
                self.outage = Some(outage);
                Err(cause.to_string())
            }
        }
    }

    fn read(&mut self, _done: u64, _of: u64) {
        self.guard.alive();
    }

    fn applied(&mut self, _done: u64, _of: u64) {
        self.guard.alive();
    }

    fn waiting(&mut self, _cause: &str) {
        self.guard.alive();
        if matches!(self.cache.state(), ConnectionState::Down(_)) {
            self.stop.cancel();
        }
    }
}
