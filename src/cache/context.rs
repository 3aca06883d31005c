//! The part of the cache's state that plans and both kinds of backend need: its settings, and the
//! checkpoints of this process. It knows no connection.

use std::time::Duration;

use super::aside;
use super::checkpoints::OwnCheckpoints;
use super::lifetime;
use super::side_keys;
use crate::config::RedisConfig;

/// Default maximum time for which an old value is readable while a new one loads. It is as long as
/// the default retry schedule, with a reserve.
const SERVED_STALE: Duration = Duration::from_secs(15 * 60);

/// Settings of a cache, and the checkpoints of this process.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) tag_prefix: String,
    pub(super) fence_ttl_ms: i64,
    pub(super) served_stale_ms: i64,
    pub(super) aside_filled_for: Duration,
    /// Names of the hashes of checkpoints.
    pub(super) checkpoint_hashes: Vec<String>,
    /// Id of this process among workers and checkpoints.
    pub(super) id: String,
    pub(super) own_checkpoints: OwnCheckpoints,
    /// Name of the sorted set of second deletes.
    pub(super) second_deletes: String,
    /// True for heals beside live workers.
    pub(super) heals_beside: bool,
}

impl Context {
    pub(super) fn new(
        config: &RedisConfig,
        queue: &str,
        id: String,
        checkpoint_hashes: Vec<String>,
    ) -> Self {
        Self {
            tag_prefix: config.tag_prefix.clone(),
            fence_ttl_ms: lifetime::millis(config.fence_ttl),
            served_stale_ms: lifetime::millis(SERVED_STALE),
            aside_filled_for: aside::FILLED_FOR,
            id,
            own_checkpoints: OwnCheckpoints::new(checkpoint_hashes.len()),
            checkpoint_hashes,
            second_deletes: side_keys::second_deletes(queue),
            heals_beside: false,
        }
    }

    /// Returns the name of a tag's set.
    pub(super) fn tag_set(&self, tag: &str) -> String {
        [&self.tag_prefix, tag].concat()
    }
}
