//! One connection to Redis at a time, shared by all; replaced whole, and only by a probe.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{AsyncConnectionConfig, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, Pipeline, TlsCertificates, Value};

use super::failure::{self, CommandError, Outage};
use crate::config::{RedisConfig, RedisMode, TlsConfig};

/// For the connection, its handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection on which nothing at all was answered for so long is given up: what it carried is done again on the next.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// A probe that takes longer is no good news either.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Between failing probes: from the first to the last, each jittered down to a half. Below the 2 s in which consuming must resume.
const PROBE_PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(1_000)];

/// A success that an outage follows sooner counts as a failure: a probe may promise what no other command can keep (a cluster's node that
/// owns the probe's slot alone), and nothing else would slow down the loop.
const STEADY: Duration = Duration::from_secs(5);

/// Requests that may wait for the socket before senders wait (redis-rs: 50).
const PIPELINE_BUFFER: usize = 1_024;

/// Bytes written before the socket is flushed (tokio-util: 8 KiB).
const WRITE_BOUNDARY_BYTES: usize = 64 * 1_024;

/// Settings that no connection can be made with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// A mode that this build does not speak.
    #[error("UNSTALE_REDIS_MODE: {0} is not supported yet; use single, with the address of the primary or of a proxy in front of it")]
    Mode(&'static str),
    /// Not one usable URL. Says what is wrong, never the URL: it may hold a password.
    #[error("UNSTALE_REDIS_URL: {0}")]
    Url(String),
    /// The PEM texts cannot be used.
    #[error("UNSTALE_REDIS_TLS_{{CA,CERT,KEY}}: {0}")]
    Tls(String),
}

/// Whether Redis can be worked with, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The last that was heard of it was good.
    Up,
    /// It was not, or nothing was heard yet.
    Down(Outage),
}

#[derive(Debug)]
pub(super) struct Link {
    client: redis::Client,
    probe_key: String,
    current: ArcSwap<Current>,
    pace: tokio::sync::Mutex<Pace>,
    /// Probes that have ended.
    probes: AtomicU64,
}

#[derive(Debug)]
enum Current {
    Live(Arc<Live>),
    Down(Outage),
}

/// A connection that nothing bad is known of.
pub(super) struct Live {
    connection: MultiplexedConnection,
    answers: AtomicU64,
    given_up: AtomicBool,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("answers", &self.answers).field("given_up", &self.given_up).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Pace {
    failures: u32,
    last: Option<Instant>,
    result: Option<Result<(), Outage>>,
}

impl Link {
    pub(super) fn new(config: &RedisConfig, probe_key: String) -> Result<Self, CacheError> {
        match &config.mode {
            RedisMode::Single => {}
            RedisMode::Cluster => return Err(CacheError::Mode("cluster")),
            RedisMode::Sentinel { .. } => return Err(CacheError::Mode("sentinel")),
        }
        let [url] = config.urls.as_slice() else {
            return Err(CacheError::Url("one address is expected with UNSTALE_REDIS_MODE=single".into()));
        };
        let client = client(url.expose(), &config.tls)?;
        let current = ArcSwap::from_pointee(Current::Down(Outage::new("not connected to Redis yet")));
        Ok(Self { client, probe_key, current, pace: tokio::sync::Mutex::default(), probes: AtomicU64::new(0) })
    }

    pub(super) fn state(&self) -> State {
        match &**self.current.load() {
            Current::Live(_) => State::Up,
            Current::Down(outage) => State::Down(outage.clone()),
        }
    }

    pub(super) fn live(&self) -> Result<Arc<Live>, Outage> {
        match &**self.current.load() {
            Current::Live(live) => Ok(Arc::clone(live)),
            Current::Down(outage) => Err(outage.clone()),
        }
    }

