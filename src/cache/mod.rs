//! Redis as the worker uses it. Only this module and [`reader`](crate::reader) send commands to it.
//!
//! A [`Cache`] shares one connection among all callers, or one for each primary of a cluster. Only
//! [`Cache::probe`] connects. An outage ends the connection with all commands in flight on it.
//!
//! The files, in reading order:
//!
//! - `connection`, `connection_state`, `socket`, `sentinel`, `address`, `server`: connecting, and
//!   the connection's state
//! - `failure`, `error_text`: the meaning of Redis' errors
//! - `apply`, `commands`, `applied`: a plan, its commands, and what their answers add up to
//! - `fence`, `lifetime`, `second_deletes`, `without_memory`: parts of a plan
//! - `tags`, `aside`, `tag_maintenance`: invalidation of tags, and the removal of dead members
//! - `lease`, `claim`: rights to fill a key and to load it
//! - `checkpoints`: how workers notice that Redis lost writes, and the state of heals
//! - `workers`, `secret`, `eviction`: worker reports, the signing secret, the eviction policy
//! - `cluster`: all that a Redis Cluster does differently
//! - `script`, `side_keys`, `slot`: Lua scripts, names of our own keys, slots
//!
//! Rules and events are not known here: a [`Plan`](crate::plan::Plan) comes resolved.

mod address;
mod applied;
mod apply;
mod aside;
mod checkpoints;
mod claim;
mod cluster;
mod commands;
mod connection;
mod connection_state;
mod error_text;
mod eviction;
mod failure;
mod fence;
mod lease;
mod lifetime;
pub(crate) mod script;
mod second_deletes;
mod secret;
mod sentinel;
mod server;
pub(crate) mod side_keys;
pub(crate) mod slot;
mod socket;
mod tag_maintenance;
mod tags;
mod without_memory;
mod workers;

pub use applied::{Applied, KeyHits};
pub use aside::Asides;
pub use checkpoints::{
    Checkpoints, DeadlyRange, Doubt, Entered, FieldChange, HealDetails, HealFrom, HealProgress,
    HealRecord, HealTurn, LastCount, LowWatermark, Owed, OwedHeal, OwedHeals, Tick, Unhealed,
};
pub use claim::{Claim, LoadToken};
pub use connection_state::ConnectionState;
pub use eviction::Eviction;
pub use failure::{CacheError, CommandError, Outage};
pub use lease::{FillOutcome, Grant, new_token};
pub use lifetime::LONGEST_LEASE;
pub use script::READER_SCRIPTS;
pub use second_deletes::{DueSecondDelete, SecondDelete, SecondDeletes};
pub use server::ServerInfo;
pub use tag_maintenance::{SCAN_STEP, TagSets, TagSlice};
pub use tags::{Drained, Invalidated};
pub use workers::{REPORT_COUNTS_FOR, ReportedWorker, WorkerReport};

use std::time::Duration;

use redis::{Cmd, Value};

use crate::config::{RedisConfig, RedisMode};
use checkpoints::OwnCheckpoints;
use cluster::Cluster;
use connection::PrimaryConnection;
use without_memory::Deleter;

/// Client of the Redis server or cluster that holds the cache.
#[derive(Debug)]
pub struct Cache {
    redis: Redis,
    tag_prefix: String,
    fence_ttl_ms: i64,
    served_stale_ms: i64,
    aside_filled_for: Duration,
    workers: String,
    /// Names of the hashes of checkpoints.
    checkpoint_hashes: Vec<String>,
    id: String,
    own_checkpoints: OwnCheckpoints,
    second_deletes: String,
    heals_beside: bool,
    refuses_eviction: bool,
    deleter: tokio::sync::Mutex<Option<Deleter>>,
}

/// Kind of Redis deployment.
#[derive(Debug)]
enum Redis {
    /// One server takes all writes.
    Primary(PrimaryConnection),
    /// Each primary takes the writes of its slots.
    Cluster(Cluster),
}

/// Default maximum time for which an old value is readable while a new one loads. It covers the
/// default retry schedule, with a reserve.
const SERVED_STALE: Duration = Duration::from_secs(15 * 60);

