//! Samples the end of the history, from which low watermarks take an offset that no clock can
//! falsify. It asks every few seconds, and only while events arrive.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Shared;
use crate::broker::{BrokerError, History};
use crate::causes::Explain;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(10);

/// Time before the next sample if the history could not be read.
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
                    debug!(
                        cause = error.in_full(),
                        "where the history ends is not known: a heal begins from times alone"
                    );
                    history = None;
                    FAILED_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Takes one sample. Keeps the connection while events arrive.
async fn sample(shared: &Shared, history: &mut Option<History>) -> Result<(), BrokerError> {
    if !shared.low.wants_sample() {
        if let Some(history) = history.take() {
            history.close().await;
        }
        return Ok(());
    }
    let open = match history {
        Some(open) => open,
        None => history.insert(History::connect(&shared.config.amqp).await?),
    };
    let Some(offset) = open.last_chunk().await? else { return Ok(()) };
    let survey = async || {
        if let Some(behind) = history.take() {
            behind.close().await;
        }
        // The next samples come from the node that is furthest.
        Ok(history.insert(History::connect(&shared.config.amqp).await?).survey(&[]).await?.end)
    };
    let offset = confirmed(offset, shared.low.newest_sample(), survey).await?;
    if shared.low.sampled(offset) {
        shared.birth.is_now();
    }
    Ok(())
}

/// Returns the offset of the history's newest message. A sample below the newest one may come from
/// a node that lags. Then a survey of all nodes determines the end.
async fn confirmed(
    offset: u64,
    newest: Option<u64>,
    survey: impl AsyncFnOnce() -> Result<u64, BrokerError>,
) -> Result<u64, BrokerError> {
    if newest.is_some_and(|newest| offset < newest) {
        Ok(survey().await?.saturating_sub(1))
    } else {
        Ok(offset)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::low::Low;
    use super::*;

    #[tokio::test]
    async fn a_node_that_lags_is_not_another_stream() {
        let low = Low::new();
        low.begin(SystemTime::now(), 80, None);
        let sampled = async |offset, end: Option<u64>| {
            let survey = async || Ok(end.expect("no survey"));
            low.sampled(confirmed(offset, low.newest_sample(), survey).await.unwrap())
        };
        assert!(!sampled(90, None).await && !sampled(90, None).await);
        assert!(!sampled(40, Some(95)).await, "another node has all of it");
        assert_eq!((low.newest_sample(), low.now().offset), (Some(94), Some(80)));
        assert!(!sampled(40, Some(95)).await, "nothing came since");
        assert!(sampled(40, Some(60)).await, "no node has it");
        assert_eq!((low.newest_sample(), low.now().offset), (Some(59), Some(0)));
    }
}
