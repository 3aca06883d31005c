//! A plan in a cluster, where a tag's keys are in other slots than its set.
//!
//! It takes four steps, each one round trip. The first and the last are needed only for tag
//! invalidations, the second only with tags:
//!
//! 1. Each invalidation draws its number from the sequence.
//! 2. The sets of tags change, in order: a write's key joins its sets, an invalidation detaches its
//!    set. So the key of an invalidated value is always in the detached set. No value is set that
//!    no tag could invalidate.
//! 3. Leases, deletions and the members of detached sets are deleted. Then values are set, in
//!    order. Values that a later invalidation in the plan deletes are left out. A value after an
//!    invalidation is set after the deletion.
//! 4. The keys of new values join their sets once more. Another worker may have detached the sets
//!    before the third run, when the new values did not exist yet. Detached sets are dropped. The
//!    slow lane deletes the members of a set that is too big for this.
//!
//! A checkpoint is written on each primary that ran commands, after the third run, and after the
//! fourth if there is one.
//!
//! An outage repeats the whole plan. Sets that were already detached are in the tag's record of
//! drains, where the repeated invalidation finds them. A fenced write that had set its value
//! deletes it: an invalidation between the third and the fourth step would not have found its key.

use std::collections::HashMap;
use std::sync::Arc;

use redis::{Cmd, Pipeline, Value};

use super::super::applied::{Applied, PlanOutcome};
use super::super::commands::{Commands, Subject, unlink};
use super::super::context::Context;
use super::super::failure::{self, CommandError, Outage};
use super::super::fence;
use super::super::lifetime;
use super::super::side_keys::{Kind, side_key};
use super::super::slot;
use super::super::tags::BYTES_AT_ONCE;
use super::checkpoint_writes::Unconfirmed;
use super::nodes::Nodes;
use super::tags::{Detached, SLICE, add_member};
use super::{Cluster, SIDE_KEYS_APART};
use crate::plan::{Command, EffectOutcome, Operation, OperationId, Plan};
use crate::reason::Reason;

/// Maximum number of members of detached sets that a plan deletes itself. The slow lane deletes the
/// rest, so that one plan does not delay the next.
const MEMBERS_PER_PLAN: usize = 10_000;

/// Approximate maximum of the bytes that these members have together.
const BYTES_PER_PLAN: usize = 16 << 20;

/// A plan that is being applied.
struct PlanRun<'s> {
    context: &'s Context,
    cluster: &'s Cluster,
    nodes: &'s Arc<Nodes>,
    plan: &'s Plan<'s>,
    now_ms: i64,
}

impl Cluster {
    /// See `Cache::apply`. Plans take effect one after another, in the order of their first
    /// polls.
    pub(in crate::cache) async fn apply(
        &self,
        context: &Context,
        plan: &Plan<'_>,
    ) -> Result<Applied, Outage> {
        let (nodes, _turn) = self.in_turn().await?;
        let run =
            PlanRun { context, cluster: self, nodes: &nodes, plan, now_ms: lifetime::now_ms() };
        let mut outcome = PlanOutcome::new(plan);
        let applied = run.run_steps(&mut outcome).await;
        applied.inspect_err(|outage| self.connection.give_up(&nodes, outage))?;
        Ok(outcome.finish())
    }
}

