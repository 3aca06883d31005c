//! Translates a plan into Redis' commands.
//!
//! Leases of all keys come first. Each rule's deletions follow, in a variadic UNLINK or a script
//! that also raises fences. The rest comes in order.

use redis::{Cmd, Pipeline};

use super::checkpoints::CheckpointWrite;
use super::context::Context;
use super::fence;
use super::lifetime::{self, Lifetime, Unit};
use super::script::{BUMP_PAST, Sent, WRITE_TAGGED};
use super::second_deletes::{self, SecondDelete, TARGETS_PER_CALL};
use super::side_keys::{Kind, write_side_key};
use super::tags::{MEMBERS_AT_ONCE, MEMBERS_PER_CALL, TAGS_PER_CALL};
use crate::plan::{Command, FenceVersion, Operation, OperationId, Plan};
use crate::registry::Write;

/// Maximum number of keys in one UNLINK. Beyond some hundreds, longer commands gain nothing and
/// block for longer.
const KEYS_PER_COMMAND: usize = 500;

/// Maximum size of a pipeline. All chunks of a plan are in flight at once; smaller ones bound
/// replies and buffers.
pub(super) const CHUNK_COMMANDS: usize = 512;
pub(super) const CHUNK_BYTES: usize = 256 * 1_024;

/// Subject of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject {
    /// Leases of these keys, as places in [`Commands::voids`].
    Leases { first: usize, end: usize },
    /// Second deletes of these operations, as places in [`Plan::second_deletes`].
    SecondDeletes { first: usize, end: usize },
    /// Deletions of these keys, as places in [`Plan::deletions`].
    Deletions { first: usize, end: usize },
    /// Invalidations of these tags, as places in [`Commands::tags`].
    Tags { first: usize, end: usize },
    /// Existence of an operation's key; `SET … NX` answers it as well.
    Existence(OperationId),
    /// An operation.
    Operation(OperationId),
    /// Part of an operation whose answer matters only if it is an error.
    Quiet(OperationId),
    /// Key of a member of the tag that an operation invalidates.
    Member(OperationId),
    /// Members detached from that tag.
    Detachment(OperationId),
    /// Checkpoint write after the plan.
    CheckpointWrite(CheckpointWrite),
}

/// A plan as Redis' commands.
pub(super) struct Commands {
    pub(super) chunks: Vec<Pipeline>,
    pub(super) subjects: Vec<Subject>,
    /// Operations that void the leases of their keys.
    pub(super) voids: Vec<OperationId>,
    /// Operations that invalidate tags.
    pub(super) tags: Vec<OperationId>,
    chunk_bytes: usize,
    pub(super) sent: Sent,
}

impl Context {
    pub(super) fn commands(&self, plan: &Plan<'_>) -> Commands {
        let now_ms = lifetime::now_ms();
        let mut commands = Commands::new(plan);
        self.schedule_second_deletes(&mut commands, plan);
        let mut first = 0;
        for (_, is_fenced, deletions) in plan.deletions_by_rule() {
            for ids in
                deletions.chunks(if is_fenced { fence::KEYS_PER_CALL } else { KEYS_PER_COMMAND })
            {
                let end = first + ids.len();
                let deletion = self.deletion(plan, ids, &mut commands.sent);
                commands.push(Subject::Deletions { first, end }, deletion);
                first = end;
            }
        }
        let is_tag = |id: &OperationId| plan.operation(*id).command == Command::InvalidateTag;
        let in_a_row = || plan.in_order().chunk_by(|one, next| is_tag(one) && is_tag(next));
        let fills_tags = |id: &OperationId| matches!(plan.operation(*id).command, Command::Write(write) if !write.tags.is_empty());
        let members = if plan.in_order().iter().any(fills_tags) {
            // A later call of the invalidation would also delete what the plan has written.
            MEMBERS_PER_CALL
        } else {
            let of_tags = in_a_row().filter(|ids| ids.first().is_some_and(is_tag));
            let calls: usize = of_tags.map(|ids| ids.len().div_ceil(TAGS_PER_CALL)).sum();
            (MEMBERS_AT_ONCE / calls.max(1)).min(MEMBERS_PER_CALL)
        };
        for ids in in_a_row() {
            if ids.first().is_some_and(is_tag) {
                self.invalidations(&mut commands, plan, ids, members);
            } else {
                ids.iter().for_each(|&id| self.operation(&mut commands, plan, id, now_ms));
            }
        }
        commands
    }

    /// Schedules the second deletes that the plan asks for.
    pub(super) fn schedule_second_deletes(&self, commands: &mut Commands, plan: &Plan<'_>) {
        for (first, agains) in
            (0..).step_by(TARGETS_PER_CALL).zip(plan.second_deletes().chunks(TARGETS_PER_CALL))
        {
            let targets = agains.iter().map(|&(id, after)| {
                let Operation { target, command, .. } = plan.operation(id);
                (
                    if *command == Command::InvalidateTag {
                        SecondDelete::Tag(target)
                    } else {
                        SecondDelete::Key(target)
                    },
                    after,
                )
            });
            let schedule =
                second_deletes::schedule(&self.second_deletes, targets, &mut commands.sent);
            commands.push(Subject::SecondDeletes { first, end: first + agains.len() }, schedule);
        }
    }

