//! The worker: its start and its end.
//!
//! The path of a delivery, in reading order:
//! - `supervisor`: opens sessions with RabbitMQ. `both_lanes` runs the lanes of each, and
//!   `session_tasks` runs beside them.
//! - `main_lane`: collects deliveries into batches. `slow_lane` and `slow_delivery`: one by one.
//! - `pipeline`: the steps of a lane. `shared` holds what both lanes share, `live` the registry.
//! - `in_flight`: takes deliveries. `intake` and `resolver` turn them into requests, within the
//!   memory that `account` counts.
//! - `batch`: resolved, applied, settled. `republish`: what a settlement publishes.
//! - `acknowledgement`: when settled deliveries are acknowledged.
//! - `warm` and `filling`: loads of the slow lane. `drain`: its drains of big tags.
//!
//! Flow and failures:
//! - `gate`: holds batches back while Redis is away. `probe` opens it again.
//! - `prefetch_ramp`, `yielding`: how much is in flight. `in_order`: work that ends in order.
//! - `suspected_poison`: messages that may kill workers. `survivors`: those that did not.
//!   `undeliverable`: messages at which the broker ends the connection.
//! - `closers`: effects at which Redis closes the connection.
//! - `lane_end`: how a lane ends, and what ends it.
//!
//! Heals:
//! - `low_watermark`: the oldest event that may be unapplied, and the ledger of the deliveries in
//!   flight. `unread_deliveries` holds those that no lane has handed out.
//! - `checkpoint`: shows once a second whether Redis lost writes. `healing` heals before the gate
//!   opens, `heal_beside` beside live workers. `owed_heals`, `heal_record` and `heal_state` hold
//!   what both use. `resolution_digest` identifies the rules and settings of a heal.
//! - `samples`: where the history ends. `history_start`: since when it holds events.
//!   `history_mark`: whether it was deleted and declared anew. `queue_marks`: the same of queues.
//! - `census`: events lost while no worker ran. `broker_identity`: workers of another broker.
//! - `broker_objects`: declares missing queues and bindings.
//!
//! Beside the lanes: `second_delete`, `tag_maintenance`, `reload`, `report`.
//!
//! The commands to Redis are in `cache`, and those to RabbitMQ are in `broker`. The module `plan`
//! determines what an effect does.

mod account;
mod acknowledgement;
mod batch;
mod both_lanes;
mod broker_identity;
mod broker_objects;
mod census;
mod checkpoint;
mod closers;
mod drain;
pub mod filling;
mod gate;
mod heal_beside;
mod heal_record;
mod heal_state;
mod healing;
mod history_mark;
mod history_start;
mod in_flight;
mod in_order;
mod intake;
mod lane_end;
mod live;
mod low_watermark;
mod main_lane;
mod owed_heals;
mod pipeline;
mod prefetch_ramp;
mod probe;
mod queue_marks;
mod reload;
mod report;
mod republish;
mod resolution_digest;
mod resolver;
mod samples;
mod second_delete;
mod session_tasks;
mod shared;
mod slow_delivery;
mod slow_lane;
mod supervisor;
mod survivors;
mod suspected_poison;
mod tag_maintenance;
mod undeliverable;
mod unread_deliveries;
mod warm;
mod yielding;

use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker::{BrokerError, LaneName, Signer};
use crate::cache::{Cache, CacheError, Outage};
use crate::causes::Explain;
use crate::config::Config;
use crate::http::Readiness;
use crate::loader::{LoaderProblems, Loaders};
use crate::plan::{RetrySchedule, SettlePolicy};
use crate::registry::Registry;
use crate::telemetry::{EventLog, Metrics};

