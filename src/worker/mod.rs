//! The worker: its shared state, its start and its end.
//!
//! In reading order:
//! - Events: `supervisor`, `main_lane`, `slow_lane`, `taken`, `intake`, `resolver`, `account`,
//!   `batch`, `copies`.
//! - Loads: `fill`, `filling`.
//! - Flow: `gate`, `window`, `in_flight`, `in_order`, `suspects`, `survivors`, `yielding`.
//! - Heals: `checkpoint`, `low`, `unread`, `samples`, `healing`, `owed`, `birth`, `census`,
//!   `brokers`, `mend`.
//! - Beside the lanes: `again`, `upkeep`, `reload`, `report`.
//!
//! The commands to Redis are in `cache`, and those to RabbitMQ are in `broker`. The module `plan`
//! determines what an effect does.

mod account;
mod again;
mod batch;
mod birth;
mod brokers;
mod census;
mod checkpoint;
mod copies;
mod fill;
pub mod filling;
mod gate;
mod healing;
mod in_flight;
mod in_order;
mod intake;
mod low;
mod main_lane;
mod mend;
mod owed;
mod reload;
mod report;
mod resolver;
mod samples;
mod slow_lane;
mod supervisor;
mod survivors;
mod suspects;
mod taken;
mod unread;
mod upkeep;
mod window;
mod yielding;

use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker::{BrokerError, LaneName, Signer};
use crate::cache::{Cache, CacheError, Checkpoints, CommandError, Outage};
use crate::causes::Explain;
use crate::config::Config;
use crate::http::Readiness;
use crate::loader::{LoaderProblems, Loaders};
use crate::plan::{RetrySchedule, SettlePolicy};
use crate::registry::Registry;
use crate::telemetry::{EventLog, Metrics, RegistryMetrics};

use birth::Birth;
use brokers::Brokers;
use gate::Gate;
use healing::{Healer, Unhealed};
use in_flight::InFlight;
use low::Low;
use owed::Owed;
use report::Reporter;
use resolver::Resolver;
use supervisor::Supervisor;
use survivors::Survivors;

/// A registry in use, with its metrics and its loaders.
#[derive(Debug)]
struct Live {
    registry: Arc<Registry>,
    metrics: RegistryMetrics,
    loaders: Loaders,
}

/// State that all lanes share.
#[derive(Debug)]
struct Shared {
    config: Config,
    policy: SettlePolicy,
    live: ArcSwap<Live>,
    /// Notified whenever `live` was replaced.
    reloaded: Notify,
    /// Why the current rule files were not loaded.
    refused_registry: ArcSwapOption<String>,
    /// Why the broker does not serve the history.
    history_fault: ArcSwapOption<String>,
    /// True if no queues existed before the first session. `None` until that session has begun.
    first_ever: watch::Sender<Option<bool>>,
    cache: Cache,
    signer: Signer,
    gate: Gate,
    in_flight: InFlight,
    survivors: Arc<Survivors>,
    main_resolver: Resolver,
    slow_resolver: Resolver,
    readiness: Readiness,
    low: Low,
    birth: Birth,
    brokers: Brokers,
    owed: Owed,
    /// Events that waited in the main queue when it was last looked at.
    waiting: AtomicU32,
    /// True if events may wait in the queues of retry steps that this worker does not use.
    knows_other_steps: AtomicBool,
    metrics: Metrics,
    event_log: EventLog,
    /// Notified when the report in Redis has changed and must not wait for its interval.
    report_changed: Notify,
}

/// Why a lane ended before its session did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LaneEnd {
    /// A stop was requested, and every delivery in flight is settled.
    Stopped,
    /// Redis was away too long, or a stop was requested while it was away. The deliveries in flight
    /// are requeued.
    GaveBack,
}

/// How the worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A stop was requested, and every delivery in flight is settled or requeued.
    Clean,
    /// The grace period ran out, or a second signal came.
    Cut,
    /// Threads that resolve events do not end. Everything else in flight is settled or requeued.
    Stuck,
}

