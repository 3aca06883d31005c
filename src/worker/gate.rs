//! The Redis gate: shows every lane whether Redis takes writes, and holds batches back while it
//! does not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cache::Outage;
use crate::causes::Explain;
use crate::http::Readiness;
use crate::telemetry::Metrics;

/// Maximum time a lane holds its deliveries in flight while Redis is away, before it requeues them.
/// It is shorter than the broker's acknowledgement timeout (30 minutes by default), and longer than
/// a failover.
pub(super) const HOLD: Duration = Duration::from_secs(60);

/// Maximum time a lane holds them while Redis lacks memory but accepts deletions. Deletions take
/// effect meanwhile, and requeued deliveries would wait. It is shorter than the broker's
/// acknowledgement timeout too.
const HOLD_WITHOUT_MEMORY: Duration = Duration::from_secs(15 * 60);

/// The Redis gate, open while Redis takes writes. Any user that meets an outage closes it, and only
/// the probe opens it (`probe.rs`).
#[derive(Debug)]
pub(super) struct Gate {
    closed_since: watch::Sender<Option<Instant>>,
    /// True if a probe failed since the gate closed.
    probe_failed: AtomicBool,
    /// Held while a suspected batch is applied. Lanes share a connection, so a failure that another
    /// lane causes must not count against that batch.
    turn: Mutex<()>,
    readiness: Readiness,
    metrics: Metrics,
}

impl Gate {
    /// Returns a gate that is closed until the first probe succeeds.
    pub(super) fn new(readiness: Readiness, metrics: Metrics) -> Self {
        metrics.set_paused("redis", true);
        Self {
            closed_since: watch::Sender::new(Some(Instant::now())),
            probe_failed: AtomicBool::new(false),
            turn: Mutex::new(()),
            readiness,
            metrics,
        }
    }

    /// Closes the gate.
    pub(super) fn close(&self, outage: &Outage) {
        let closed = self.closed_since.send_if_modified(|since| {
            let was_open = since.is_none();
            since.get_or_insert_with(Instant::now);
            was_open
        });
        if closed {
            self.probe_failed.store(false, Ordering::Relaxed);
            let cause = outage.in_full();
            warn!(cause, "Redis is out: consuming pauses, deliveries in flight are held");
            self.readiness.set_redis(Err(cause.into()));
            self.metrics.set_paused("redis", true);
        }
    }

    /// Notes that a probe failed while the gate was closed.
    pub(super) fn note_failed_probe(&self) {
        self.probe_failed.store(true, Ordering::Relaxed);
    }

    /// Returns true if each probe since the gate last closed succeeded. Then the server was not
    /// away.
    pub(super) fn passed_each_probe(&self) -> bool {
        !self.probe_failed.load(Ordering::Relaxed)
    }

    /// Waits until no other suspected batch is applied.
    pub(super) async fn turn_of_suspect(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Returns true if the gate is open now.
    pub(super) fn is_open(&self) -> bool {
        self.closed_since.borrow().is_none()
    }

    /// Waits until the gate is open.
    pub(super) async fn open(&self) {
        let mut closed_since = self.closed_since.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = closed_since.wait_for(Option::is_none).await;
    }

    /// Waits until the gate is open, for deliveries in flight that failed since `held_since`.
    /// Returns false if they must be requeued: [`HOLD`] is over, or a stop is requested.
    pub(super) async fn hold(
        &self,
        stop: &CancellationToken,
        outage: &Outage,
        held_since: Instant,
    ) -> bool {
        let without_memory = outage.out_of_memory.then(|| held_since + HOLD_WITHOUT_MEMORY);
        // Near the limit a probe passes now and then, and the held batches do not.
        if without_memory.is_some_and(|until| until <= Instant::now()) {
            return false;
        }
        let Some(closed_since) = *self.closed_since.borrow() else { return true };
        let opened =
            tokio::time::timeout_at(without_memory.unwrap_or(closed_since + HOLD), self.open());
        stop.run_until_cancelled(opened).await.is_some_and(|opened| opened.is_ok())
    }

    /// Waits until the gate is closed.
    pub(super) async fn closed(&self) {
        let mut closed_since = self.closed_since.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = closed_since.wait_for(Option::is_some).await;
    }

    /// Opens the gate.
    pub(super) fn set_open(&self) {
        let since = self.closed_since.send_replace(None);
        let after_s = since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        self.readiness.set_redis(Ok(()));
        self.metrics.set_paused("redis", false);
        info!(after_s, "Redis answers");
    }
}
