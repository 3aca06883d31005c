//! Adds up Redis' answers to a plan's commands.

use std::collections::{BTreeMap, HashMap, HashSet};

use redis::Value;

use super::commands::{Commands, Subject, unlink};
use super::context::Context;
use super::failure::{self, CommandError, Outage};
use super::fence;
use super::script::Sent;
use super::tags::{self, Invalidations};
use crate::plan::{Command, EffectOutcome, EffectRef, Load, Operation, OperationId, Plan};
use crate::registry::RuleId;

/// Result of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Effects that need more work, in no particular order.
    pub unsettled: Vec<(EffectRef, EffectOutcome)>,
    /// Numbers for `unstale_keys_total`, one element for each rule.
    pub hits: Vec<KeyHits>,
}

/// How many of a rule's keys existed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHits {
    /// Rule of the keys.
    pub rule: RuleId,
    /// Keys that existed (`expire`: and lived longer).
    pub yes: u64,
    /// Keys that did not exist, or that another effect of the batch handled; tags without a set.
    pub no: u64,
}

/// Result of a plan while answers arrive.
pub(super) struct PlanOutcome<'p, 'e> {
    pub(super) plan: &'p Plan<'e>,
    failed: HashMap<OperationId, EffectOutcome>,
    /// Keys to delete one by one, and whether their hits are still uncounted.
    pub(super) again: HashMap<OperationId, bool>,
    /// Tags to invalidate after the plan's pipelines.
    pub(super) tags_again: Vec<OperationId>,
    /// Operations that failed and left an older value. Their keys are deleted instead.
    unchanged: Vec<OperationId>,
    slow: Vec<OperationId>,
    /// Operations whose key existed, if a load depends on it.
    existed: HashSet<OperationId>,
    hits: BTreeMap<RuleId, (u64, u64)>,
}

impl<'p, 'e> PlanOutcome<'p, 'e> {
    pub(super) fn new(plan: &'p Plan<'e>) -> Self {
        let mut hits = BTreeMap::<RuleId, (u64, u64)>::new();
        for rule in plan.absorbed() {
            hits.entry(*rule).or_default().1 += 1;
        }
        Self {
            plan,
            failed: HashMap::new(),
            again: HashMap::new(),
            tags_again: Vec::new(),
            unchanged: Vec::new(),
            slow: Vec::new(),
            existed: HashSet::new(),
            hits,
        }
    }

    pub(super) fn note(
        &mut self,
        subject: Subject,
        answer: &Value,
        commands: &Commands,
    ) -> Result<(), Outage> {
        if let Value::ServerError(error) = answer {
            return self.note_error(subject, error, commands);
        }
        let one = u64::from(*answer == Value::Int(1));
        match subject {
            Subject::Leases { .. }
            | Subject::SecondDeletes { .. }
            | Subject::Quiet(_)
            | Subject::Detachment(_)
            | Subject::CheckpointWrite(_) => {}
            Subject::Member(id) => self.hit(id, one, 1),
            Subject::Deletions { first, end } => {
                let existed = if let Value::Int(existed) = answer {
                    u64::try_from(*existed).unwrap_or(0)
                } else {
                    0
                };
                if let Some(&id) = self.plan.deletions().get(first) {
                    self.hit(id, existed, (end - first) as u64);
                }
            }
            // EXISTS answers 1; SET NX answers nil if the key exists.
            Subject::Existence(id) => {
                self.hit(id, one.max(u64::from(*answer == Value::Nil)), 1);
                if one == 1 && self.plan.operation(id).command == Command::Serve {
                    self.existed.insert(id);
                }
            }
            Subject::Tags { first, end } => {
                let ids = &commands.tags[first..end];
                match Invalidations::read(answer) {
                    Ok(done) => self.invalidated(ids, done)?,
                    Err(error) => ids.iter().try_for_each(|&id| self.fail(id, error.clone()))?,
                }
            }
            Subject::Operation(id) => match self.plan.operation(id).command {
                Command::Delete => {
                    self.hit(id, one, 1);
                    if one == 1 {
                        self.existed.insert(id);
                    }
                }
                Command::Expire(_) => self.hit(id, one, 1),
                // A script answers with the existence; before a SET, the existence was asked for
                // separately.
                Command::Write(_) if matches!(answer, Value::Int(_)) => self.hit(id, one, 1),
                Command::Write(_) | Command::Bump(_) | Command::Serve | Command::InvalidateTag => {}
            },
        }
        Ok(())
    }

    fn note_error(
        &mut self,
        subject: Subject,
        error: &redis::ServerError,
        commands: &Commands,
    ) -> Result<(), Outage> {
        let ids = match subject {
            Subject::Leases { first, end } => &commands.voids[first..end],
            Subject::SecondDeletes { first, end } => {
                for &(id, _) in &self.plan.second_deletes()[first..end] {
                    self.fail(id, failure::classify("second delete", error))?;
                }
                return Ok(());
            }
            Subject::Deletions { first, end } => &self.plan.deletions()[first..end],
            Subject::Tags { first, end } => {
                let ids = &commands.tags[first..end];
                match (failure::classify(tags::INVALIDATE, error), ids) {
                    (CommandError::Outage(outage), _) => return Err(outage),
                    (error, [only]) => self.fail(*only, error)?,
                    _ => self.tags_again.extend(ids),
                }
                return Ok(());
            }
            // The caller that made the write reads its answer.
            Subject::CheckpointWrite(_) => return Ok(()),
            Subject::Existence(id)
            | Subject::Operation(id)
            | Subject::Quiet(id)
            | Subject::Member(id)
            | Subject::Detachment(id) => {
                let command = self.plan.operation(id).command;
                let error = failure::classify(command_name(command), error);
                // An unknown existence costs only a metric; a counter needs its SET.
                let metric_only =
                    matches!((subject, command), (Subject::Existence(_), Command::Write(_)));
                return if metric_only && !matches!(error, CommandError::Outage(_)) {
                    Ok(())
                } else {
                    self.fail(id, error)
                };
            }
        };
        if let CommandError::Outage(outage) = failure::classify("UNLINK", error) {
            return Err(outage);
        }
        if let [only] = ids {
            return self.fail(*only, failure::classify("UNLINK", error));
        }
        let uncounted = matches!(subject, Subject::Deletions { .. });
        for &id in ids {
            *self.again.entry(id).or_default() |= uncounted;
        }
        Ok(())
    }

