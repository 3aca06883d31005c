//! One connection to the broker: connected with timeouts, watched, and always cut when dropped.

use std::io;
use std::net::{Shutdown, TcpStream as StdTcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use futures_util::future::Either;
use futures_util::{Stream, StreamExt};
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, ConnectionStatus, Event};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls_connector::{RustlsConnector, RustlsConnectorConfig};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::{interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::failure::{BrokerError, NodeFailure, SessionEnded, connect_error};
use super::greeting::Greeting;
use super::nesting::Levelled;
use super::throttle::{Allowance, ThrottledTokio};
use crate::backoff::Doubling;
use crate::causes::Cause;
use crate::config::{AmqpConfig, SecretUrl, TlsConfig};

/// Pauses between two attempts to connect.
pub const RECONNECT_PAUSES: Doubling =
    Doubling { first: Duration::from_millis(500), longest: Duration::from_secs(30) };

/// Maximum time to connect to one node: name resolution, TCP, TLS and the AMQP handshake together.
///
/// lapin itself has no such limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time for one request and its answer.
///
/// Declaring a quorum queue takes seconds on a busy cluster.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time for the closing handshake, before the socket is shut anyway.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Heartbeat interval. lapin drops a silent peer after twice this time, so it notices a half-open
/// socket within 20 s.
///
/// RabbitMQ advises against less than 5 s.
const HEARTBEAT_S: u16 = 10;

/// Maximum size of a frame: RabbitMQ's default.
///
/// lapin reserves 64 times this size for each connection. If it learns the size from the broker
/// only, it also fills that memory with zeros: 8 MiB stay resident.
const FRAME_MAX_BYTES: u32 = 131_072;

/// Time between two checks of a connection's state, beside its events.
///
/// Some ways to end emit no event.
pub(super) const STATE_INTERVAL: Duration = Duration::from_secs(1);

/// Runtime that polls the sockets of all connections.
///
/// It is not the caller's runtime, because dropping lapin's last handle blocks until lapin's own
/// thread has ended. That thread may wait for the socket.
static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).thread_name("amqp").enable_all().build()
});

/// Announcement of a session's end. The first cause stays.
#[derive(Debug, Clone)]
pub(super) struct EndSignal(Arc<watch::Sender<Option<SessionEnded>>>);

impl EndSignal {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// Announces the end, and returns the first cause.
    pub(super) fn end(&self, ended: impl Into<SessionEnded>) -> SessionEnded {
        let ended = ended.into();
        let mut first = ended.clone();
        self.0.send_if_modified(|cause| match cause {
            Some(earlier) => {
                // A connection's parsing error reaches its channels as a plain close.
                if ended.by_unreadable_message() && !earlier.by_unreadable_message() {
                    *earlier = ended;
                }
                first = earlier.clone();
                false
            }
            None => {
                *cause = Some(ended);
                true
            }
        });
        first
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<SessionEnded>> {
        self.0.subscribe()
    }

    pub(super) fn cause(&self) -> Option<SessionEnded> {
        self.0.borrow().clone()
    }
}

/// Connection, its socket, and the task that watches it.
#[derive(Debug)]
pub(super) struct Link {
    connection: Connection,
    socket: Arc<OnceLock<StdTcpStream>>,
    greeting: Arc<OnceLock<Greeting>>,
    vhost: String,
    signal: EndSignal,
    _watch: AbortOnDropHandle<()>,
}

impl Link {
    /// Connects to the first of the URLs that answers. `role` goes into the connection's name.
    pub(super) async fn connect(
        config: &AmqpConfig,
        role: &str,
        signal: &EndSignal,
        blocked: &Arc<watch::Sender<bool>>,
    ) -> Result<Self, BrokerError> {
        Self::connect_throttled(config, role, signal, blocked, None).await
    }

