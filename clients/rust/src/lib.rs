//! Reads through a Redis cache that unstale workers invalidate. One reader loads while the others
//! wait. If an event arrives during the load, the loaded value is not cached.
//!
//! [`Reader::get_or_load`] handles bytes, and [`Reader::get_or_load_json`] values of any type. The
//! reader never invalidates: only workers do. In the repository of unstale, `docs/how-to/read.md`
//! describes options and outcomes, and `docs/reference/reader-scripts.md` the protocol.
//!
//! ```no_run
//! use std::time::Duration;
//! use unstale_reader::redis::{Client, aio::ConnectionManagerConfig};
//! use unstale_reader::{Options, Reader};
//!
//! # async fn load_product(id: u64) -> Result<Option<Vec<u8>>, std::io::Error> { Ok(None) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::open("redis://127.0.0.1:6379/0")?;
//! let connection = client.get_connection_manager_lazy(ConnectionManagerConfig::new())?;
//! let options = Options { key_prefix: "shop:".into(), ..Options::default() };
//! let cache = Reader::new(connection, options);
//! let ttl = Duration::from_secs(3600);
//! let tags = ["products", "category:toys"];
//! let product = cache.get_or_load("product:7", || load_product(7), ttl, tags).await?;
//! # Ok(()) }
//! ```
//!
//! # Features
//!
//! - `connection-manager`: `redis::aio::ConnectionManager`. It connects again after an outage. A
//!   `MultiplexedConnection` does not.
//! - `tls`: `rediss://` by rustls with ring, and the certificates of the system.
//! - `cluster`: `redis::cluster_async::ClusterConnection`. Set [`Options::cluster`] too.
//!
//! # Files
//!
//! The files, in reading order:
//!
//! - `find`: before the load, the value or the lease
//! - `fill`: after the load, the value into the cache
//! - `outcome`: the result of a read, for metrics
//! - `names`, `tags`, `codec`: names of keys, tags of a value, values as bytes
//! - `redis_call`: one command or script within its time
//! - `protocol`, `backoff`: hidden modules, which the worker uses too

#![warn(missing_docs)]

#[doc(hidden)]
pub mod backoff;
mod codec;
mod fill;
mod find;
mod names;
mod outcome;
#[doc(hidden)]
pub mod protocol;
mod redis_call;
mod tags;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::ConnectionLike;
use serde::Serialize;
use serde::de::DeserializeOwned;

use codec::{Bytes, Codec, Json};
use find::Lookup;
use names::ReadKeys;

pub use outcome::Outcome;
pub use redis;
pub use tags::Tags;

/// Maximum duration of a lease. A longer one is cut to this, since tags remember their
/// invalidations for a multiple of it.
pub const LONGEST_LEASE: Duration = Duration::from_secs(360);

