//! How long a one-shot command waits for a server.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::CommandError;
use crate::broker::BrokerError;
use crate::cache::Cache;

/// How long a server that does not answer is waited for.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two attempts to reach it.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Tries until the broker answers, for [`REACH_TIMEOUT`].
pub(super) async fn reach<T>(connect: impl AsyncFn() -> Result<T, BrokerError>) -> Result<T, CommandError> {
    let deadline = Instant::now() + REACH_TIMEOUT;
    let mut last = format!("RabbitMQ gave no answer within {} s", REACH_TIMEOUT.as_secs());
    loop {
        match timeout_at(deadline, connect()).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error @ BrokerError::Settings(_))) => return Err(CommandError::usage(error)),
            Ok(Err(error)) if error.is_final() => return Err(CommandError::unavailable(error)),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => return Err(CommandError::unavailable(last)),
        }
        if timeout_at(deadline, sleep(RETRY_AFTER)).await.is_err() {
            return Err(CommandError::unavailable(last));
        }
    }
}

/// Waits until Redis can be worked with, for [`REACH_TIMEOUT`].
pub(super) async fn reach_redis(cache: &Cache) -> Result<(), CommandError> {
    let deadline = Instant::now() + REACH_TIMEOUT;
    let mut last = format!("Redis gave no answer within {} s", REACH_TIMEOUT.as_secs());
    loop {
        // It paces itself.
        match timeout_at(deadline, cache.probe()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(outage)) if outage.needs_person => return Err(CommandError::unavailable(outage)),
            Ok(Err(outage)) => last = outage.cause,
            Err(_) => return Err(CommandError::unavailable(last)),
        }
    }
}
