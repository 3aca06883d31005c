//! The calls that invalidate a tag, and drain the sets that invalidations detached.

use redis::{Cmd, Value};
use tokio_util::sync::CancellationToken;

use super::super::Cache;
use super::super::answer::members;
use super::super::failure::CommandError;
use super::super::side_keys::{DRAINING_TAGS, Kind, side_key};
use super::{
    Drained, Invalidated, sequence_number, unexpected, warn_of_long_members, warn_of_own_members,
};

impl Cache {
    /// Invalidates a tag as a batch would.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn invalidate_tag(&self, tag: &str) -> Result<Invalidated, CommandError> {
        self.backend.invalidate_tag(&self.context, tag).await
    }

    /// Deletes the members that invalidations of a tag have detached so far, whichever worker
    /// detached them. Calls `progress` after each slice with the keys that existed and the keys
    /// that were gone.
    ///
    /// # Errors
    /// An outage, or Redis refuses. The rest stays recorded.
    pub async fn drain_tag(
        &self,
        tag: &str,
        cancel: &CancellationToken,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Drained, CommandError> {
        self.drain(self.context.tag_set(tag).as_bytes(), cancel, progress).await
    }

    /// Deletes the members that invalidations of any tag have detached and no drain has deleted. A
    /// tag that Redis refuses does not keep the others waiting.
    ///
    /// # Errors
    /// An outage, or Redis refuses one of the tags. The rest stays recorded.
    pub async fn drain_all(
        &self,
        cancel: &CancellationToken,
        mut progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Drained, CommandError> {
        let mut all = Drained { complete: true, ..Drained::default() };
        let mut refusal = None;
        for set in self.texts("SMEMBERS", arguments("SMEMBERS", &[DRAINING_TAGS])).await? {
            let drained = match self.drain(&set, cancel, &mut progress).await {
                Ok(drained) => drained,
                Err(CommandError::Outage(outage)) => return Err(outage.into()),
                Err(error) => {
                    refusal.get_or_insert(error);
                    continue;
                }
            };
            all.existed += drained.existed;
            all.gone += drained.gone;
            all.lost += drained.lost;
            all.complete &= drained.complete;
        }
        refusal.map_or(Ok(all), Err)
    }

    async fn drain(
        &self,
        set: &[u8],
        cancel: &CancellationToken,
        mut progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Drained, CommandError> {
        let record = side_key(Kind::Drain, set);
        let mut drained = Drained { complete: true, ..Drained::default() };
        for number in self.drains(set, &record).await? {
            let (mut cursor, mut left, mut has_long) = (0, true, false);
            while left {
                if cancel.is_cancelled() {
                    return Ok(Drained { complete: false, ..drained });
                }
                let [next, existed, gone, more, lost, own, long] =
                    self.backend.drain_slice(&self.context, set, &number, cursor).await?;
                drained.existed += existed;
                drained.gone += gone;
                drained.lost += lost;
                if own > 0 {
                    warn_of_own_members(&String::from_utf8_lossy(set));
                }
                has_long |= long > 0;
                progress(existed, gone);
                (cursor, left) = (next, more == 1);
            }
            if has_long {
                warn_of_long_members(&String::from_utf8_lossy(set));
            }
        }
        Ok(drained)
    }

    /// Returns the numbers of a tag's drains. The number of its last invalidation is always among
    /// them: Redis may have evicted the record, but not the set that was detached.
    async fn drains(&self, set: &[u8], record: &[u8]) -> Result<Vec<Vec<u8>>, CommandError> {
        let mut numbers = self.texts("SMEMBERS", arguments("SMEMBERS", &[record])).await?;
        // Readers may write to the generation: it may have another type, or hold anything.
        match self.call("GET", arguments("GET", &[&side_key(Kind::Generation, set)])).await {
            Ok(Value::BulkString(last))
                if sequence_number(&last).is_some() && !numbers.contains(&last) =>
            {
                numbers.push(last);
            }
            Err(CommandError::Outage(outage)) => return Err(outage.into()),
            _ => {}
        }
        if numbers.is_empty() {
            // No drain has this number. Draining it removes the tag from the list.
            numbers.push(b"0".to_vec());
        }
        Ok(numbers)
    }

    pub(in crate::cache) async fn texts(
        &self,
        name: &str,
        command: Cmd,
    ) -> Result<Vec<Vec<u8>>, CommandError> {
        // RESP3 has sets, RESP2 has not.
        let (Value::Array(items) | Value::Set(items)) = self.call(name, command).await? else {
            return Err(unexpected());
        };
        Ok(members(items))
    }
}

fn arguments(name: &str, arguments: &[&[u8]]) -> Cmd {
    let mut command = redis::cmd(name);
    for argument in arguments {
        command.arg(argument);
    }
    command
}