/// Options of a [`Reader`]. The prefixes are those of the worker: `UNSTALE_KEY_PREFIX` with the
/// file's `key_prefix`, and `UNSTALE_TAG_PREFIX`.
#[derive(Clone)]
pub struct Options {
    /// Prefix of every key, but not of tags.
    pub key_prefix: String,
    /// Prefix of the name of every tag's set.
    pub tag_prefix: String,
    /// True if the connection is one to a Redis Cluster.
    pub cluster: bool,
    /// Maximum duration of a load: a slower one is not cached. At most [`LONGEST_LEASE`], and cut
    /// to it.
    pub lease: Duration,
    /// Maximum time to wait for the load of another reader before loading uncached. It is raised to
    /// `lease` at least. Otherwise all waiting readers would load at once after the holder died.
    pub wait: Duration,
    /// Time before a value's end from which on one reader loads it again, while the others get it
    /// as it is. Zero: at its end.
    pub stale: Duration,
    /// Maximum part of a TTL that chance takes off.
    pub jitter: f64,
    /// Maximum time to wait for one answer of Redis. After it, Redis counts as away.
    pub timeout: Duration,
    /// Called after each read, for metrics.
    pub observe: Option<Arc<dyn Fn(Outcome) + Send + Sync>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            key_prefix: String::new(),
            tag_prefix: "cache_tag:".into(),
            cluster: false,
            lease: Duration::from_secs(5),
            wait: Duration::from_secs(10),
            stale: Duration::ZERO,
            jitter: 0.1,
            timeout: Duration::from_secs(1),
            observe: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("key_prefix", &self.key_prefix)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// Reads through the cache. A fault of the cache never fails a read: without Redis, values are
/// loaded and not cached.
#[derive(Debug, Clone)]
pub struct Reader<C> {
    connection: C,
    options: Arc<Options>,
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Reader<C> {
    /// Returns a reader over a connection that is cheap to clone: a `ConnectionManager`, or a
    /// cluster's. A `MultiplexedConnection` ends with the first outage, and then every read loads.
    pub fn new(connection: C, mut options: Options) -> Self {
        options.lease = options.lease.min(LONGEST_LEASE);
        options.wait = options.wait.max(options.lease);
        Self { connection, options: Arc::new(options) }
    }

    /// Returns the value at `key`. Without one, calls `load` and caches its value for at most `ttl`
    /// under `tags`, which are names or a function of the value.
    ///
    /// `None` from `load` is not cached, and neither is a value with an empty `key`. Only this call
    /// gets a value that was invalidated while it loaded. `load` is called once at most.
    ///
    /// # Errors
    /// The loader's; the lease is released first.
    pub async fn get_or_load<L, F, E>(
        &self,
        key: &str,
        load: L,
        ttl: Duration,
        tags: impl Tags<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, E>
    where
        L: FnOnce() -> F,
        F: Future<Output = Result<Option<Vec<u8>>, E>>,
    {
        self.read::<Bytes, _, _, _, _>(key, load, ttl, tags).await
    }

    /// Reads as [`get_or_load`](Self::get_or_load) does, with values as JSON. A cached text that is
    /// not the JSON of a `T` counts as not cached.
    ///
    /// # Errors
    /// The loader's.
    pub async fn get_or_load_json<T, L, F, E>(
        &self,
        key: &str,
        load: L,
        ttl: Duration,
        tags: impl Tags<T>,
    ) -> Result<Option<T>, E>
    where
        T: Serialize + DeserializeOwned,
        L: FnOnce() -> F,
        F: Future<Output = Result<Option<T>, E>>,
    {
        self.read::<Json, _, _, _, _>(key, load, ttl, tags).await
    }

    async fn read<K, T, L, F, E>(
        &self,
        key: &str,
        load: L,
        ttl: Duration,
        tags: impl Tags<T>,
    ) -> Result<Option<T>, E>
    where
        K: Codec<T>,
        L: FnOnce() -> F,
        F: Future<Output = Result<Option<T>, E>>,
    {
        let Some(names) = ReadKeys::of(&self.options, key).filter(|_| !key.is_empty()) else {
            return self.observed(Outcome::Away, load().await);
        };
        let (lease, old) = match self.find(&names).await {
            Lookup::Value(value, outcome) => match K::decode(&value) {
                Some(value) => return self.observed(outcome, Ok(Some(value))),
                None => return self.observed(Outcome::Unreadable, load().await),
            },
            Lookup::Nothing(outcome) => return self.observed(outcome, load().await),
            Lookup::Lease { lease, old } => (lease, old),
        };
        // A lease that is dropped, even by a panic or a cancellation, is released.
        match load().await {
            Err(error) => {
                lease.release().await;
                match old.and_then(|old| K::decode(&old)) {
                    Some(old) => self.observed(Outcome::Kept, Ok(Some(old))),
                    None => Err(error),
                }
            }
            Ok(None) => {
                lease.release().await;
                self.observed(Outcome::Absent, Ok(None))
            }
            Ok(Some(value)) => {
                let outcome = match K::encode(&value) {
                    Some(bytes) => self.fill(&names, lease, &bytes, ttl, &tags.of(&value)).await,
                    None => {
                        lease.release().await;
                        Outcome::Unreadable
                    }
                };
                self.observed(outcome, Ok(Some(value)))
            }
        }
    }

    fn observed<T, E>(&self, outcome: Outcome, result: Result<T, E>) -> Result<T, E> {
        if result.is_ok()
            && let Some(observe) = &self.options.observe
        {
            observe(outcome);
        }
        result
    }
}

/// The code of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
