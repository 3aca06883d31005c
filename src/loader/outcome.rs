//! A load from the outside: the parts of the event that its request carries, its outcome, and the
//! errors without one.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::causes::{Cause, Explain};

/// The outcome of a load that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadOutcome {
    /// The body, byte for byte.
    Value(Vec<u8>),
    /// Nothing to cache: 204, an empty body, 404 or 410.
    Absent,
}

/// Why a load gave no usable answer.
///
/// Messages name the loader and its status. They never hold a URL, a header's value or a payload's
/// value.
#[derive(Debug, Clone)]
pub enum LoadError {
    /// Another try may help: 408, 429, 5xx, a timeout, no connection, an incomplete answer.
    Retry {
        /// The loader's own `Retry-After`, at most [`MAX_RETRY_AFTER`](super::MAX_RETRY_AFTER).
        after: Option<Duration>,
        /// The loader, and what it did.
        cause: Cause,
    },
    /// The loader's circuit breaker is open, and no request was sent.
    NotAsked {
        /// Time until the breaker lets a load try.
        after: Duration,
        /// The loader, and why its breaker is open.
        cause: Cause,
    },
    /// Another try would not help.
    Refused {
        /// The loader, what it did, and what to do about it.
        cause: Cause,
    },
}

impl LoadError {
    fn cause(&self) -> &Cause {
        match self {
            Self::Retry { cause, .. } | Self::NotAsked { cause, .. } | Self::Refused { cause } => {
                cause
            }
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause().fmt(f)
    }
}

impl Error for LoadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause().source()
    }
}

impl Explain for LoadError {}

/// The parts of the event that a request to the loader carries.
#[derive(Debug, Clone, Copy)]
pub struct LoadContext<'a> {
    /// Sent as `unstale-event-id`.
    pub event_id: &'a str,
    /// Sent as `traceparent` if it has the form of one.
    pub traceparent: Option<&'a str>,
}