impl PlanRun<'_> {
    async fn run_steps(&self, outcome: &mut PlanOutcome<'_, '_>) -> Result<(), Outage> {
        let mut unconfirmed = Unconfirmed::default();
        self.refuse_without_side_keys(outcome);
        let detached = self.change_sets(outcome, &mut unconfirmed).await?;
        let tagged = self.change_keys(&detached, outcome, &mut unconfirmed).await?;
        self.complete_sets(&detached, &tagged, outcome, &mut unconfirmed).await?;
        let Some(commands) = outcome.deletions_instead(self.context) else { return Ok(()) };
        for (_, answer) in self.answers(&commands, Some(self.context), &mut unconfirmed).await? {
            // The effects have failed in any case, so only an outage counts.
            if let Value::ServerError(error) = answer
                && let CommandError::Outage(outage) = failure::classify("UNLINK", &error)
            {
                return Err(outage);
            }
        }
        Ok(())
    }

    /// Ends operations on keys whose side keys would be in another slot: they are only deleted.
    /// Neither their loads nor their versions can be tracked.
    fn refuse_without_side_keys(&self, outcome: &mut PlanOutcome<'_, '_>) {
        for &id in self.plan.deletions().iter().chain(self.plan.in_order()) {
            let Operation { target, command, .. } = *self.plan.operation(id);
            // A counter has no side keys.
            let lacks_side_keys = match command {
                Command::Bump(_) => false,
                Command::InvalidateTag => {
                    !slot::has_side_keys(self.context.tag_set(target).as_bytes())
                }
                Command::Write(write) => {
                    !slot::has_side_keys(target.as_bytes())
                        || write
                            .tags
                            .iter()
                            .any(|tag| !slot::has_side_keys(self.context.tag_set(tag).as_bytes()))
                }
                Command::Delete | Command::Expire(_) | Command::Serve => {
                    !slot::has_side_keys(target.as_bytes())
                }
            };
            if lacks_side_keys {
                let dead = EffectOutcome::Dead {
                    reason: Reason::Unresolvable,
                    message: SIDE_KEYS_APART.into(),
                    may_be_permitted: false,
                };
                outcome.end(id, dead);
            }
        }
    }

    /// Changes the sets of tags, and all keys that may be such a set.
    async fn change_sets(
        &self,
        outcome: &mut PlanOutcome<'_, '_>,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<Vec<Detached>, Outage> {
        let plan = self.plan;
        let invalidations: Vec<OperationId> = (plan.in_order().iter().copied())
            .filter(|&id| {
                plan.operation(id).command == Command::InvalidateTag && !outcome.has_ended(id)
            })
            .collect();
        let mut number = 0;
        if !invalidations.is_empty() {
            let command = super::tags::numbers(invalidations.len());
            let answer = self
                .cluster
                .run(self.nodes, &[&command], None, unconfirmed)
                .await?
                .pop()
                .unwrap_or(Value::Nil);
            match super::tags::first_number(&answer) {
                Ok(first) => number = first,
                Err(error) => {
                    // None of them can be done, all for the same reason.
                    for id in invalidations.iter().copied() {
                        outcome.fail(id, error.clone())?;
                    }
                }
            }
        }
        let most = (MEMBERS_PER_PLAN / invalidations.len().max(1)).clamp(1, SLICE);
        let most_bytes =
            (BYTES_PER_PLAN / invalidations.len().max(1)).clamp(1 << 14, BYTES_AT_ONCE);
        let mut commands = Commands::in_cluster();
        let mut numbers = HashMap::new();
        for &id in plan.in_order() {
            let Operation { target, command, .. } = *plan.operation(id);
            match command {
                _ if outcome.has_ended(id) && self.is_in_place(target, command) => {
                    commands.push(Subject::Quiet(id), unlink([target.as_bytes()].into_iter(), 1));
                }
                _ if outcome.has_ended(id) => {}
                Command::InvalidateTag => {
                    let set = self.context.tag_set(target);
                    commands.push(
                        Subject::Detachment(id),
                        super::tags::detach(set.as_bytes(), number, most, most_bytes),
                    );
                    numbers.insert(id, number);
                    number += 1;
                }
                Command::Write(write) if !write.tags.is_empty() => {
                    for tag in &write.tags {
                        if let Some(command) =
                            add_member(self.context, target, tag, write.expiry, self.now_ms)
                        {
                            commands.push(Subject::Quiet(id), command);
                        }
                    }
                }
                _ if self.is_in_place(target, command) => {
                    commands.push(
                        Subject::Quiet(id),
                        unlink(
                            [side_key(Kind::Lease, target.as_bytes()).as_slice()].into_iter(),
                            1,
                        ),
                    );
                    self.context.operation(&mut commands, plan, id, self.now_ms);
                }
                _ => {}
            }
        }
        let mut detached = Vec::new();
        for (subject, answer) in self.answers(&commands, None, unconfirmed).await? {
            if let Subject::Detachment(id) = subject
                && !matches!(answer, Value::ServerError(_))
            {
                let set = self.context.tag_set(plan.operation(id).target).into_bytes();
                match Detached::read(self.context, id, set, numbers[&id], &answer) {
                    Some(one) => {
                        if one.is_absent() {
                            outcome.hit(id, 0, 1);
                        }
                        detached.push(one);
                    }
                    None => outcome.fail(id, super::super::tags::unexpected())?,
                }
            } else {
                outcome.note(subject, &answer, &commands)?;
            }
        }
        Ok(detached)
    }

    /// Changes everything else, the members of small detached sets first. Returns the writes with
    /// tags that were sent.
    async fn change_keys(
        &self,
        detached: &[Detached],
        outcome: &mut PlanOutcome<'_, '_>,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<Vec<OperationId>, Outage> {
        let plan = self.plan;
        let mut commands = Commands::in_cluster();
        let mut tagged = Vec::new();
        self.context.schedule_second_deletes(&mut commands, plan);
        commands.voids = Commands::voided(plan);
        for place in 0..commands.voids.len() {
            let lease =
                side_key(Kind::Lease, plan.operation(commands.voids[place]).target.as_bytes());
            commands.push(
                Subject::Leases { first: place, end: place + 1 },
                unlink([lease.as_slice()].into_iter(), 1),
            );
        }
        for (place, &id) in plan.deletions().iter().enumerate() {
            let deletion = self.deletion_of_any(&mut commands, plan, id);
            commands.push(Subject::Deletions { first: place, end: place + 1 }, deletion);
        }
        let mut invalidated: HashMap<&[u8], OperationId> = HashMap::new();
        for one in detached {
            for member in &one.members {
                let lease = side_key(Kind::Lease, member);
                commands.push(Subject::Quiet(one.id), unlink([lease.as_slice()].into_iter(), 1));
                commands.push(Subject::Member(one.id), unlink([member.as_slice()].into_iter(), 1));
                invalidated.insert(member, one.id);
            }
        }
        for &id in plan.in_order() {
            let Operation { target, command, fence_version: mark, .. } = *plan.operation(id);
            let unseen = invalidated.get(target.as_bytes()).is_some_and(|&by| by > id);
            match command {
                Command::InvalidateTag => {}
                _ if self.is_in_place(target, command) => {}
                // A value that its tags could not invalidate is not set, nor one without side keys.
                // The older value must not return.
                _ if unseen || outcome.has_ended(id) => {
                    let deletion = match mark {
                        // A retry may still write the key.
                        Some(version) if !unseen && slot::has_side_keys(target.as_bytes()) => {
                            let (ttl_ms, sent) = (self.context.fence_ttl_ms, &mut commands.sent);
                            fence::delete_below(target, &version, ttl_ms, sent)
                        }
                        _ => self.deletion_of_any(&mut commands, plan, id),
                    };
                    commands.push(Subject::Quiet(id), deletion);
                    outcome.hit(id, 0, 1);
                }
                Command::Write(write) if !write.tags.is_empty() => {
                    tagged.push(id);
                    match mark {
                        Some(mark) => self.context.write_fenced(
                            &mut commands,
                            Subject::Operation(id),
                            target,
                            write,
                            (&mark, &[]),
                            self.now_ms,
                        ),
                        None => self.context.set(&mut commands, id, target, write, self.now_ms),
                    }
                }
                _ => self.context.operation(&mut commands, plan, id, self.now_ms),
            }
        }
        for (subject, answer) in self.answers(&commands, Some(self.context), unconfirmed).await? {
            outcome.note(subject, &answer, &commands)?;
        }
        Ok(tagged)
    }

    /// Adds keys with new values to their sets once more. Drops detached sets that are empty by
    /// now, and leaves the others to the slow lane.
    async fn complete_sets(
        &self,
        detached: &[Detached],
        tagged: &[OperationId],
        outcome: &mut PlanOutcome<'_, '_>,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<(), Outage> {
        let mut commands = Commands::in_cluster();
        for &id in tagged {
            let Operation { target, command: Command::Write(write), .. } = *self.plan.operation(id)
            else {
                continue;
            };
            for command in write
                .tags
                .iter()
                .filter_map(|tag| add_member(self.context, target, tag, write.expiry, self.now_ms))
            {
                commands.push(Subject::Quiet(id), command);
            }
        }
        for one in detached {
            if one.is_drained() && !outcome.has_ended(one.id) {
                commands.push(
                    Subject::Quiet(one.id),
                    super::tags::drop_detached(&one.set, one.number.to_string().as_bytes()),
                );
            }
            if one.is_left() || one.others {
                commands.push(Subject::Quiet(one.id), super::tags::list(&one.set));
                outcome.go_on(one.id);
            }
        }
        for (subject, answer) in self.answers(&commands, Some(self.context), unconfirmed).await? {
            outcome.note(subject, &answer, &commands)?;
        }
        Ok(())
    }

    /// Returns the deletion of an operation's key, which may be one that cannot have a fence.
    fn deletion_of_any(&self, commands: &mut Commands, plan: &Plan<'_>, id: OperationId) -> Cmd {
        let key = plan.operation(id).target.as_bytes();
        if slot::has_side_keys(key) {
            self.context.deletion(plan, &[id], &mut commands.sent)
        } else {
            unlink([key].into_iter(), 1)
        }
    }

    /// Returns whether an operation's key may itself be the set of a tag. Such an operation runs
    /// while the sets change.
    fn is_in_place(&self, target: &str, command: Command<'_>) -> bool {
        let tagged = matches!(command, Command::Write(write) if !write.tags.is_empty());
        !tagged && command != Command::InvalidateTag && target.starts_with(&self.context.tag_prefix)
    }

    async fn answers(
        &self,
        commands: &Commands,
        checkpoints: Option<&Context>,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<Vec<(Subject, Value)>, Outage> {
        let all: Vec<&Cmd> = commands.chunks.iter().flat_map(Pipeline::cmd_iter).collect();
        let answers = self.cluster.run(self.nodes, &all, checkpoints, unconfirmed).await?;
        Ok(commands.subjects.iter().copied().zip(answers).collect())
    }
}
