//! `unstale run`

use clap::Args;
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use super::{CommandError, Exit, configure};
use crate::config::{Config, Scope};
use crate::descriptors;
use crate::http::{self, Readiness};
use crate::registry::{LoadOptions, Problems, Registry, run_examples};
use crate::telemetry::Metrics;
use crate::worker::{self, Ended, Signals, StartError};

/// Run the worker: events in, cache right
///
/// Consumes events until SIGTERM or SIGINT, applies their effects to Redis, and acknowledges them once they hold. It waits for servers that
/// are not there yet, picks up changed schema files by itself, and on a signal settles what it has in hand within UNSTALE_SHUTDOWN_GRACE.
/// Workers with the same UNSTALE_QUEUE share the work: start more of them to go faster.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct RunArgs {}

const EXAMPLES: &str = "\
Examples:

  UNSTALE_SCHEMAS=./schemas unstale run
  curl -s http://127.0.0.1:9477/readyz";

pub(super) fn run(_args: &RunArgs) -> Result<Exit, CommandError> {
    let config = configure(Scope::All)?;
    info!(version = env!("CARGO_PKG_VERSION"), settings = %config.describe(), "starting");
    if let Err(too_few) = descriptors::ensure_for(http::MAX_CONNECTIONS + config.warm.concurrency) {
        warn!("{too_few}");
    }
    let registry = load(&config)?;
    // One thread for the lanes and Redis, so that a batch changes threads nowhere but where lapin's own hands it over; and one for signals and
    // for those who ask how the worker is, whatever the first is busy with.
    let runtime = Builder::new_current_thread().enable_all().build().map_err(CommandError::internal)?;
    let beside = Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(CommandError::internal)?;
    let ended = runtime.block_on(serve(config, registry, beside.handle()));
    // A load that does not end must not hold up the end.
    runtime.shutdown_background();
    beside.shutdown_background();
    ended
}

/// The registry, with examples that hold: rules that fail their own tests are not run.
fn load(config: &Config) -> Result<Registry, CommandError> {
    let loaded = Registry::load(&LoadOptions::for_run(&config.registry)).map_err(CommandError::usage)?;
    for warning in &loaded.warnings {
        // A record is one line.
        warning.to_string().lines().for_each(|line| warn!("{line}"));
    }
    let failing = run_examples(&loaded);
    if !failing.is_empty() {
        return Err(CommandError::usage(Problems(failing)));
    }
    let registry = loaded.registry;
    info!(digest = registry.digest(), entries = registry.entries().len(), rules = registry.rules().len(), "registry loaded");
    Ok(registry)
}

async fn serve(config: Config, registry: Registry, beside: &Handle) -> Result<Exit, CommandError> {
    let (metrics, readiness, signals) = (Metrics::new(), Readiness::new(), Signals::default());
    listen_for_signals(&signals, beside)?;
    let served = match config.http_addr {
        Some(addr) => {
            let listener = beside.spawn(http::bind(addr)).await.map_err(CommandError::internal)?.map_err(CommandError::usage)?;
            Some(beside.spawn(http::serve(listener, readiness.clone(), metrics.clone(), signals.cut.clone())))
        }
        None => None,
    };
    let ended = worker::run(config, registry, metrics, readiness, signals.clone()).await;
    signals.cut.cancel();
    if let Some(served) = served {
        // A panic there has been logged.
        let _ = served.await;
    }
    match ended {
        Ok(Ended::Clean) => Ok(Exit::Clean),
        Ok(Ended::Cut) => Ok(Exit::Unfinished),
        Err(error @ (StartError::Broker(_) | StartError::Redis(_))) => Err(CommandError::unavailable(error)),
        Err(error @ (StartError::Cache(_) | StartError::Loaders(_))) => Err(CommandError::usage(error)),
    }
}

/// The first SIGTERM or SIGINT asks to stop, the second ends at once.
fn listen_for_signals(signals: &Signals, beside: &Handle) -> Result<(), CommandError> {
    let _beside = beside.enter();
    let mut terminate = signal(SignalKind::terminate()).map_err(CommandError::internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CommandError::internal)?;
    let signals = signals.clone();
    tokio::spawn(async move {
        for token in [&signals.stop, &signals.cut] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            info!(signal = name, "told to end");
            token.cancel();
        }
    });
    Ok(())
}
