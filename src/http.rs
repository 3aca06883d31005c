//! Health and metrics over HTTP: `/livez`, `/readyz`, `/metrics`.

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
use crate::printable::printable_lines;
use crate::telemetry::Metrics;

/// A loop without a sign of life for longer is stalled. It gives one each second.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// Why something is not as it must be: shown to whoever asks, so no secrets.
pub type Cause = Cow<'static, str>;

/// Whether this worker does its work. Clones share it; whoever knows a part of the answer sets it.
#[derive(Debug, Clone)]
pub struct Readiness {
    conditions: watch::Sender<Conditions>,
    beats: Arc<Beats>,
}

/// The last sign of life of the loop that takes deliveries.
#[derive(Debug)]
struct Beats {
    since: Instant,
    /// Milliseconds after `since`, and 1; 0 while no loop runs.
    last: AtomicU64,
}

#[derive(Debug)]
struct Conditions {
    consuming: Result<(), Cause>,
    redis: Result<(), Cause>,
    healed: Result<(), Cause>,
    objects: Result<(), Cause>,
}

impl Default for Readiness {
    fn default() -> Self {
        let conditions = Conditions {
            consuming: Err("not connected to RabbitMQ yet".into()),
            redis: Err("has not answered yet".into()),
            healed: Err("not known yet whether Redis lost writes".into()),
            objects: Ok(()),
        };
        let beats = Beats { since: Instant::now(), last: AtomicU64::new(0) };
        Self { conditions: watch::Sender::new(conditions), beats: Arc::new(beats) }
    }
}

impl Readiness {
    /// Not ready: nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether deliveries are consumed.
    pub fn set_consuming(&self, state: Result<(), Cause>) {
        self.conditions.send_if_modified(|conditions| set(&mut conditions.consuming, state));
    }

    /// Whether Redis answers.
    pub fn set_redis(&self, state: Result<(), Cause>) {
        self.conditions.send_if_modified(|conditions| set(&mut conditions.redis, state));
    }

    /// Whether Redis holds every write it confirmed.
    pub fn set_healed(&self, state: Result<(), Cause>) {
        self.conditions.send_if_modified(|conditions| set(&mut conditions.healed, state));
    }

    /// Whether the exchange and the queues are there.
    pub fn set_objects(&self, state: Result<(), Cause>) {
        self.conditions.send_if_modified(|conditions| set(&mut conditions.objects, state));
    }

    /// Why this worker is not ready; empty where it is.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = self.conditions.borrow().causes();
        if let Some(silence) = self.beats.silence().filter(|silence| *silence > STALLED_AFTER) {
            causes.push(format!(
                "stalled: the loop that takes deliveries has not run for {} s; if that does not end, restart the worker",
                silence.as_secs()
            ));
        }
        causes
    }

    /// Says that the loop that takes deliveries runs.
    pub fn beat(&self) {
        self.beats.last.store(self.beats.now() + 1, Ordering::Relaxed);
    }

    /// Says that no such loop is to run.
    pub fn beats_no_more(&self) {
        self.beats.last.store(0, Ordering::Relaxed);
    }

    /// Tells whenever anything of it changes.
    pub fn changes(&self) -> impl AsyncFnMut() + use<> {
        let mut changes = self.conditions.subscribe();
        async move || {
            // It fails only where the sender is gone, and whoever has `self` has one.
            let _ = changes.changed().await;
        }
    }

    /// Waits until this worker is ready.
    pub async fn ready(&self) {
        // It fails only where the sender is gone, and `self` is one.
        let _ =
            self.conditions.subscribe().wait_for(|conditions| conditions.causes().is_empty()).await;
    }
}

impl Beats {
    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// How long ago the last sign of life was; `None` while no loop runs.
    fn silence(&self) -> Option<Duration> {
        let last = self.last.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.now().saturating_sub(last)))
    }
}

impl Conditions {
    fn causes(&self) -> Vec<String> {
        [
            ("consuming", &self.consuming),
            ("redis", &self.redis),
            ("healed", &self.healed),
            ("objects", &self.objects),
        ]
        .into_iter()
        .filter_map(|(name, state)| state.as_ref().err().map(|cause| format!("{name}: {cause}")))
        .collect()
    }
}

fn set(current: &mut Result<(), Cause>, new: Result<(), Cause>) -> bool {
    let changed = *current != new;
    *current = new;
    changed
}

/// The address of `UNSTALE_HTTP_ADDR` cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "UNSTALE_HTTP_ADDR: cannot listen on {addr} ({source}): choose another address or port, or off"
)]
pub struct BindError {
    addr: SocketAddr,
    source: std::io::Error,
}

/// Listens, so that a worker that cannot says so before it works.
///
/// # Errors
/// [`BindError`] where the address is taken or not ours.
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).await.map_err(|source| BindError { addr, source })
}

/// Serves until `shutdown`, and then for at most a second.
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
