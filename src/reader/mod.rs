//! The reader's side of the cache: [`Reader::get_or_load`] for applications in Rust.
//! docs/reference/reader-scripts.md is the protocol.
//!
//! ```no_run
//! use std::time::Duration;
//! use unstale::reader::{Options, Reader};
//!
//! # async fn load_product(id: u64) -> Result<Option<Vec<u8>>, std::io::Error> { Ok(None) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let redis = redis::Client::open("redis://127.0.0.1:6379/0")?.get_multiplexed_async_connection().await?;
//! let cache = Reader::new(redis, Options { key_prefix: "shop:".into(), ..Options::default() });
//! let product = cache.get_or_load("product:7", || load_product(7), Duration::from_secs(3600), ["products", "category:toys"]).await?;
//! # Ok(()) }
//! ```

mod codec;
mod fill;
mod find;
mod names;
mod redis_call;
mod tags;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::ConnectionLike;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::LONGEST_LEASE;
use codec::{Bytes, Codec, Json};
use find::Found;
use names::Names;

pub use tags::Tags;

/// How a [`Reader`] reads. The prefixes are those of the worker: `UNSTALE_KEY_PREFIX` with the
/// file's `key_prefix`, `UNSTALE_TAG_PREFIX`.
#[derive(Clone)]
pub struct Options {
    /// Before every key. Not before tags.
    pub key_prefix: String,
    /// Before every tag: the name of its set.
    pub tag_prefix: String,
    /// The connection is one to a Redis Cluster.
    pub cluster: bool,
    /// How long a load may take: a slower one is not cached. At most [`LONGEST_LEASE`], and cut to
    /// it.
    pub lease: Duration,
    /// How long to wait for the load of another before loading by oneself, uncached. A shorter one
    /// than `lease` is raised to it, or all who wait load at once where the one who loads died.
    pub wait: Duration,
    /// So long before its end a value is loaded again by one reader, while the others get it as it
    /// is. Zero: at its end.
    pub stale: Duration,
    /// The part of a TTL that chance may take off.
    pub jitter: f64,
    /// How long one answer of Redis is waited for: later, Redis counts as away.
    pub timeout: Duration,
    /// Told of each read, for metrics.
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

/// How a read went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Cached.
    Hit,
    /// Another loaded it meanwhile.
    Waited,
    /// Loaded, and cached.
    Filled,
    /// Loaded, and not cached: it was invalidated meanwhile, or the load outlasted its lease.
    Void,
    /// The loader said that there is none.
    Absent,
    /// Another's load did not end in time: loaded, not cached.
    Crowded,
    /// Redis is away or refuses: loaded, not cached.
    Away,
    /// Something else stands at the key: loaded, not cached.
    Unreadable,
    /// An early load failed, and the value that is still good was kept.
    Kept,
}

/// Reads through the cache. Never fails for its sake: where Redis is away, values are loaded and
/// not cached.
#[derive(Debug, Clone)]
pub struct Reader<C> {
    connection: C,
    options: Arc<Options>,
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Reader<C> {
    /// Over a connection that is cheap to clone: a multiplexed one, or a cluster's.
    pub fn new(connection: C, mut options: Options) -> Self {
        options.lease = options.lease.min(LONGEST_LEASE);
        options.wait = options.wait.max(options.lease);
        Self { connection, options: Arc::new(options) }
    }

    /// The value at `key`, which is not cached if the name is empty; where there is none, what
    /// `load` gives, cached for at most `ttl` under `tags`: names, or a function of the loaded
    /// value. `None` from `load` is not cached.
    ///
    /// A value that was invalidated while it loaded is returned to this call alone. `load` is
    /// called once at most.
    ///
    /// # Errors
    /// The loader's; the lease is given back first.
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

    /// As [`get_or_load`](Self::get_or_load), with values as JSON. What is not the JSON of a `T`
    /// counts as not cached.
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
        let Some(names) = Names::of(&self.options, key).filter(|_| !key.is_empty()) else {
            return self.tell(Outcome::Away, load().await);
        };
        let (lease, old) = match self.find(&names).await {
            Found::Value(value, outcome) => match K::decode(&value) {
                Some(value) => return self.tell(outcome, Ok(Some(value))),
                None => return self.tell(Outcome::Unreadable, load().await),
            },
            Found::Nothing(outcome) => return self.tell(outcome, load().await),
            Found::Lease { lease, old } => (lease, old),
        };
        // A lease that is dropped, by a panic or a cancellation too, is given back.
        match load().await {
            Err(error) => {
                lease.release().await;
                match old.and_then(|old| K::decode(&old)) {
                    Some(old) => self.tell(Outcome::Kept, Ok(Some(old))),
                    None => Err(error),
                }
            }
            Ok(None) => {
                lease.release().await;
                self.tell(Outcome::Absent, Ok(None))
            }
            Ok(Some(value)) => {
                let outcome = match K::encode(&value) {
                    Some(bytes) => self.fill(&names, lease, &bytes, ttl, &tags.of(&value)).await,
                    None => {
                        lease.release().await;
                        Outcome::Unreadable
                    }
                };
                self.tell(outcome, Ok(Some(value)))
            }
        }
    }

    fn tell<T, E>(&self, outcome: Outcome, result: Result<T, E>) -> Result<T, E> {
        if result.is_ok()
            && let Some(observe) = &self.options.observe
        {
            observe(outcome);
        }
        result
    }
}
