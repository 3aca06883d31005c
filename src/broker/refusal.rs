//! Errors of the AMQP library, and the kinds of refusals among them.

use std::error::Error;
use std::fmt;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use super::reply_text::{self, NotFound, Precondition, precondition_failed};
use crate::causes::Cause;

/// Error of the AMQP library. Its text is the broker's reply text, if the broker sent one.
#[derive(Debug, Clone)]
pub struct AmqpError(lapin::Error);

impl AmqpError {
    fn reply(&self) -> Option<&AMQPErrorKind> {
        match self.0.kind() {
            ErrorKind::ProtocolError(protocol) => Some(protocol.kind()),
            _ => None,
        }
    }

    /// Returns the broker's reply text, or an empty text if the broker sent none.
    pub(super) fn text(&self) -> &str {
        match self.0.kind() {
            ErrorKind::ProtocolError(protocol) => protocol.get_message().as_str(),
            _ => "",
        }
    }

    pub(super) fn kind(&self) -> &ErrorKind {
        self.0.kind()
    }

    /// Returns whether the user lacks a permission.
    pub fn is_access_refused(&self) -> bool {
        matches!(self.reply(), Some(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)))
    }

    /// Returns whether there is no such queue.
    pub fn is_missing_queue(&self) -> bool {
        self.not_found() == Some(NotFound::Queue)
    }

    /// Returns whether there is no such exchange.
    pub fn is_missing_exchange(&self) -> bool {
        self.not_found() == Some(NotFound::Exchange)
    }

    fn not_found(&self) -> Option<NotFound> {
        matches!(self.reply(), Some(AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)))
            .then(|| reply_text::not_found(self.text()))
    }

    /// Returns whether the broker itself failed.
    pub(super) fn is_internal_error(&self) -> bool {
        matches!(self.reply(), Some(AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR)))
    }

    /// Returns whether a channel of the broker crashed, as when it cannot convert a message.
    ///
    /// The reply text of any other internal error has an explanation.
    pub(super) fn is_channel_crash(&self) -> bool {
        self.is_internal_error() && self.text() == "INTERNAL_ERROR"
    }

    /// Returns whether the broker knows the queue, and none of its nodes can serve it.
    pub(super) fn is_unserved(&self) -> bool {
        self.not_found() == Some(NotFound::Unserved) || self.is_internal_error()
    }

    /// Returns whether a message that the library cannot parse ended the connection.
    pub(super) fn is_unreadable_message(&self) -> bool {
        matches!(self.kind(), ErrorKind::ParsingError(_))
    }

    /// Returns whether the connection is lost. This does not show whether the broker received what
    /// was sent on it.
    pub(super) fn is_lost_connection(&self) -> bool {
        match self.kind() {
            ErrorKind::IOError(_)
            | ErrorKind::RuntimeShutdownError(_)
            | ErrorKind::MissingHeartbeatError
            | ErrorKind::InvalidConnectionState(_)
            | ErrorKind::InvalidChannelState(..) => true,
            // A node that shuts down, or an operator who closes connections.
            _ => {
                matches!(self.reply(), Some(AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED)))
            }
        }
    }

    /// Returns whether a limit of connections or channels is reached.
    pub(super) fn is_limit(&self) -> bool {
        matches!(self.reply(), Some(AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)))
            && reply_text::is_limit(self.text())
    }

    /// Returns whether the broker keeps names of that kind for itself.
    pub(super) fn is_reserved_name(&self) -> bool {
        self.is_access_refused() && reply_text::is_reserved_name(self.text())
    }

    /// Returns whether the broker refuses a connection until an operator changes something.
    pub(super) fn refuses_connection(&self) -> bool {
        match self.reply() {
            Some(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)) => true,
            // RabbitMQ also uses this code for the limit of connections, which is temporary.
            Some(AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)) => !self.is_limit(),
            Some(_) => false,
            None => matches!(
                self.kind(),
                ErrorKind::InvalidProtocolVersion(_) | ErrorKind::AuthProviderError(_)
            ),
        }
    }
}

impl fmt::Display for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            ErrorKind::ProtocolError(protocol) => f.write_str(protocol.get_message().as_str()),
            ErrorKind::IOError(io) => io.fmt(f),
            _ => self.0.fmt(f),
        }
    }
}

impl Error for AmqpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self.kind() {
            // The error shows only the broker's reply text.
            ErrorKind::ProtocolError(_) => None,
            _ => self.0.source(),
        }
    }
}

impl From<lapin::Error> for AmqpError {
    fn from(error: lapin::Error) -> Self {
        Self(error)
    }
}

impl From<AmqpError> for Cause {
    fn from(error: AmqpError) -> Self {
        Self::new(error)
    }
}