use gate::Gate;
use heal_state::HealState;
use healing::{Healer, Unhealed};
use in_flight::InFlight;
use live::{CurrentRegistry, Live};
use low_watermark::Watermark;
use report::Reporter;
use resolver::Resolver;
use shared::Shared;
use supervisor::Supervisor;

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
    let watermark = Watermark::new(metrics.clone());
    let shared = Arc::new(Shared {
        policy: SettlePolicy {
            retry_schedule: RetrySchedule(config.amqp.retry_delays.clone()),
            unknown: config.unknown,
        },
        cache: Cache::connect(&config.redis, &config.amqp.queue)?
            .serving_stale_for(longest_warm(&config))
            .refusing_eviction(config.refuses_eviction),
        signer: Signer::default(),
        registry: CurrentRegistry::new(Live::new(
            registry,
            loaders,
            &metrics,
            resolution_digest::of_settings(&config),
        )),
        gate: Gate::new(readiness.clone(), metrics.clone()),
        in_flight: InFlight::new(watermark.clone(), metrics.clone()),
        main_resolver: Resolver::new((LaneName::Main, config.reading), &abandoned, &stuck),
        slow_resolver: Resolver::new((LaneName::Slow, config.reading), &abandoned, &stuck),
        readiness,
        heal_state: HealState::new(&config, watermark),
        waiting: AtomicU32::new(0),
        metrics,
        event_log: EventLog::default(),
        config,
    });
    let background = CancellationToken::new();
    let _ends_background = background.clone().drop_guard();
    start_background(&shared, &background);
    let heals = shared.heals();
    let mut reporter = Reporter::new(shared.report_subject(), &shared.config.amqp.retry_delays);
    let healer = Healer::new(heals);
    let sessions = Supervisor::new(&shared);
    let ended = tokio::select! {
        ended = serve(
            sessions.run(&signals.stop),
            census::leave(heals),
            after_stop(&signals.stop, grace),
        ) => ended.map_err(StartError::Broker),
        never = reporter.keep() => match never {},
        never = checkpoint::tick(heals) => match never {},
        never = shared.event_log.keep() => match never {},
        refused = probe::keep_open(&shared.gate, &shared.cache, &shared.readiness, &healer) => {
            Err(match refused {
                Unhealed::Redis(outage) => StartError::Redis(outage),
                Unhealed::Broker(error) => StartError::Broker(error),
                Unhealed::SharedMarks(cause) => StartError::SharedMarks(cause),
            })
        }
        () = signals.cut.cancelled() => Ok(Ended::Cut),
        never = stop_when(&stuck, &signals.stop) => match never {},
    };
    if matches!(ended, Ok(Ended::Cut)) && !signals.cut.is_cancelled() {
        warn!(
            grace_s = grace.as_secs(),
            "grace period ended: RabbitMQ redelivers the deliveries in flight"
        );
        checkpoint::give_turn_up(heals).await;
    }
    shared.event_log.finish();
    reporter.retract().await;
    if let Ok(Ended::Clean) = ended {
        checkpoint::leave(heals).await;
    }
    if stuck.is_cancelled() { ended.map(|_| Ended::Stuck) } else { ended }
}

/// Starts the tasks beside the lanes. They run until `stop`.
fn start_background(shared: &Arc<Shared>, stop: &CancellationToken) {
    let start = |work: Pin<Box<dyn Future<Output = ()> + Send>>| {
        let stop = stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(work).await });
    };
    let (of, ends) = (Arc::clone(shared), stop.clone());
    tokio::spawn(async move {
        reload::watch(&of.registry, &of.config.registry, &of.metrics, ends).await;
    });
    let of = Arc::clone(shared);
    start(Box::pin(async move { match tag_maintenance::run(of.maintenance()).await {} }));
    let of = Arc::clone(shared);
    start(Box::pin(
        async move { match second_delete::run(&of.cache, &of.gate, &of.registry).await {} },
    ));
    let of = Arc::clone(shared);
    start(Box::pin(async move { heal_beside::run(of.heals()).await }));
    let of = Arc::clone(shared);
    start(Box::pin(async move {
        let state = &of.heal_state;
        samples::run(&of.config, &of.gate, &state.watermark, &state.history_start).await;
    }));
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
