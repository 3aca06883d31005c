//! A plan in one round trip: leases of all keys first, then a variadic UNLINK a rule, or a script that also raises their fences, then the rest in
//! order.

use std::collections::{BTreeMap, HashMap, HashSet};

use redis::{Cmd, Pipeline, Value};

use super::again::{self, Again, TARGETS_PER_CALL};
use super::connection::Link;
use super::failure::{self, CommandError, Outage};
use super::fence;
use super::lifetime::{self, Lifetime, Unit};
use super::marks::Seal;
use super::script::{Sent, WRITE_TAGGED};
use super::side_keys::{Kind, side_key, write_side_key};
use super::socket::{Socket, poll_once_each};
use super::{Cache, Redis, tags};
use crate::plan::{Command, EffectOutcome, Load, Mark, Operation, OperationId, Plan, Slot};
use crate::registry::{RuleId, Write};

/// Keys in one UNLINK: beyond some hundreds, longer commands gain nothing and block for longer.
const KEYS_PER_COMMAND: usize = 500;

/// What is written in one go. All chunks of a plan are under way at once; smaller ones keep replies and buffers within bounds.
pub(super) const CHUNK_COMMANDS: usize = 512;
pub(super) const CHUNK_BYTES: usize = 256 * 1_024;

/// What became of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// The effects that are not simply done, in no particular order.
    pub unsettled: Vec<(Slot, EffectOutcome)>,
    /// For `unstale_keys_total`, one entry a rule.
    pub hits: Vec<KeyHits>,
}

/// Whether a rule's keys were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHits {
    /// Whose keys.
    pub rule: RuleId,
    /// Keys that existed (`expire`: and lived longer).
    pub yes: u64,
    /// Keys that did not, or that another effect of the batch dealt with.
    pub no: u64,
}

/// What an answer is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked {
    /// The leases of these keys, as places in [`Commands::voids`].
    Leases { first: usize, end: usize },
    /// The second passes of these operations, as places in [`Plan::agains`].
    Agains { first: usize, end: usize },
    /// The deletions of these keys, as places in [`Plan::deletions`].
    Deletions { first: usize, end: usize },
    /// Whether the key of an operation exists; its `SET … NX` tells the same.
    Existence(OperationId),
    /// An operation.
    Operation(OperationId),
    /// Part of an operation, which only fails or does not.
    Quiet(OperationId),
    /// The key of a member of the tag that an operation invalidates.
    Member(OperationId),
    /// What was detached of that tag.
    Detachment(OperationId),
    /// Whether all of it stands in the Redis that we know.
    Seal(Seal),
}

/// A plan in Redis' commands.
pub(super) struct Commands {
    pub(super) chunks: Vec<Pipeline>,
    pub(super) asked: Vec<Asked>,
    /// The operations whose keys' leases are void.
    pub(super) voids: Vec<OperationId>,
    chunk_bytes: usize,
    pub(super) sent: Sent,
}

impl Cache {
    /// Applies a plan. Everything is on its way to Redis when the future was polled once, so plans whose futures are polled in order take
    /// hold in order, however many are under way.
    ///
    /// # Errors
    /// An [`Outage`]: some of the plan may have taken hold, and all of it is to be applied again once a [`probe`](Self::probe) succeeds.
    /// Plans polled after it are to be applied again behind it, even those that succeeded.
    pub async fn apply(&self, plan: &Plan<'_>) -> Result<Applied, Outage> {
        if plan.is_empty() {
            return Ok(Applied::default());
        }
        let link = match &self.redis {
            Redis::Primary(link) => link,
            Redis::Cluster(cluster) => return self.apply_in_cluster(cluster, plan).await,
        };
        let live = link.live()?;
        let mut commands = self.commands(plan);
        let sealed = &mut commands;
        let sending = self.in_order(|| {
            if let Some((seal, command)) = self.seal(&mut sealed.sent) {
                sealed.push(Asked::Seal(seal), command);
            }
            send_all(link, &live, &sealed.chunks)
        });
        let answers = sending.await?;
        let mut outcome = Outcome::new(plan);
        for (asked, answer) in commands.asked.iter().zip(answers) {
            let noted = match asked {
                Asked::Seal(seal) => self.sealed(*seal, &answer),
                asked => outcome.note(*asked, &answer, &commands),
            };
            noted.inspect_err(|outage| link.give_up(&live, outage))?;
        }
        if !outcome.again.is_empty() {
            self.delete_one_by_one(link, &live, &mut outcome).await?;
            self.seal_alone().await?;
        }
        Ok(outcome.finish())
    }

