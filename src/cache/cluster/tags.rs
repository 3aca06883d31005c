//! Tags in a cluster. A set is detached in its own slot, and its members are deleted in theirs.
//! Only then do they leave the set.

use redis::{Cmd, Value};

use super::super::answer::{self, slice};
use super::super::context::Context;
use super::super::failure::{self, CommandError};
use super::super::lifetime::{self, Lifetime};
use super::super::script::{ADD_MEMBER, DETACH_TAG, DROP_DETACHED, NUMBERS, SCAN_MEMBERS, Sent};
use super::super::side_keys::{DRAINING_TAGS, Kind, SEQUENCE, aside, detached, is_own, side_key};
use super::super::tags::{
    BYTES_AT_ONCE, GENERATION_TTL, Invalidated, unexpected, warn_of_own_members,
};
use super::Cluster;
use crate::plan::OperationId;
use crate::registry::{Expiry, MAX_NAME_BYTES};

pub(super) use super::super::tags::SLICE;

/// Number of slices that drain a set of at most [`SLICE`] members at once. Most sets need no more.
const SLICES_AT_ONCE: usize = 4;

/// Members that an invalidation detached.
#[derive(Debug)]
pub(super) struct Detached {
    pub(super) id: OperationId,
    /// Former name of the set: that of the tag.
    pub(super) set: Vec<u8>,
    pub(super) number: u64,
    /// Number of members.
    size: u64,
    /// True if the answer named all members, as it does if they are few.
    is_whole: bool,
    /// Members whose keys are to be deleted.
    pub(super) members: Vec<Vec<u8>>,
    /// True if earlier drains of the tag have not ended.
    pub(super) others: bool,
}

impl Detached {
    /// Reads the answer of `detach_tag.lua`.
    pub(super) fn read(
        context: &Context,
        id: OperationId,
        set: Vec<u8>,
        number: u64,
        answer: &Value,
    ) -> Option<Self> {
        let Value::Array(parts) = answer else { return None };
        let [Value::Int(others), Value::Int(size), members @ ..] = parts.as_slice() else {
            return None;
        };
        let is_whole = !members.is_empty();
        let members = without_own(context, &set, answer::members(members.to_vec()));
        Some(Self {
            id,
            set,
            number,
            size: u64::try_from(*size).ok()?,
            is_whole,
            members,
            others: *others > 0,
        })
    }

    /// Returns whether the set can be dropped once the keys of all members are gone.
    pub(super) fn is_drained(&self) -> bool {
        self.size > 0 && self.is_whole
    }

    /// Returns whether there was no set.
    pub(super) fn is_absent(&self) -> bool {
        self.size == 0
    }

    /// Returns whether members are left that the answer did not name.
    pub(super) fn is_left(&self) -> bool {
        self.size > 0 && !self.is_whole
    }
}

/// Returns a call that draws consecutive numbers of the sequence.
pub(super) fn numbers(count: usize) -> Cmd {
    let mut command = NUMBERS.call(&mut Sent::all(), [SEQUENCE].into_iter());
    command.arg(count);
    command
}

pub(super) fn first_number(answer: &Value) -> Result<u64, CommandError> {
    match answer {
        Value::ServerError(error) => Err(failure::classify("invalidate_tag", error)),
        Value::BulkString(number) => std::str::from_utf8(number)
            .ok()
            .and_then(|number| number.parse().ok())
            .ok_or_else(unexpected),
        _ => Err(unexpected()),
    }
}

/// Returns a call that detaches a tag's set. The answer names the members of a set with at most
/// `most` members and `most_bytes` bytes of them.
pub(super) fn detach(set: &[u8], number: u64, most: usize, most_bytes: usize) -> Cmd {
    let (generation, record, detached) = (
        side_key(Kind::Generation, set),
        side_key(Kind::Drain, set),
        detached(set, number.to_string().as_bytes()),
    );
    let [first, second, third, fourth] = aside(set);
    let keys = [set, &generation, &record, &detached, &first, &second, &third, &fourth];
    let mut command = DETACH_TAG.call(&mut Sent::all(), keys.into_iter());
    command.arg(number).arg(lifetime::millis(GENERATION_TTL)).arg(most).arg(SLICE);
    command.arg(most_bytes);
    command
}

/// Returns a call that drops a detached set, and its number in the tag's record.
pub(super) fn drop_detached(set: &[u8], number: &[u8]) -> Cmd {
    let mut command = DROP_DETACHED.call(
        &mut Sent::all(),
        [detached(set, number).as_slice(), &side_key(Kind::Drain, set)].into_iter(),
    );
    command.arg(number);
    command
}

/// Returns a command that adds a tag's set to the list of sets that drain.
pub(super) fn list(set: &[u8]) -> Cmd {
    let mut command = redis::cmd("SADD");
    command.arg(DRAINING_TAGS).arg(set);
    command
}

