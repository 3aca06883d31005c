//! Tasks that run beside the lanes of a session. They look at its queues, bind the routing keys of
//! a newer registry, and log alarms of the broker.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use super::heal_state::HealState;
use super::live::CurrentRegistry;
use super::low_watermark::Look;
use crate::broker::{Looker, Session, SessionEnded, SessionWatch, Waiting};
use crate::causes::Cause;
use crate::telemetry::Metrics;

/// Time between two looks at the queues.
const LOOKS: Duration = Duration::from_secs(1);

/// Minimum time that all retry queues must look empty. It exceeds RabbitMQ's election of a quorum
/// queue's leader, in which the queue reports no messages.
const BELIEVED_EMPTY: Duration = Duration::from_secs(30);

/// Looks at the queues until one of them is missing. Without a consumer nothing else reports that.
pub(super) async fn missing(mut looker: Looker<'_>) -> SessionEnded {
    while looker.waiting(false).await.is_some() {
        tokio::time::sleep(LOOKS).await;
    }
    SessionEnded::new("a queue of ours is gone, or does not answer")
}

/// Binds the routing keys of each newer registry. Returns when that fails.
pub(super) async fn bind(registry: &CurrentRegistry, session: &Session) -> SessionEnded {
    loop {
        registry.replaced.notified().await;
        let routing_keys = registry.load().registry.routing_keys().to_vec();
        match session.bind(&routing_keys).await {
            Ok(rebound) if rebound.left_bound.is_empty() => {
                info!(added = ?rebound.added, "bound the registry's routing keys")
            }
            Ok(rebound) => warn!(
                added = ?rebound.added, left_bound = ?rebound.left_bound,
                "bound the registry's routing keys; routing keys that it no longer names stay bound until an operator unbinds them"
            ),
            Err(error) => return SessionEnded::new(Cause::new(error)),
        }
    }
}

/// Looks at the queues once a second; never returns.
pub(super) async fn look(
    state: &HealState,
    waiting: &AtomicU32,
    mut looker: Looker<'_>,
) -> Infallible {
    // Retry queues have no consumers. During an election a queue with messages looks empty.
    let mut retries_empty_since: Option<std::time::Instant> = None;
    loop {
        let (began, began_at) = (SystemTime::now(), std::time::Instant::now());
        // An unanswered look does not show that a queue is empty.
        if let Some(Waiting { main, slow, retries }) =
            looker.waiting(state.watermark.waits_for_retries()).await
        {
            // This worker does not look at the queues of other workers' retry steps.
            let are_all_empty =
                retries == Some(0) && !state.knows_other_steps.load(Ordering::Relaxed);
            retries_empty_since = are_all_empty.then(|| retries_empty_since.unwrap_or(began_at));
            let believed = retries_empty_since.filter(|since| since.elapsed() >= BELIEVED_EMPTY);
            state.watermark.looked(Look {
                began,
                main_empty: main.is_empty(),
                slow_empty: slow.is_empty(),
                retries_empty_since: believed,
            });
            waiting.store(main.ready, Ordering::Relaxed);
        }
        tokio::time::sleep(LOOKS).await;
    }
}

/// Logs whenever the broker begins or ceases to accept messages; never returns.
pub(super) async fn log_alarms(metrics: &Metrics, mut watch: SessionWatch) -> Infallible {
    loop {
        let blocked = watch.blocked_changed().await;
        metrics.set_paused("broker", blocked);
        if blocked {
            warn!(
                "RabbitMQ blocked publishing (memory or disk alarm): retries and dead letters wait"
            );
        } else {
            info!("RabbitMQ accepts publishing again");
        }
    }
}
