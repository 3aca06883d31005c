//! `unstale run`

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Args;
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::{CommandError, Exit, configure};
use crate::config::{Config, Scope};
use crate::descriptors;
use crate::http::{self, Readiness};
use crate::registry::{LoadOptions, Problems, Registry, STACK_BYTES, run_examples};
use crate::telemetry::Metrics;
use crate::worker::{self, Ended, Signals, StartError};

/// How long the lanes may take to end by themselves, once they should have ended, before the
/// process ends without them.
const OVERDUE_AFTER: Duration = Duration::from_millis(500);

/// How long a line of the log may take before the process ends without it: nobody may be reading
/// it.
const LOGGED_WITHIN: Duration = Duration::from_millis(200);

/// Run the worker: events in, cache right
///
/// Consumes events until SIGTERM or SIGINT, applies their effects to Redis, and acknowledges them
/// once they hold. It waits for servers that are not there yet, picks up changed schema files by
/// itself, and on a signal settles what it has in hand within UNSTALE_SHUTDOWN_GRACE. Workers with
/// the same UNSTALE_QUEUE share the work: start more of them to go faster.
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
    // One thread for the lanes and Redis, so that a batch changes threads nowhere but where lapin's
    // own hands it over; and one for those who ask how the worker is, whatever the first is busy
    // with.
    let runtime = Builder::new_current_thread()
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .map_err(CommandError::internal)?;
    let beside = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(CommandError::internal)?;
    let ended = runtime.block_on(serve(config, registry, beside.handle()));
    // A load that does not end must not hold up the end.
    runtime.shutdown_background();
    beside.shutdown_background();
    ended
}

/// The registry, with examples that hold: rules that fail their own tests are not run.
fn load(config: &Config) -> Result<Registry, CommandError> {
    let loaded =
        Registry::load(&LoadOptions::for_run(&config.registry)).map_err(CommandError::usage)?;
    for warning in &loaded.warnings {
        // A record is one line.
        warning.to_string().lines().for_each(|line| warn!("{line}"));
    }
    let failing = run_examples(&loaded);
    if !failing.is_empty() {
        return Err(CommandError::usage(Problems(failing)));
    }
    let registry = loaded.registry;
    info!(
        digest = registry.digest(),
        entries = registry.entries().len(),
        rules = registry.rules().len(),
        "registry loaded"
    );
    Ok(registry)
}

async fn serve(config: Config, registry: Registry, beside: &Handle) -> Result<Exit, CommandError> {
    let (metrics, readiness, signals) = (Metrics::new(), Readiness::new(), Signals::default());
    listen_for_signals(&signals, config.shutdown_grace)?;
    let served = match config.http_addr {
        Some(addr) => {
            let listener = beside
                .spawn(http::bind(addr))
                .await
                .map_err(CommandError::internal)?
                .map_err(CommandError::usage)?;
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
        // A panic there has been logged.
        let _ = served.await;
    }
    match ended {
        Ok(Ended::Clean) => Ok(Exit::Clean),
        Ok(Ended::Cut) => Ok(Exit::Unfinished),
        Ok(Ended::Stuck) => Ok(Exit::Internal),
        Err(error @ (StartError::Broker(_) | StartError::Redis(_))) => {
            Err(CommandError::unavailable(error))
        }
        Err(
            error @ (StartError::Cache(_) | StartError::Loaders(_) | StartError::SharedMarks(_)),
        ) => Err(CommandError::usage(error)),
    }
}

/// Answers signals on a thread of their own: the first SIGTERM or SIGINT asks to stop, the second
/// ends at once.
///
/// That thread waits for nothing that another thread does. So the process ends in time even where
/// the lanes' thread is busy, or blocked by a log that nobody reads.
fn listen_for_signals(signals: &Signals, grace: Duration) -> Result<(), CommandError> {
    let runtime =
        Builder::new_current_thread().enable_all().build().map_err(CommandError::internal)?;
    let mut both = {
        let _within = runtime.enter();
        let on = |kind| signal(kind).map_err(CommandError::internal);
        (on(SignalKind::terminate())?, on(SignalKind::interrupt())?)
    };
    let signals = signals.clone();
    let listens = move || {
        runtime.block_on(async move {
            let name = next(&mut both).await;
            signals.stop.cancel();
            log(move || info!(signal = name, "told to end"));
            tokio::select! {
                name = next(&mut both) => {
                    signals.cut.cancel();
                    log(move || info!(signal = name, "told to end at once"));
                    tokio::time::sleep(OVERDUE_AFTER).await;
                }
                () = tokio::time::sleep(grace.saturating_add(OVERDUE_AFTER)) => {}
            }
            let logged =
                log(|| error!("the process ends without its lanes, which do not answer: what is in flight comes again from the broker"));
            let _ = logged.recv_timeout(LOGGED_WITHIN);
            #[expect(clippy::disallowed_methods, reason = "the lanes do not answer")]
            std::process::exit(Exit::Unfinished as i32);
        });
    };
    thread::Builder::new().name("signals".into()).spawn(listens).map_err(CommandError::internal)?;
    Ok(())
}

async fn next((terminate, interrupt): &mut (Signal, Signal)) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Logs on a thread apart, which waits for whoever reads the log. Returns what is closed once the
/// line is written.
fn log(line: impl FnOnce() + Send + 'static) -> mpsc::Receiver<()> {
    let (written, is_written) = mpsc::channel();
    thread::spawn(move || {
        line();
        drop(written);
    });
    is_written
}
