//! Failures of the broker, sorted by what an operator can do.

use std::borrow::Cow;
use std::fmt;

use super::refusal::AmqpError;
use crate::causes::{Cause, Explain, chain};
use crate::tls;

/// Advice for a missing permission.
pub(super) const GRANT: &str =
    "grant the permission: docs/reference/rabbitmq-permissions.md lists them for each user";

/// Reason why a session cannot begin.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// A retry may help.
    #[error("RabbitMQ cannot be reached")]
    Unreachable(#[source] Cause),
    /// A retry will not help: credentials, virtual host, permissions.
    #[error("RabbitMQ refused us")]
    Refused(#[source] Cause),
    /// A setting cannot be used.
    #[error(transparent)]
    Settings(Cause),
    /// Objects are missing or differ; the error lists all of them.
    #[error("{}", list(.0))]
    Topology(Vec<TopologyProblem>),
    /// The broker answers, but cannot serve the history.
    #[error("stream `{queue}`")]
    History {
        /// Kind of the problem.
        problem: HistoryProblem,
        /// The stream's name.
        queue: String,
        /// The broker's words, if it has any.
        #[source]
        cause: Cause,
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

    /// Returns whether the user lacks a permission.
    pub fn is_access_refused(&self) -> bool {
        self.reply().is_some_and(AmqpError::is_access_refused)
    }

    /// Returns whether the broker itself failed.
    pub(super) fn is_internal_error(&self) -> bool {
        self.reply().is_some_and(AmqpError::is_internal_error)
    }

    fn reply(&self) -> Option<&AmqpError> {
        match self {
            Self::Unreachable(cause)
            | Self::Refused(cause)
            | Self::Settings(cause)
            | Self::History { cause, .. } => cause.get(),
            Self::Topology(_) => None,
        }
    }
}

impl Explain for BrokerError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Refused(_) => Some(
                "check the user, the password and the virtual host in UNSTALE_AMQP_URL, and that the user has permissions there: \
                 docs/reference/rabbitmq-permissions.md"
                    .into(),
            ),
            Self::History { problem, .. } => Some(problem.advice().into()),
            // Each problem of a list has advice of its own.
            Self::Unreachable(_) | Self::Settings(_) | Self::Topology(_) => None,
        }
    }
}

/// Object of the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContractObject {
    /// An exchange.
    Exchange(String),
    /// A queue, or the history.
    Queue(String),
    /// A queue's binding to a routing key.
    Binding {
        /// The queue.
        queue: String,
        /// The routing key.
        key: String,
    },
}

impl fmt::Display for ContractObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(name) if name.is_empty() => f.write_str("the default exchange"),
            Self::Exchange(name) => write!(f, "exchange `{name}`"),
            Self::Queue(name) => write!(f, "queue `{name}`"),
            Self::Binding { queue, key } => write!(f, "binding of queue `{queue}` to `{key}`"),
        }
    }
}

/// Problem with one object of the contract, and the advice for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{object}")]
pub struct TopologyProblem {
    /// The object.
    pub object: ContractObject,
    /// The broker's words, if it has any.
    #[source]
    pub cause: Cause,
    /// Advice for the operator.
    pub advice: Cow<'static, str>,
}

impl TopologyProblem {
    /// Returns whether the object is missing because there is no such queue.
    pub(super) fn is_missing_queue(&self) -> bool {
        self.cause.get().is_some_and(AmqpError::is_missing_queue)
    }
}

impl Explain for TopologyProblem {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(self.advice.clone())
    }
}

fn list(problems: &[TopologyProblem]) -> String {
    problems.iter().map(Explain::in_full).collect::<Vec<_>>().join("\n")
}

/// Failure to connect to one node.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{url}")]
pub(super) struct NodeFailure {
    /// The node's URL, without its password.
    pub(super) url: String,
    #[source]
    pub(super) cause: Cause,
}

/// Failures to connect to several nodes.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(|failure| chain(failure).to_string()).collect::<Vec<_>>().join("; "))]
struct NodeFailures(Vec<NodeFailure>);

impl From<Vec<NodeFailure>> for Cause {
    fn from(mut failures: Vec<NodeFailure>) -> Self {
        match failures.pop() {
            Some(only) if failures.is_empty() => Self::new(only),
            last => {
                failures.extend(last);
                Self::new(NodeFailures(failures))
            }
        }
    }
}