    /// An outage ends the connection on which it showed, with all that is under way there: what was asked for later must not take hold
    /// before what is asked for again.
    pub(super) fn give_up(&self, live: &Live, outage: &Outage) {
        live.given_up.store(true, Ordering::SeqCst);
        let current = self.current.load();
        if let Current::Live(standing) = &**current
            && std::ptr::eq(Arc::as_ptr(standing), live)
        {
            let down = Arc::new(Current::Down(outage.clone()));
            let previous = self.current.compare_and_swap(&*current, down);
            if Arc::ptr_eq(&previous, &current) {
                tracing::warn!(cause = %outage, "Redis cannot be worked with");
            }
        }
    }

    /// Sends commands in one go and awaits their answers, errors of single commands among them. Polled once, they are on their way.
    pub(super) async fn send(&self, live: &Live, pipeline: &Pipeline) -> Result<Vec<Value>, Outage> {
        let result = live.send(pipeline, SILENCE_TIMEOUT).await;
        if let Err(outage) = &result {
            self.give_up(live, outage);
        }
        result
    }

    /// Connects where there is no connection, and finds out whether Redis takes writes. Paces itself: after a failure the next call waits.
    /// Who calls while a probe is under way shares its result: many callers wait no longer than one.
    pub(super) async fn probe(&self) -> Result<(), Outage> {
        let seen = self.probes.load(Ordering::SeqCst);
        let mut pace = self.pace.lock().await;
        if self.probes.load(Ordering::SeqCst) != seen
            && let Some(result) = &pace.result
        {
            return result.clone();
        }
        pace.wait().await;
        let result = self.connect_and_write().await;
        pace.note(&result);
        self.probes.fetch_add(1, Ordering::SeqCst);
        result
    }

    async fn connect_and_write(&self) -> Result<(), Outage> {
        let (live, fresh) = match self.live() {
            Ok(live) => (live, false),
            Err(before) => match self.connect().await {
                Ok(live) => (live, true),
                Err(outage) => {
                    if before != outage {
                        self.current.store(Arc::new(Current::Down(outage.clone())));
                    }
                    return Err(outage);
                }
            },
        };
        if let Err(outage) = self.write(&live).await {
            if fresh {
                self.current.store(Arc::new(Current::Down(outage.clone())));
            } else {
                self.give_up(&live, &outage);
            }
            return Err(outage);
        }
        if fresh {
            self.current.store(Arc::new(Current::Live(live)));
            tracing::info!("Redis answers and takes writes");
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Arc<Live>, Outage> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(PIPELINE_BUFFER)
            .set_write_backpressure_boundary(WRITE_BOUNDARY_BYTES);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| Outage::new("Redis cannot be reached: timed out"))?
            .map_err(|error| failure::broken(&error))?;
        let live = Arc::new(Live { connection, answers: AtomicU64::new(0), given_up: AtomicBool::new(false) });
        let mut hello = Pipeline::new();
        hello.cmd("INFO").arg("server");
        let answers = live.send(&hello, PROBE_TIMEOUT).await?;
        match version(&answers) {
            Some(version) if major(version) < 7 => Err(failure::too_old(version)),
            _ => Ok(live),
        }
    }

    /// What writing needs (memory, a primary, rights, replicas, a disk) only a write can tell.
    async fn write(&self, live: &Live) -> Result<(), Outage> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("SET").arg(&self.probe_key).arg(1).arg("PX").arg(1_000);
        match live.send(&pipeline, PROBE_TIMEOUT).await?.first() {
            Some(Value::ServerError(error)) => match failure::classify("SET", error) {
                CommandError::Outage(outage) => Err(outage),
                CommandError::Refused(_) if error.code() == "NOPERM" => Err(failure::no_side_keys()),
                CommandError::Refused(cause) | CommandError::Failed(cause) => Err(Outage::new(format!("Redis takes no writes: {cause}"))),
            },
            _ => Ok(()),
        }
    }
}

