//! Invalidation of tags. A small tag goes at once; of a big one the set is detached at once, and its members are deleted slice by slice, by
//! any worker: the detached set and its entry in the record are all there is to know, so a crash at any point is resumed.

use redis::{Cmd, Value};
use tokio_util::sync::CancellationToken;

use super::failure::CommandError;
use super::lease::LONGEST_LEASE;
use super::script::{DRAIN_SLICE, INVALIDATE_TAG, Sent};
use super::side_keys::{Kind, SEQUENCE, side_key};
use super::{Cache, integers, lifetime};

/// Members that are deleted in one go: a few milliseconds of Redis' time at most.
const SLICE: usize = 500;

/// A generation outlives every lease that was granted before it.
const GENERATION_TTL_IN_LEASES: u32 = 10;

/// What an invalidation of a tag did at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalidated {
    /// Members whose keys were deleted.
    pub existed: u64,
    /// Members whose keys were gone before.
    pub gone: u64,
    /// Members are still to be deleted: [`Cache::drain_tag`].
    pub draining: bool,
}

/// What a drain did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Members whose keys were deleted.
    pub existed: u64,
    /// Members whose keys were gone before.
    pub gone: u64,
    /// Nothing of what had been detached when it began is left; false where it was cancelled.
    pub complete: bool,
}

impl Cache {
    /// Invalidates a tag as a batch would.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn invalidate_tag(&self, tag: &str) -> Result<Invalidated, CommandError> {
        let value = self.call("invalidate_tag", self.invalidation(tag, &mut Sent::default())).await?;
        invalidated(&value).ok_or_else(unexpected)
    }

    pub(super) fn invalidation(&self, tag: &str, sent: &mut Sent) -> Cmd {
        let set = self.tag_set(tag);
        let (generation, drain) = (side_key(Kind::Generation, set.as_bytes()), side_key(Kind::Drain, set.as_bytes()));
        let keys = [set.as_bytes(), &generation, &drain, SEQUENCE, self.drains.as_bytes()];
        let mut command = INVALIDATE_TAG.call(sent, keys.into_iter());
        command.arg(lifetime::millis(LONGEST_LEASE * GENERATION_TTL_IN_LEASES)).arg(SLICE);
        command
    }

    /// Deletes what invalidations of a tag detached, this worker's or another's, up to now. `progress` is told of each slice: keys that
    /// existed, keys that were gone.
    ///
    /// # Errors
    /// An outage, or Redis refuses; either way what is left stays recorded.
    pub async fn drain_tag(
        &self,
        tag: &str,
        cancel: &CancellationToken,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Drained, CommandError> {
        let set = self.tag_set(tag);
        let (first, end) = ([b"[", set.as_bytes(), b"\0"].concat(), [b"(", set.as_bytes(), b"\x01"].concat());
        let entries = self.entries(&first, &end).await?;
        self.drain(entries, cancel, progress).await
    }

    /// Deletes whatever invalidations of any tag detached and nobody has finished.
    ///
    /// # Errors
    /// An outage, or Redis refuses; either way what is left stays recorded.
    pub async fn drain_all(&self, cancel: &CancellationToken, progress: impl FnMut(u64, u64) + Send) -> Result<Drained, CommandError> {
        let entries = self.entries(b"-", b"+").await?;
        self.drain(entries, cancel, progress).await
    }

    /// The entries of the record between two bounds: a tag's set, a NUL, the drain's number.
    async fn entries(&self, first: &[u8], end: &[u8]) -> Result<Vec<Vec<u8>>, CommandError> {
        let mut command = redis::cmd("ZRANGEBYLEX");
        command.arg(&self.drains).arg(first).arg(end);
        let Value::Array(entries) = self.call("ZRANGEBYLEX", command).await? else { return Err(unexpected()) };
        Ok(entries.into_iter().filter_map(|entry| if let Value::BulkString(entry) = entry { Some(entry) } else { None }).collect())
    }

    async fn drain(
        &self,
        entries: Vec<Vec<u8>>,
        cancel: &CancellationToken,
        mut progress: impl FnMut(u64, u64) + Send,
    ) -> Result<Drained, CommandError> {
        let mut drained = Drained { complete: true, ..Drained::default() };
        for entry in entries {
            let Some(set) = detached_set(&entry) else { continue };
            let (mut cursor, mut left) = (0, true);
            while left {
                if cancel.is_cancelled() {
                    return Ok(Drained { complete: false, ..drained });
                }
                let keys = [set.as_slice(), self.drains.as_bytes()];
                let mut command = DRAIN_SLICE.call(&mut Sent::default(), keys.into_iter());
                command.arg(cursor).arg(SLICE).arg(&entry);
                let value = self.call("drain", command).await?;
                let [next, existed, gone, more] = integers(&value).ok_or_else(unexpected)?;
                drained.existed += existed;
                drained.gone += gone;
                progress(existed, gone);
                (cursor, left) = (next, more == 1);
            }
        }
        Ok(drained)
    }
}

pub(super) fn invalidated(value: &Value) -> Option<Invalidated> {
    integers(value).map(|[existed, gone, draining]| Invalidated { existed, gone, draining: draining == 1 })
}

/// Where the members of an entry of the record are.
fn detached_set(entry: &[u8]) -> Option<Vec<u8>> {
    let separator = entry.iter().rposition(|&byte| byte == 0)?;
    let (set, number) = (&entry[..separator], &entry[separator + 1..]);
    Some([&side_key(Kind::Drain, set), b":".as_slice(), number].concat())
}

pub(super) fn unexpected() -> CommandError {
    CommandError::Failed("tags: an answer of another shape than expected".into())
}
