//! A connection to one Redis server: making it, sending on it, and detecting silence.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, Pipeline,
    ServerError, TlsCertificates, Value,
};
use url::Url;

use super::connection_state::LiveConnection;
use super::failure::{self, CacheError, Outage};
use crate::causes::Cause;
use crate::config::TlsConfig;

/// Maximum time for connecting, with the handshake.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum time without any answer on a connection. After it, the connection is given up, and its
/// commands are repeated on the next one.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time for a probe. A slower server is not usable either.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests that may wait for the socket before senders wait (redis-rs: 50).
const PIPELINE_BUFFER: usize = 1_024;

/// Bytes written before the socket is flushed (tokio-util: 8 KiB).
const WRITE_BOUNDARY_BYTES: usize = 64 * 1_024;

/// A connection that counts as good until it is given up.
pub(super) struct Socket {
    connection: MultiplexedConnection,
    answers: AtomicU64,
    given_up: OnceLock<Outage>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("answers", &self.answers)
            .field("given_up", &self.given_up)
            .finish_non_exhaustive()
    }
}

impl LiveConnection for Socket {
    fn give_up(&self, outage: &Outage) {
        let _earlier = self.given_up.set(outage.for_others());
    }

    fn given_up(&self) -> Option<&Outage> {
        self.given_up.get()
    }
}

impl Socket {
    /// Connects to a server and checks its version.
    pub(super) async fn connect(client: &redis::Client) -> Result<Self, Outage> {
        let socket = Self::connect_to_any(client).await?;
        let mut hello = Pipeline::new();
        hello.cmd("INFO").arg("server");
        // This is the first request: a server that waits for TLS closes the connection only now.
        let address = client.get_connection_info().addr();
        let answers = socket
            .send_within(&hello, PROBE_TIMEOUT, |error| failure::not_connected(address, error))
            .await?;
        match version(&answers) {
            Some(version) if major(version) < 7 => Err(failure::too_old(version)),
            _ => Ok(socket),
        }
    }

    /// Connects to any server that speaks Redis' protocol.
    pub(super) async fn connect_to_any(client: &redis::Client) -> Result<Self, Outage> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(PIPELINE_BUFFER)
            .set_write_backpressure_boundary(WRITE_BOUNDARY_BYTES);
        let address = client.get_connection_info().addr();
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        let connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| failure::timed_out(address))?
            .map_err(|error| failure::not_connected(address, &error))?;
        Ok(Self { connection, answers: AtomicU64::new(0), given_up: OnceLock::new() })
    }

    /// Sends commands in one pipeline and awaits their answers, which include errors of single
    /// commands. The first poll sends them.
    pub(super) async fn send(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Outage> {
        self.send_within(pipeline, SILENCE_TIMEOUT, failure::broken).await
    }

    /// Sends commands as [`send`](Self::send) does, with the time limit of a probe.
    pub(super) async fn ask(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Outage> {
        self.send_within(pipeline, PROBE_TIMEOUT, failure::broken).await
    }

    async fn send_within(
        &self,
        pipeline: &Pipeline,
        silence: Duration,
        explain: impl FnOnce(&redis::RedisError) -> Outage,
    ) -> Result<Vec<Value>, Outage> {
        let mut connection = self.connection.clone();
        // Unconstrained: a task without budget left must still send, or later commands would
        // overtake these.
        let mut answer = pin!(tokio::task::unconstrained(connection.send_packed_commands(
            pipeline,
            0,
            pipeline.len()
        )));
        let result = loop {
            let seen = self.answers.load(Ordering::Relaxed);
            match tokio::time::timeout(silence, answer.as_mut()).await {
                Ok(result) => break result,
                Err(_) if self.answers.load(Ordering::Relaxed) == seen => {
                    return Err(Outage::new(format!(
                        "Redis has not answered for {} s",
                        silence.as_secs()
                    )));
                }
                Err(_) => {}
            }
        };
        self.answers.fetch_add(1, Ordering::Relaxed);
        let values = result.map_err(|error| explain(&error))?;
        self.given_up.get().map_or(Ok(values), |outage| Err(outage.clone()))
    }

    /// Checks that the server takes writes.
    pub(super) async fn check(&self, probe_key: &str) -> Result<(), Outage> {
        self.write_probe(probe_key)
            .await?
            .map_or(Ok(()), |error| Err(failure::takes_no_writes(&error)))
    }

    /// Returns whether the server refuses a command on keys of two slots. A node of a cluster does,
    /// even if it serves all slots.
    pub(super) async fn keeps_slots_apart(&self) -> Result<bool, Outage> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("EXISTS").arg("unstale:probe:{0}").arg("unstale:probe:{1}");
        let answer = self.ask(&pipeline).await?.pop();
        Ok(matches!(answer, Some(Value::ServerError(error)) if error.code() == "CROSSSLOT"))
    }

    /// Writes a key that expires soon. Returns the server's error, if there is one.
    pub(super) async fn write_probe(&self, key: &str) -> Result<Option<ServerError>, Outage> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("SET").arg(key).arg(1).arg("PX").arg(1_000);
        let answer = self.ask(&pipeline).await?.pop();
        Ok(if let Some(Value::ServerError(error)) = answer { Some(error) } else { None })
    }
}

/// Returns a client that can connect to a server.
pub(super) fn client(url: &Url, tls: &TlsConfig) -> Result<redis::Client, CacheError> {
    let wrong = |error: redis::RedisError| CacheError::Url(Cause::new(error));
    let info = url.clone().into_connection_info().map_err(wrong)?;
    // Linger 0: closing discards unsent bytes, so that a connection given up cannot act after the
    // next one.
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(
            TcpKeepalive::new()
                .with_time(Duration::from_secs(10))
                .with_interval(Duration::from_secs(5)),
        )
        .set_linger_time(Duration::ZERO);
    // The documented ACL has no `CLIENT SETINFO`, which Redis 7.0 does not know. Each connection
    // would leave an entry in the ACL log.
    let settings = info.redis_settings().clone().set_skip_set_lib_name();
    let info = info.set_tcp_settings(tcp).set_redis_settings(settings);
    let encrypted = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    if !encrypted {
        if tls.ca_pem.is_some() || tls.cert_pem.is_some() || tls.key_pem.is_some() {
            return Err(CacheError::Tls("certificates need rediss:// in UNSTALE_REDIS_URL".into()));
        }
        return redis::Client::open(info).map_err(wrong);
    }
    // Another part of the program may have installed the same provider before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client_tls = match (&tls.cert_pem, &tls.key_pem) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(ClientTlsConfig {
            client_cert: cert.clone().into(),
            client_key: key.clone().into(),
        }),
        _ => {
            return Err(CacheError::Tls(
                "a client certificate needs its key, and a key its certificate".into(),
            ));
        }
    };
    let certificates =
        TlsCertificates { client_tls, root_cert: tls.ca_pem.clone().map(String::into_bytes) };
    redis::Client::build_with_tls(info, certificates)
        .map_err(|error| CacheError::Tls(Cause::new(error)))
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

/// Polls each future once, in order, so that their requests are sent in that order.
pub(super) async fn poll_once_each<F: Future>(
    futures: &mut [Pin<Box<F>>],
) -> Vec<Option<F::Output>> {
    let mut results = Vec::with_capacity(futures.len());
    for future in futures {
        results.push(match futures_util::poll!(future.as_mut()) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        });
    }
    results
}
