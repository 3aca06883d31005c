//! Redis as the worker uses it. Only this module sends commands to it. The package
//! `unstale-reader` has the protocol of readers, which this module also uses.
//!
//! A [`Cache`] shares one connection among all callers, or one for each primary of a cluster. Only
//! [`Cache::probe`] connects. An outage ends the connection with all commands in flight on it.
//!
//! The files, in reading order:
//!
//! - `context`: the settings, and the checkpoints of this process
//! - `backend`: the kind of deployment; the only file that chooses between the next two
//! - `single`, `cluster`: one server for all writes, or one for each slot. Both have files of the
//!   same names
//! - `address`, `socket`, `connection_state`, `server`: connecting, and the connection's state
//! - `answer`, `failure`, `error_text`: reading Redis' answers, and the meaning of its errors
//! - `apply`, `commands`, `applied`: a plan, its commands, and what their answers add up to
//! - `fence`, `lifetime`, `second_deletes`, `without_memory`: parts of a plan
//! - `tags`, `aside`, `tag_maintenance`: invalidation of tags, and the removal of dead members
//! - `lease`, `claim`: rights to fill a key and to load it
//! - `checkpoints`: how workers notice that Redis lost writes, and the state of heals
//! - `workers`, `secret`, `eviction`: worker reports, the signing secret, the eviction policy
//! - `script`, `side_keys`, `slot`: Lua scripts, names of our own keys, slots
//!
//! A file such as `lease` has the types and the commands of its subject. Its file `lease/calls` has
//! the methods of [`Cache`] that send them. So the backends need no `Cache`.
//!
//! This module knows neither rules nor events: a [`Plan`](crate::plan::Plan) is resolved.

mod address;
mod answer;
mod applied;
mod apply;
mod aside;
mod backend;
mod checkpoints;
mod claim;
mod cluster;
mod commands;
mod connection_state;
mod context;
mod error_text;
mod eviction;
mod failure;
mod fence;
mod lease;
mod lifetime;
pub(crate) mod script;
mod second_deletes;
mod secret;
mod server;
pub(crate) mod side_keys;
mod single;
pub(crate) mod slot;
mod socket;
mod tag_maintenance;
mod tags;
mod without_memory;
mod workers;

pub use applied::{Applied, KeyHits};
pub use aside::Asides;
pub use checkpoints::{
    Acknowledged, Checkpoints, DeadlyRange, Doubt, Entered, FieldChange, HealDetails, HealFrom,
    HealProgress, HealRecord, HealTurn, LastCount, LostEvents, LowWatermark, Owed, OwedHeal,
    OwedHeals, RefusedEffects, Tick, Unhealed,
};
pub use claim::{Claim, LoadToken};
pub use connection_state::ConnectionState;
pub use eviction::Eviction;
pub use failure::{CacheError, CommandError, Outage};
pub use lease::{FillOutcome, Grant};
pub use lifetime::LONGEST_LEASE;
pub use second_deletes::{DueSecondDelete, SecondDelete, SecondDeletes};
pub use server::ServerInfo;
pub use tag_maintenance::{SCAN_STEP, TagSets, TagSlice};
pub use tags::{Drained, Invalidated};
pub use unstale_reader::protocol::new_token;
pub use unstale_reader::protocol::scripts::READER_SCRIPTS;
pub use workers::{REPORT_COUNTS_FOR, ReportedWorker, WorkerReport};

use std::time::Duration;

use redis::{Cmd, Value};

use crate::config::RedisConfig;
use backend::Backend;
use context::Context;

/// Client of the Redis server or cluster that holds the cache.
#[derive(Debug)]
pub struct Cache {
    backend: Backend,
    context: Context,
    /// Name of the hash of worker reports.
    workers: String,
    refuses_eviction: bool,
}

impl Cache {
    /// Checks the settings. It sends nothing: the first [`probe`](Self::probe) connects.
    ///
    /// # Errors
    /// The mode is not supported, or a URL or a PEM text is not usable.
    pub fn connect(config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        let backend = Backend::new(config, queue)?;
        let hashes = backend.checkpoint_hashes(queue);
        Ok(Self {
            backend,
            context: Context::new(config, queue, new_token(), hashes),
            workers: side_keys::workers(queue),
            refuses_eviction: false,
        })
    }

    /// Sets the maximum time for which an old value is readable while a new one loads (`stale:
    /// serve`). It holds even if the load fails.
    #[must_use]
    pub fn serving_stale_for(mut self, longest: Duration) -> Self {
        self.context.served_stale_ms = lifetime::millis(longest);
        self
    }

    /// Sets whether a [`probe`](Self::probe) fails while Redis may evict keys.
    #[must_use]
    pub fn refusing_eviction(self, refuses_eviction: bool) -> Self {
        Self { refuses_eviction, ..self }
    }

    /// Prepares for heals beside live workers. These have a lock and a progress of their own, and
    /// their batches write no checkpoints.
    #[must_use]
    pub fn healing_beside(mut self) -> Self {
        self.context.heals_beside = true;
        self
    }

    /// Returns another connection for the same kind of heal. It keeps this one's lock.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub fn for_keeper(&self, config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        let mut keeper = Self::connect(config, queue)?;
        keeper.context.heals_beside = self.context.heals_beside;
        Ok(keeper)
    }

    /// Sets how long tag maintenance fills one set of members that are set aside. The second look
    /// comes after twice that time.
    #[must_use]
    pub fn setting_aside_for(mut self, filled_for: Duration) -> Self {
        self.context.aside_filled_for = filled_for;
        self
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
        self.backend.probe().await?;
        if self.refuses_eviction { self.refuse_eviction().await } else { Ok(()) }
    }

    /// Returns the state of the connection, without a request.
    pub fn state(&self) -> ConnectionState {
        self.backend.state()
    }

    /// Returns the prefix of the names of tags' sets (`UNSTALE_TAG_PREFIX`).
    pub fn tag_prefix(&self) -> &str {
        &self.context.tag_prefix
    }

    /// Gives the connection up, so that nothing more is sent before the next probe.
    pub fn give_up(&self, outage: &Outage) {
        self.backend.give_up(outage);
    }

    /// Runs one command by itself, outside any batch.
    async fn call(&self, name: &str, command: Cmd) -> Result<Value, CommandError> {
        self.backend.call(name, command).await
    }
}
