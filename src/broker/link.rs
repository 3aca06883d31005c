//! One connection to the broker: connected with timeouts, watched, and always cut when dropped.

mod dial;

use std::net::TcpStream as StdTcpStream;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::{Channel, Connection, ConnectionStatus, Event};
use tokio::sync::watch;
use tokio::time::{interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::failure::{BrokerError, NodeFailure, SessionEnded};
use super::greeting::Greeting;
use super::throttle::Allowance;
use crate::backoff::Doubling;
use crate::causes::Cause;
use crate::config::AmqpConfig;
use dial::{Dialled, dial, hang_up};

/// Pauses between two attempts to connect.
pub const RECONNECT_PAUSES: Doubling =
    Doubling { first: Duration::from_millis(500), longest: Duration::from_secs(30) };

/// Maximum time for one request and its answer.
///
/// Declaring a quorum queue takes seconds on a busy cluster.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time for the closing handshake, before the socket is shut anyway.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two checks of a connection's state, beside its events.
///
/// Some ways to end emit no event.
pub(super) const STATE_INTERVAL: Duration = Duration::from_secs(1);

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
                // A connection's parsing error, or its end by the broker, reaches its channels as a
                // plain close.
                let is_cause =
                    ended.by_undeliverable_message() && !earlier.by_undeliverable_message();
                if is_cause {
                    *earlier = ended;
                }
                first = earlier.clone();
                is_cause
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