impl From<lapin::Error> for Cause {
    fn from(error: lapin::Error) -> Self {
        Self::new(AmqpError(error))
    }
}

/// Kind of failure of an operation on a queue, an exchange or a binding.
#[derive(Debug, Clone)]
pub(super) enum Refusal {
    /// The object does not exist.
    Missing(AmqpError),
    /// The object has other arguments, or the broker cannot make one with ours.
    Differs(AmqpError),
    /// The object is exclusive to another connection.
    Locked(AmqpError),
    /// A limit on the number of queues or exchanges is reached.
    AtLimit(AmqpError),
    /// The user lacks a permission.
    Forbidden(AmqpError),
    /// The broker does not support the operation.
    Unsupported(AmqpError),
    /// Any other failure, which may pass: a lost connection, a timeout, a cluster in trouble.
    Passing(AmqpError),
}

impl From<lapin::Error> for Refusal {
    fn from(error: lapin::Error) -> Self {
        let error = AmqpError(error);
        match error.reply() {
            Some(AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)) if !error.is_unserved() => {
                Self::Missing(error)
            }
            Some(AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)) => {
                if precondition_failed(error.text()) == Precondition::AtLimit {
                    Self::AtLimit(error)
                } else {
                    Self::Differs(error)
                }
            }
            Some(AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED)) => Self::Locked(error),
            Some(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)) => Self::Forbidden(error),
            Some(AMQPErrorKind::Hard(
                AMQPHardError::NOTIMPLEMENTED
                | AMQPHardError::COMMANDINVALID
                | AMQPHardError::SYNTAXERROR,
            )) => Self::Unsupported(error),
            _ => Self::Passing(error),
        }
    }
}

impl From<Refusal> for AmqpError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing(error)
            | Refusal::Differs(error)
            | Refusal::Locked(error)
            | Refusal::AtLimit(error)
            | Refusal::Forbidden(error)
            | Refusal::Unsupported(error)
            | Refusal::Passing(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use lapin::protocol::AMQPError;

    use super::*;

    fn reply(kind: impl Into<AMQPErrorKind>, text: &str) -> lapin::Error {
        ErrorKind::ProtocolError(AMQPError::new(kind.into(), text.into())).into()
    }

    #[test]
    fn the_code_decides_and_the_text_only_where_the_code_leaves_it_open() {
        use AMQPHardError as Hard;
        use AMQPSoftError as Soft;
        let kind = |error: lapin::Error| match Refusal::from(error) {
            Refusal::Missing(_) => "missing",
            Refusal::Differs(_) => "differs",
            Refusal::Locked(_) => "locked",
            Refusal::AtLimit(_) => "at limit",
            Refusal::Forbidden(_) => "forbidden",
            Refusal::Unsupported(_) => "unsupported",
            Refusal::Passing(_) => "passing",
        };
        for (error, expected) in [
            (reply(Soft::NOTFOUND, "NOT_FOUND - no queue 'q' in vhost '/'"), "missing"),
            (
                reply(
                    Soft::NOTFOUND,
                    "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor",
                ),
                "passing",
            ),
            (reply(Soft::PRECONDITIONFAILED, "any text"), "differs"),
            (
                reply(
                    Soft::PRECONDITIONFAILED,
                    "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost 'v' (3) is reached",
                ),
                "at limit",
            ),
            (reply(Soft::RESOURCELOCKED, "any text"), "locked"),
            (reply(Soft::ACCESSREFUSED, "any text"), "forbidden"),
            (reply(Hard::NOTIMPLEMENTED, "any text"), "unsupported"),
            (reply(Hard::INTERNALERROR, "ACCESS_REFUSED - no queue 'q'"), "passing"),
            (io::Error::from(io::ErrorKind::ConnectionReset).into(), "passing"),
        ] {
            let shown = error.to_string();
            assert_eq!(kind(error), expected, "{shown}");
        }
    }

    #[test]
    fn a_limit_of_connections_refuses_none_for_good() {
        for (error, refuses) in [
            (reply(AMQPSoftError::ACCESSREFUSED, "any text"), true),
            (
                reply(
                    AMQPHardError::NOTALLOWED,
                    "NOT_ALLOWED - access to vhost 'limited' refused for user 'u'",
                ),
                true,
            ),
            (
                reply(
                    AMQPHardError::NOTALLOWED,
                    "NOT_ALLOWED - access to vhost '/' refused for user 'u': connection limit (1) is reached",
                ),
                false,
            ),
            (reply(AMQPHardError::CONNECTIONFORCED, "any text"), false),
            (io::Error::from(io::ErrorKind::ConnectionRefused).into(), false),
        ] {
            let error = AmqpError(error);
            assert_eq!(error.refuses_connection(), refuses, "{error}");
        }
    }
}
