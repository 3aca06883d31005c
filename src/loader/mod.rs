//! Loaders: the HTTP services from which `warm` effects fetch values.
//!
//! A load has two steps. [`Loaders::admit`] waits until the limits let it start, and
//! [`Admitted::load`] sends the request. The caller takes its lease on the key between the two, so
//! a lease need not outlive the wait.
//!
//! Files, in reading order:
//! - `client`: one loader as an HTTP client, with its address, its headers and its requests.
//! - `outcome`: what a load is given, and its outcome or error.
//! - `answer`: the meaning of an answer, or of a request without one.
//! - `problem`: the problems of a registry's loaders.
//! - `http_error`: the errors of the HTTP client, without URLs.
//! - `retry_after`: the `Retry-After` header.
//! - `limits`: how many loads run at once, and how many start per second.
//! - `breaker`: the circuit breaker of one loader.
//!
//! Absent on purpose: retries, which are the worker's, and leases, which are the cache's. Redirects
//! are not followed.

mod answer;
mod breaker;
mod client;
mod http_error;
mod limits;
mod outcome;
mod problem;
mod retry_after;

use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use tokio::time::Instant;
use tracing::{info, warn};

use self::breaker::{Breaker, Health, Pass, Transition};
use self::client::Endpoint;
pub use self::http_error::HttpError;
use self::limits::{Limit, Permit};
pub use self::outcome::{LoadContext, LoadError, LoadOutcome};
pub use self::problem::{LoaderProblem, LoaderProblems};
pub use self::retry_after::MAX_RETRY_AFTER;
use crate::config::WarmConfig;
use crate::quantity::format_duration;
use crate::registry::{Loader, LoaderId, Warm};

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
