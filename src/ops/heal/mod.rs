//! The history, applied again from before Redis lost writes.

mod guard;

use jiff::{SignedDuration, Timestamp};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker::{BrokerError, History, Inspector, Place, QueueState};
use crate::cache::{Cache, CommandError, HealFrom, Outage, State};
use crate::config::Config;
use crate::ops::replay::{Observer, Replay, Span};
use crate::plan::FoldLimits;
use crate::registry::Registry;

pub use guard::Guard;

/// What a heal came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healed {
    /// The history was applied.
    Applied {
        /// Events of the span.
        events: u64,
        /// What they folded into.
        effects: u64,
        /// Whether all that was asked for was read and applied: the history reached back so far,
        /// and nothing was passed over.
        complete: bool,
        /// The offset behind the history, as it was when the heal began: all before it is applied.
        end: u64,
        /// Offsets that were passed over, since heals died there.
        passed_over: Vec<u64>,
    },
    /// There is none, or not yet.
    NoHistory,
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
        Self::Broker(error)
    }
}

/// Applies the history again, from that place to where it ends now, or from where the heal before
/// this one got to. Our turn to heal must have come ([`Cache::take_heal`]); `guard` keeps it.
///
/// # Errors
/// [`NotHealed`]: all is to be done again.
pub async fn heal(config: &Config, registry: &Registry, cache: &Cache, from: HealFrom, guard: &Guard<'_>) -> Result<Healed, NotHealed> {
    if config.amqp.history.is_none() || !exists(config).await? {
        return Ok(Healed::NoHistory);
    }
    let replay = Replay {
        span: Span { since: place(config, from), until: None },
        types: Vec::new(),
        rate: None,
        tag_prefix: config.redis.tag_prefix.clone(),
        reading: config.reading,
        unknown: config.unknown,
        fence_ttl: config.redis.fence_ttl,
        limits: FoldLimits::default(),
    };
    let mut history = History::connect(&config.amqp).await?;
    let stop = CancellationToken::new();
    let mut observer = Outages { cache, stop: &stop };
    let report = tokio::select! {
        report = replay.run(&mut history, registry, Some(cache), &mut observer, &stop) => report?,
        outage = guard.lost() => return Err(outage.into()),
    };
    history.close().await;
    if let Some(rest) = report.rest {
        return Err(match cache.state() {
            State::Down(outage) => outage.into(),
            State::Up => BrokerError::Unreachable(rest.cause).into(),
        });
    }
    for (reason, problem) in &report.problems {
        warn!(
            reason = reason.as_str(), count = problem.count, first_offset = problem.offset, first = %problem.message,
            "the heal could not apply everything, as the workers could not when it happened"
        );
    }
    // A drain whose end was lost has its record back.
    let drained = tokio::select! {
        drained = cache.drain_all(&stop, |_, _| {}) => drained,
        outage = guard.lost() => return Err(outage.into()),
    };
    drained.map_err(|error| match error {
        CommandError::Outage(outage) => outage,
        CommandError::Refused(cause) | CommandError::Failed(cause) => Outage::new(cause),
    })?;
    Ok(Healed::Applied {
        events: report.events,
        effects: report.sent.values().sum(),
        complete: report.cut.is_none() && report.missing == 0,
        end: report.end,
        passed_over: Vec::new(),
    })
}

/// Whether there is a history: where no worker has declared one yet, there is nothing to heal from.
async fn exists(config: &Config) -> Result<bool, BrokerError> {
    let inspector = Inspector::connect(&config.amqp).await?;
    let state = inspector.queue(&inspector.names().history).await?;
    inspector.close().await;
    match state {
        QueueState::Stands { .. } => Ok(true),
        QueueState::Missing => Ok(false),
        QueueState::Unknown(words) => Err(BrokerError::Unreachable(words)),
    }
}

/// The place to read from.
fn place(config: &Config, from: HealFrom) -> Place {
    match (from.time, from.offset) {
        (Some(time), _) => Place::Time(time),
        (None, Some(offset)) => Place::Offset(offset),
        (None, None) => {
            let window = config.heal_window.and_then(|window| SignedDuration::try_from(window).ok());
            let from = window.and_then(|window| Timestamp::now().checked_sub(window).ok());
            Place::Time(from.unwrap_or(Timestamp::UNIX_EPOCH))
        }
    }
}

/// Stops when Redis is away: nobody knows what the lock is worth then.
struct Outages<'h> {
    cache: &'h Cache,
    stop: &'h CancellationToken,
}

impl Observer for Outages<'_> {
    fn waiting(&mut self, _cause: &str) {
        if matches!(self.cache.state(), State::Down(_)) {
            self.stop.cancel();
        }
    }
}
