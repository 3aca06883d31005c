//! A plan in a cluster, where the keys of a tag are in other slots than its set. Four steps, each
//! one round trip, the first and the last only where a tag is invalidated, the second only where
//! tags come in at all:
//!
//! 1. Each invalidation gets its number from the sequence.
//! 2. The sets of tags change, in order: a write's key joins its sets, an invalidation detaches its
//!    set. So a key that is invalidated is in what was detached, and no value is ever set that no
//!    tag could invalidate.
//! 3. Leases, deletions and the members of what was detached go; then values come, in order. What
//!    an invalidation in the plan makes unseen is left out, and a value that comes after it comes
//!    after its deletion.
//! 4. The keys that got values join their sets once more: another worker may have detached those
//!    between the second step and the third, with nothing but the old value to be deleted. What was
//!    detached is dropped. Of a set that is too big for this, the slow lane deletes the members.
//!
//! Behind the third step, and behind the fourth where there is one, stands a seal on each primary
//! that did something.
//!
//! A plan that is cut short by an outage is applied again, whole: what it had detached by then
//! stands in the tag's record of drains, and its invalidation finds it there. A fenced write that
//! had set its value by then deletes it: an invalidation that came between the third step and the
//! fourth would not have found its key.

use std::collections::HashMap;
use std::sync::Arc;

use redis::{Cmd, Pipeline, Value};

use super::super::Cache;
use super::super::applied::{Applied, Outcome};
use super::super::commands::{Asked, Commands, unlink};
use super::super::failure::Outage;
use super::super::lifetime;
use super::super::side_keys::{Kind, side_key};
use super::super::slot;
use super::super::tags::BYTES_AT_ONCE;
use super::Cluster;
use super::nodes::Nodes;
use super::seal::Unsealed;
use super::tags::{Detached, SLICE};
use crate::plan::{Command, EffectOutcome, Operation, OperationId, Plan};
use crate::reason::Reason;

/// Members of detached sets that a plan deletes itself: what is more goes to the slow lane, so that
/// one plan does not hold up the next.
const MEMBERS_PER_PLAN: usize = 10_000;

/// What these members may have together, about.
const BYTES_PER_PLAN: usize = 16 << 20;

/// A plan on its way.
struct Step<'s> {
    cluster: &'s Cluster,
    nodes: &'s Arc<Nodes>,
    plan: &'s Plan<'s>,
    now_ms: i64,
}

impl Cache {
    /// See [`Cache::apply`]. Plans take hold one after another, in the order of their first polls.
    pub(in crate::cache) async fn apply_in_cluster(
        &self,
        cluster: &Cluster,
        plan: &Plan<'_>,
    ) -> Result<Applied, Outage> {
        let (nodes, _turn) = cluster.in_turn().await?;
        let step = Step { cluster, nodes: &nodes, plan, now_ms: lifetime::now_ms() };
        let mut outcome = Outcome::new(plan);
        let applied = self.take_steps(&step, &mut outcome).await;
        applied.inspect_err(|outage| cluster.standing.give_up(&nodes, outage))?;
        Ok(outcome.finish())
    }

    async fn take_steps(
        &self,
        step: &Step<'_>,
        outcome: &mut Outcome<'_, '_>,
    ) -> Result<(), Outage> {
        let mut unsealed = Unsealed::default();
        self.refuse_homeless(step, outcome);
        let detached = self.change_sets(step, outcome, &mut unsealed).await?;
        let tagged = self.change_keys(step, &detached, outcome, &mut unsealed).await?;
        self.change_sets_again(step, &detached, &tagged, outcome, &mut unsealed).await
    }

    /// A key whose side keys would be in another slot is deleted and no more: who loads it, and
    /// what is newer, could not be told.
    fn refuse_homeless(&self, step: &Step<'_>, outcome: &mut Outcome<'_, '_>) {
        for &id in step.plan.deletions().iter().chain(step.plan.in_order()) {
            let Operation { target, command, .. } = *step.plan.operation(id);
            // A counter has no side keys.
            let homeless = match command {
                Command::Bump(_) => false,
                Command::InvalidateTag => !slot::has_side_keys(self.tag_set(target).as_bytes()),
                Command::Write(write) => {
                    !slot::has_side_keys(target.as_bytes())
                        || write
                            .tags
                            .iter()
                            .any(|tag| !slot::has_side_keys(self.tag_set(tag).as_bytes()))
                }
                Command::Delete | Command::Expire(_) | Command::Serve => {
                    !slot::has_side_keys(target.as_bytes())
                }
            };
            if homeless {
                let message = "a } in a key or tag without a {…} before it: in a Redis Cluster such a key cannot be kept right".into();
                outcome.end(id, EffectOutcome::Dead { reason: Reason::Unresolvable, message });
            }
        }
    }

