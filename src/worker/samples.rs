//! Where the history ends: what low watermarks are made of that no clock can spoil. Asked now and
//! then, and only while events come.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Shared;
use crate::broker::{BrokerError, History};

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(10);

/// After the history could not be read.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// Samples the history's end until `stop`.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    if shared.config.amqp.history.is_none() || !shared.config.heals() {
        return;
    }
    let work = async {
        let mut history = None;
        loop {
            shared.gate.open().await;
            let pause = match sample(&shared, &mut history).await {
                Ok(()) => INTERVAL,
                Err(error) => {
                    debug!(cause = %error, "where the history ends is not known: a heal begins from times alone");
                    history = None;
                    FAILED_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    };
    stop.run_until_cancelled(work).await;
}

/// The connection is kept while events come.
async fn sample(shared: &Shared, history: &mut Option<History>) -> Result<(), BrokerError> {
    if !shared.low.wants_sample() {
        if let Some(history) = history.take() {
            history.close().await;
        }
        return Ok(());
    }
    let history = match history {
        Some(history) => history,
        None => history.insert(History::connect(&shared.config.amqp).await?),
    };
    if let Some(offset) = history.last_chunk().await?
        && shared.low.sampled(offset)
    {
        shared.birth.is_now();
    }
    Ok(())
}
