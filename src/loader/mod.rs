//! Loaders: the HTTP services from which `warm` effects fetch values.
//!
//! A load has two steps. [`Loaders::admit`] waits until the limits let it start, and
//! [`Admitted::load`] sends the request. The caller takes its lease on the key between the two, so
//! a lease need not outlive the wait.
//!
//! Files, in reading order:
//! - `client`: one loader as an HTTP client, with its address, its headers and its requests.
//! - `answer`: the meaning of an answer, or of a request without one.
//! - `retry_after`: the `Retry-After` header.
//! - `limits`: how many loads run at once, and how many start per second.
//! - `breaker`: the circuit breaker of one loader.
//!
//! Absent on purpose: retries, which are the worker's, and leases, which are the cache's. Redirects
//! are not followed.

mod answer;
mod breaker;
mod client;
mod limits;
mod retry_after;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use tokio::time::Instant;
use tracing::{info, warn};

use self::breaker::{Breaker, Health, Pass, Transition};
use self::client::Endpoint;
use self::limits::{Limit, Permit};
use crate::causes::{Cause, Explain};
use crate::config::WarmConfig;
use crate::quantity::format_duration;
use crate::registry::{Loader, LoaderId, Warm};

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
        /// The loader's own `Retry-After`, at most [`MAX_RETRY_AFTER`].
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

/// A reason why a loader of the registry cannot be used.
///
/// Messages hold no header's value and no URL, because both may hold secrets.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoaderProblem {
    /// `url` is not an absolute HTTP URL.
    #[error(
        "loader `{loader}`: `url` is not an absolute http or https URL; check the variables in it"
    )]
    Url {
        /// The loader's name in the rule file.
        loader: String,
    },
    /// HTTP does not allow the header (RFC 9110, section 5).
    #[error(
        "loader `{loader}`: HTTP cannot send the header `{header}`; check it for a line break or a control character"
    )]
    Header {
        /// The loader's name in the rule file.
        loader: String,
        /// The header's name.
        header: String,
    },
    /// The HTTP client could not be made. For `https`, the usual cause is a system without root
    /// certificates.
    #[error("loaders: cannot make an HTTP client")]
    Client(#[source] HttpError),
}

impl Explain for LoaderProblem {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Client(_) => Some(
                "loaders with https need the system's root certificates (Debian: ca-certificates)"
                    .into(),
            ),
            Self::Url { .. } | Self::Header { .. } => None,
        }
    }
}

/// All problems of a registry's loaders.
#[derive(Debug, Clone, thiserror::Error)]
pub struct LoaderProblems(pub Vec<LoaderProblem>);

impl fmt::Display for LoaderProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { "\n" }, problem.in_full())?;
        }
        Ok(())
    }
}

impl Explain for LoaderProblems {}

pub use self::answer::HttpError;
pub use self::retry_after::MAX_RETRY_AFTER;

/// The loaders of one registry, and the limits that they share.
#[derive(Debug)]
pub struct Loaders {
    config: WarmConfig,
    client: Client,
    all: Arc<Limit>,
    endpoints: Vec<Endpoint>,
}

impl Loaders {
    /// Prepares the loaders of a registry, in the order of `Registry::loaders`, without connecting
    /// to any.
    ///
    /// # Errors
    /// Every loader whose URL or headers cannot be used, or the error of the HTTP client.
    pub fn new(config: &WarmConfig, loaders: &[Loader]) -> Result<Self, LoaderProblems> {
        Self::build(
            *config,
            loaders,
            Arc::new(Limit::new(Some(config.concurrency), config.rate)),
            &[],
        )
    }

    /// Prepares the loaders of a newer registry, while loads of the old one may still run.
    ///
    /// The limits over all loaders count the loads of both registries. So do the limits of a loader
    /// whose name, `concurrency` and `rate` did not change.
    ///
    /// # Errors
    /// As for [`Loaders::new`].
    pub fn reload(&self, loaders: &[Loader]) -> Result<Self, LoaderProblems> {
        Self::build(self.config, loaders, Arc::clone(&self.all), &self.endpoints)
    }