    fn commands(&self, plan: &Plan<'_>) -> Commands {
        let now_ms = lifetime::now_ms();
        let mut commands = Commands::new(plan);
        self.schedule_agains(&mut commands, plan);
        let mut first = 0;
        for (_, is_fenced, deletions) in plan.deletions_by_rule() {
            for ids in deletions.chunks(if is_fenced { fence::KEYS_PER_CALL } else { KEYS_PER_COMMAND }) {
                let end = first + ids.len();
                let deletion = self.deletion(plan, ids, &mut commands.sent);
                commands.push(Asked::Deletions { first, end }, deletion);
                first = end;
            }
        }
        for &id in plan.in_order() {
            self.operation(&mut commands, plan, id, now_ms);
        }
        commands
    }

    /// Schedules the second passes that the plan asks for.
    pub(super) fn schedule_agains(&self, commands: &mut Commands, plan: &Plan<'_>) {
        for (first, agains) in (0..).step_by(TARGETS_PER_CALL).zip(plan.agains().chunks(TARGETS_PER_CALL)) {
            let targets = agains.iter().map(|&(id, after)| {
                let Operation { target, command, .. } = plan.operation(id);
                (if *command == Command::InvalidateTag { Again::Tag(target) } else { Again::Key(target) }, after)
            });
            let schedule = again::schedule(&self.again, targets, &mut commands.sent);
            commands.push(Asked::Agains { first, end: first + agains.len() }, schedule);
        }
    }

    /// Deletes the keys of some operations: of all with a fence, or of none.
    pub(super) fn deletion(&self, plan: &Plan<'_>, ids: &[OperationId], sent: &mut Sent) -> Cmd {
        let marked = |&id: &OperationId| plan.operation(id).mark.map(|mark| (plan.operation(id).target, mark));
        match ids.iter().map(marked).collect::<Option<Vec<_>>>() {
            Some(fenced) => fence::delete(&fenced, self.fence_ttl_ms, sent),
            None => unlink(ids.iter().map(|&id| plan.operation(id).target.as_bytes()), ids.len()),
        }
    }