/// End of a session, which is then dropped.
///
/// The broker redelivers all that was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the session with RabbitMQ ended")]
pub struct SessionEnded {
    #[source]
    cause: Cause,
    is_lost_connection: bool,
    queue_gone: bool,
}

impl SessionEnded {
    /// Returns the end of a session for that cause.
    pub fn new(cause: impl Into<Cause>) -> Self {
        Self { cause: cause.into(), is_lost_connection: false, queue_gone: false }
    }

    /// Returns the end of a session whose connection is lost, for any cause.
    pub fn lost_connection(cause: impl Into<Cause>) -> Self {
        Self { is_lost_connection: true, ..Self::new(cause) }
    }

    /// Returns whether the network or the broker ended the connection.
    ///
    /// Then a message is not the cause.
    pub fn is_lost_connection(&self) -> bool {
        self.is_lost_connection
    }

    /// Returns the end of a session whose queue was deleted, or may have been.
    pub fn by_deletion(cause: impl Into<Cause>) -> Self {
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
        self.cause.get().is_some_and(AmqpError::is_unreadable_message)
    }

    /// Returns whether a message that the broker or `lapin` cannot handle may have ended the
    /// connection.
    ///
    /// The broker ends it (`INTERNAL_ERROR`) if it cannot convert a message for this consumer. A
    /// message that did arrive is not the cause.
    pub fn by_undeliverable_message(&self) -> bool {
        let is_crash = self.cause.get().is_some_and(AmqpError::is_channel_crash);
        is_crash || self.by_unreadable_message()
    }

    /// Returns whether the broker itself failed.
    pub(super) fn is_internal_error(&self) -> bool {
        self.cause.get().is_some_and(AmqpError::is_internal_error)
    }
}

impl Explain for SessionEnded {}

impl From<lapin::Error> for SessionEnded {
    fn from(error: lapin::Error) -> Self {
        AmqpError::from(error).into()
    }
}

impl From<AmqpError> for SessionEnded {
    fn from(error: AmqpError) -> Self {
        Self { is_lost_connection: error.is_lost_connection(), ..Self::new(error) }
    }
}

impl From<SessionEnded> for BrokerError {
    fn from(ended: SessionEnded) -> Self {
        Self::Unreachable(ended.cause)
    }
}

/// Reason why a message is not known to be in a queue.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// No queue took it, because none is bound there.
    #[error("no queue took the message: {0}")]
    Returned(String),
    /// The broker could not store it, or a queue is full.
    #[error(
        "RabbitMQ did not take the message (basic.nack): a queue is full or has lost its quorum"
    )]
    Nacked,
    /// The broker refused it: no such exchange, no permission.
    #[error("RabbitMQ refused the message")]
    Refused(#[source] AmqpError),
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

impl Explain for PublishError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Refused(error) if error.is_access_refused() => Some(GRANT.into()),
            Self::Refused(error) if error.is_missing_exchange() => {
                Some("start a worker, which declares the exchange, or set UNSTALE_EXCHANGE".into())
            }
            Self::Ended(ended) => ended.advice(),
            _ => None,
        }
    }
}

/// Classifies a failed attempt to connect.
pub(super) fn connect_error(error: lapin::Error) -> BrokerError {
    let error = AmqpError::from(error);
    if let Some(explained) = tls::AMQP.explain(&error) {
        BrokerError::Unreachable(Cause::new(explained))
    } else if error.is_unreadable_message() {
        BrokerError::Unreachable(Cause::new(NoAmqp(error)))
    } else if error.is_limit() {
        BrokerError::Unreachable(Cause::new(AtLimit(error)))
    } else if error.refuses_connection() {
        BrokerError::Refused(error.into())
    } else {
        BrokerError::Unreachable(error.into())
    }
}

/// Answer that is not AMQP.
#[derive(Debug, thiserror::Error)]
#[error(
    "what answers there speaks no AMQP: if the port speaks TLS, write amqps:// instead of amqp:// in UNSTALE_AMQP_URL"
)]
struct NoAmqp(#[source] AmqpError);

/// Refusal for a limit of connections or channels.
#[derive(Debug, thiserror::Error)]
#[error(
    "a limit of connections or channels is reached; raise that limit (of the virtual host, the user or the node), or close other connections"
)]
struct AtLimit(#[source] AmqpError);

#[cfg(test)]
mod tests;