    fn build(
        config: WarmConfig,
        loaders: &[Loader],
        all: Arc<Limit>,
        old: &[Endpoint],
    ) -> Result<Self, LoaderProblems> {
        let mut endpoints = Vec::with_capacity(loaders.len());
        let mut problems = Vec::new();
        for loader in loaders {
            match Endpoint::new(&config, loader, old) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(found) => problems.extend(found),
            }
        }
        if !problems.is_empty() {
            return Err(LoaderProblems(problems));
        }
        let client = client::client(&config, endpoints.iter().any(Endpoint::uses_tls))
            .map_err(|problem| LoaderProblems(vec![problem]))?;
        Ok(Self { config, client, all, endpoints })
    }

    /// Waits until the limits let this load start.
    ///
    /// Loads of one loader start in the order of their calls. Loaders take turns, so a busy loader
    /// does not delay a quiet one. Dropping the future frees the place and uses nothing up.
    ///
    /// # Errors
    /// [`LoadError::Refused`] if the URL is outside its loader. [`LoadError::Retry`] if the effect
    /// is from another registry. [`LoadError::NotAsked`] if the loader's circuit breaker is open.
    pub async fn admit<'a>(&'a self, warm: &Warm) -> Result<Admitted<'a>, LoadError> {
        let endpoint =
            self.endpoints.get(warm.loader.0 as usize).ok_or_else(|| LoadError::Retry {
                after: None,
                cause: "the loader is not in the registry in use; the event is resolved again"
                    .into(),
            })?;
        let url = endpoint.check(&warm.url)?;
        let not_asked = |left: Duration| LoadError::NotAsked {
            after: left,
            cause: format!(
                "loader `{}` is not asked for now, because most of its last loads failed",
                endpoint.name
            )
            .into(),
        };
        if let Some(left) = endpoint.breaker.open_for(Instant::now()) {
            return Err(not_asked(left));
        }
        let permit = endpoint.limits.admit(&self.all).await;
        match endpoint.breaker.pass(Instant::now()) {
            Pass::Open { left } => Err(not_asked(left)),
            pass => {
                let pass = Admission { breaker: &endpoint.breaker, pass: Some(pass) };
                Ok(Admitted { client: &self.client, endpoint, url, pass, _permit: permit })
            }
        }
    }

    /// Returns a loader's name, and true if its circuit breaker is open.
    pub fn breaker_state(&self, loader: LoaderId) -> Option<(&str, bool)> {
        self.endpoints.get(loader.0 as usize).map(Endpoint::breaker_state)
    }

    /// Returns every loader's name, and true if its circuit breaker is open.
    pub fn breaker_states(&self) -> impl Iterator<Item = (&str, bool)> {
        self.endpoints.iter().map(Endpoint::breaker_state)
    }

    /// Waits until the limits let the load start, then loads.
    ///
    /// # Errors
    /// [`LoadError`], whose variant says whether another try may help.
    pub async fn load(
        &self,
        warm: &Warm,
        context: &LoadContext<'_>,
    ) -> Result<LoadOutcome, LoadError> {
        self.admit(warm).await?.load(context).await
    }
}

/// A load that may start now. It holds its place within the limits until it is dropped.
#[derive(Debug)]
pub struct Admitted<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    url: url::Url,
    pass: Admission<'a>,
    _permit: Permit,
}

/// A load that the circuit breaker let through. If it is dropped without an outcome, the load was
/// aborted.
#[derive(Debug)]
struct Admission<'a> {
    breaker: &'a Breaker,
    pass: Option<Pass>,
}

impl Admission<'_> {
    fn ended(mut self, health: Health) -> Option<Transition> {
        self.pass.take().and_then(|pass| self.breaker.ended(pass, health, Instant::now()))
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.breaker.given_up(pass);
        }
    }
}

impl Admitted<'_> {
    /// Returns the maximum time of the load, from [`Admitted::load`] to the last byte of the
    /// answer. A lease must outlive it.
    pub fn timeout(&self) -> Duration {
        self.endpoint.timeout
    }

    /// Sends the request and reads the answer.
    ///
    /// # Errors
    /// [`LoadError`], whose variant says whether another try may help.
    pub async fn load(self, context: &LoadContext<'_>) -> Result<LoadOutcome, LoadError> {
        let Self { client, endpoint, url, pass, _permit } = self;
        let (loaded, health) = endpoint.get(client, url, context).await;
        match pass.ended(health) {
            Some(Transition::Opened { open_time, is_repeated: false }) => warn!(
                loader = endpoint.name,
                open_for = format_duration(open_time),
                "loader circuit opened: most of its last loads failed, and its warms are retried later"
            ),
            Some(Transition::Opened { open_time, is_repeated: true }) => {
                info!(
                    loader = endpoint.name,
                    open_for = format_duration(open_time),
                    "loader circuit stays open"
                );
            }
            Some(Transition::Closed) => info!(loader = endpoint.name, "loader circuit closed"),
            None => {}
        }
        loaded
    }
}