    /// The sets of tags, and what else may be one.
    async fn change_sets(
        &self,
        step: &Step<'_>,
        outcome: &mut Outcome<'_, '_>,
        unsealed: &mut Unsealed,
    ) -> Result<Vec<Detached>, Outage> {
        let plan = step.plan;
        let invalidations: Vec<OperationId> = (plan.in_order().iter().copied())
            .filter(|&id| {
                plan.operation(id).command == Command::InvalidateTag && !outcome.has_ended(id)
            })
            .collect();
        let mut number = 0;
        if !invalidations.is_empty() {
            let command = super::tags::numbers(invalidations.len());
            let answer = step
                .cluster
                .run(step.nodes, &[&command], None, unsealed)
                .await?
                .pop()
                .unwrap_or(Value::Nil);
            match super::tags::first_number(&answer) {
                Ok(first) => number = first,
                Err(error) => {
                    // Not one of them can be done, and all for the same reason.
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
                    commands.push(Asked::Quiet(id), unlink([target.as_bytes()].into_iter(), 1));
                }
                _ if outcome.has_ended(id) => {}
                Command::InvalidateTag => {
                    let set = self.tag_set(target);
                    commands.push(
                        Asked::Detachment(id),
                        super::tags::detach(set.as_bytes(), number, most, most_bytes),
                    );
                    numbers.insert(id, number);
                    number += 1;
                }
                Command::Write(write) if !write.tags.is_empty() => {
                    for tag in &write.tags {
                        if let Some(command) =
                            self.add_member(target, tag, write.expiry, step.now_ms)
                        {
                            commands.push(Asked::Quiet(id), command);
                        }
                    }
                }
                _ if self.is_in_place(target, command) => {
                    commands.push(
                        Asked::Quiet(id),
                        unlink(
                            [side_key(Kind::Lease, target.as_bytes()).as_slice()].into_iter(),
                            1,
                        ),
                    );
                    self.operation(&mut commands, plan, id, step.now_ms);
                }
                _ => {}
            }
        }
        let mut detached = Vec::new();
        for (asked, answer) in self.answers(step, &commands, None, unsealed).await? {
            if let Asked::Detachment(id) = asked
                && !matches!(answer, Value::ServerError(_))
            {
                let set = self.tag_set(plan.operation(id).target).into_bytes();
                match Detached::read(id, set, numbers[&id], &answer) {
                    Some(one) => {
                        if one.is_absent() {
                            outcome.hit(id, 0, 1);
                        }
                        detached.push(one);
                    }
                    None => outcome.fail(id, super::super::tags::unexpected())?,
                }
            } else {
                outcome.note(asked, &answer, &commands)?;
            }
        }
        Ok(detached)
    }

