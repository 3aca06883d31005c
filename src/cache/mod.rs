//! Redis as the worker uses it: connection, apply, tags and their upkeep, leases. Nothing else but
//! [`reader`](crate::reader) speaks to it.
//!
//! A [`Cache`] has one connection that all share, to a cluster one for each of its primaries. Only
//! [`Cache::probe`] makes them; an outage ends them, with everything under way there.

mod address;
mod again;
mod applied;
mod apply;
mod asides;
mod claim;
mod cluster;
mod commands;
mod connection;
mod eviction;
mod failure;
mod fence;
mod lease;
mod lifetime;
mod marks;
mod prune;
pub(crate) mod script;
mod secret;
mod sentinel;
mod server;
pub(crate) mod side_keys;
pub(crate) mod slot;
mod socket;
mod standing;
mod tags;
mod without_memory;
mod workers;

pub use again::{Again, Due, SecondPasses};
pub use applied::{Applied, KeyHits};
pub use asides::Asides;
pub use claim::{Claim, LoadToken};
pub use connection::CacheError;
pub use eviction::Eviction;
pub use failure::{CommandError, Outage};
pub use lease::{Fill, Grant, LONGEST_LEASE, new_token};
pub use marks::{
    Change, Died, Doubt, Entered, HealDetails, HealFrom, HealProgress, HealRecord, LastCount,
    LowWatermark, Marks, Owed, OwedHeal, OwedHeals, Tick, Turn, Unhealed,
};
pub use prune::{PRUNE_STEP, Pruned, TagSets};
pub use script::READER_SCRIPTS;
pub use server::Server;
pub use standing::State;
pub use tags::{Drained, Invalidated};
pub use workers::{REPORT_COUNTS_FOR, Report, Reported};

use std::time::Duration;

use redis::{Cmd, Value};

use crate::config::{RedisConfig, RedisMode};
use cluster::Cluster;
use connection::Link;
use marks::Chain;
use without_memory::Deleter;

/// Redis, as far as this program uses it.
#[derive(Debug)]
pub struct Cache {
    redis: Redis,
    tag_prefix: String,
    fence_ttl_ms: i64,
    served_stale_ms: i64,
    aside_filled_for: Duration,
    workers: String,
    /// The hashes of marks.
    marks: Vec<String>,
    id: String,
    chain: Chain,
    again: String,
    heals_beside: bool,
    refuses_eviction: bool,
    deleter: tokio::sync::Mutex<Option<Deleter>>,
}

/// What Redis is.
#[derive(Debug)]
enum Redis {
    /// One server takes all writes.
    Primary(Link),
    /// Each of several takes those of its slots.
    Cluster(Cluster),
}

/// How long an old value may be read at most while a new one is loaded, where nobody says
/// otherwise: the default retry ladder and some more.
const SERVED_STALE: Duration = Duration::from_secs(15 * 60);

impl Cache {
    /// Checks the settings. Nothing is asked of the server before the first [`probe`](Self::probe).
    ///
    /// # Errors
    /// A mode that is not supported, a URL or PEM texts that cannot be used.
    pub fn connect(config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        let redis = match config.mode {
            RedisMode::Cluster => Redis::Cluster(Cluster::new(config, queue)?),
            RedisMode::Single | RedisMode::Sentinel { .. } => {
                Redis::Primary(Link::new(config, side_keys::probe(queue))?)
            }
        };
        let marks = marks::names(queue, matches!(redis, Redis::Cluster(_)));
        Ok(Self {
            redis,
            tag_prefix: config.tag_prefix.clone(),
            fence_ttl_ms: lifetime::millis(config.fence_ttl),
            served_stale_ms: lifetime::millis(SERVED_STALE),
            aside_filled_for: asides::FILLED_FOR,
            workers: side_keys::workers(queue),
            id: new_token(),
            chain: Chain::new(marks.len()),
            marks,
            again: side_keys::again(queue),
            heals_beside: false,
            refuses_eviction: false,
            deleter: tokio::sync::Mutex::default(),
        })
    }

    /// With another bound for how long an old value may be read while a new one is loaded (`stale:
    /// serve`), whatever becomes of the load.
    #[must_use]
    pub fn serving_stale_for(self, longest: Duration) -> Self {
        Self { served_stale_ms: lifetime::millis(longest), ..self }
    }

    /// For a Redis that must not evict keys: a [`probe`](Self::probe) fails while it may.
    #[must_use]
    pub fn refusing_eviction(self, refuses_eviction: bool) -> Self {
        Self { refuses_eviction, ..self }
    }

    /// For heals beside live workers: it has a lock and a progress of its own, and batches without
    /// seals.
    #[must_use]
    pub fn healing_beside(self) -> Self {
        Self { heals_beside: true, ..self }
    }

    /// Another connection for the same kind of heal, which keeps this one's lock.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub fn for_keeper(&self, config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        Self::connect(config, queue)
            .map(|keeper| Self { heals_beside: self.heals_beside, ..keeper })
    }

    /// With another time for which upkeep fills one set of members that it sets aside: they are
    /// looked at again after twice as long.
    #[must_use]
    pub fn setting_aside_for(self, filled_for: Duration) -> Self {
        Self { aside_filled_for: filled_for, ..self }
    }

    /// Returns whether it is a cluster.
    pub fn is_cluster(&self) -> bool {
        matches!(self.redis, Redis::Cluster(_))
    }

    /// Finds out whether Redis can be worked with: it answers, has its data loaded, and takes
    /// writes. Connects where nothing stands. Paces itself: after a failure the next call waits
    /// before it asks, up to a second, so that callers may simply loop.
    ///
    /// # Errors
    /// What is in the way.
    pub async fn probe(&self) -> Result<(), Outage> {
        match &self.redis {
            Redis::Primary(link) => link.probe().await?,
            Redis::Cluster(cluster) => cluster.probe().await?,
        }
        if self.refuses_eviction { self.refuse_eviction().await } else { Ok(()) }
    }

    /// Whether Redis can be worked with, as far as is known without asking.
    pub fn state(&self) -> State {
        match &self.redis {
            Redis::Primary(link) => link.state(),
            Redis::Cluster(cluster) => cluster.state(),
        }
    }

    /// What begins the names of tags' sets (`UNSTALE_TAG_PREFIX`).
    pub fn tag_prefix(&self) -> &str {
        &self.tag_prefix
    }

    fn tag_set(&self, tag: &str) -> String {
        [&self.tag_prefix, tag].concat()
    }

    /// Takes for known that Redis cannot be worked with, so that nothing more is sent before the
    /// next probe.
    pub fn give_up(&self, outage: &Outage) {
        match &self.redis {
            Redis::Primary(link) => {
                if let Ok(live) = link.live() {
                    link.give_up(&live, outage);
                }
            }
            Redis::Cluster(cluster) => cluster.give_up(outage),
        }
    }

    /// One command by itself, outside any batch.
    async fn call(&self, name: &str, command: Cmd) -> Result<Value, CommandError> {
        match &self.redis {
            Redis::Primary(link) => link.call(name, command).await,
            Redis::Cluster(cluster) => cluster.call(name, &command).await,
        }
    }
}

/// Whole numbers of a script's answer.
fn integers<const N: usize>(value: &Value) -> Option<[u64; N]> {
    let Value::Array(items) = value else { return None };
    let mut numbers = [0; N];
    for (number, item) in numbers.iter_mut().zip(items) {
        *number = match item {
            Value::Int(int) => u64::try_from(*int).ok()?,
            Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok()?,
            _ => return None,
        };
    }
    (items.len() == N).then_some(numbers)
}