    /// Writes a value where its fence lets it, and adds its key to those sets.
    pub(super) fn write_fenced(
        &self,
        commands: &mut Commands,
        asked: Asked,
        key: &str,
        write: &Write,
        (mark, sets): (&Mark<'_>, &[String]),
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
        fence::end(&mut command, mark, self.fence_ttl_ms);
        commands.push(asked, command);
    }

    /// An operation in its place.
    pub(super) fn operation(&self, commands: &mut Commands, plan: &Plan<'_>, id: OperationId, now_ms: i64) {
        let Operation { target, command, mark, .. } = *plan.operation(id);
        let asked = Asked::Operation(id);
        match command {
            Command::Delete => {
                let deletion = self.deletion(plan, &[id], &mut commands.sent);
                commands.push(asked, deletion);
            }
            Command::InvalidateTag => {
                let command = self.invalidation(target, &mut commands.sent);
                commands.push(asked, command);
            }
            Command::Bump(by) => {
                commands.push(Asked::Existence(id), arguments(redis::cmd("SET"), &[target, "1", "NX"]));
                let mut command = redis::cmd("INCRBY");
                command.arg(target).arg(by);
                commands.push(asked, command);
            }
            Command::Expire(expiry) => match Lifetime::draw(expiry, now_ms) {
                None => commands.push(asked, unlink([target.as_bytes()].into_iter(), 1)),
                Some(Lifetime { unit, millis, .. }) => {
                    let mut command = redis::cmd(unit.command());
                    command.arg(target).arg(millis).arg("LT");
                    commands.push(asked, command);
                }
            },
            Command::Serve => {
                if let Some(mark) = mark {
                    let raise = fence::raise(target, &mark, self.fence_ttl_ms, &mut commands.sent);
                    commands.push(Asked::Quiet(id), raise);
                }
                commands.push(Asked::Existence(id), arguments(redis::cmd("EXISTS"), &[target]));
                let mut command = redis::cmd("PEXPIRE");
                command.arg(target).arg(self.served_stale_ms).arg("LT");
                commands.push(asked, command);
            }
            Command::Write(write) => match mark {
                Some(mark) => {
                    let sets: Vec<String> = write.tags.iter().map(|tag| self.tag_set(tag)).collect();
                    self.write_fenced(commands, asked, target, write, (&mark, &sets), now_ms);
                }
                None => self.write(commands, id, target, write, now_ms),
            },
        }
    }

    fn write(&self, commands: &mut Commands, id: OperationId, key: &str, write: &Write, now_ms: i64) {
        if write.tags.is_empty() {
            return self.set(commands, id, key, write, now_ms);
        }
        let Some(Lifetime { unit, millis, set_millis }) = Lifetime::draw(write.expiry, now_ms) else {
            // A value that is over already: nothing to be read, and nothing left of the one before.
            return commands.push(Asked::Operation(id), unlink([key.as_bytes()].into_iter(), 1));
        };
        let sets: Vec<String> = write.tags.iter().map(|tag| self.tag_set(tag)).collect();
        let keys: Vec<&[u8]> = std::iter::once(key.as_bytes()).chain(sets.iter().map(String::as_bytes)).collect();
        let mut command = WRITE_TAGGED.call(&mut commands.sent, keys.into_iter());
        command.arg(&write.value).arg(unit.option()).arg(millis).arg(set_millis);
        commands.push(Asked::Operation(id), command);
    }

    /// Writes a value that no fence guards, whatever its tags.
    pub(super) fn set(&self, commands: &mut Commands, id: OperationId, key: &str, write: &Write, now_ms: i64) {
        let Some(Lifetime { unit, millis, .. }) = Lifetime::draw(write.expiry, now_ms) else {
            return commands.push(Asked::Operation(id), unlink([key.as_bytes()].into_iter(), 1));
        };
        commands.push(Asked::Existence(id), arguments(redis::cmd("EXISTS"), &[key]));
        let mut command = arguments(redis::cmd("SET"), &[key, &write.value]);
        if unit != Unit::Never {
            command.arg(unit.option()).arg(millis);
        }
        commands.push(Asked::Operation(id), command);
    }

    /// Redis refused a command of many keys for the sake of some of them: each is asked for by itself. A deletion that a value followed is
    /// left out: that value has replaced what was to be deleted.
    async fn delete_one_by_one(&self, link: &Link, live: &Socket, outcome: &mut Outcome<'_, '_>) -> Result<(), Outage> {
        let again: Vec<(OperationId, bool)> = std::mem::take(&mut outcome.again).into_iter().collect();
        for ids in again.chunks(CHUNK_COMMANDS / 2) {
            let (mut pipeline, mut sent) = (Pipeline::with_capacity(ids.len() * 2), Sent::default());
            for &(id, _) in ids {
                let Operation { target, command, mark, .. } = *outcome.plan.operation(id);
                let lease = side_key(Kind::Lease, target.as_bytes());
                let unlink_lease = unlink([lease.as_slice()].into_iter(), 1);
                let deletes = command == Command::Delete && (mark.is_some() || !outcome.plan.is_followed_by_value(id));
                // The lease once more where there is no key to delete: every id has two answers.
                let second = if deletes { self.deletion(outcome.plan, &[id], &mut sent) } else { unlink_lease.clone() };
                pipeline.add_command(unlink_lease);
                pipeline.add_command(second);
            }
            let answers = link.send(live, &pipeline).await?;
            for (&(id, uncounted), pair) in ids.iter().zip(answers.chunks(2)) {
                for answer in pair {
                    if let Value::ServerError(error) = answer {
                        let error = failure::classify("UNLINK", error);
                        outcome.fail(id, error).inspect_err(|outage| link.give_up(live, outage))?;
                    }
                }
                if uncounted {
                    outcome.hit(id, u64::from(pair.last() == Some(&Value::Int(1))), 1);
                }
            }
        }
        Ok(())
    }
}

/// Sends chunks so that they follow each other without gaps, and awaits all their answers.
async fn send_all(link: &Link, live: &Socket, chunks: &[Pipeline]) -> Result<Vec<Value>, Outage> {
    if let [only] = chunks {
        return link.send(live, only).await;
    }
    let mut under_way: Vec<_> = chunks.iter().map(|chunk| Box::pin(link.send(live, chunk))).collect();
    let first_poll = poll_once_each(&mut under_way).await;
    let mut answers = Vec::new();
    for (future, ready) in under_way.into_iter().zip(first_poll) {
        let values = match ready {
            Some(result) => result?,
            None => future.await?,
        };
        answers.extend(values);
    }
    Ok(answers)
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
            commands.push(Asked::Leases { first, end }, unlink);
        }
        commands
    }

    /// None yet, and for nodes that know the scripts or ask for them.
    pub(super) fn in_cluster() -> Self {
        Self::none(Sent::all())
    }

    fn none(sent: Sent) -> Self {
        Self { chunks: vec![Pipeline::new()], asked: Vec::new(), voids: Vec::new(), chunk_bytes: 0, sent }
    }

    /// The operations that void the leases of their keys.
    pub(super) fn voided(plan: &Plan<'_>) -> Vec<OperationId> {
        let mut voids = Vec::with_capacity(plan.deletions().len() + plan.in_order().len());
        voids.extend_from_slice(plan.deletions());
        voids.extend(plan.in_order().iter().filter(|&&id| match plan.operation(id).command {
            // A load that began before an expiry would undo it: its value would live for as long as any.
            Command::Delete | Command::Write(_) | Command::Expire(_) | Command::Serve => true,
            // An invalidation finds the leases of its members itself; nobody loads counters.
            Command::InvalidateTag | Command::Bump(_) => false,
        }));
        voids
    }

    pub(super) fn push(&mut self, asked: Asked, command: Cmd) {
        let bytes: usize = command.args_iter().map(|argument| if let redis::Arg::Simple(bytes) = argument { bytes.len() } else { 0 }).sum();
        let full = |chunk: &Pipeline| chunk.len() >= CHUNK_COMMANDS || (!chunk.is_empty() && self.chunk_bytes + bytes > CHUNK_BYTES);
        if self.chunks.last().is_none_or(full) {
            self.chunks.push(Pipeline::new());
            self.chunk_bytes = 0;
        }
        self.chunk_bytes += bytes;
        self.asked.push(asked);
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.add_command(command);
        }
    }
}