    /// Everything else, the members of small detached sets first. The writes with tags that were
    /// sent.
    async fn change_keys(
        &self,
        step: &Step<'_>,
        detached: &[Detached],
        outcome: &mut Outcome<'_, '_>,
        unsealed: &mut Unsealed,
    ) -> Result<Vec<OperationId>, Outage> {
        let plan = step.plan;
        let mut commands = Commands::in_cluster();
        let mut tagged = Vec::new();
        self.schedule_agains(&mut commands, plan);
        commands.voids = Commands::voided(plan);
        for place in 0..commands.voids.len() {
            let lease =
                side_key(Kind::Lease, plan.operation(commands.voids[place]).target.as_bytes());
            commands.push(
                Asked::Leases { first: place, end: place + 1 },
                unlink([lease.as_slice()].into_iter(), 1),
            );
        }
        for (place, &id) in plan.deletions().iter().enumerate() {
            let deletion = self.deletion_of_any(&mut commands, plan, id);
            commands.push(Asked::Deletions { first: place, end: place + 1 }, deletion);
        }
        let mut invalidated: HashMap<&[u8], OperationId> = HashMap::new();
        for one in detached {
            for member in &one.members {
                let lease = side_key(Kind::Lease, member);
                commands.push(Asked::Quiet(one.id), unlink([lease.as_slice()].into_iter(), 1));
                commands.push(Asked::Member(one.id), unlink([member.as_slice()].into_iter(), 1));
                invalidated.insert(member, one.id);
            }
        }
        for &id in plan.in_order() {
            let Operation { target, command, mark, .. } = *plan.operation(id);
            let unseen = invalidated.get(target.as_bytes()).is_some_and(|&by| by > id);
            match command {
                Command::InvalidateTag => {}
                _ if self.is_in_place(target, command) => {}
                // No value that its tags could not invalidate, and none that could not be kept
                // right. What is older must not come back.
                _ if unseen || outcome.has_ended(id) => {
                    let deletion = self.deletion_of_any(&mut commands, plan, id);
                    commands.push(Asked::Quiet(id), deletion);
                    outcome.hit(id, 0, 1);
                }
                Command::Write(write) if !write.tags.is_empty() => {
                    tagged.push(id);
                    match mark {
                        Some(mark) => self.write_fenced(
                            &mut commands,
                            Asked::Operation(id),
                            target,
                            write,
                            (&mark, &[]),
                            step.now_ms,
                        ),
                        None => self.set(&mut commands, id, target, write, step.now_ms),
                    }
                }
                _ => self.operation(&mut commands, plan, id, step.now_ms),
            }
        }
        for (asked, answer) in self.answers(step, &commands, Some(self), unsealed).await? {
            outcome.note(asked, &answer, &commands)?;
        }
        Ok(tagged)
    }

    /// What got a value is surely in its sets. What was detached and is empty now is dropped; for
    /// the rest the slow lane is asked.
    async fn change_sets_again(
        &self,
        step: &Step<'_>,
        detached: &[Detached],
        tagged: &[OperationId],
        outcome: &mut Outcome<'_, '_>,
        unsealed: &mut Unsealed,
    ) -> Result<(), Outage> {
        let mut commands = Commands::in_cluster();
        for &id in tagged {
            let Operation { target, command: Command::Write(write), .. } = *step.plan.operation(id)
            else {
                continue;
            };
            for command in write
                .tags
                .iter()
                .filter_map(|tag| self.add_member(target, tag, write.expiry, step.now_ms))
            {
                commands.push(Asked::Quiet(id), command);
            }
        }
        for one in detached {
            if one.is_drained() && !outcome.has_ended(one.id) {
                commands.push(
                    Asked::Quiet(one.id),
                    super::tags::drop_detached(&one.set, one.number.to_string().as_bytes()),
                );
            }
            if one.is_left() || one.others {
                commands.push(Asked::Quiet(one.id), super::tags::list(&one.set));
                outcome.go_on(one.id);
            }
        }
        for (asked, answer) in self.answers(step, &commands, Some(self), unsealed).await? {
            outcome.note(asked, &answer, &commands)?;
        }
        Ok(())
    }

    /// Deletes the key of an operation, which may be one that cannot have a fence.
    fn deletion_of_any(&self, commands: &mut Commands, plan: &Plan<'_>, id: OperationId) -> Cmd {
        let key = plan.operation(id).target.as_bytes();
        if slot::has_side_keys(key) {
            self.deletion(plan, &[id], &mut commands.sent)
        } else {
            unlink([key].into_iter(), 1)
        }
    }

    /// Whether an operation is on what may itself be the set of a tag: done while the sets change.
    fn is_in_place(&self, target: &str, command: Command<'_>) -> bool {
        let tagged = matches!(command, Command::Write(write) if !write.tags.is_empty());
        !tagged && command != Command::InvalidateTag && target.starts_with(&self.tag_prefix)
    }

    async fn answers(
        &self,
        step: &Step<'_>,
        commands: &Commands,
        seals: Option<&Self>,
        unsealed: &mut Unsealed,
    ) -> Result<Vec<(Asked, Value)>, Outage> {
        let all: Vec<&Cmd> = commands.chunks.iter().flat_map(Pipeline::cmd_iter).collect();
        let answers = step.cluster.run(step.nodes, &all, seals, unsealed).await?;
        Ok(commands.asked.iter().copied().zip(answers).collect())
    }
}