    /// Deletes the keys of operations that all have a fence, or none.
    pub(super) fn deletion(&self, plan: &Plan<'_>, ids: &[OperationId], sent: &mut Sent) -> Cmd {
        let marked = |&id: &OperationId| {
            plan.operation(id).fence_version.map(|mark| (plan.operation(id).target, mark))
        };
        match ids.iter().map(marked).collect::<Option<Vec<_>>>() {
            Some(fenced) => fence::delete(&fenced, self.fence_ttl_ms, sent),
            None => unlink(ids.iter().map(|&id| plan.operation(id).target.as_bytes()), ids.len()),
        }
    }

    /// Writes a value if its fence permits, and adds its key to `sets`. These are the sets of all
    /// its tags, or none if they are in other slots.
    pub(super) fn write_fenced(
        &self,
        commands: &mut Commands,
        subject: Subject,
        key: &str,
        write: &Write,
        (mark, sets): (&FenceVersion<'_>, &[String]),
        now_ms: i64,
    ) {
        let mut command = fence::begin_write(key, mark, sets, &mut commands.sent);
        match Lifetime::draw(write.expiry, now_ms) {
            Some(Lifetime { unit, millis, set_millis }) => {
                command.arg(&write.value).arg(unit.option()).arg(millis).arg(set_millis);
            }
            None => {
                command.arg("").arg("OVER").arg(0).arg(0);
            }
        }
        fence::end(
            &mut command,
            mark,
            self.fence_ttl_ms,
            sets.is_empty() && !write.tags.is_empty(),
        );
        commands.push(subject, command);
    }

    /// Invalidates consecutive tags, whose order does not matter. One call has tags of one rule,
    /// since their hits are counted together. It deletes at most `members` members.
    fn invalidations(
        &self,
        commands: &mut Commands,
        plan: &Plan<'_>,
        ids: &[OperationId],
        members: usize,
    ) {
        let rule = |id: &OperationId| plan.operation(*id).rule;
        let mut ids = ids.to_vec();
        ids.sort_by_key(rule);
        for ids in ids
            .chunk_by(|one, next| rule(one) == rule(next))
            .flat_map(|ids| ids.chunks(TAGS_PER_CALL))
        {
            let tags: Vec<&str> = ids.iter().map(|&id| plan.operation(id).target).collect();
            let command = self.invalidation(&tags, members, &mut commands.sent);
            let first = commands.tags.len();
            commands.tags.extend_from_slice(ids);
            commands.push(Subject::Tags { first, end: commands.tags.len() }, command);
        }
    }

    /// Adds an operation in its place.
    pub(super) fn operation(
        &self,
        commands: &mut Commands,
        plan: &Plan<'_>,
        id: OperationId,
        now_ms: i64,
    ) {
        let Operation { target, command, fence_version: mark, .. } = *plan.operation(id);
        let subject = Subject::Operation(id);
        match command {
            Command::Delete => {
                let deletion = self.deletion(plan, &[id], &mut commands.sent);
                commands.push(subject, deletion);
            }
            Command::InvalidateTag => self.invalidations(commands, plan, &[id], MEMBERS_PER_CALL),
            Command::Bump(by) => {
                commands.push(
                    Subject::Existence(id),
                    arguments(redis::cmd("SET"), &[target, "1", "NX"]),
                );
                // A Redis that lost writes has issued higher numbers than the one it holds.
                let mut command = if self.heals_beside || self.own_checkpoints.heals() {
                    BUMP_PAST.call(&mut commands.sent, [target.as_bytes()].into_iter())
                } else {
                    arguments(redis::cmd("INCRBY"), &[target])
                };
                command.arg(by);
                commands.push(subject, command);
            }
            Command::Expire(expiry) => match Lifetime::draw(expiry, now_ms) {
                None => commands.push(subject, unlink([target.as_bytes()].into_iter(), 1)),
                Some(Lifetime { unit, millis, .. }) => {
                    let mut command = redis::cmd(unit.command());
                    command.arg(target).arg(millis).arg("LT");
                    commands.push(subject, command);
                }
            },
            Command::Serve => {
                if let Some(mark) = mark {
                    let raise = fence::raise(target, &mark, self.fence_ttl_ms, &mut commands.sent);
                    commands.push(Subject::Quiet(id), raise);
                }
                commands.push(Subject::Existence(id), arguments(redis::cmd("EXISTS"), &[target]));
                let mut command = redis::cmd("PEXPIRE");
                command.arg(target).arg(self.served_stale_ms).arg("LT");
                commands.push(subject, command);
            }
            Command::Write(write) => match mark {
                Some(mark) => {
                    let sets: Vec<String> =
                        write.tags.iter().map(|tag| self.tag_set(tag)).collect();
                    self.write_fenced(commands, subject, target, write, (&mark, &sets), now_ms);
                }
                None => self.write(commands, id, target, write, now_ms),
            },
        }
    }

    fn write(
        &self,
        commands: &mut Commands,
        id: OperationId,
        key: &str,
        write: &Write,
        now_ms: i64,
    ) {
        if write.tags.is_empty() {
            return self.set(commands, id, key, write, now_ms);
        }
        let Some(Lifetime { unit, millis, set_millis }) = Lifetime::draw(write.expiry, now_ms)
        else {
            // The value has expired already: neither it nor the one before may be readable.
            return commands.push(Subject::Operation(id), unlink([key.as_bytes()].into_iter(), 1));
        };
        let sets: Vec<String> = write.tags.iter().map(|tag| self.tag_set(tag)).collect();
        let keys: Vec<&[u8]> =
            std::iter::once(key.as_bytes()).chain(sets.iter().map(String::as_bytes)).collect();
        let mut command = WRITE_TAGGED.call(&mut commands.sent, keys.into_iter());
        command.arg(&write.value).arg(unit.option()).arg(millis).arg(set_millis);
        commands.push(Subject::Operation(id), command);
    }

    /// Writes a value without a fence, with or without tags.
    pub(super) fn set(
        &self,
        commands: &mut Commands,
        id: OperationId,
        key: &str,
        write: &Write,
        now_ms: i64,
    ) {
        let Some(Lifetime { unit, millis, .. }) = Lifetime::draw(write.expiry, now_ms) else {
            return commands.push(Subject::Operation(id), unlink([key.as_bytes()].into_iter(), 1));
        };
        commands.push(Subject::Existence(id), arguments(redis::cmd("EXISTS"), &[key]));
        let mut command = arguments(redis::cmd("SET"), &[key, &write.value]);
        if unit != Unit::Never {
            command.arg(unit.option()).arg(millis);
        }
        commands.push(Subject::Operation(id), command);
    }
}

impl Commands {
    fn new(plan: &Plan<'_>) -> Self {
        let mut commands = Self { voids: Self::voided(plan), ..Self::none(Sent::default()) };
        for first in (0..commands.voids.len()).step_by(KEYS_PER_COMMAND) {
            let end = commands.voids.len().min(first + KEYS_PER_COMMAND);
            let mut unlink = empty_unlink(end - first);
            let mut lease = Vec::new();
            for &id in &commands.voids[first..end] {
                lease.clear();
                write_side_key(Kind::Lease, plan.operation(id).target.as_bytes(), &mut lease);
                unlink.arg(&lease);
            }
            commands.push(Subject::Leases { first, end }, unlink);
        }
        commands
    }