/// What the answers to a plan's commands add up to.
pub(super) struct Outcome<'p, 'e> {
    plan: &'p Plan<'e>,
    failed: HashMap<OperationId, EffectOutcome>,
    /// Keys to be asked for one by one, and whether their hits are not counted yet.
    again: HashMap<OperationId, bool>,
    slow: Vec<OperationId>,
    /// Operations whose key was there, as far as a load asks for that.
    existed: HashSet<OperationId>,
    hits: BTreeMap<RuleId, (u64, u64)>,
}

impl<'p, 'e> Outcome<'p, 'e> {
    pub(super) fn new(plan: &'p Plan<'e>) -> Self {
        let mut hits = BTreeMap::<RuleId, (u64, u64)>::new();
        for rule in plan.absorbed() {
            hits.entry(*rule).or_default().1 += 1;
        }
        Self { plan, failed: HashMap::new(), again: HashMap::new(), slow: Vec::new(), existed: HashSet::new(), hits }
    }

    pub(super) fn note(&mut self, asked: Asked, answer: &Value, commands: &Commands) -> Result<(), Outage> {
        if let Value::ServerError(error) = answer {
            return self.note_error(asked, error, commands);
        }
        let one = u64::from(*answer == Value::Int(1));
        match asked {
            Asked::Leases { .. } | Asked::Agains { .. } | Asked::Quiet(_) | Asked::Detachment(_) | Asked::Seal(_) => {}
            Asked::Member(id) => self.hit(id, one, 1),
            Asked::Deletions { first, end } => {
                let existed = if let Value::Int(existed) = answer { u64::try_from(*existed).unwrap_or(0) } else { 0 };
                if let Some(&id) = self.plan.deletions().get(first) {
                    self.hit(id, existed, (end - first) as u64);
                }
            }
            // EXISTS says 1; SET NX says nothing where the key exists.
            Asked::Existence(id) => {
                self.hit(id, one.max(u64::from(*answer == Value::Nil)), 1);
                if one == 1 && self.plan.operation(id).command == Command::Serve {
                    self.existed.insert(id);
                }
            }
            Asked::Operation(id) => match self.plan.operation(id).command {
                Command::InvalidateTag => match tags::invalidated(answer) {
                    Some(done) => {
                        self.hit(id, done.existed, done.existed + done.gone);
                        if done.draining {
                            self.slow.push(id);
                        }
                    }
                    None => self.fail(id, tags::unexpected())?,
                },
                Command::Delete => {
                    self.hit(id, one, 1);
                    if one == 1 {
                        self.existed.insert(id);
                    }
                }
                Command::Expire(_) => self.hit(id, one, 1),
                // A script says it itself; of what SET does, existence was asked for before.
                Command::Write(_) if matches!(answer, Value::Int(_)) => self.hit(id, one, 1),
                Command::Write(_) | Command::Bump(_) | Command::Serve => {}
            },
        }
        Ok(())
    }