    /// Connects as [`connect`](Self::connect) does, and reads ahead no further than the allowance
    /// permits.
    pub(super) async fn connect_throttled(
        config: &AmqpConfig,
        role: &str,
        signal: &EndSignal,
        blocked: &Arc<watch::Sender<bool>>,
        allowance: Option<&Arc<Allowance>>,
    ) -> Result<Self, BrokerError> {
        let (mut refused, mut unreachable) = (Vec::new(), Vec::new());
        for url in &config.urls {
            match dial(
                url,
                &config.tls,
                &format!("unstale {}{role}", config.queue),
                allowance.cloned(),
            )
            .await
            {
                Ok(Dialled { connection, socket, greeting, vhost }) => {
                    let (events, status) =
                        (connection.events_listener(), connection.status().clone());
                    let task = tokio::spawn(watch_events(
                        events,
                        status,
                        signal.clone(),
                        Arc::clone(blocked),
                    ));
                    return Ok(Self {
                        connection,
                        socket,
                        greeting,
                        vhost,
                        signal: signal.clone(),
                        _watch: AbortOnDropHandle::new(task),
                    });
                }
                Err(BrokerError::Refused(cause)) => {
                    refused.push(NodeFailure { url: url.to_string(), cause });
                }
                Err(BrokerError::Unreachable(cause)) => {
                    unreachable.push(NodeFailure { url: url.to_string(), cause });
                }
                Err(other) => return Err(other),
            }
        }
        if refused.is_empty() {
            Err(BrokerError::Unreachable(unreachable.into()))
        } else {
            Err(BrokerError::Refused(refused.into()))
        }
    }

    /// Returns the broker's cluster name and virtual host; `None` if the broker does not send the
    /// name.
    pub(super) fn broker(&self) -> Option<String> {
        let cluster = self.greeting.get()?.cluster()?;
        Some(format!("{cluster} {}", self.vhost))
    }

    /// Opens a new channel.
    pub(super) async fn channel(&self) -> Result<Channel, SessionEnded> {
        answered(self.connection.create_channel()).await
    }

    /// Returns the largest frame that either side may send, in bytes.
    pub(super) fn frame_max_bytes(&self) -> u32 {
        self.connection.configuration().frame_max()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// Shuts down cleanly within [`CLOSE_TIMEOUT`]. The broker receives all that was written
    /// before.
    pub(super) async fn close(self) {
        self.signal.end(SessionEnded::new("closed by us"));
        // A failed close changes nothing: the socket is shut next.
        let _ = timeout(CLOSE_TIMEOUT, self.connection.close(200, "bye".into())).await;
    }
}

/// Cuts the socket. lapin's own drop waits for the peer. While the broker blocks publishing, lapin
/// waits for ever, with a thread and 8 MiB of buffers.
impl Drop for Link {
    fn drop(&mut self) {
        self.signal.end(SessionEnded::new("dropped by us"));
        hang_up(&self.socket);
    }
}

fn hang_up(socket: &OnceLock<StdTcpStream>) {
    if let Some(socket) = socket.get() {
        // An error means that the socket is closed already.
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// Awaits an answer of the broker, for [`ANSWER_TIMEOUT`] at most.
pub(super) async fn answered<T>(
    asked: impl Future<Output = lapin::Result<T>>,
) -> Result<T, SessionEnded> {
    match timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(SessionEnded::lost_connection(no_answer(ANSWER_TIMEOUT))),
    }
}

/// Returns the cause of a failure: the broker gave no answer in that time.
pub(super) fn no_answer(within: Duration) -> Cause {
    format!("no answer within {} s", within.as_secs()).into()
}

/// Connection that was just made.
struct Dialled {
    connection: Connection,
    socket: Arc<OnceLock<StdTcpStream>>,
    greeting: Arc<OnceLock<Greeting>>,
    vhost: String,
}

async fn dial(
    url: &SecretUrl,
    tls: &TlsConfig,
    name: &str,
    allowance: Option<Arc<Allowance>>,
) -> Result<Dialled, BrokerError> {
    let uri = amqp_uri(url)?;
    let vhost = uri.vhost.clone();
    let connector = match uri.scheme {
        AMQPScheme::AMQP => None,
        AMQPScheme::AMQPS => Some(tls_connector(tls)?),
    };
    let socket = Arc::new(OnceLock::new());
    let kept = Arc::clone(&socket);
    let greeting = Arc::new(OnceLock::new());
    let greets = Arc::clone(&greeting);
    let runtime = {
        let _on_it = RUNTIME
            .as_ref()
            .map_err(|error| BrokerError::Unreachable(Cause::new(NoThread(error))))?
            .enter();
        ThrottledTokio::current(allowance)
    };
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "unstale".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    // The closure runs on lapin's own thread and would wait as long as the kernel does. So it has a
    // limit of its own.
    let connecting = Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let open = async {
                let host = uri.authority.host.as_str();
                let mut outcome =
                    Err(io::Error::new(io::ErrorKind::NotFound, "the host name has no address"));
                for address in tokio::net::lookup_host((host, uri.authority.port)).await? {
                    outcome = AsyncTcpStream::connect(&runtime, address).await;
                    if outcome.is_ok() {
                        break;
                    }
                }
                let AsyncTcpStream::Plain(connected) = outcome? else {
                    return Err(io::Error::other("a socket that is none"));
                };
                let plain = connected.into_inner();
                if let Either::Left(plain) = &plain {
                    let _ = kept.set(StdTcpStream::from(
                        plain.socket().get_ref().as_fd().try_clone_to_owned()?,
                    ));
                }
                let stream = match (plain, &connector) {
                    (Either::Left(plain), Some(connector)) => {
                        Either::Right(connector.connect_async(host, plain).await?)
                    }
                    (stream, _) => stream,
                };
                let levelled = Levelled::new(stream);
                let _ = greets.set(levelled.greeting());
                Ok(AsyncTcpStream::Plain(levelled))
            };
            Ok(timeout(CONNECT_TIMEOUT, open)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
                .flatten()?)
        },
        properties,
    );
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(Dialled { connection, socket, greeting, vhost }),
        Ok(Err(error)) => Err(connect_error(error)),
        Err(_) => {
            hang_up(&socket);
            let cause = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
            Err(BrokerError::Unreachable(cause.into()))
        }
    }
}