    /// Notes the answer to a call of tags, which are all of one rule.
    pub(super) fn invalidated(
        &mut self,
        ids: &[OperationId],
        done: Invalidations,
    ) -> Result<(), Outage> {
        if let Some(&id) = ids.first() {
            self.hit(id, done.existed, done.existed + done.gone + done.absent);
        }
        for target in done
            .own
            .iter()
            .filter_map(|&place| ids.get(place))
            .map(|&id| self.plan.operation(id).target)
        {
            tags::warn_of_own_members(target);
        }
        for &id in done.long.iter().filter_map(|&place| ids.get(place)) {
            tags::warn_of_long_members(self.plan.operation(id).target);
        }
        self.slow.extend(done.draining.iter().filter_map(|&place| ids.get(place)));
        self.tags_again
            .extend(done.left_from.and_then(|place| ids.get(place..)).unwrap_or_default());
        for (place, error) in done.refused {
            if let Some(&id) = ids.get(place) {
                self.fail(id, error)?;
            }
        }
        Ok(())
    }

    pub(super) fn fail(&mut self, id: OperationId, error: CommandError) -> Result<(), Outage> {
        let outcome = error.into_outcome()?;
        if matches!(
            self.plan.operation(id).command,
            Command::Write(_) | Command::Expire(_) | Command::Serve
        ) {
            self.unchanged.push(id);
        }
        self.end(id, outcome);
        Ok(())
    }

    /// Returns the deletions of keys whose old value must not stay readable, since it was not
    /// replaced, or its life not shortened. A value of a later operation stays.
    pub(super) fn deletions_instead(&mut self, context: &Context) -> Option<Commands> {
        if self.unchanged.is_empty() {
            return None;
        }
        let mut commands = Commands::none(Sent::default());
        let values = self.plan.last_values();
        for id in std::mem::take(&mut self.unchanged) {
            let Operation { target, fence_version, .. } = self.plan.operation(id);
            // The plan may have added members to a set under the tag prefix.
            let may_be_set = target.starts_with(&context.tag_prefix);
            if may_be_set || values.get(target).is_some_and(|value| self.plan.is_later(*value, id))
            {
                continue;
            }
            let key = target.as_bytes();
            if let Some(version) = fence_version {
                let deletion =
                    fence::delete_below(target, version, context.fence_ttl_ms, &mut commands.sent);
                commands.push(Subject::Quiet(id), deletion);
            }
            // Redis may refuse the script, or the fence.
            commands.push(Subject::Quiet(id), unlink([key].into_iter(), 1));
        }
        // Redis refuses an empty pipeline.
        (!commands.subjects.is_empty()).then_some(commands)
    }

    /// Sets the final outcome of an operation. Other answers no longer change it.
    pub(super) fn end(&mut self, id: OperationId, outcome: EffectOutcome) {
        self.failed.insert(id, outcome);
    }

    pub(super) fn has_ended(&self, id: OperationId) -> bool {
        self.failed.contains_key(&id)
    }

    /// Leaves the rest of an operation to the slow lane.
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
            unsettled.extend(self.plan.effects(id).map(|slot| (slot, outcome.clone())));
        }
        for &id in self.slow.iter().filter(|id| !self.failed.contains_key(id)) {
            unsettled.extend(self.plan.effects(id).map(|slot| (slot, EffectOutcome::Slow)));
        }
        // If a key has several loads, only the last runs: its value is no older than the others'.
        let mut loading = HashSet::new();
        let is_due = |load: &&Load| {
            !self.failed.contains_key(&load.after)
                && (!load.only_if_existed || self.existed.contains(&load.after))
        };
        let loads = self.plan.loads().iter().rev().filter(is_due);
        let last_loads =
            loads.filter(|load| loading.insert(self.plan.operation(load.after).target));
        unsettled.extend(last_loads.map(|load| (load.effect_ref, EffectOutcome::Slow)));
        let hits =
            self.hits.into_iter().map(|(rule, (yes, no))| KeyHits { rule, yes, no }).collect();
        Applied { unsettled, hits }
    }
}

/// Returns the name of an operation in messages.
fn command_name(command: Command<'_>) -> &'static str {
    match command {
        Command::Delete => "UNLINK",
        Command::InvalidateTag => tags::INVALIDATE,
        Command::Bump(_) => "INCRBY",
        Command::Expire(_) | Command::Serve => "PEXPIRE",
        Command::Write(write) if write.tags.is_empty() => "SET",
        Command::Write(_) => "SADD, SET",
    }
}
