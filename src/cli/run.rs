//! The command `unstale run`: the process around the worker, with its threads, its HTTP server and
//! its signals.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Args;
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::configure::configure;
use super::{CliError, Exit};
use crate::config::{Config, Scope};
use crate::descriptors;
use crate::http::{self, Readiness};
use crate::registry::{Diagnostics, LoadOptions, Registry, STACK_BYTES, run_examples};
use crate::telemetry::Metrics;
use crate::worker::{self, Ended, Signals, StartError};

/// Maximum time that the lanes may take to end after their deadline. The process then ends without
/// them.
const OVERDUE_AFTER: Duration = Duration::from_millis(500);

/// Maximum time to write the last log line before the process ends without it, as when the log is
/// not read.
const LOGGED_WITHIN: Duration = Duration::from_millis(200);

/// Run the worker, which applies events to the cache
///
/// The worker consumes events until SIGTERM or SIGINT. It applies their effects to Redis, and then
/// acknowledges them. It waits for servers that are not up yet, and reloads changed rule files. On
/// a signal it settles the events in flight within UNSTALE_SHUTDOWN_GRACE. Workers with the same
/// UNSTALE_QUEUE share the work, so start more of them to go faster.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct RunArgs {}

const EXAMPLES: &str = "\
Examples:

  UNSTALE_SCHEMAS=./schemas unstale run
  UNSTALE_LOG=debug UNSTALE_HTTP_ADDR=off unstale run
  curl -s http://127.0.0.1:9477/readyz";

pub(super) fn run(_args: &RunArgs) -> Result<Exit, CliError> {
    let config = configure(Scope::All)?;
    info!(version = env!("CARGO_PKG_VERSION"), settings = %config.describe(), "starting");
    if let Err(too_few) = descriptors::ensure_for(http::MAX_CONNECTIONS + config.warm.concurrency) {
        warn!("{too_few}");
    }
    let registry = load(&config)?;
    // The lanes and Redis share one thread, so that a batch never changes threads after lapin has
    // handed it over. HTTP has another one, so that it answers while the first is busy.
    let runtime = Builder::new_current_thread()
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(CliError::of(Exit::Internal))?;
    let beside = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(CliError::of(Exit::Internal))?;
    let ended = runtime.block_on(serve(config, registry, beside.handle()));
    // A load that does not end must not delay the exit.
    runtime.shutdown_background();
    beside.shutdown_background();
    ended
}

/// Loads the registry and runs its examples. Rules that fail their own examples are not run.
fn load(config: &Config) -> Result<Registry, CliError> {
    let loaded =
        Registry::load(&LoadOptions::for_run(&config.registry)).map_err(CliError::rule_files)?;
    for warning in &loaded.warnings {
        // A log record is one line.
        warning.to_string().lines().for_each(|line| warn!("{line}"));
    }
    let failing = run_examples(&loaded);
    if !failing.is_empty() {
        return Err(CliError::rule_files(Diagnostics(failing)));
    }
    let registry = loaded.registry;
    info!(
        digest = registry.digest(),
        entries = registry.definitions().len(),
        rules = registry.rules().len(),
        "registry loaded"
    );
    Ok(registry)
}

async fn serve(config: Config, registry: Registry, beside: &Handle) -> Result<Exit, CliError> {
    let (metrics, readiness, signals) = (Metrics::new(), Readiness::new(), Signals::default());
    listen_for_signals(&signals, config.shutdown_grace)?;
    let served = match config.http_addr {
        Some(addr) => {
            let listener = beside
                .spawn(http::bind(addr))
                .await
                .map_err(CliError::of(Exit::Internal))?
                .map_err(CliError::of(Exit::Usage))?;
            Some(beside.spawn(http::serve(
                listener,
                readiness.clone(),
                metrics.clone(),
                signals.cut.clone(),
            )))
        }
        None => None,
    };
    let ended = worker::run(config, registry, metrics, readiness, signals.clone()).await;
    signals.cut.cancel();
    if let Some(served) = served {
        // The panic hook has logged a panic of the task.
        let _ = served.await;
    }
    match ended {
        Ok(Ended::Clean) => Ok(Exit::Clean),
        Ok(Ended::Cut) => Ok(Exit::Unfinished),
        Ok(Ended::Stuck) => Ok(Exit::Internal),
        Err(error @ (StartError::Broker(_) | StartError::Redis(_))) => {
            Err(CliError::of(Exit::Unavailable)(error))
        }
        Err(
            error @ (StartError::Cache(_) | StartError::Loaders(_) | StartError::SharedMarks(_)),
        ) => Err(CliError::of(Exit::Usage)(error)),
    }
}

/// Handles signals on a thread of their own. The first SIGTERM or SIGINT requests a shutdown, the
/// second one an immediate exit.
///
/// The thread does not wait for any other. So the process ends in time even if the lanes' thread is
/// busy, or blocked by a log that is not read.
fn listen_for_signals(signals: &Signals, grace: Duration) -> Result<(), CliError> {
    let runtime =
        Builder::new_current_thread().enable_all().build().map_err(CliError::of(Exit::Internal))?;
    let mut both = {
        let _within = runtime.enter();
        let on = |kind| signal(kind).map_err(CliError::of(Exit::Internal));
        (on(SignalKind::terminate())?, on(SignalKind::interrupt())?)
    };
    let signals = signals.clone();
    let listens = move || {
        runtime.block_on(async move {
            let name = next(&mut both).await;
            signals.stop.cancel();
            log(move || info!(signal = name, "shutdown requested"));
            tokio::select! {
                name = next(&mut both) => {
                    signals.cut.cancel();
                    log(move || info!(signal = name, "immediate shutdown requested"));
                    tokio::time::sleep(OVERDUE_AFTER).await;
                }
                () = tokio::time::sleep(grace.saturating_add(OVERDUE_AFTER)) => {}
            }
            let logged =
                log(|| error!("shutdown deadline passed: the lanes do not respond, and the broker redelivers the events in flight"));
            let _ = logged.recv_timeout(LOGGED_WITHIN);
            #[expect(clippy::disallowed_methods, reason = "the lanes do not answer")]
            std::process::exit(Exit::Unfinished as i32);
        });
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(listens)
        .map_err(CliError::of(Exit::Internal))?;
    Ok(())
}

async fn next((terminate, interrupt): &mut (Signal, Signal)) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Logs on a separate thread, so that a log that is not read blocks nothing else. The returned
/// channel is closed once the line is written.
fn log(line: impl FnOnce() + Send + 'static) -> mpsc::Receiver<()> {
    let (written, is_written) = mpsc::channel();
    thread::spawn(move || {
        line();
        drop(written);
    });
    is_written
}
