//! What can go wrong with the broker, sorted by what its user can do about it.

use std::fmt;
use std::sync::Arc;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Error, ErrorKind};

use super::reply_text;
use crate::tls;

/// What to do about a missing permission.
pub(super) const GRANT: &str = "grant the permission: \"Permissions in RabbitMQ\" in docs/OPERATIONS.md lists them for each user";

/// Why there is no session.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// Trying again may help.
    #[error("RabbitMQ cannot be reached: {0}")]
    Unreachable(String),
    /// Trying again will not help: credentials, virtual host, permissions.
    #[error(
        "RabbitMQ refused us: {0}; check the user, the password and the virtual host in UNSTALE_AMQP_URL, and \
             that the user has permissions there: \"Permissions in RabbitMQ\" in docs/OPERATIONS.md"
    )]
    Refused(String),
    /// A setting cannot be used.
    #[error("{0}")]
    Settings(String),
    /// Objects are missing or not as we need them; all of them are told.
    #[error("{}", list(.0))]
    Topology(Vec<TopologyProblem>),
    /// The broker answers, and cannot serve the history.
    #[error("stream `{queue}`: {words}; {}", .problem.advice())]
    History {
        /// What is wrong with it.
        problem: HistoryProblem,
        /// The stream's name.
        queue: String,
        /// The broker's words where it has any.
        words: String,
    },
}

/// Why the history cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryProblem {
    /// There is none.
    Missing,
    /// The user may not read it.
    Forbidden,
    /// A queue of another type has its name.
    NotAStream,
    /// It is there, and the broker fails over it.
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
    /// Whether trying again without a change by a person is in vain.
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Unreachable(_) | Self::History { problem: HistoryProblem::Broken, .. }
        )
    }
}

/// What is wrong with one object of the contract, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {what}; {advice}")]
pub struct TopologyProblem {
    /// Such as ``queue `unstale.dead` ``.
    pub object: String,
    /// The broker's words where it has any.
    pub what: String,
    /// What a person can do.
    pub advice: String,
}

fn list(problems: &[TopologyProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A session is over and is to be dropped whole; what it delivered and we did not acknowledge comes
/// back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnded {
    cause: Arc<str>,
    unreadable: bool,
    is_lost_connection: bool,
    queue_gone: bool,
}

impl SessionEnded {
    /// Ended for that cause.
    pub fn new(cause: impl Into<Arc<str>>) -> Self {
        Self {
            cause: cause.into(),
            unreadable: false,
            is_lost_connection: false,
            queue_gone: false,
        }
    }

    /// Returns the end of a session whose connection is gone, for whatever cause.
    pub fn lost_connection(cause: impl Into<Arc<str>>) -> Self {
        Self { is_lost_connection: true, ..Self::new(cause) }
    }

    /// Whether the network or the broker ended the connection: no sign that a message did.
    pub fn is_lost_connection(&self) -> bool {
        self.is_lost_connection
    }

    /// Ended since a queue was deleted, or may have been.
    pub(super) fn by_deletion(cause: impl Into<Arc<str>>) -> Self {
        Self { queue_gone: true, ..Self::new(cause) }
    }

    /// A queue was deleted, or may have been: whoever declares it anew, events may have gone to the
    /// history alone meanwhile.
    pub fn queue_may_be_gone(&self) -> bool {
        self.queue_gone
    }

    /// A message came that `lapin` cannot parse (a short string that is no UTF-8), and took the
    /// connection with it. It will come again: with a prefetch of 1 it harms no neighbour until the
    /// broker's delivery limit takes it out.
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

/// Whether the error says that the connection is gone, and nothing of what was sent on it.
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

/// Why a message is not known to stand in a queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue took it: nothing is bound there.
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
    /// The broker takes nothing at the moment (memory or disk alarm).
    #[error("RabbitMQ takes no messages at the moment: a memory or disk alarm")]
    Blocked,
    /// The connection is gone, or gave no confirm in time: the message may have arrived or not.
    #[error(transparent)]
    Ended(#[from] SessionEnded),
}

/// The broker's words, and what to do where a permission is missing.
fn with_advice(words: &str) -> String {
    if reply_text::is_access_refused(words) {
        format!("{words}; {GRANT}")
    } else {
        words.to_owned()
    }
}

/// What an operation on an object came to, when it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no such object.
    Missing(String),
    /// It stands with other arguments, or somebody holds it for himself.
    Differs(String),
    /// We may not.
    Forbidden(String),
    /// The broker does not know how.
    Unsupported(String),
    /// Anything else: the connection, a timeout, a cluster in trouble.
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

/// Sorts what a try to connect came to.
pub(super) fn connect_error(error: &Error) -> BrokerError {
    let text = words(error);
    if let Some(explained) = tls::AMQP.explain(&text) {
        return BrokerError::Unreachable(explained);
    }
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => match protocol.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => BrokerError::Refused(text),
            // Also used when a limit of connections is reached, which passes.
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

/// The broker's own words where it has any, else lapin's.
pub(super) fn words(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => protocol.get_message().to_string(),
        ErrorKind::IOError(io) => io.to_string(),
        _ => error.to_string(),
    }
}