/// Why the worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The broker refuses the worker for good.
    #[error(transparent)]
    Broker(BrokerError),
    /// Redis cannot be used with these settings.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Redis refuses the worker until a person changes something.
    #[error(transparent)]
    Redis(Outage),
    /// Workers of another broker share the checkpoints in Redis.
    #[error("{0}")]
    SharedMarks(String),
    /// The registry's loaders cannot be used.
    #[error(transparent)]
    Loaders(#[from] LoaderProblems),
}

impl Explain for StartError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Broker(error) => error.advice(),
            Self::Cache(error) => error.advice(),
            Self::Redis(outage) => outage.advice(),
            Self::Loaders(problems) => problems.advice(),
            Self::SharedMarks(_) => None,
        }
    }
}

/// The tokens that end the worker.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Stops consuming, settles the deliveries in flight, and closes the session.
    pub stop: CancellationToken,
    /// Ends the worker at once.
    pub cut: CancellationToken,
}

/// Runs the worker until a signal ends it.
///
/// # Errors
/// Returns [`StartError`] when a server refuses the worker for good before the first session has
/// begun. Afterwards a refusal leads to back-off.
pub async fn run(
    config: Config,
    registry: Registry,
    metrics: Metrics,
    readiness: Readiness,
    signals: Signals,
) -> Result<Ended, StartError> {
    let grace = config.shutdown_grace;
    let (abandoned, stuck) = (Arc::<AtomicUsize>::default(), CancellationToken::new());
    let loaders = Loaders::new(&config.warm, registry.loaders())?;
    let shared = Arc::new(Shared {
        policy: SettlePolicy {
            retry_schedule: RetrySchedule(config.amqp.retry_delays.clone()),
            unknown: config.unknown,
        },
        cache: Cache::connect(&config.redis, &config.amqp.queue)?
            .serving_stale_for(longest_warm(&config))
            .refusing_eviction(config.refuses_eviction),
        history_fault: ArcSwapOption::empty(),
        first_ever: watch::Sender::new(None),
        signer: Signer::default(),
        live: ArcSwap::from_pointee(Live::new(registry, loaders, &metrics)),
        reloaded: Notify::new(),
        refused_registry: ArcSwapOption::empty(),
        gate: Gate::new(readiness.clone(), metrics.clone()),
        in_flight: InFlight::new(metrics.clone()),
        survivors: Arc::default(),
        main_resolver: Resolver::new(LaneName::Main, &abandoned, &stuck),
        slow_resolver: Resolver::new(LaneName::Slow, &abandoned, &stuck),
        readiness: readiness.clone(),
        low: Low::new(),
        birth: Birth::default(),
        brokers: Brokers::default(),
        owed: Owed::default(),
        waiting: AtomicU32::new(0),
        knows_other_steps: AtomicBool::new(false),
        metrics,
        event_log: EventLog::default(),
        report_changed: Notify::new(),
        config,
    });
    let background = CancellationToken::new();
    let _ends_background = background.clone().drop_guard();
    tokio::spawn(reload::watch(Arc::clone(&shared), background.clone()));
    tokio::spawn(upkeep::run(Arc::clone(&shared), background.clone()));
    tokio::spawn(again::run(Arc::clone(&shared), background.clone()));
    tokio::spawn(owed::run(Arc::clone(&shared), background.clone()));
    tokio::spawn(samples::run(Arc::clone(&shared), background.clone()));
    let mut reporter = Reporter::new(&shared, readiness.clone());
    let healer = Healer::new(&shared, readiness.clone());
    let sessions = Supervisor::new(&shared, readiness);
    let ended = tokio::select! {
        ended = serve(
            sessions.run(&signals.stop),
            census::leave(&shared),
            after_stop(&signals.stop, grace),
        ) => ended.map_err(StartError::Broker),
        never = reporter.keep() => match never {},
        never = checkpoint::tick(&shared) => match never {},
        never = shared.event_log.keep() => match never {},
        refused = shared.gate.keep(&shared.cache, &healer) => Err(match refused {
            Unhealed::Redis(outage) => StartError::Redis(outage),
            Unhealed::Broker(error) => StartError::Broker(error),
            Unhealed::SharedMarks(cause) => StartError::SharedMarks(cause),
        }),
        () = signals.cut.cancelled() => Ok(Ended::Cut),
        never = stop_when(&stuck, &signals.stop) => match never {},
    };
    if matches!(ended, Ok(Ended::Cut)) && !signals.cut.is_cancelled() {
        warn!(
            grace_s = grace.as_secs(),
            "grace period ended: RabbitMQ redelivers the deliveries in flight"
        );
        checkpoint::give_turn_up(&shared).await;
    }
    shared.event_log.finish();
    reporter.retract().await;
    if let Ok(Ended::Clean) = ended {
        checkpoint::leave(&shared).await;
    }
    if stuck.is_cancelled() { ended.map(|_| Ended::Stuck) } else { ended }
}