    fn note_error(&mut self, asked: Asked, error: &redis::ServerError, commands: &Commands) -> Result<(), Outage> {
        let ids = match asked {
            Asked::Leases { first, end } => &commands.voids[first..end],
            Asked::Agains { first, end } => {
                for &(id, _) in &self.plan.agains()[first..end] {
                    self.fail(id, failure::classify("again", error))?;
                }
                return Ok(());
            }
            Asked::Deletions { first, end } => &self.plan.deletions()[first..end],
            // Read by whoever made it.
            Asked::Seal(_) => return Ok(()),
            Asked::Existence(id) | Asked::Operation(id) | Asked::Quiet(id) | Asked::Member(id) | Asked::Detachment(id) => {
                let command = self.plan.operation(id).command;
                let error = failure::classify(command_name(command), error);
                // Not to be told whether a key exists costs a metric alone; a counter needs its SET.
                let metric_only = matches!((asked, command), (Asked::Existence(_), Command::Write(_)));
                return if metric_only && !matches!(error, CommandError::Outage(_)) { Ok(()) } else { self.fail(id, error) };
            }
        };
        if let CommandError::Outage(outage) = failure::classify("UNLINK", error) {
            return Err(outage);
        }
        if let [only] = ids {
            return self.fail(*only, failure::classify("UNLINK", error));
        }
        let uncounted = matches!(asked, Asked::Deletions { .. });
        for &id in ids {
            *self.again.entry(id).or_default() |= uncounted;
        }
        Ok(())
    }

    pub(super) fn fail(&mut self, id: OperationId, error: CommandError) -> Result<(), Outage> {
        let outcome = error.into_outcome()?;
        self.end(id, outcome);
        Ok(())
    }

    /// What became of an operation, whatever else is done for it.
    pub(super) fn end(&mut self, id: OperationId, outcome: EffectOutcome) {
        self.failed.insert(id, outcome);
    }

    pub(super) fn has_ended(&self, id: OperationId) -> bool {
        self.failed.contains_key(&id)
    }

    /// The slow lane has the rest of it.
    pub(super) fn go_on(&mut self, id: OperationId) {
        self.slow.push(id);
    }

    pub(super) fn hit(&mut self, id: OperationId, yes: u64, of: u64) {
        let (all_yes, all_no) = self.hits.entry(self.plan.operation(id).rule).or_default();
        *all_yes += yes;
        *all_no += of.saturating_sub(yes);
    }

    pub(super) fn finish(self) -> Applied {
        let mut unsettled = Vec::new();
        for (&id, outcome) in &self.failed {
            unsettled.extend(self.plan.slots(id).map(|slot| (slot, outcome.clone())));
        }
        for &id in self.slow.iter().filter(|id| !self.failed.contains_key(id)) {
            unsettled.extend(self.plan.slots(id).map(|slot| (slot, EffectOutcome::Slow)));
        }
        // Of several loads of one key the last does: its value is no older than what the others would have filled.
        let mut loading = HashSet::new();
        let is_due = |load: &&Load| !self.failed.contains_key(&load.after) && (!load.only_if_existed || self.existed.contains(&load.after));
        let loads = self.plan.warms().iter().rev().filter(is_due);
        let last_loads = loads.filter(|load| loading.insert(self.plan.operation(load.after).target));
        unsettled.extend(last_loads.map(|load| (load.slot, EffectOutcome::Slow)));
        let hits = self.hits.into_iter().map(|(rule, (yes, no))| KeyHits { rule, yes, no }).collect();
        Applied { unsettled, hits }
    }
}

/// What a message about an operation calls it.
fn command_name(command: Command<'_>) -> &'static str {
    match command {
        Command::Delete => "UNLINK",
        Command::InvalidateTag => "invalidate_tag",
        Command::Bump(_) => "INCRBY",
        Command::Expire(_) | Command::Serve => "PEXPIRE",
        Command::Write(write) if write.tags.is_empty() => "SET",
        Command::Write(_) => "SADD, SET",
    }
}

/// UNLINK without keys, with room for so many.
fn empty_unlink(count: usize) -> Cmd {
    /// Enough for most keys with their prefixes: a longer one makes the buffer grow.
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
