//! The kind of Redis deployment. Only this file chooses between a single server and a cluster.
//!
//! Each kind has the methods below, in files of the same names, such as `single/tags.rs` and
//! `cluster/tags.rs`. All other files of `cache` serve both kinds. A table in
//! `docs/architecture.md` compares the two.

use futures_util::future::Either;
use redis::{Cmd, Value};

use super::address::Address;
use super::applied::Applied;
use super::checkpoints::HealTurn;
use super::cluster::Cluster;
use super::connection_state::ConnectionState;
use super::context::Context;
use super::failure::{CacheError, CommandError, Outage};
use super::lease::{FillOutcome, Grant, NewValue};
use super::script::Sent;
use super::single::Single;
use super::tag_maintenance::{TagSets, TagSlice};
use super::tags::Invalidated;
use crate::config::{RedisConfig, RedisMode};
use crate::plan::Plan;

/// Kind of Redis deployment.
#[derive(Debug)]
pub(super) enum Backend {
    /// One server takes all writes.
    Single(Single),
    /// Each primary takes the writes of its slots.
    Cluster(Cluster),
}

/// Declares methods that call the method of the same name of either kind. An asynchronous one
/// returns that method's future, without another one around it.
macro_rules! of_both_kinds {
    ($(
        $(#[$doc:meta])*
        fn $name:ident(&self $(, $argument:ident: $type:ty)* $(,)?) -> $result:ty;
    )+) => {
        impl Backend {
            $(
                $(#[$doc])*
                pub(super) fn $name(&self $(, $argument: $type)*) -> $result {
                    match self {
                        Self::Single(single) => single.$name($($argument),*),
                        Self::Cluster(cluster) => cluster.$name($($argument),*),
                    }
                }
            )+
        }
    };
    ($(
        $(#[$doc:meta])*
        async fn $name:ident(&self $(, $argument:ident: $type:ty)* $(,)?) -> $result:ty;
    )+) => {
        impl Backend {
            $(
                $(#[$doc])*
                pub(super) fn $name(
                    &self $(, $argument: $type)*
                ) -> impl Future<Output = $result> {
                    match self {
                        Self::Single(single) => Either::Left(single.$name($($argument),*)),
                        Self::Cluster(cluster) => Either::Right(cluster.$name($($argument),*)),
                    }
                }
            )+
        }
    };
}

impl Backend {
    /// Checks the settings, and connects to nothing.
    pub(super) fn new(config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        Ok(match config.mode {
            RedisMode::Cluster => Self::Cluster(Cluster::new(config, queue)?),
            RedisMode::Single | RedisMode::Sentinel { .. } => {
                Self::Single(Single::new(config, queue)?)
            }
        })
    }
}

of_both_kinds! {
    /// Returns the names of the hashes of a queue's checkpoints.
    fn checkpoint_hashes(&self, queue: &str) -> Vec<String>;

    /// Returns the state of the connection, without a request.
    fn state(&self) -> ConnectionState;

    /// Gives the connection up, so that nothing more is sent before the next probe.
    fn give_up(&self, outage: &Outage) -> ();

    /// Returns the scripts that a new pipeline need not send in full, since the server knows them.
    fn sent(&self) -> Sent;

    /// Returns whether another server may serve a key's slot later.
    fn moves_slots(&self) -> bool;

    /// Returns whether Redis lists the sets of tags that have members set aside.
    fn lists_members_aside(&self) -> bool;
}

of_both_kinds! {
    /// See `Cache::probe`.
    async fn probe(&self) -> Result<(), Outage>;

    /// Runs one command by itself, outside any batch.
    async fn call(&self, name: &str, command: Cmd) -> Result<Value, CommandError>;

    /// See `Cache::apply`.
    async fn apply(&self, context: &Context, plan: &Plan<'_>) -> Result<Applied, Outage>;

    /// Runs deletions on connections of their own. A server that refuses writes is not an outage
    /// there, and refused deletions are ignored.
    async fn delete_apart(&self, commands: &[Cmd]) -> Result<(), Outage>;

    /// See `Cache::invalidate_tag`.
    async fn invalidate_tag(&self, context: &Context, tag: &str) -> Result<Invalidated, CommandError>;

    /// Deletes some members of `set`, which the tag's invalidation with that number detached.
    /// Returns the numbers that `drain_slice.lua` lists.
    async fn drain_slice(
        &self,
        context: &Context,
        set: &[u8],
        number: &[u8],
        cursor: u64,
    ) -> Result<[u64; 7], CommandError>;

    /// Continues the scan for sets of tags at `cursor`, with the `SCAN` of `scan`.
    async fn tag_sets(&self, scan: Cmd, cursor: u64) -> Result<TagSets, CommandError>;

    /// See `Cache::maintain_slice`.
    async fn maintain_slice(
        &self,
        context: &Context,
        set: &[u8],
        cursor: u64,
        only_count: bool,
    ) -> Result<TagSlice, CommandError>;

    /// See `Cache::take_second_look`.
    async fn take_second_look(&self, context: &Context, set: &[u8]) -> Result<bool, CommandError>;

    /// Grants a lease for `ttl_ms`: see `Cache::grant_lease`.
    async fn grant_lease(&self, key: &str, token: &str, ttl_ms: i64) -> Result<Grant, CommandError>;

    /// See `Cache::fill`.
    async fn fill(
        &self,
        context: &Context,
        token: &str,
        since: u64,
        new: NewValue<'_>,
    ) -> Result<FillOutcome, CommandError>;

    /// Runs one command outside any batch, with a checkpoint write after it, so that a loss of its
    /// effect is noticed.
    async fn call_with_checkpoint(
        &self,
        context: &Context,
        name: &str,
        command: Cmd,
    ) -> Result<Value, CommandError>;

    /// Advances every checkpoint by one write.
    async fn write_all_checkpoints(&self, context: &Context) -> Result<(), Outage>;

    /// Sends commands that ask for checkpoints, and returns their answers. `ask` makes the commands
    /// once no checkpoint write is in flight. Also returns the node of each hash, if there are
    /// several nodes.
    async fn ask_checkpoints(
        &self,
        ask: impl FnOnce() -> Vec<Cmd>,
    ) -> Result<(Vec<Value>, Vec<Address>), CommandError>;

    /// Returns the `INFO` of each connected node, even of those that no longer serve a slot.
    async fn infos(&self) -> Vec<Value>;

    /// See `Cache::take_heal`.
    async fn take_heal(&self, context: &Context) -> Result<HealTurn, CommandError>;
}
