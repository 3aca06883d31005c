//! Waits of one-shot commands for a server: how long they take, what is printed meanwhile, and what
//! ends them.

use std::cell::RefCell;
use std::io::{self, Write as _};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout_at};

use super::{CliError, Exit};
use crate::broker::BrokerError;
use crate::cache::Cache;
use crate::causes::Explain;
use crate::printable::printable;

/// Maximum time that a command waits for a server that does not answer.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two attempts to reach a server.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Time after which a command prints what it waits for.
const NOTICE_AFTER: Duration = Duration::from_secs(1);

/// Tries to connect to the broker, for [`REACH_TIMEOUT`] at most.
///
/// # Errors
/// [`Exit::Usage`] for settings that cannot work, else [`Exit::Unavailable`] with the last cause.
pub(super) async fn reach<T>(
    connect: impl AsyncFn() -> Result<T, BrokerError>,
) -> Result<T, CliError> {
    let deadline = Instant::now() + REACH_TIMEOUT;
    let wait = Wait::new("RabbitMQ");
    let reached = async {
        loop {
            match timeout_at(deadline, connect()).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error @ BrokerError::Settings(_))) => {
                    return Err(CliError::of(Exit::Usage)(error));
                }
                Ok(Err(error)) if error.is_final() => {
                    return Err(CliError::of(Exit::Unavailable)(error));
                }
                Ok(Err(error)) => wait.failed(error.in_full()),
                Err(_) => return Err(CliError::unavailable(wait.cause())),
            }
            if timeout_at(deadline, sleep(RETRY_AFTER)).await.is_err() {
                return Err(CliError::unavailable(wait.cause()));
            }
        }
    };
    wait.watch(reached).await?
}

/// Waits until Redis takes reads and writes, for [`REACH_TIMEOUT`] at most.
///
/// # Errors
/// [`Exit::Unavailable`] with the last cause.
pub(super) async fn reach_redis(cache: &Cache) -> Result<(), CliError> {
    let deadline = Instant::now() + REACH_TIMEOUT;
    let wait = Wait::new("Redis");
    let reached = async {
        loop {
            // `probe` waits between two attempts by itself.
            match timeout_at(deadline, cache.probe()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(outage)) if outage.needs_person => {
                    return Err(CliError::of(Exit::Unavailable)(outage));
                }
                Ok(Err(outage)) => wait.failed(outage.in_full()),
                Err(_) => return Err(CliError::unavailable(wait.cause())),
            }
        }
    };
    wait.watch(reached).await?
}

/// Waits for the answer of a server, without a limit of time.
pub(super) async fn answer_of<T>(
    server: &'static str,
    asked: impl Future<Output = T>,
) -> Result<T, CliError> {
    Wait::new(server).watch(asked).await
}

/// A wait for a server.
struct Wait {
    server: &'static str,
    last_cause: RefCell<Option<String>>,
}

impl Wait {
    const fn new(server: &'static str) -> Self {
        Self { server, last_cause: RefCell::new(None) }
    }

    /// Records why the last attempt failed.
    fn failed(&self, cause: String) {
        *self.last_cause.borrow_mut() = Some(cause);
    }

    fn cause(&self) -> String {
        let known = self.last_cause.borrow().clone();
        known.unwrap_or_else(|| {
            format!("{} did not answer within {} s", self.server, REACH_TIMEOUT.as_secs())
        })
    }

    /// Waits for the work. Prints what it waits for after [`NOTICE_AFTER`], and ends at once on
    /// SIGINT or SIGTERM.
    async fn watch<T>(&self, work: impl Future<Output = T>) -> Result<T, CliError> {
        let mut interrupt =
            signal(SignalKind::interrupt()).map_err(CliError::of(Exit::Internal))?;
        let mut terminate =
            signal(SignalKind::terminate()).map_err(CliError::of(Exit::Internal))?;
        let notice = async {
            sleep(NOTICE_AFTER).await;
            let cause = self
                .last_cause
                .borrow()
                .as_deref()
                .map_or_else(|| "no answer yet".to_owned(), |cause| printable(cause).into_owned());
            // A closed stderr must not end the wait.
            let _ = writeln!(io::stderr(), "waiting for {} (Ctrl-C to stop): {cause}", self.server);
            std::future::pending().await
        };
        tokio::select! {
            done = work => Ok(done),
            _ = interrupt.recv() => Err(interrupted()),
            _ = terminate.recv() => Err(interrupted()),
            never = notice => match never {},
        }
    }
}

fn interrupted() -> CliError {
    CliError::stopped("interrupted before anything was done")
}