impl Cache {
    /// Checks the settings. It sends nothing: the first [`probe`](Self::probe) connects.
    ///
    /// # Errors
    /// The mode is not supported, or a URL or a PEM text is not usable.
    pub fn connect(config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        let redis = match config.mode {
            RedisMode::Cluster => Redis::Cluster(Cluster::new(config, queue)?),
            RedisMode::Single | RedisMode::Sentinel { .. } => {
                Redis::Primary(PrimaryConnection::new(config, side_keys::probe(queue))?)
            }
        };
        let checkpoint_hashes = checkpoints::names(queue, matches!(redis, Redis::Cluster(_)));
        Ok(Self {
            redis,
            tag_prefix: config.tag_prefix.clone(),
            fence_ttl_ms: lifetime::millis(config.fence_ttl),
            served_stale_ms: lifetime::millis(SERVED_STALE),
            aside_filled_for: aside::FILLED_FOR,
            workers: side_keys::workers(queue),
            id: new_token(),
            own_checkpoints: OwnCheckpoints::new(checkpoint_hashes.len()),
            checkpoint_hashes,
            second_deletes: side_keys::second_deletes(queue),
            heals_beside: false,
            refuses_eviction: false,
            deleter: tokio::sync::Mutex::default(),
        })
    }

    /// Sets the maximum time for which an old value is readable while a new one loads (`stale:
    /// serve`). It holds even if the load fails.
    #[must_use]
    pub fn serving_stale_for(self, longest: Duration) -> Self {
        Self { served_stale_ms: lifetime::millis(longest), ..self }
    }

    /// Sets whether a [`probe`](Self::probe) fails while Redis may evict keys.
    #[must_use]
    pub fn refusing_eviction(self, refuses_eviction: bool) -> Self {
        Self { refuses_eviction, ..self }
    }

    /// Prepares for heals beside live workers. These have a lock and a progress of their own, and
    /// their batches write no checkpoints.
    #[must_use]
    pub fn healing_beside(self) -> Self {
        Self { heals_beside: true, ..self }
    }

    /// Returns another connection for the same kind of heal. It keeps this one's lock.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub fn for_keeper(&self, config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        Self::connect(config, queue)
            .map(|keeper| Self { heals_beside: self.heals_beside, ..keeper })
    }

    /// Sets how long tag maintenance fills one set of members that are set aside. The second look
    /// comes after twice that time.
    #[must_use]
    pub fn setting_aside_for(self, filled_for: Duration) -> Self {
        Self { aside_filled_for: filled_for, ..self }
    }

    /// Returns whether Redis is a cluster.
    pub fn is_cluster(&self) -> bool {
        matches!(self.redis, Redis::Cluster(_))
    }

    /// Checks that Redis answers, has loaded its data and takes writes. Connects if there is no
    /// connection.
    ///
    /// It limits its own rate: after a failure, the next call waits up to a second first. Callers
    /// may loop without a pause of their own.
    ///
    /// # Errors
    /// The reason why Redis is not usable.
    pub async fn probe(&self) -> Result<(), Outage> {
        match &self.redis {
            Redis::Primary(link) => link.probe().await?,
            Redis::Cluster(cluster) => cluster.probe().await?,
        }
        if self.refuses_eviction { self.refuse_eviction().await } else { Ok(()) }
    }

    /// Returns the state of the connection, without a request.
    pub fn state(&self) -> ConnectionState {
        match &self.redis {
            Redis::Primary(link) => link.state(),
            Redis::Cluster(cluster) => cluster.state(),
        }
    }

    /// Returns the prefix of the names of tags' sets (`UNSTALE_TAG_PREFIX`).
    pub fn tag_prefix(&self) -> &str {
        &self.tag_prefix
    }

    fn tag_set(&self, tag: &str) -> String {
        [&self.tag_prefix, tag].concat()
    }

    /// Gives the connection up, so that nothing more is sent before the next probe.
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

    /// Runs one command by itself, outside any batch.
    async fn call(&self, name: &str, command: Cmd) -> Result<Value, CommandError> {
        match &self.redis {
            Redis::Primary(link) => link.call(name, command).await,
            Redis::Cluster(cluster) => cluster.call(name, &command).await,
        }
    }
}

/// Reads whole numbers from a script's answer.
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
