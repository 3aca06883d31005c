//! Failures of the broker, sorted by what an operator can do.

use std::fmt;
use std::sync::Arc;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Error, ErrorKind};

use super::reply_text;
use crate::tls;

/// Advice for a missing permission.
pub(super) const GRANT: &str =
    "grant the permission: docs/reference/rabbitmq-permissions.md lists them for each user";

/// Reason why a session cannot begin.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// A retry may help.
    #[error("RabbitMQ cannot be reached: {0}")]
    Unreachable(String),
    /// A retry will not help: credentials, virtual host, permissions.
    #[error(
        "RabbitMQ refused us: {0}; check the user, the password and the virtual host in UNSTALE_AMQP_URL, and \
             that the user has permissions there: docs/reference/rabbitmq-permissions.md"
    )]
    Refused(String),
    /// A setting cannot be used.
    #[error("{0}")]
    Settings(String),
    /// Objects are missing or differ; the error lists all of them.
    #[error("{}", list(.0))]
    Topology(Vec<TopologyProblem>),
    /// The broker answers, but cannot serve the history.
    #[error("stream `{queue}`: {words}; {}", .problem.advice())]
    History {
        /// Kind of the problem.
        problem: HistoryProblem,
        /// The stream's name.
        queue: String,
        /// The broker's words, if it has any.
        words: String,
    },
}

/// Reason why the history cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryProblem {
    /// The history does not exist.
    Missing,
    /// The user may not read it.
    Forbidden,
    /// A queue of another type has its name.
    NotAStream,
    /// The history exists, and the broker fails when it reads it.
    Broken,
}

impl HistoryProblem {
    fn advice(self) -> &'static str {
        match self {
            Self::Missing => {
                "workers declare it when they start, unless UNSTALE_HISTORY=off (which brokers without streams need): without it there is \
                 nothing to replay. Look at UNSTALE_QUEUE and at the virtual host in UNSTALE_AMQP_URL"
            }
            Self::Forbidden => GRANT,
            Self::NotAStream => {
                "move its messages and delete it by hand, or set UNSTALE_QUEUE to another name"
            }
            Self::Broken => {
                "look at the broker's log; a stream that stays so is deleted by hand, and the workers declare it anew"
            }
        }
    }
}

impl BrokerError {
    /// Returns whether a retry cannot help until an operator changes something.
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Unreachable(_) | Self::History { problem: HistoryProblem::Broken, .. }
        )
    }
}

/// Problem with one object of the contract, and the advice for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {what}; {advice}")]
pub struct TopologyProblem {
    /// Object, such as ``queue `unstale.dead` ``.
    pub object: String,
    /// The broker's words, if it has any.
    pub what: String,
    /// Advice for the operator.
    pub advice: String,
}

fn list(problems: &[TopologyProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// End of a session, which is then dropped.
///
/// The broker redelivers all that was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnded {
    cause: Arc<str>,
    unreadable: bool,
    is_lost_connection: bool,
    queue_gone: bool,
}

impl SessionEnded {
    /// Returns the end of a session for that cause.
    pub fn new(cause: impl Into<Arc<str>>) -> Self {
        Self {
            cause: cause.into(),
            unreadable: false,
            is_lost_connection: false,
            queue_gone: false,
        }
    }

    /// Returns the end of a session whose connection is lost, for any cause.
    pub fn lost_connection(cause: impl Into<Arc<str>>) -> Self {
        Self { is_lost_connection: true, ..Self::new(cause) }
    }

    /// Returns whether the network or the broker ended the connection.
    ///
    /// Then a message is not the cause.
    pub fn is_lost_connection(&self) -> bool {
        self.is_lost_connection
    }

    /// Returns the end of a session whose queue was deleted, or may have been.
    pub(super) fn by_deletion(cause: impl Into<Arc<str>>) -> Self {
        Self { queue_gone: true, ..Self::new(cause) }
    }

    /// Returns whether a queue was deleted, or may have been.
    ///
    /// Events may have gone to the history alone until the queue is declared again.
    pub fn queue_may_be_gone(&self) -> bool {
        self.queue_gone
    }

    /// Returns whether a message that `lapin` cannot parse ended the connection.
    ///
    /// Such a message has a short string that is not UTF-8. The broker delivers it again until its
    /// delivery limit is reached. With a prefetch of 1, no other message is redelivered with it.
    pub fn by_unreadable_message(&self) -> bool {
        self.unreadable
    }
}

impl fmt::Display for SessionEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the session with RabbitMQ ended: {}", self.cause)
    }
}

