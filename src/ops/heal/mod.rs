//! A heal: the history is applied again from a place before Redis lost writes.
//!
//! This file runs the heal as a replay and records its progress. `guard` holds the lock, so that
//! one worker heals at a time.
//!
//! Absent on purpose: the decision that a heal is due, which is in `worker` and `cache`.

mod guard;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::broker::{BrokerError, History, HistoryProblem, Place};
use crate::cache::{
    Cache, CommandError, ConnectionState, HealFrom, HealProgress, Outage, RefusedEffects,
};
use crate::causes::Explain;
use crate::config::Config;
use crate::ops::replay::{Beginning, Died, Observer, Replay, Span, Step, TakenOver, beginning};
use crate::plan::FoldLimits;
use crate::registry::Registry;

pub use guard::HealGuard;

/// Maximum time before events that were read are applied. A heal that takes over begins after them.
const APPLY_EVERY: Duration = Duration::from_secs(4);

/// Maximum time without progress before the heal ends. Its caller finds out whether the whole
/// broker is away, or only the history.
const PATIENCE: Duration = Duration::from_secs(25);

/// Default time back to which a heal reaches if no checkpoint is left.
const WINDOW: SignedDuration = SignedDuration::from_hours(1);

/// The outcome of a heal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healed {
    /// The history was applied.
    Applied {
        /// Number of events of the span.
        events: u64,
        /// Number of effects into which they were folded.
        effects: u64,
        /// First applied offset, by this heal or by those that it took over.
        begin: u64,
        /// True if the history reached back far enough, and no event was skipped.
        complete: bool,
        /// The offset behind the history when the heal began. All events before it are applied.
        end: u64,
        /// Offsets of skipped events, at which heals died, or which could not be resolved or
        /// applied in time.
        passed_over: Vec<u64>,
        /// Effects that Redis refused, and that it may permit later.
        refused: Option<RefusedEffects>,
    },
    /// There is no history, or not yet.
    NoHistory,
}

/// The part of the history to apply again.
#[derive(Debug, Clone, Default)]
pub struct HealSpan {
    /// Place to begin at.
    pub from: HealFrom,
    /// Offset to end before; `None` for the end of the history.
    pub end_offset: Option<u64>,
    /// Names of the rules whose effects are applied; empty for all.
    pub only_rules: Vec<String>,
}

impl Healed {
    /// Returns the outcome as that of an incomplete heal.
    #[must_use]
    pub fn cut(mut self) -> Self {
        if let Self::Applied { complete, .. } = &mut self {
            *complete = false;
        }
        self
    }
}

/// The reason why a heal did not finish.
#[derive(Debug, thiserror::Error)]
pub enum NotHealed {
    /// Redis is unavailable, or lost writes again.
    #[error(transparent)]
    Redis(Outage),
    /// The broker is unavailable.
    #[error(transparent)]
    Broker(BrokerError),
    /// The broker answers, and does not serve the history, because it is broken or the user may not
    /// read it. This may be permanent.
    #[error(transparent)]
    History(BrokerError),
}

impl Explain for NotHealed {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Redis(outage) => outage.advice(),
            Self::Broker(error) | Self::History(error) => error.advice(),
        }
    }
}

impl From<Outage> for NotHealed {
    fn from(outage: Outage) -> Self {
        Self::Redis(outage)
    }
}

impl From<BrokerError> for NotHealed {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::History { .. } => Self::History(error),
            error => Self::Broker(error),
        }
    }
}

/// Applies the history again.
///
/// A heal that takes over begins where the one before it stopped. The caller has taken the lock
/// with [`Cache::take_heal`], and `guard` keeps it.
///
/// # Errors
/// [`NotHealed`]. The heal must then be repeated.
pub async fn heal(
    config: &Config,
    registry: &Arc<Registry>,
    cache: &Cache,
    span: HealSpan,
    guard: &HealGuard<'_>,
) -> Result<Healed, NotHealed> {
    if config.amqp.history.is_none() {
        return Ok(Healed::NoHistory);
    }
    let healed = tokio::select! {
        healed = apply(config, registry, cache, span, guard) => healed,
        outage = guard.lost() => return Err(outage.into()),
    };
    match healed {
        // No worker has declared a history yet, so there is nothing to heal from.
        Err(NotHealed::Broker(BrokerError::History {
            problem: HistoryProblem::Missing, ..
        })) => Ok(Healed::NoHistory),
        Err(NotHealed::Broker(error)) => Err(error.into()),
        healed => healed,
    }
}

/// Returns the time back to which a heal reaches if no checkpoint is left.
pub fn window(config: &Config) -> SignedDuration {
    config.heal_window.and_then(|window| SignedDuration::try_from(window).ok()).unwrap_or(WINDOW)
}

