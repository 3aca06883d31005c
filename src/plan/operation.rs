//! The plan for a batch of effects: operations in order, each with the effects whose outcome it
//! decides.

use std::collections::HashMap;
use std::time::Duration;

use super::fence_version::FenceVersion;
use super::outcome::EffectRef;
use crate::registry::{Expiry, RuleId, Write};

/// Identifies an operation within one plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationId(pub(super) u32);

impl OperationId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A command for Redis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Command<'e> {
    /// Deletes the key.
    Delete,
    /// Deletes the tag's members and its set.
    InvalidateTag,
    /// Adds this amount to the counter. An absent one starts from 1.
    Bump(u32),
    /// Shortens the key's time to live.
    Expire(Expiry),
    /// Limits the key's life to the longest duration of its load, retries included.
    Serve,
    /// Sets the key.
    Write(&'e Write),
}

/// One command on one target, for all effects whose outcome it decides.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'e> {
    /// The whole key, or the tag's name without its prefix.
    pub target: &'e str,
    /// The rule of the first effect.
    pub rule: RuleId,
    /// The command.
    pub command: Command<'e>,
    /// For a write or a deletion, the version to which the key's fence is raised. A write takes
    /// effect only if this version is newer than the fence.
    pub fence_version: Option<FenceVersion<'e>>,
    pub(super) place: Place,
    /// A load depends on whether the key exists before this operation. So the operations before it
    /// must not be dropped.
    pub(super) asks: bool,
    /// The newest earlier operation on the same key that is still in the plan.
    pub(super) previous: Option<OperationId>,
    pub(super) first_share: u32,
    pub(super) last_share: u32,
}

/// Place of an operation in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Before all operations in order.
    Front,
    /// In order of arrival.
    InOrder,
    /// Not in the plan, since a later operation hides it.
    Dropped,
}

/// An effect whose outcome an operation decides. Shares are linked lists, so that joining two of
/// them is free.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) effect_ref: EffectRef,
    pub(super) next: Option<u32>,
}

/// A load that is still to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// The effect.
    pub effect_ref: EffectRef,
    /// The operation on the key that must take effect first.
    pub after: OperationId,
    /// The load is made only if the key existed when that operation took effect.
    pub only_if_existed: bool,
}

/// Operations for Redis, in order.
#[derive(Debug)]
pub struct Plan<'e> {
    pub(super) operations: Vec<Operation<'e>>,
    pub(super) shares: Vec<Share>,
    pub(super) front: Vec<OperationId>,
    pub(super) in_order: Vec<OperationId>,
    pub(super) absorbed: Vec<RuleId>,
    pub(super) loads: Vec<Load>,
    pub(super) second_deletes: Vec<(OperationId, Duration)>,
}

impl<'e> Plan<'e> {
    /// Returns an operation of this plan.
    pub fn operation(&self, operation: OperationId) -> &Operation<'e> {
        &self.operations[operation.index()]
    }

    /// Returns the deletions that go first, in one slice for each rule. Deletions that raise a
    /// fence are separate (`true`).
    pub fn deletions_by_rule(&self) -> impl Iterator<Item = (RuleId, bool, &[OperationId])> {
        let kind = |operation: &OperationId| {
            let operation = &self.operations[operation.index()];
            (operation.rule, operation.fence_version.is_some())
        };
        self.front.chunk_by(move |a, b| kind(a) == kind(b)).map(move |chunk| {
            let (rule, is_fenced) = kind(&chunk[0]);
            (rule, is_fenced, chunk)
        })
    }

    /// Returns the deletions that go first.
    pub fn deletions(&self) -> &[OperationId] {
        &self.front
    }

    /// Returns the operations after the deletions, in order.
    pub fn in_order(&self) -> &[OperationId] {
        &self.in_order
    }

    /// Returns the effects whose outcome the operation decides.
    pub fn effects(&self, operation: OperationId) -> impl Iterator<Item = EffectRef> {
        let share = |index: u32| self.shares[index as usize];
        std::iter::successors(Some(share(self.operation(operation).first_share)), move |current| {
            current.next.map(share)
        })
        .map(|share| share.effect_ref)
    }

    /// Returns the rules of effects that need no command of their own, one for each effect.
    pub fn absorbed(&self) -> &[RuleId] {
        &self.absorbed
    }

    /// Returns the loads that are still to be made, in order.
    pub fn loads(&self) -> &[Load] {
        &self.loads
    }

    /// Returns the deletions and invalidations to repeat, each with its delay.
    pub fn second_deletes(&self) -> &[(OperationId, Duration)] {
        &self.second_deletes
    }

    /// Returns whether a later operation certainly gives the key of this deletion a value.
    pub fn is_followed_by_value(&self, deletion: OperationId) -> bool {
        let target = self.operation(deletion).target;
        self.values().any(|(other, key)| key == target && self.is_later(other, deletion))
    }

    /// Returns the last operation for each key that certainly gives it a value.
    pub fn last_values(&self) -> HashMap<&str, OperationId> {
        let mut last = HashMap::new();
        for (operation, key) in self.values() {
            let kept = last.entry(key).or_insert(operation);
            *kept = operation.max(*kept);
        }
        last
    }

    /// Returns whether an operation is applied after the other one.
    pub fn is_later(&self, operation: OperationId, than: OperationId) -> bool {
        self.operation(than).place == Place::Front || operation > than
    }

    /// Returns the operations that certainly give their keys a value.
    fn values(&self) -> impl Iterator<Item = (OperationId, &str)> {
        self.in_order.iter().map(|&id| (id, self.operation(id))).filter_map(|(id, operation)| {
            let gives_value = operation.fence_version.is_none()
                && matches!(operation.command, Command::Write(_) | Command::Bump(_));
            gives_value.then_some((id, operation.target))
        })
    }

    /// Returns whether the plan is empty.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}