/// Failure to start the thread that polls the sockets of all connections.
#[derive(Debug, thiserror::Error)]
#[error("no thread for connections")]
struct NoThread(#[source] &'static io::Error);

/// Reads the URL as lapin does, and corrects two errors of lapin.
///
/// lapin turns an IPv6 address into `localhost`, and reads `amqp://host/` as the virtual host with
/// an empty name.
fn amqp_uri(url: &SecretUrl) -> Result<AMQPUri, BrokerError> {
    // The parse error may contain the URL with its password.
    let mut uri: AMQPUri = url
        .expose()
        .as_str()
        .parse()
        .map_err(|_| BrokerError::Settings(format!("{url} is not an AMQP URL").into()))?;
    if let Some(url::Host::Ipv6(address)) = url.expose().host() {
        uri.authority.host = address.to_string();
    }
    if uri.vhost.is_empty() {
        "/".clone_into(&mut uri.vhost);
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    uri.query.frame_max.get_or_insert(FRAME_MAX_BYTES);
    Ok(uri)
}

/// Returns a connector that trusts `UNSTALE_AMQP_TLS_CA` alone if it is set, else the system's
/// roots.
fn tls_connector(tls: &TlsConfig) -> Result<RustlsConnector, BrokerError> {
    let certificates =
        |what: &'static str, pem: &str| -> Result<Vec<CertificateDer<'static>>, BrokerError> {
            let read: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|error| unusable(what, Cause::new(error)))?;
            if read.is_empty() {
                Err(unusable(what, "it holds no PEM certificate".into()))
            } else {
                Ok(read)
            }
        };
    let roots = match &tls.ca_pem {
        Some(pem) => {
            RustlsConnectorConfig::default().with_parsable_certificates(certificates("CA", pem)?)
        }
        None => RustlsConnectorConfig::new_with_native_certs()
            .map_err(|error| BrokerError::Settings(Cause::new(NoRoots(error))))?,
    };
    match (&tls.cert_pem, &tls.key_pem) {
        (None, None) => {
            roots.connector_with_no_client_auth().map_err(|error| unusable("CA", Cause::new(error)))
        }
        (Some(certificate), Some(key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|error| unusable("KEY", Cause::new(error)))?;
            roots
                .connector_with_single_cert(certificates("CERT", certificate)?, key)
                .map_err(|error| unusable("CERT", Cause::new(error)))
        }
        _ => Err(BrokerError::Settings(
            "UNSTALE_AMQP_TLS_CERT and UNSTALE_AMQP_TLS_KEY go together: set both or neither"
                .into(),
        )),
    }
}

fn unusable(what: &'static str, cause: Cause) -> BrokerError {
    BrokerError::Settings(Cause::new(UnusablePem { what, cause }))
}

/// Setting with a certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("UNSTALE_AMQP_TLS_{what} cannot be used")]
struct UnusablePem {
    what: &'static str,
    #[source]
    cause: Cause,
}

/// Failure to read the system's certificates.
#[derive(Debug, thiserror::Error)]
#[error("no certificate to trust: UNSTALE_AMQP_TLS_CA_FILE is not set, and the system has none")]
struct NoRoots(#[source] io::Error);

async fn watch_events(
    events: impl Stream<Item = Event>,
    status: ConnectionStatus,
    signal: EndSignal,
    blocked: Arc<watch::Sender<bool>>,
) {
    let mut events = std::pin::pin!(events);
    let mut look = interval(STATE_INTERVAL);
    loop {
        let ended = tokio::select! {
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::warn!(reason, "RabbitMQ takes no messages from us");
                    blocked.send_replace(true);
                    continue;
                }
                Some(Event::ConnectionUnblocked) => {
                    tracing::info!("RabbitMQ takes messages from us again");
                    blocked.send_replace(false);
                    continue;
                }
                // The owner of a channel handles the channel's end.
                Some(Event::Error(error)) if error.is_amqp_soft_error() => continue,
                Some(Event::Error(error)) => SessionEnded::from(error),
                Some(_) => continue,
                None => SessionEnded::lost_connection("the connection is gone"),
            },
            _ = look.tick() => {
                if status.connected() {
                    continue;
                }
                SessionEnded::lost_connection("the connection is closed")
            }
        };
        signal.end(ended);
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causes::Explain;

    fn uri(text: &str) -> AMQPUri {
        amqp_uri(&SecretUrl::new(text.parse().unwrap())).unwrap()
    }

    #[test]
    fn urls_are_read_as_meant() {
        let full = uri("amqps://me:p%40ss@rabbit.example:5999/a%2fb?heartbeat=30");
        assert_eq!(
            (full.authority.host.as_str(), full.authority.port, full.vhost.as_str()),
            ("rabbit.example", 5999, "a/b")
        );
        assert_eq!(
            (full.authority.userinfo.password.as_str(), full.query.heartbeat),
            ("p@ss", Some(30))
        );
        let bare = uri("amqp://127.0.0.1");
        assert_eq!(
            (bare.authority.host.as_str(), bare.authority.port, bare.vhost.as_str()),
            ("127.0.0.1", 5672, "/")
        );
        assert_eq!(
            (bare.query.heartbeat, bare.query.frame_max),
            (Some(HEARTBEAT_S), Some(FRAME_MAX_BYTES))
        );
        assert_eq!(uri("amqp://[::1]:5673/").authority.host, "::1", "not localhost");
        assert_eq!(uri("amqp://host/").vhost, "/");
    }

    #[test]
    fn an_unusable_url_is_refused_without_its_password() {
        let url = SecretUrl::new("http://me:secret@host/".parse().unwrap());
        let error = amqp_uri(&url).unwrap_err();
        assert!(error.is_final());
        assert!(!error.in_full().contains("secret"), "{error}");
    }

    #[test]
    fn unusable_certificates_are_named() {
        let pem = "-----BEGIN NOTHING-----\n-----END NOTHING-----\n".to_owned();
        let ca = TlsConfig { ca_pem: Some(pem.clone()), ..TlsConfig::default() };
        assert_eq!(
            tls_connector(&ca).unwrap_err().in_full(),
            "UNSTALE_AMQP_TLS_CA cannot be used: it holds no PEM certificate"
        );
    }

    #[test]
    fn the_first_cause_of_an_end_stays() {
        let signal = EndSignal::new();
        assert!(signal.cause().is_none());
        for cause in ["first", "second"] {
            let ended = signal.end(SessionEnded::new(cause));
            assert_eq!(ended.in_full(), "the session with RabbitMQ ended: first");
        }
    }
}
