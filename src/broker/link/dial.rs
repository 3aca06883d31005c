//! Connects to one node: reads its URL and certificates, and limits the time of each step.

use std::io;
use std::net::{Shutdown, TcpStream as StdTcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use futures_util::future::Either;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls_connector::{RustlsConnector, RustlsConnectorConfig};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::super::failure::{BrokerError, connect_error};
use super::super::greeting::Greeting;
use super::super::nesting::Levelled;
use super::super::throttle::{Allowance, ThrottledTokio};
use crate::causes::Cause;
use crate::config::{SecretUrl, TlsConfig};

/// Maximum time to connect to one node: name resolution, TCP, TLS and the AMQP handshake together.
///
/// lapin itself has no such limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Heartbeat interval. lapin drops a peer that sends nothing for twice this time, so it notices a
/// half-open socket within 20 s.
///
/// RabbitMQ advises against less than 5 s.
const HEARTBEAT_S: u16 = 10;

/// Maximum size of a frame: RabbitMQ's default.
///
/// lapin reserves 64 times this size for each connection. If it learns the size from the broker
/// only, it also fills that memory with zeros: 8 MiB stay resident.
const FRAME_MAX_BYTES: u32 = 131_072;

/// Runtime that polls the sockets of all connections.
///
/// It is not the caller's runtime, because dropping lapin's last handle blocks until lapin's own
/// thread has ended. That thread may wait for the socket.
static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).thread_name("amqp").enable_all().build()
});

/// Connection that was just made.
pub(super) struct Dialled {
    pub(super) connection: Connection,
    pub(super) socket: Arc<OnceLock<StdTcpStream>>,
    pub(super) greeting: Arc<OnceLock<Greeting>>,
    pub(super) vhost: String,
}

/// Connects to one node, with TLS if its URL asks for it.
pub(super) async fn dial(
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

/// Cuts a connection without waiting for the peer.
pub(super) fn hang_up(socket: &OnceLock<StdTcpStream>) {
    if let Some(socket) = socket.get() {
        // An error means that the socket is closed already.
        let _ = socket.shutdown(Shutdown::Both);
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
}
