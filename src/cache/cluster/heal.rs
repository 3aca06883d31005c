//! The turn to heal, in a cluster: a lock in each of its hashes.

use super::super::Cache;
use super::super::checkpoints::HealTurn;
use super::super::failure::CommandError;
use super::Cluster;

impl Cluster {
    /// See [`Cache::take_heal`]. Takes the first lock, and with it all others. Whatever one primary
    /// lost, the heal covers all: each hash is marked for healing, and each lock advanced.
    pub(in crate::cache) async fn take_heal(
        &self,
        cache: &Cache,
    ) -> Result<HealTurn, CommandError> {
        let first = cache.take_locks(0..1, "in any case").await?;
        if !matches!(first.first(), Some((1, _))) {
            return Ok(HealTurn::Anothers);
        }
        if !cache.read_checkpoints().await?.is_wanted() {
            let mut unlock = redis::cmd("HDEL");
            unlock.arg(&cache.checkpoint_hashes[0]).arg("lock");
            self.call("checkpoints", unlock).await?;
            return Ok(HealTurn::Done);
        }
        let all = cache.take_locks(0..cache.checkpoint_hashes.len(), "and want").await?;
        Ok(if all.iter().all(|(word, _)| *word == 1) {
            cache.has_turn(all)
        } else {
            HealTurn::Anothers
        })
    }
}