/// Runs the sessions to their end, then counts the messages that they leave. If the grace period
/// (`overdue`) ends while sessions run, the worker is cut. Afterwards the grace period ends only
/// the count, since all deliveries are settled.
async fn serve<E>(
    sessions: impl Future<Output = Result<(), E>>,
    count: impl Future<Output = ()>,
    overdue: impl Future<Output = ()>,
) -> Result<Ended, E> {
    let mut overdue = pin!(overdue);
    tokio::select! {
        biased;
        ended = sessions => ended?,
        () = &mut overdue => return Ok(Ended::Cut),
    }
    tokio::select! {
        () = count => {}
        () = overdue => {}
    }
    Ok(Ended::Clean)
}

/// Returns the maximum time from an event to the end of its last attempt at a `warm`, while the
/// lanes keep up.
fn longest_warm(config: &Config) -> Duration {
    let delays: Duration = config.amqp.retry_delays.iter().sum();
    let attempts =
        u32::try_from(config.amqp.retry_delays.len()).unwrap_or(u32::MAX).saturating_add(1);
    delays.saturating_add(config.warm.timeout.saturating_mul(attempts)).saturating_add(gate::HOLD)
}

/// Stops the worker in order once `stuck` is cancelled; never returns.
async fn stop_when(stuck: &CancellationToken, stop: &CancellationToken) -> Infallible {
    stuck.cancelled().await;
    stop.cancel();
    std::future::pending().await
}

async fn after_stop(stop: &CancellationToken, grace: Duration) {
    stop.cancelled().await;
    tokio::time::sleep(grace).await;
}

impl Live {
    /// Brings a registry into use.
    fn new(registry: Registry, loaders: Loaders, metrics: &Metrics) -> Self {
        let entries = registry.definitions().iter().map(|entry| entry.name.as_str());
        metrics.set_loaders(loaders.breaker_states());
        Self {
            metrics: metrics.for_registry(registry.digest(), registry.rules(), entries),
            loaders,
            registry: Arc::new(registry),
        }
    }
}

impl Shared {
    /// Waits until the first session has begun. Returns true if no queues existed before it.
    async fn is_first_ever(&self) -> bool {
        // The sender lives as long as `self`: waiting cannot fail.
        self.first_ever
            .subscribe()
            .wait_for(Option::is_some)
            .await
            .is_ok_and(|known| *known == Some(true))
    }

    /// Learns the secret with which the workers of this Redis sign republished messages.
    async fn learn_secret(&self) -> Result<(), CommandError> {
        let secret = self.cache.signing_secret(self.signer.secret().as_deref()).await?;
        self.signer.learn(&secret);
        Ok(())
    }

    /// Returns the maximum time that a retry message waits, also on another worker's retry
    /// schedule.
    fn longest_wait(&self, marks: &Checkpoints) -> Duration {
        let ours = &self.config.amqp.retry_delays;
        ours.iter().copied().chain(marks.steps_but(ours)).max().unwrap_or_default()
    }

    /// Returns how many deliveries of the slow lane may be in flight. The loads have their own
    /// limits, and some deliveries must wait for them.
    fn slow_prefetch(&self) -> u16 {
        u16::try_from(2 * self.config.warm.concurrency + 8).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn the_end_of_the_grace_period_cuts_sessions_and_no_count() {
        let sessions = || ready(Ok::<(), ()>(()));
        assert_eq!(serve(sessions(), ready(()), pending()).await, Ok(Ended::Clean));
        assert_eq!(serve(sessions(), pending(), ready(())).await, Ok(Ended::Clean));
        assert_eq!(serve(pending::<Result<(), ()>>(), pending(), ready(())).await, Ok(Ended::Cut));
        assert_eq!(serve(ready(Err(7)), pending(), pending()).await, Err(7));
    }
}
