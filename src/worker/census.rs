//! Detects events that were lost while no worker ran: the main queue was deleted and declared anew,
//! unbound or purged. The last worker that ends counts the messages in the queues and the history.
//! The first worker that starts compares (see `broker/census.rs`).
//!
//! Killed workers leave no count, but they leave their low watermarks. Every event after the lowest
//! one may be unapplied, so all of them must wait in the main queue. Under load the watermark is a
//! minute old. Then fewer events wait, as if some were lost, and the heal that follows reads from
//! that minute on.
//!
//! A worker that starts within 10 s of the kill compares nothing, since it takes the killed workers
//! for live ones. So workers that crash again and again do not heal each time.

use std::time::Duration;

use tracing::{debug, info, warn};

use super::heal_record::outage;
use super::heal_state::Heals;
use crate::broker::{BrokerError, Census, Count};
use crate::cache::{Checkpoints, CommandError, LastCount, LowWatermark};
use crate::causes::Explain;

/// Maximum time of the count at the end.
const LAST_COUNT: Duration = Duration::from_secs(3);

/// Maximum time of the comparison at the start. Events wait for it.
const FIRST_COUNT: Duration = Duration::from_secs(5);

fn is_on(heals: Heals<'_>) -> bool {
    heals.config.heals() && heals.config.amqp.history.is_some()
}

/// Counts for the next worker, if this one is the last. Callers must have stopped consuming, and
/// must not have left the checkpoints yet.
pub(super) async fn leave(heals: Heals<'_>) {
    if !is_on(heals) || !heals.gate.is_open() {
        return;
    }
    let within = LAST_COUNT.min(heals.config.shutdown_grace / 4);
    match tokio::time::timeout(within, count(heals)).await {
        Ok(Ok(())) => {}
        Ok(Err(cause)) => {
            debug!(%cause, "the messages in the queues were not counted: the next worker cannot notice a loss from before its start")
        }
        Err(_) => {
            debug!(
                within_ms = within.as_millis(),
                "the messages in the queues were not counted in time"
            )
        }
    }
}

async fn count(heals: Heals<'_>) -> Result<(), String> {
    let words = |error: BrokerError| error.in_full();
    heals.cache.note_end().await.map_err(unsaid)?;
    let marks = heals.cache.read_checkpoints().await.map_err(unsaid)?;
    if marks.others_consume(heals.cache.id()) {
        return Ok(());
    }
    let mut census = connect(heals, &marks).await.map_err(words)?;
    let Count { surplus, end } = census.count().await.map_err(words)?;
    heals.cache.leave_count(LastCount { surplus, end }).await.map_err(unsaid)?;
    census.close().await;
    Ok(())
}

/// Detects events that were lost since the last worker ended, and then owes a heal. Callers must
/// not have begun to consume.
pub(super) async fn compare(heals: Heals<'_>) -> Result<(), CommandError> {
    if !is_on(heals) {
        return Ok(());
    }
    let marks = heals.cache.read_checkpoints().await?;
    let Some(before) = marks.last_count() else {
        compare_with_checkpoints(heals).await;
        return Ok(());
    };
    let compared = tokio::time::timeout(FIRST_COUNT, missing_since(heals, &marks, before));
    let lost = match compared
        .await
        .unwrap_or_else(|_| Err(BrokerError::Unreachable("no answer in time".into())))
    {
        Ok(0) => None,
        Ok(missing) => {
            info!(
                missing,
                "the history grew by more events than the queues hold since the last worker ended"
            );
            Some(
                "events that arrived while no worker ran are in the history alone: the main queue was deleted, unbound or purged",
            )
        }
        Err(error) => {
            warn!(cause = error.in_full(), "the queues cannot be compared with the history");
            Some("whether events were lost while no worker ran is not known")
        }
    };
    // Another worker that compared may already consume. Then fewer messages are in the queues.
    if heals.cache.read_checkpoints().await?.last_count() != Some(before) {
        return Ok(());
    }
    if let Some(cause) = lost {
        owe(heals, cause).await;
    }
    heals.cache.forget_count().await
}

/// Detects events that were lost since all workers were killed, and then owes a heal.
async fn compare_with_checkpoints(heals: Heals<'_>) {
    // Without one, no worker ran before, another worker lives, or a heal has just applied all of
    // the history.
    let Some(LowWatermark { offset: Some(from), .. }) = heals.state.watermark.inherited() else {
        return;
    };
    // Then no heal is possible, and the log already names the fault.
    if heals.state.history_fault.load().is_some() {
        return;
    }
    match tokio::time::timeout(FIRST_COUNT, missing_from(heals, from))
        .await
        .unwrap_or_else(|_| Err(BrokerError::Unreachable("no answer in time".into())))
    {
        Ok(0) => return,
        Ok(missing) => {
            info!(missing, from, "fewer events wait than arrived since the last checkpoint")
        }
        Err(error) => {
            warn!(cause = error.in_full(), "the queue cannot be compared with the history")
        }
    }
    let cause =
        "the last workers were killed: whether events were lost while no worker ran is not known";
    owe(heals, cause).await;
}

async fn missing_from(heals: Heals<'_>, offset: u64) -> Result<u64, BrokerError> {
    let mut census = Census::connect(&heals.config.amqp, &[]).await?;
    let missing = census.missing_from(offset).await?;
    census.close().await;
    Ok(missing)
}

async fn missing_since(
    heals: Heals<'_>,
    marks: &Checkpoints,
    before: LastCount,
) -> Result<u64, BrokerError> {
    let mut census = connect(heals, marks).await?;
    let missing = census.missing_since(Count { surplus: before.surplus, end: before.end }).await?;
    census.close().await;
    Ok(missing)
}

/// Connects to count messages on the retry schedules of all workers, also of stopped ones.
async fn connect(heals: Heals<'_>, marks: &Checkpoints) -> Result<Census, BrokerError> {
    let amqp = &heals.config.amqp;
    Census::connect(amqp, &marks.steps_but(&amqp.retry_delays)).await
}

/// Owes a heal, and waits until Redis holds that.
async fn owe(heals: Heals<'_>, cause: &str) {
    let owed = &heals.state.owed;
    owed.owe_from_low(cause);
    owed.saved().await;
}

fn unsaid(error: CommandError) -> String {
    outage(error).in_full()
}
