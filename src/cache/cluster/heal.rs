//! The turn to heal, in a cluster: a lock in each of its hashes.

use std::ops::Range;

use super::super::checkpoints::{Checkpoints, HealTurn, read_answers};
use super::super::context::Context;
use super::super::failure::CommandError;
use super::Cluster;

impl Cluster {
    /// See `Cache::take_heal`. Takes the first lock, and with it all others. After a loss on one
    /// primary, the heal applies the history to all: each hash is marked for healing, and each lock
    /// advanced.
    pub(in crate::cache) async fn take_heal(
        &self,
        context: &Context,
    ) -> Result<HealTurn, CommandError> {
        let first = self.take_locks(context, 0..1, "in any case").await?;
        if !matches!(first.first(), Some((1, _))) {
            return Ok(HealTurn::Anothers);
        }
        let (answers, _) = self.ask_checkpoints(|| context.checkpoint_reads()).await?;
        if !Checkpoints::of_hashes(0, &answers)?.is_wanted() {
            let mut unlock = redis::cmd("HDEL");
            unlock.arg(&context.checkpoint_hashes[0]).arg("lock");
            self.call("checkpoints", unlock).await?;
            return Ok(HealTurn::Done);
        }
        let all = self.take_locks(context, 0..context.checkpoint_hashes.len(), "and want").await?;
        Ok(if all.iter().all(|(word, _)| *word == 1) {
            context.has_turn(all)
        } else {
            HealTurn::Anothers
        })
    }

    /// Asks for the locks of these hashes. `when` is the condition for the script.
    async fn take_locks(
        &self,
        context: &Context,
        places: Range<usize>,
        when: &str,
    ) -> Result<Vec<(i64, Checkpoints)>, CommandError> {
        let ask = || context.lock_calls(places, when, || self.sent());
        let (answers, _) = self.ask_checkpoints(ask).await?;
        read_answers(&answers)
    }
}
