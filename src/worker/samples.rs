//! Samples the end of the history, from which low watermarks take an offset that no clock can
//! falsify. It asks every few seconds, and only while events arrive.

use std::time::Duration;

use tracing::debug;

use super::gate::Gate;
use super::history_start::HistoryStart;
use super::low_watermark::Watermark;
use crate::broker::{BrokerError, History};
use crate::causes::Explain;
use crate::config::{AmqpConfig, Config};

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(10);

/// Time before the next sample if the history could not be read.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// Samples the history's end; never returns unless there is nothing to sample.
pub(super) async fn run(
    config: &Config,
    gate: &Gate,
    watermark: &Watermark,
    history_start: &HistoryStart,
) {
    if config.amqp.history.is_none() || !config.heals() {
        return;
    }
    let mut history = None;
    loop {
        gate.open().await;
        let pause = match sample(&config.amqp, (watermark, history_start), &mut history).await {
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
}

/// Takes one sample. Keeps the connection while events arrive.
async fn sample(
    amqp: &AmqpConfig,
    (watermark, history_start): (&Watermark, &HistoryStart),
    history: &mut Option<History>,
) -> Result<(), BrokerError> {
    if !watermark.wants_sample() {
        if let Some(history) = history.take() {
            history.close().await;
        }
        return Ok(());
    }
    let open = match history {
        Some(open) => open,
        None => history.insert(History::connect(amqp).await?),
    };
    let Some(offset) = open.last_chunk().await? else { return Ok(()) };
    let survey = async || {
        if let Some(behind) = history.take() {
            behind.close().await;
        }
        // The next samples come from the node that is furthest.
        Ok(history.insert(History::connect(amqp).await?).survey(&[]).await?.end)
    };
    let offset = confirmed(offset, watermark.newest_sample(), survey).await?;
    if watermark.sampled(offset) {
        history_start.is_now();
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

    use super::*;
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn a_node_that_lags_is_not_another_stream() {
        let watermark = Watermark::new(Metrics::new());
        watermark.begin(SystemTime::now(), 80, None);
        let sampled = async |offset, end: Option<u64>| {
            let survey = async || Ok(end.expect("no survey"));
            watermark.sampled(confirmed(offset, watermark.newest_sample(), survey).await.unwrap())
        };
        assert!(!sampled(90, None).await && !sampled(90, None).await);
        assert!(!sampled(40, Some(95)).await, "another node has all of it");
        assert_eq!((watermark.newest_sample(), watermark.now().offset), (Some(94), Some(80)));
        assert!(!sampled(40, Some(95)).await, "nothing came since");
        assert!(sampled(40, Some(60)).await, "no node has it");
        assert_eq!((watermark.newest_sample(), watermark.now().offset), (Some(59), Some(0)));
    }
}
