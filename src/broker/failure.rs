//! What can go wrong with the broker, sorted by what its user can do about it.

use std::fmt;
use std::sync::Arc;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Error, ErrorKind};

use crate::tls;

/// Why there is no session.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// Trying again may help.
    #[error("RabbitMQ cannot be reached: {0}")]
    Unreachable(String),
    /// Trying again will not help: credentials, virtual host, permissions.
    #[error("RabbitMQ refused us: {0}; check the user, the password and the virtual host in UNSTALE_AMQP_URL")]
    Refused(String),
    /// A setting cannot be used.
    #[error("{0}")]
    Settings(String),
    /// Objects are missing or not as we need them; all of them are told.
    #[error("{}", list(.0))]
    Topology(Vec<TopologyProblem>),
}

impl BrokerError {
    /// Whether trying again without a change by a person is in vain.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Unreachable(_))
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

/// A session is over and is to be dropped whole; what it delivered and we did not acknowledge comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnded {
    cause: Arc<str>,
    unreadable: bool,
}

impl SessionEnded {
    /// Ended for that cause.
    pub fn new(cause: impl Into<Arc<str>>) -> Self {
        Self { cause: cause.into(), unreadable: false }
    }

    /// A message came that `lapin` cannot parse (a short string that is no UTF-8), and took the connection with it. It will come again:
    /// with a prefetch of 1 it harms no neighbour until the broker's delivery limit takes it out.
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
        Self { cause: words(&error).into(), unreadable: matches!(error.kind(), ErrorKind::ParsingError(_)) }
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
    #[error("RabbitMQ did not take the message (basic.nack): a queue is full or has lost its quorum")]
    Nacked,
    /// The broker refused it in these words: no such exchange, no permission.
    #[error("RabbitMQ refused the message: {0}")]
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
            // A queue whose node is down is "not found" too: only "no queue" and "no exchange" say that there is none.
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) if text.contains("no queue") || text.contains("no exchange") => {
                Self::Missing(text)
            }
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::RESOURCELOCKED) => Self::Differs(text),
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Self::Forbidden(text),
            AMQPErrorKind::Hard(AMQPHardError::NOTIMPLEMENTED | AMQPHardError::COMMANDINVALID | AMQPHardError::SYNTAXERROR) => {
                Self::Unsupported(text)
            }
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
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if !text.contains("limit") => BrokerError::Refused(text),
            _ => BrokerError::Unreachable(text),
        },
        ErrorKind::ParsingError(_) => BrokerError::Unreachable(format!(
            "what answers there speaks no AMQP: if the port speaks TLS, write amqps:// instead of amqp:// in UNSTALE_AMQP_URL ({text})"
        )),
        ErrorKind::InvalidProtocolVersion(_) | ErrorKind::AuthProviderError(_) => BrokerError::Refused(text),
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
