//! Invalidation of tags.
//!
//! A small tag is deleted at once. The set of a big tag is detached at once, and any worker then
//! deletes its members in slices (a drain). The detached set and its number in the tag's record are
//! the whole state, so a drain resumes after a crash at any point.
//!
//! The record belongs to the tag: workers of another queue that invalidate the same tag also wait
//! for its drains.

use std::time::Duration;

use redis::{Cmd, Value};
use tokio_util::sync::CancellationToken;

use super::answer::members;
use super::failure::{self, CommandError};
use super::lifetime::LONGEST_LEASE;
use super::script::{INVALIDATE_TAGS, Sent};
use super::side_keys::{ASIDES, DRAINING_TAGS, Kind, SEQUENCE, side_key};
use super::{Cache, lifetime};

/// Number of members that one step deletes: a few milliseconds of Redis' time at most.
pub(super) const SLICE: usize = 500;

/// Maximum number of tags in one call, which share its fixed cost.
pub(super) const TAGS_PER_CALL: usize = 32;

/// Maximum number of members that one call deletes: a few milliseconds of Redis' time.
pub(super) const MEMBERS_PER_CALL: usize = 2 * SLICE;

/// Maximum number of members that the calls of one plan without tagged writes delete. Redis may run
/// these calls back to back.
///
/// The other tags follow, each call after the answer to the previous one, so that other clients get
/// their turns.
pub(super) const MEMBERS_AT_ONCE: usize = 4 * MEMBERS_PER_CALL;

/// Maximum bytes of a tag's members that one step reads: a few milliseconds of Redis' time. The
/// slow lane deletes the members of a tag with more.
pub(super) const BYTES_AT_ONCE: usize = 1 << 20;

/// Average bytes of a member up to which one call deletes its maximum number of members.
const BYTES_PER_MEMBER: usize = BYTES_AT_ONCE / MEMBERS_PER_CALL;

/// Name of an invalidation in messages.
pub(super) const INVALIDATE: &str = "invalidate_tag";

/// Lifetime of a generation: longer than any lease granted before it.
pub(super) const GENERATION_TTL: Duration = LONGEST_LEASE.saturating_mul(10);

/// Immediate result of a tag's invalidation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalidated {
    /// Members whose keys were deleted.
    pub existed: u64,
    /// Members whose keys were gone before.
    pub gone: u64,
    /// True if members are left for [`Cache::drain_tag`].
    pub draining: bool,
}

/// Result of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Members whose keys were deleted.
    pub existed: u64,
    /// Members whose keys were gone before.
    pub gone: u64,
    /// Detached sets that vanished before they were drained, by an eviction or by hand. Keys of
    /// their members may still exist.
    pub lost: u64,
    /// True if nothing is left of the sets that were detached when it began. False after a
    /// cancellation.
    pub complete: bool,
}

impl Cache {
    /// Invalidates a tag as a batch would.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn invalidate_tag(&self, tag: &str) -> Result<Invalidated, CommandError> {
        self.backend.invalidate_tag(self, tag).await
    }

    /// Returns a call that invalidates tags, until they have `members` members together.
    pub(super) fn invalidation(&self, tags: &[&str], members: usize, sent: &mut Sent) -> Cmd {
        let mut keys = vec![SEQUENCE.to_vec(), DRAINING_TAGS.to_vec(), ASIDES.to_vec()];
        for tag in tags {
            let set = self.tag_set(tag).into_bytes();
            let generation = side_key(Kind::Generation, &set);
            keys.extend([set, generation]);
        }
        let mut command = INVALIDATE_TAGS.call(sent, keys.iter().map(Vec::as_slice));
        command.arg(lifetime::millis(GENERATION_TTL)).arg(SLICE).arg(members);
        command.arg(BYTES_AT_ONCE).arg(members * BYTES_PER_MEMBER).arg(&self.tag_prefix);
        command
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
        self.drain(self.tag_set(tag).as_bytes(), cancel, progress).await
    }

    /// Deletes the members that invalidations of any tag have detached and nobody has finished. A
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
                    self.backend.drain_slice(self, set, &number, cursor).await?;
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

    pub(super) async fn texts(
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

/// Returns the number of the sequence that a text holds, or `None` if another program wrote it.
/// `lua/text.lua` has the same rule.
pub(super) fn sequence_number(text: &[u8]) -> Option<u64> {
    let is_number = text.len() <= 16 && text.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(text).ok()?.parse().ok()?;
    (is_number && number < 1 << 52).then_some(number)
}

fn arguments(name: &str, arguments: &[&[u8]]) -> Cmd {
    let mut command = redis::cmd(name);
    for argument in arguments {
        command.arg(argument);
    }
    command
}

/// Result of a call with several tags, by their places in it.
pub(super) struct Invalidations {
    /// Members whose keys were deleted.
    pub(super) existed: u64,
    /// Members whose keys were gone before.
    pub(super) gone: u64,
    /// Number of tags without a set.
    pub(super) absent: u64,
    /// First tag that was not begun; neither were those after it.
    pub(super) left_from: Option<usize>,
    pub(super) draining: Vec<usize>,
    pub(super) refused: Vec<(usize, CommandError)>,
    /// Tags with members that are longer than any key of a rule.
    pub(super) long: Vec<usize>,
    /// Tags with members among unstale's own keys.
    pub(super) own: Vec<usize>,
}

impl Invalidations {
    /// Reads the answer of `invalidate_tags.lua`.
    pub(super) fn read(answer: &Value) -> Result<Self, CommandError> {
        let Value::Array(parts) = answer else { return Err(unexpected()) };
        let [
            counts @ ..,
            Value::Array(draining),
            Value::Array(refused),
            Value::Array(long),
            Value::Array(own),
        ] = parts.as_slice()
        else {
            return Err(unexpected());
        };
        let [Value::Int(existed), Value::Int(gone), Value::Int(left), Value::Int(absent)] = counts
        else {
            return Err(unexpected());
        };
        let count = |number: &i64| u64::try_from(*number).map_err(|_| unexpected());
        let place = |value: &Value| match value {
            Value::Int(place) => usize::try_from(*place).map_err(|_| unexpected()),
            _ => Err(unexpected()),
        };
        let refusal = |pair: &[Value]| match pair {
            [at, Value::ServerError(error)] => {
                Ok((place(at)?, failure::classify(INVALIDATE, error)))
            }
            _ => Err(unexpected()),
        };
        Ok(Self {
            existed: count(existed)?,
            gone: count(gone)?,
            absent: count(absent)?,
            left_from: usize::try_from(*left).ok(),
            draining: draining.iter().map(place).collect::<Result<_, _>>()?,
            refused: refused.chunks(2).map(refusal).collect::<Result<_, _>>()?,
            long: long.iter().map(place).collect::<Result<_, _>>()?,
            own: own.iter().map(place).collect::<Result<_, _>>()?,
        })
    }
}

/// Logs that a tag, or its set by name, had unstale's own keys. The members left the set, so each
/// line needs another such `SADD`.
pub(super) fn warn_of_own_members(tag: &str) {
    tracing::warn!(?tag, "own keys removed from a tag's set");
}

/// Logs that a tag, or its set by name, had members that are longer than any key of a rule. Their
/// keys were deleted too: an application may mean them.
pub(super) fn warn_of_long_members(tag: &str) {
    tracing::warn!(?tag, "members longer than any key of a rule removed from a tag's set");
}

pub(super) fn unexpected() -> CommandError {
    CommandError::Failed("tags: unexpected answer".into())
}
