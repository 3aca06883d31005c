//! Applies a plan in one round trip.

use std::collections::VecDeque;

use redis::{Pipeline, Value};

use super::super::applied::{Applied, PlanOutcome};
use super::super::commands::{CHUNK_COMMANDS, Commands, Subject, unlink};
use super::super::context::Context;
use super::super::failure::{self, CommandError, Outage};
use super::super::script::Sent;
use super::super::side_keys::{Kind, side_key};
use super::super::socket::{Socket, poll_once_each};
use super::super::tags::{INVALIDATE, Invalidations, MEMBERS_PER_CALL, TAGS_PER_CALL};
use super::Single;
use super::checkpoint_writes::in_order;
use crate::plan::{Command, Operation, OperationId, Plan};

impl Single {
    /// See `Cache::apply`.
    pub(in crate::cache) async fn apply(
        &self,
        context: &Context,
        plan: &Plan<'_>,
    ) -> Result<Applied, Outage> {
        let live = self.connection.live()?;
        let mut commands = context.commands(plan);
        let with_checkpoint = &mut commands;
        let sending = in_order(context, || {
            if let Some((write, command)) = context.checkpoint_write(0, &mut with_checkpoint.sent) {
                with_checkpoint.push(Subject::CheckpointWrite(write), command);
            }
            self.send_all(&live, &with_checkpoint.chunks)
        });
        let answers = sending.await?;
        let mut outcome = PlanOutcome::new(plan);
        for (subject, answer) in commands.subjects.iter().zip(answers) {
            let noted = match subject {
                Subject::CheckpointWrite(write) => context.note_checkpoint_write(*write, &answer),
                subject => outcome.note(*subject, &answer, &commands),
            };
            noted.inspect_err(|outage| self.connection.give_up(&live, outage))?;
        }
        let (tags, keys) = (!outcome.tags_again.is_empty(), !outcome.again.is_empty());
        if tags {
            self.invalidate_in_turn(context, &live, &mut outcome).await?;
        }
        if keys {
            self.delete_one_by_one(context, &live, &mut outcome).await?;
        }
        let instead = outcome.deletions_instead(context);
        if let Some(commands) = &instead {
            self.delete_instead(&live, commands).await?;
        }
        if tags || keys || instead.is_some() {
            self.write_checkpoint(context).await?;
        }
        Ok(outcome.finish())
    }

    /// Invalidates tags that a call did not begin, or whose call Redis refused because of some of
    /// them.
    ///
    /// Each call waits for the answer to the previous one. A value written with such a tag in the
    /// meantime may be deleted as well.
    async fn invalidate_in_turn(
        &self,
        context: &Context,
        live: &Socket,
        outcome: &mut PlanOutcome<'_, '_>,
    ) -> Result<(), Outage> {
        let mut sent = Sent::default();
        let (mut left, mut one_by_one) =
            (VecDeque::from(std::mem::take(&mut outcome.tags_again)), 0_usize);
        while let Some(&first) = left.front() {
            let rule = outcome.plan.operation(first).rule;
            let most = if one_by_one > 0 { 1 } else { TAGS_PER_CALL };
            let of_rule = left
                .iter()
                .take(most)
                .take_while(|&&id| outcome.plan.operation(id).rule == rule)
                .count();
            let ids: Vec<OperationId> = left.drain(..of_rule).collect();
            one_by_one = one_by_one.saturating_sub(of_rule);
            let tags: Vec<&str> = ids.iter().map(|&id| outcome.plan.operation(id).target).collect();
            let mut pipeline = Pipeline::with_capacity(1);
            pipeline.add_command(context.invalidation(&tags, MEMBERS_PER_CALL, &mut sent));
            let answer = self.send(live, &pipeline).await?.pop().unwrap_or(Value::Nil);
            let noted = match failure::of_answer(INVALIDATE, Some(answer))
                .and_then(|answer| Invalidations::read(&answer))
            {
                Ok(done) => outcome.invalidated(&ids, done),
                Err(CommandError::Outage(outage)) => Err(outage),
                Err(error) if ids.len() == 1 => outcome.fail(first, error),
                Err(_) => {
                    one_by_one = ids.len();
                    outcome.tags_again.extend(&ids);
                    Ok(())
                }
            };
            noted.inspect_err(|outage| self.connection.give_up(live, outage))?;
            std::mem::take(&mut outcome.tags_again)
                .into_iter()
                .rev()
                .for_each(|id| left.push_front(id));
        }
        Ok(())
    }

    /// Deletes keys one by one after Redis refused a command because of some of them. A deletion
    /// that a value followed is left out: the value has replaced it.
    async fn delete_one_by_one(
        &self,
        context: &Context,
        live: &Socket,
        outcome: &mut PlanOutcome<'_, '_>,
    ) -> Result<(), Outage> {
        let again: Vec<(OperationId, bool)> =
            std::mem::take(&mut outcome.again).into_iter().collect();
        for ids in again.chunks(CHUNK_COMMANDS / 2) {
            let (mut pipeline, mut sent) =
                (Pipeline::with_capacity(ids.len() * 2), Sent::default());
            for &(id, _) in ids {
                let Operation { target, command, fence_version: mark, .. } =
                    *outcome.plan.operation(id);
                let lease = side_key(Kind::Lease, target.as_bytes());
                let unlink_lease = unlink([lease.as_slice()].into_iter(), 1);
                let deletes = command == Command::Delete
                    && (mark.is_some() || !outcome.plan.is_followed_by_value(id));
                // Every id has two answers: without a key to delete, the lease is deleted twice.
                let second = if deletes {
                    context.deletion(outcome.plan, &[id], &mut sent)
                } else {
                    unlink_lease.clone()
                };
                pipeline.add_command(unlink_lease);
                pipeline.add_command(second);
            }
            let answers = self.send(live, &pipeline).await?;
            for (&(id, uncounted), pair) in ids.iter().zip(answers.chunks(2)) {
                for answer in pair {
                    if let Value::ServerError(error) = answer {
                        let error = failure::classify("UNLINK", error);
                        outcome
                            .fail(id, error)
                            .inspect_err(|outage| self.connection.give_up(live, outage))?;
                    }
                }
                if uncounted {
                    outcome.hit(id, u64::from(pair.last() == Some(&Value::Int(1))), 1);
                }
            }
        }
        Ok(())
    }

    /// Deletes keys whose old value must not stay readable. Their effects have failed in any case.
    /// So only an outage counts.
    async fn delete_instead(&self, live: &Socket, commands: &Commands) -> Result<(), Outage> {
        for answer in self.send_all(live, &commands.chunks).await? {
            if let Value::ServerError(error) = answer
                && let CommandError::Outage(outage) = failure::classify("UNLINK", &error)
            {
                self.connection.give_up(live, &outage);
                return Err(outage);
            }
        }
        Ok(())
    }

    /// Sends chunks without gaps between them, and awaits all their answers.
    async fn send_all(&self, live: &Socket, chunks: &[Pipeline]) -> Result<Vec<Value>, Outage> {
        if let [only] = chunks {
            return self.send(live, only).await;
        }
        let mut under_way: Vec<_> =
            chunks.iter().map(|chunk| Box::pin(self.send(live, chunk))).collect();
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
}