impl std::error::Error for SessionEnded {}

impl From<Error> for SessionEnded {
    fn from(error: Error) -> Self {
        Self {
            unreadable: matches!(error.kind(), ErrorKind::ParsingError(_)),
            is_lost_connection: is_lost_connection(&error),
            ..Self::new(words(&error))
        }
    }
}

/// Returns whether the error shows a lost connection, and nothing about what was sent on it.
fn is_lost_connection(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::IOError(_)
        | ErrorKind::RuntimeShutdownError(_)
        | ErrorKind::MissingHeartbeatError
        | ErrorKind::InvalidConnectionState(_)
        | ErrorKind::InvalidChannelState(..) => true,
        // A node that shuts down, or an operator who closes connections.
        ErrorKind::ProtocolError(protocol) => {
            matches!(protocol.kind(), AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED))
        }
        _ => false,
    }
}

impl From<SessionEnded> for BrokerError {
    fn from(ended: SessionEnded) -> Self {
        Self::Unreachable(ended.cause.to_string())
    }
}

/// Reason why a message is not known to be in a queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue took it, because none is bound there.
    #[error("no queue took the message: {0}")]
    Returned(String),
    /// The broker could not store it, or a queue is full.
    #[error(
        "RabbitMQ did not take the message (basic.nack): a queue is full or has lost its quorum"
    )]
    Nacked,
    /// The broker refused it in these words: no such exchange, no permission.
    #[error("RabbitMQ refused the message: {}", with_advice(.0))]
    Refused(String),
    /// The message cannot be sent as it is.
    #[error("{0}")]
    Unsendable(String),
    /// The broker blocks publishing at the moment (memory or disk alarm).
    #[error("RabbitMQ takes no messages at the moment: a memory or disk alarm")]
    Blocked,
    /// The connection is lost, or gave no confirm in time. The message may or may not have arrived.
    #[error(transparent)]
    Ended(#[from] SessionEnded),
}

/// Returns the broker's words, with advice if a permission is missing.
fn with_advice(words: &str) -> String {
    if reply_text::is_access_refused(words) {
        format!("{words}; {GRANT}")
    } else {
        words.to_owned()
    }
}

/// Outcome of a failed operation on an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The object does not exist.
    Missing(String),
    /// The object has other arguments, or is exclusive to another connection.
    Differs(String),
    /// The user lacks a permission.
    Forbidden(String),
    /// The broker does not support it.
    Unsupported(String),
    /// Any other failure: the connection, a timeout, a cluster in trouble.
    Passing(String),
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        let text = words(error);
        let ErrorKind::ProtocolError(protocol) = error.kind() else { return Self::Passing(text) };
        match protocol.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) if reply_text::is_missing(&text) => {
                Self::Missing(text)
            }
            AMQPErrorKind::Soft(
                AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::RESOURCELOCKED,
            ) => Self::Differs(text),
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Self::Forbidden(text),
            AMQPErrorKind::Hard(
                AMQPHardError::NOTIMPLEMENTED
                | AMQPHardError::COMMANDINVALID
                | AMQPHardError::SYNTAXERROR,
            ) => Self::Unsupported(text),
            _ => Self::Passing(text),
        }
    }
}

/// Classifies a failed attempt to connect.
pub(super) fn connect_error(error: &Error) -> BrokerError {
    let text = words(error);
    if let Some(explained) = tls::AMQP.explain(&text) {
        return BrokerError::Unreachable(explained);
    }
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => match protocol.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => BrokerError::Refused(text),
            // RabbitMQ also uses this code for the limit of connections, which is temporary.
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if !reply_text::is_limit(&text) => {
                BrokerError::Refused(text)
            }
            _ => BrokerError::Unreachable(text),
        },
        ErrorKind::ParsingError(_) => BrokerError::Unreachable(format!(
            "what answers there speaks no AMQP: if the port speaks TLS, write amqps:// instead of amqp:// in UNSTALE_AMQP_URL ({text})"
        )),
        ErrorKind::InvalidProtocolVersion(_) | ErrorKind::AuthProviderError(_) => {
            BrokerError::Refused(text)
        }
        _ => BrokerError::Unreachable(text),
    }
}

/// Returns the broker's own words if it has any, else lapin's.
pub(super) fn words(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => protocol.get_message().to_string(),
        ErrorKind::IOError(io) => io.to_string(),
        _ => error.to_string(),
    }
}