impl Live {
    async fn send(&self, pipeline: &Pipeline, silence: Duration) -> Result<Vec<Value>, Outage> {
        let mut connection = self.connection.clone();
        // Unconstrained: a task that has used up its budget must not be kept from sending, or what comes after would go first.
        let mut answer = pin!(tokio::task::unconstrained(connection.send_packed_commands(pipeline, 0, pipeline.len())));
        let result = loop {
            let seen = self.answers.load(Ordering::Relaxed);
            match tokio::time::timeout(silence, answer.as_mut()).await {
                Ok(result) => break result,
                Err(_) if self.answers.load(Ordering::Relaxed) == seen => {
                    return Err(Outage::new(format!("Redis has not answered for {} s", silence.as_secs())));
                }
                Err(_) => {}
            }
        };
        self.answers.fetch_add(1, Ordering::Relaxed);
        let values = result.map_err(|error| failure::broken(&error))?;
        if self.given_up.load(Ordering::SeqCst) {
            return Err(Outage::new("the connection to Redis was given up"));
        }
        Ok(values)
    }
}

impl Pace {
    async fn wait(&mut self) {
        if self.last.is_some_and(|last| matches!(self.result, Some(Ok(()))) && last.elapsed() > STEADY) {
            self.failures = 0;
        }
        let (Some(last), Some(doublings)) = (self.last, self.failures.checked_sub(1)) else { return };
        let [first, longest] = PROBE_PAUSES;
        let pause = first.saturating_mul(2u32.saturating_pow(doublings)).min(longest).mul_f64(0.5 + fastrand::f64() / 2.0);
        tokio::time::sleep(pause.saturating_sub(last.elapsed())).await;
    }

    fn note(&mut self, result: &Result<(), Outage>) {
        self.failures = self.failures.saturating_add(1);
        self.last = Some(Instant::now());
        self.result = Some(result.clone());
    }
}

fn client(url: &url::Url, tls: &TlsConfig) -> Result<redis::Client, CacheError> {
    let wrong = |error: redis::RedisError| CacheError::Url(error.to_string());
    let info = url.clone().into_connection_info().map_err(wrong)?;
    // Linger 0: closing throws away what is still to be sent, so that a connection given up cannot act behind the next one's back.
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5)))
        .set_linger_time(Duration::ZERO);
    let info = info.set_tcp_settings(tcp);
    let encrypted = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    if !encrypted {
        if tls.ca_pem.is_some() || tls.cert_pem.is_some() || tls.key_pem.is_some() {
            return Err(CacheError::Tls("certificates are for rediss:// and UNSTALE_REDIS_URL is not".into()));
        }
        return redis::Client::open(info).map_err(wrong);
    }
    // Another part of the program may have installed it before: it is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client_tls = match (&tls.cert_pem, &tls.key_pem) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(ClientTlsConfig { client_cert: cert.clone().into(), client_key: key.clone().into() }),
        _ => return Err(CacheError::Tls("a client certificate and its key go together".into())),
    };
    let certificates = TlsCertificates { client_tls, root_cert: tls.ca_pem.clone().map(String::into_bytes) };
    redis::Client::build_with_tls(info, certificates).map_err(|error| CacheError::Tls(error.to_string()))
}

fn version(answers: &[Value]) -> Option<&str> {
    let text = match answers.first()? {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?,
        Value::VerbatimString { text, .. } => text,
        _ => return None,
    };
    text.lines().find_map(|line| line.strip_prefix("redis_version:"))
}

fn major(version: &str) -> u32 {
    version.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(u32::MAX)
}

/// Futures that were each polled once, in order, so that what they ask for is under way in that order.
pub(super) async fn poll_once_each<F: Future>(futures: &mut [std::pin::Pin<Box<F>>]) -> Vec<Option<F::Output>> {
    let mut results = Vec::with_capacity(futures.len());
    for future in futures {
        results.push(match futures_util::poll!(future.as_mut()) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        });
    }
    results
}
