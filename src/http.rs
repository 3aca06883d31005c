//! Health and metrics over HTTP: `/livez`, `/readyz` and `/metrics`.
//!
//! This file has the readiness state and the routes. `connections` bounds the number and lifetime
//! of connections. There is no authentication and no TLS.

mod connections;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::connections::MAX_CONNECTIONS;
use crate::causes::Explain;
use crate::printable::printable_lines;
use crate::telemetry::Metrics;

/// Maximum time between two heartbeats of the delivery loop before it counts as stalled. It sends
/// one every second.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// The reason why a condition does not hold. It is shown to any client, so it must hold no secrets.
pub type NotReadyCause = Cow<'static, str>;

/// The readiness of this worker. Clones share one state, and each part of the worker sets its own
/// condition.
#[derive(Debug, Clone)]
pub struct Readiness {
    conditions: watch::Sender<Conditions>,
    beats: Arc<Beats>,
}

/// The last heartbeat of the loop that takes deliveries.
#[derive(Debug)]
struct Beats {
    since: Instant,
    /// Milliseconds between `since` and the last heartbeat, plus 1; 0 while no loop runs.
    last_ms: AtomicU64,
}

#[derive(Debug)]
struct Conditions {
    consuming: Result<(), NotReadyCause>,
    redis: Result<(), NotReadyCause>,
    healed: Result<(), NotReadyCause>,
    objects: Result<(), NotReadyCause>,
    republishing: Result<(), NotReadyCause>,
}

impl Default for Readiness {
    fn default() -> Self {
        let conditions = Conditions {
            consuming: Err("not connected to RabbitMQ yet".into()),
            redis: Err("has not answered yet".into()),
            healed: Err("not known yet whether Redis lost writes".into()),
            objects: Ok(()),
            republishing: Ok(()),
        };
        let beats = Beats { since: Instant::now(), last_ms: AtomicU64::new(0) };
        Self { conditions: watch::Sender::new(conditions), beats: Arc::new(beats) }
    }
}

impl Readiness {
    /// Creates a state that is not ready, because nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether deliveries are consumed.
    pub fn set_consuming(&self, state: Result<(), NotReadyCause>) {
        self.conditions.send_if_modified(|conditions| set(&mut conditions.consuming, state));
    }

    /// Sets whether Redis answers.
    pub fn set_redis(&self, state: Result<(), NotReadyCause>) {
        self.conditions.send_if_modified(|conditions| set(&mut conditions.redis, state));
    }

    /// Sets whether Redis holds every write that it confirmed.
    pub fn set_healed(&self, state: Result<(), NotReadyCause>) {
        self.conditions.send_if_modified(|conditions| set(&mut conditions.healed, state));
    }

    /// Sets whether the exchange and the queues exist.
    pub fn set_objects(&self, state: Result<(), NotReadyCause>) {
        self.conditions.send_if_modified(|conditions| set(&mut conditions.objects, state));
    }

    /// Sets whether RabbitMQ stores what is republished.
    pub fn set_republishing(&self, state: Result<(), NotReadyCause>) {
        self.conditions.send_if_modified(|conditions| set(&mut conditions.republishing, state));
    }

    /// Returns why this worker is not ready; empty if it is ready.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = self.conditions.borrow().causes();
        if let Some(silence) = self.beats.silence().filter(|silence| *silence > STALLED_AFTER) {
            causes.push(format!(
                "stalled: the delivery loop has not run for {} s; restart the worker if this persists",
                silence.as_secs()
            ));
        }
        causes
    }

    /// Records a heartbeat of the loop that takes deliveries.
    pub fn beat(&self) {
        self.beats.last_ms.store(self.beats.now_ms() + 1, Ordering::Relaxed);
    }

    /// Records that the loop has ended, so that no heartbeat is expected.
    pub fn beats_no_more(&self) {
        self.beats.last_ms.store(0, Ordering::Relaxed);
    }

    /// Returns a function that waits for the next change of any condition.
    pub fn changes(&self) -> impl AsyncFnMut() + use<> {
        let mut changes = self.conditions.subscribe();
        async move || {
            // It fails only without a sender, and `self` holds one.
            let _ = changes.changed().await;
        }
    }

    /// Waits until this worker is ready.
    pub async fn ready(&self) {
        // It fails only without a sender, and `self` holds one.
        let _ =
            self.conditions.subscribe().wait_for(|conditions| conditions.causes().is_empty()).await;
    }
}

impl Beats {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// Returns the time since the last heartbeat; `None` while no loop runs.
    fn silence(&self) -> Option<Duration> {
        let last_ms = self.last_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.now_ms().saturating_sub(last_ms)))
    }
}

impl Conditions {
    fn causes(&self) -> Vec<String> {
        [
            ("consuming", &self.consuming),
            ("redis", &self.redis),
            ("healed", &self.healed),
            ("objects", &self.objects),
            ("republishing", &self.republishing),
        ]
        .into_iter()
        .filter_map(|(name, state)| state.as_ref().err().map(|cause| format!("{name}: {cause}")))
        .collect()
    }
}

fn set(current: &mut Result<(), NotReadyCause>, new: Result<(), NotReadyCause>) -> bool {
    let changed = *current != new;
    *current = new;
    changed
}

/// The worker cannot listen on the address in `UNSTALE_HTTP_ADDR`.
#[derive(Debug, thiserror::Error)]
#[error("UNSTALE_HTTP_ADDR: cannot listen on {addr}")]
pub struct BindError {
    addr: SocketAddr,
    source: std::io::Error,
}

impl Explain for BindError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some("choose another address or port, or off".into())
    }
}

/// Starts to listen. The worker calls it before it consumes, so a wrong address ends it at once.
///
/// # Errors
/// [`BindError`] if the address is in use or is not one of this machine.
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).await.map_err(|source| BindError { addr, source })
}

/// Serves until `shutdown`, then finishes open connections within a second.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let routes = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(exposition).with_state(metrics));
    connections::serve(listener, routes, &shutdown).await;
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let causes = readiness.causes();
    if causes.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("not ready\n{}\n", printable_lines(&causes.join("\n"))),
    )
}

async fn exposition(State(metrics): State<Metrics>, headers: HeaderMap) -> impl IntoResponse {
    let accepts = |media_type: &str| {
        headers
            .get_all(header::ACCEPT)
            .iter()
            .any(|accept| accept.to_str().is_ok_and(|accept| accept.contains(media_type)))
    };
    if accepts("application/openmetrics-text") {
        (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            metrics.openmetrics(),
        )
    } else {
        (
            [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
            metrics.prometheus_text(),
        )
    }
}