/// Returns a call that adds a key to a tag's set for the lifetime of its value, or `None` if
/// that is over.
pub(super) fn add_member(
    context: &Context,
    key: &str,
    tag: &str,
    expiry: Expiry,
    now_ms: i64,
) -> Option<Cmd> {
    let lifetime = Lifetime::draw(expiry, now_ms)?;
    let mut command =
        ADD_MEMBER.call(&mut Sent::all(), [context.tag_set(tag).as_bytes()].into_iter());
    command.arg(key).arg(lifetime.unit.option()).arg(lifetime.joined_millis());
    Some(command)
}

impl Cluster {
    /// See `Cache::invalidate_tag`.
    pub(in crate::cache) async fn invalidate_tag(
        &self,
        context: &Context,
        tag: &str,
    ) -> Result<Invalidated, CommandError> {
        let set = context.tag_set(tag).into_bytes();
        let number = first_number(&self.call("invalidate_tag", numbers(1)).await?)?;
        // The answer names no members, however few: one path serves all sizes.
        let detachment = detach(&set, number, 0, BYTES_AT_ONCE);
        let answer = self.call_with_checkpoint(context, "invalidate_tag", detachment).await?;
        let Value::Array(parts) = answer else { return Err(unexpected()) };
        let [Value::Int(others), Value::Int(size), ..] = parts.as_slice() else {
            return Err(unexpected());
        };
        if usize::try_from(*size).is_ok_and(|size| size > SLICE) {
            self.call("SADD", list(&set)).await?;
            return Ok(Invalidated { existed: 0, gone: 0, draining: true });
        }
        if *size == 0 {
            return Ok(Invalidated { existed: 0, gone: 0, draining: *others > 0 });
        }
        let (mut all_existed, mut all_gone, mut cursor, mut is_left) = (0, 0, 0, true);
        for _ in 0..SLICES_AT_ONCE {
            let number = number.to_string();
            let [next, existed, gone, left, ..] =
                self.drain_slice(context, &set, number.as_bytes(), cursor).await?;
            (all_existed, all_gone) = (all_existed + existed, all_gone + gone);
            (cursor, is_left) = (next, left == 1);
            if !is_left {
                break;
            }
        }
        if is_left {
            self.call("SADD", list(&set)).await?;
        }
        let draining = *others > 0 || is_left;
        Ok(Invalidated { existed: all_existed, gone: all_gone, draining })
    }

    /// Does the same as `drain_slice.lua`, with the same answer. Members leave the set only after
    /// their keys are gone.
    ///
    /// It never reports a lost set: another worker may be about to remove the number from the
    /// record.
    pub(in crate::cache) async fn drain_slice(
        &self,
        context: &Context,
        set: &[u8],
        number: &[u8],
        cursor: u64,
    ) -> Result<[u64; 7], CommandError> {
        let detached = detached(set, number);
        let (next, members) = self.scan_members(&detached, cursor, SLICE).await?;
        let keys = without_own(context, set, members.clone());
        let long = keys.iter().filter(|key| key.len() > MAX_NAME_BYTES).count() as u64;
        let existed = self.delete_members(context, &keys).await?;
        if !members.is_empty() {
            let mut leave = redis::cmd("SREM");
            leave.arg(&detached).arg(&members);
            self.call("SREM", leave).await?;
        }
        if next == 0 && self.call("drain", drop_detached(set, number)).await? == Value::Int(0) {
            let mut unlist = redis::cmd("SREM");
            unlist.arg(DRAINING_TAGS).arg(set);
            self.call("SREM", unlist).await?;
        }
        // Own members were logged already.
        Ok([next, existed, keys.len() as u64 - existed, u64::from(next != 0), 0, 0, long])
    }

    /// Returns the next cursor and about `most` members, fewer if they are long.
    pub(super) async fn scan_members(
        &self,
        set: &[u8],
        cursor: u64,
        most: usize,
    ) -> Result<(u64, Vec<Vec<u8>>), CommandError> {
        let mut scan = SCAN_MEMBERS.call(&mut Sent::all(), [set].into_iter());
        scan.arg(cursor).arg(most);
        slice(self.call("SSCAN", scan).await?).ok_or_else(unexpected)
    }

    /// Deletes keys and their leases, the leases first. Returns how many keys existed.
    async fn delete_members(
        &self,
        context: &Context,
        members: &[Vec<u8>],
    ) -> Result<u64, CommandError> {
        let key = |key: &[u8]| {
            let mut command = redis::cmd("UNLINK");
            command.arg(key);
            command
        };
        let commands: Vec<Cmd> = members
            .iter()
            .flat_map(|member| [key(&side_key(Kind::Lease, member)), key(member)])
            .collect();
        let mut existed = 0;
        for pair in self.run_with_checkpoints(context, &commands).await?.chunks(2) {
            for answer in pair {
                if let Value::ServerError(error) = answer {
                    return Err(failure::classify("UNLINK", error));
                }
            }
            existed += u64::from(pair.last() == Some(&Value::Int(1)));
        }
        Ok(existed)
    }
}

/// Removes unstale's own keys and the sets of tags from the members of a tag's set, and logs them.
fn without_own(context: &Context, set: &[u8], mut members: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let all = members.len();
    members.retain(|member| !is_own(member, &context.tag_prefix));
    if members.len() < all {
        warn_of_own_members(&String::from_utf8_lossy(set));
    }
    members
}