    /// Returns an empty list for nodes that know the scripts or answer NOSCRIPT.
    pub(super) fn in_cluster() -> Self {
        Self::none(Sent::all())
    }

    pub(super) fn none(sent: Sent) -> Self {
        Self {
            chunks: vec![Pipeline::new()],
            subjects: Vec::new(),
            voids: Vec::new(),
            tags: Vec::new(),
            chunk_bytes: 0,
            sent,
        }
    }

    /// Returns the operations that void the leases of their keys.
    pub(super) fn voided(plan: &Plan<'_>) -> Vec<OperationId> {
        let mut voids = Vec::with_capacity(plan.deletions().len() + plan.in_order().len());
        voids.extend_from_slice(plan.deletions());
        voids.extend(plan.in_order().iter().filter(|&&id| match plan.operation(id).command {
            // A load that began before an expiry would undo it: the loaded value would live its
            // full time.
            Command::Delete | Command::Write(_) | Command::Expire(_) | Command::Serve => true,
            // An invalidation finds the leases of its members itself, and nothing loads counters.
            Command::InvalidateTag | Command::Bump(_) => false,
        }));
        voids
    }

    pub(super) fn push(&mut self, subject: Subject, command: Cmd) {
        let bytes: usize = command
            .args_iter()
            .map(|argument| if let redis::Arg::Simple(bytes) = argument { bytes.len() } else { 0 })
            .sum();
        let full = |chunk: &Pipeline| {
            chunk.len() >= CHUNK_COMMANDS
                || (!chunk.is_empty() && self.chunk_bytes + bytes > CHUNK_BYTES)
        };
        if self.chunks.last().is_none_or(full) {
            self.chunks.push(Pipeline::new());
            self.chunk_bytes = 0;
        }
        self.chunk_bytes += bytes;
        self.subjects.push(subject);
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.add_command(command);
        }
    }
}

/// Returns an UNLINK without keys, with room for `count`.
fn empty_unlink(count: usize) -> Cmd {
    /// Enough for most keys with their prefixes; a longer one makes the buffer grow.
    const BYTES_PER_KEY: usize = 40;
    let mut command = Cmd::with_capacity(count + 1, 6 + count * BYTES_PER_KEY);
    command.arg("UNLINK");
    command
}

pub(super) fn unlink<'k>(keys: impl Iterator<Item = &'k [u8]>, count: usize) -> Cmd {
    let mut command = empty_unlink(count);
    for key in keys {
        command.arg(key);
    }
    command
}

fn arguments(mut command: Cmd, arguments: &[&str]) -> Cmd {
    for argument in arguments {
        command.arg(argument);
    }
    command
}
