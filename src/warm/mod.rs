//! Loaders: where `warm` gets its values from.
//!
//! A load is admitted first ([`Loaders::admit`]) and made after, so that whoever takes a lease on
//! the key takes it when the load really starts: a lease that ran while the load stood in line
//! would have to be as long as the line.

mod answer;
mod breaker;
mod client;
mod limits;
mod retry_after;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use tokio::time::Instant;
use tracing::{info, warn};

use self::breaker::{Breaker, Health, Pass, Turn};
use self::client::Endpoint;
use self::limits::{Limit, Permit};
use crate::config::WarmConfig;
use crate::quantity::format_duration;
use crate::registry::{Loader, LoaderId, Warm};

/// What a load came back with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// A body, byte for byte.
    Value(Vec<u8>),
    /// There is nothing to cache: 204, an empty body, 404 or 410.
    Absent,
}

/// Why a load gave no answer to act on. Messages name the loader and its status, never a URL, a
/// header's value or a payload's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Worth asking again: 408, 429, 5xx, a timeout, no connection, an answer that broke off.
    #[error("{message}")]
    Retry {
        /// The loader's own `Retry-After`, at most [`MAX_RETRY_AFTER`].
        after: Option<Duration>,
        /// Which loader, and what it did.
        message: String,
    },
    /// Its loader is not asked for now.
    #[error("{message}")]
    NotAsked {
        /// For so long.
        after: Duration,
        /// Which loader, and why.
        message: String,
    },
    /// Asking again would change nothing.
    #[error("{message}")]
    Refused {
        /// Which loader, what it did, and what to do about it.
        message: String,
    },
}

/// What a load tells the loader about the event it is made for.
#[derive(Debug, Clone, Copy)]
pub struct LoadContext<'a> {
    /// Sent as `unstale-event-id`.
    pub event_id: &'a str,
    /// Sent as `traceparent` where it has the form of one.
    pub traceparent: Option<&'a str>,
}

/// One loader that cannot be used as the registry has it. Never tells a header's value or a URL:
/// both may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoaderProblem {
    /// `url` is none.
    #[error(
        "loader `{loader}`: its url is no absolute http or https URL; check the variables it is made of"
    )]
    Url {
        /// As in the file.
        loader: String,
    },
    /// HTTP allows no such header (RFC 9110, section 5).
    #[error(
        "loader `{loader}`: header `{header}` is not one that HTTP can send; look for a line break or a control character in it"
    )]
    Header {
        /// As in the file.
        loader: String,
        /// Its name.
        header: String,
    },
    /// The HTTP client could not be made: for `https`, mostly because the system trusts no
    /// certificates.
    #[error(
        "loaders: no HTTP client: {cause}; loaders with https need the system's root certificates (Debian: ca-certificates)"
    )]
    Client {
        /// In the words of the client.
        cause: String,
    },
}

/// Everything that keeps the loaders from being used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct LoaderProblems(pub Vec<LoaderProblem>);

impl fmt::Display for LoaderProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

pub use self::retry_after::MAX_RETRY_AFTER;

/// The loaders of one registry, and the limits they share.
#[derive(Debug)]
pub struct Loaders {
    config: WarmConfig,
    client: Client,
    all: Arc<Limit>,
    endpoints: Vec<Endpoint>,
}

impl Loaders {
    /// Makes the loaders of a registry ready, in the order of `Registry::loaders`. Connects to none
    /// of them.
    ///
    /// # Errors
    /// Every loader whose URL or headers cannot be used, or the client's own reason.
    pub fn new(config: &WarmConfig, loaders: &[Loader]) -> Result<Self, LoaderProblems> {
        Self::build(
            *config,
            loaders,
            Arc::new(Limit::new(Some(config.concurrency), config.rate)),
            &[],
        )
    }

    /// Makes the loaders of a newer registry ready. Loads of the old one may still run: the limits
    /// over all loaders count both, and so do those of a loader whose name, `concurrency` and
    /// `rate` stayed.
    ///
    /// # Errors
    /// As [`Loaders::new`].
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

    /// Waits until the limits let this load start: in the order of asking within a loader, and one
    /// after the other among loaders, so that a busy loader holds up no quiet one. Dropping the
    /// future gives up the place and spends nothing.
    ///
    /// # Errors
    /// At once, where the load could never be made: a URL outside its loader, a `warm` of another
    /// registry. And where the loader is not asked for now, since its last loads failed.
    pub async fn admit<'a>(&'a self, warm: &Warm) -> Result<Admitted<'a>, LoadError> {
        let endpoint =
            self.endpoints.get(warm.loader.0 as usize).ok_or_else(|| LoadError::Retry {
                after: None,
                message: "the loader is not in the registry in use; the event is resolved anew"
                    .to_owned(),
            })?;
        let url = endpoint.check(&warm.url)?;
        let not_asked = |left: Duration| LoadError::NotAsked {
            after: left,
            message: format!(
                "loader `{}` is not asked for now: most of its last loads failed",
                endpoint.name
            ),
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

    /// A loader's name, and whether it is not asked for now.
    pub fn standing(&self, loader: LoaderId) -> Option<(&str, bool)> {
        self.endpoints.get(loader.0 as usize).map(Endpoint::standing)
    }

    /// The same of all loaders.
    pub fn standings(&self) -> impl Iterator<Item = (&str, bool)> {
        self.endpoints.iter().map(Endpoint::standing)
    }

    /// Waits for its turn, then loads.
    ///
    /// # Errors
    /// [`LoadError`]: worth another try, or not.
    pub async fn load(&self, warm: &Warm, context: &LoadContext<'_>) -> Result<Loaded, LoadError> {
        self.admit(warm).await?.load(context).await
    }
}

/// A load that may start now. Holds its place within the limits until it is dropped.
#[derive(Debug)]
pub struct Admitted<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    url: url::Url,
    pass: Admission<'a>,
    _permit: Permit,
}

/// What the breaker let through. Dropped untold, the load was broken off.
#[derive(Debug)]
struct Admission<'a> {
    breaker: &'a Breaker,
    pass: Option<Pass>,
}

impl Admission<'_> {
    fn ended(mut self, health: Health) -> Option<Turn> {
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
    /// The longest the load can take, from [`Admitted::load`] to the last byte of the answer: a
    /// lease has to outlive it.
    pub fn timeout(&self) -> Duration {
        self.endpoint.timeout
    }

    /// Asks the loader.
    ///
    /// # Errors
    /// [`LoadError`]: worth another try, or not.
    pub async fn load(self, context: &LoadContext<'_>) -> Result<Loaded, LoadError> {
        let Self { client, endpoint, url, pass, _permit } = self;
        let (loaded, health) = endpoint.get(client, url, context).await;
        match pass.ended(health) {
            Some(Turn::Opened { for_so_long, again: false }) => warn!(
                loader = endpoint.name,
                for_so_long = format_duration(for_so_long),
                "most of the loader's last loads failed: it is not asked for a while, its warms climb the retry ladder, all else goes on"
            ),
            Some(Turn::Opened { for_so_long, again: true }) => {
                info!(
                    loader = endpoint.name,
                    for_so_long = format_duration(for_so_long),
                    "the loader still fails"
                );
            }
            Some(Turn::Closed) => info!(loader = endpoint.name, "the loader answers again"),
            None => {}
        }
        loaded
    }
}