async fn apply(
    config: &Config,
    registry: &Arc<Registry>,
    cache: &Cache,
    HealSpan { from, end_offset, only_rules }: HealSpan,
    guard: &HealGuard<'_>,
) -> Result<Healed, NotHealed> {
    let mut history = History::connect(&config.amqp).await.map_err(NotHealed::Broker)?;
    let begins = beginning(&mut history, from.offset, from.time, window(config))
        .await
        .map_err(NotHealed::Broker)?;
    let Beginning { offset, is_whole, is_empty } = begins;
    if is_empty {
        let HealProgress { passed_over, mut refused, .. } = guard.found().clone();
        drain(cache, &CancellationToken::new(), 0, &mut refused).await?;
        return Ok(Healed::Applied {
            events: 0,
            effects: 0,
            begin: 0,
            complete: is_whole && refused.count == 0,
            end: 0,
            passed_over,
            refused: (refused.count > 0).then_some(refused),
        });
    }
    let stop = CancellationToken::new();
    let mut watch = Watch { cache, stop: &stop, guard, outage: None };
    // An earlier heal may have gone back further.
    let mut offset = guard.found().first.map_or(offset, |first| first.min(offset));
    let mut taken_over = taken_over(guard.found());
    let mut report = loop {
        let replay = Replay {
            span: Span { since: Place::Offset(offset), until: end_offset.map(Place::Offset) },
            // Behind the end other workers applied other rules, so events there do not show which
            // effects are outdated.
            gives_way: end_offset.is_none(),
            records_before: Some(offset),
            types: Vec::new(),
            only_rules: only_rules.clone(),
            rate: None,
            tag_prefix: config.redis.tag_prefix.clone(),
            reading: config.reading,
            unknown: config.unknown,
            fence_ttl: config.redis.fence_ttl,
            limits: FoldLimits::default(),
            apply_every: Some(APPLY_EVERY),
            patience: Some(PATIENCE),
            taken_over: taken_over.clone(),
        };
        let report = replay
            .run(&mut history, registry, Some(cache), &mut watch, &stop)
            .await
            .map_err(NotHealed::Broker)?;
        let Some(earlier) = report.earlier_replay else { break report };
        info!(
            first_offset = offset,
            replayed_from = earlier,
            "heal begins earlier: Redis may have lost what a replay applied"
        );
        offset = earlier;
        taken_over = TakenOver { applied_to: None, passed_over: report.passed_over, ..taken_over };
    };
    history.close().await;
    if let Some(rest) = report.rest {
        return Err(match (watch.outage, cache.state()) {
            (Some(outage), _) | (None, ConnectionState::Down(outage)) => outage.into(),
            (None, ConnectionState::Up) => {
                NotHealed::Broker(BrokerError::Unreachable(rest.cause.into()))
            }
        });
    }
    for (reason, problem) in &report.problems {
        warn!(
            reason = reason.as_str(), count = problem.count, first_offset = problem.offset, first = %problem.message,
            "heal could not apply some events"
        );
    }
    drain(cache, &stop, report.end, &mut report.refused).await?;
    let refused = report.refused.count > 0;
    Ok(Healed::Applied {
        events: report.events,
        effects: report.sent.values().sum(),
        begin: offset,
        complete: is_whole
            && report.cut.is_none()
            && report.missing == 0
            && !refused
            && report.is_complete(),
        end: report.end,
        passed_over: report.left_out(),
        refused: refused.then_some(report.refused),
    })
}

/// Finishes all drains. A drain whose end Redis lost is recorded as unfinished again. A drain that
/// Redis refuses counts as a refused effect of no rule, at the end of the history.
async fn drain(
    cache: &Cache,
    stop: &CancellationToken,
    end: u64,
    refused: &mut RefusedEffects,
) -> Result<(), Outage> {
    match cache.drain_all(stop, |_, _| {}).await {
        Ok(_) => Ok(()),
        Err(CommandError::Outage(outage)) => Err(outage),
        Err(error) => {
            refused.add(end, "", &error.in_full());
            Ok(())
        }
    }
}

/// Returns the recorded progress of earlier heals in the form of a replay.
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
        refused: found.refused.clone(),
    }
}

/// Records the progress of the heal, and stops it when Redis is away, because the lock may be lost
/// then.
struct Watch<'h> {
    cache: &'h Cache,
    stop: &'h CancellationToken,
    guard: &'h HealGuard<'h>,
    outage: Option<Outage>,
}

impl Watch<'_> {
    /// Keeps the outage that ends the heal, and returns its text.
    fn ended_by(&mut self, outage: Outage) -> String {
        let cause = outage.in_full();
        self.outage = Some(outage);
        cause
    }
}

impl Observer for Watch<'_> {
    async fn note(&mut self, step: Step) -> Result<(), String> {
        let mut progress = self.guard.found().clone();
        if progress.end.is_some_and(|end| end > step.end) {
            // The stream was deleted and declared again.
            progress.forget_troubles();
        }
        progress.first = Some(progress.first.unwrap_or(step.first).min(step.first));
        progress.applied_to = Some(step.applied_to);
        progress.end = Some(step.end);
        progress.in_work = Some((step.in_work.start, step.in_work.end));
        (progress.passed_over, progress.undone) = (step.passed_over, step.undone);
        progress.refused = step.refused;
        self.guard.note(&progress).await.map_err(|outage| self.ended_by(outage))
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

    async fn answers_again(&mut self) -> Result<(), String> {
        self.guard.alive();
        let continued = self.cache.continue_heal(self.guard.found()).await;
        continued.map_err(|outage| self.ended_by(outage))
    }
}
