//! What Redis is to do for a batch of effects: operations, in order, and whose outcome each
//! decides.

use std::time::Duration;

use super::mark::Mark;
use super::outcome::Slot;
use crate::registry::{Expiry, RuleId, Write};

/// An operation of one plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationId(pub(super) u32);

impl OperationId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What Redis is to do with a target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Command<'e> {
    /// Delete the key.
    Delete,
    /// Delete the tag's members and its set.
    InvalidateTag,
    /// Add so much to the counter; an absent one starts from 1.
    Bump(u32),
    /// Shorten the key's time to live.
    Expire(Expiry),
    /// Let the key be read for no longer than its load may take, retries included.
    Serve,
    /// Set the key.
    Write(&'e Write),
}

/// One command on one target, standing for the effects whose outcome it decides.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'e> {
    /// The whole key, or the tag's name without its prefix.
    pub target: &'e str,
    /// The rule of the effect that it came from first.
    pub rule: RuleId,
    /// What to do.
    pub command: Command<'e>,
    /// Of a write: what decides whether it is done. Of a write or deletion: what the key's fence is
    /// raised to.
    pub mark: Option<Mark<'e>>,
    pub(super) place: Place,
    /// A load depends on whether the key exists when the operation's turn comes: what stands before
    /// it must not be dropped.
    pub(super) asks: bool,
    /// The newest operation before this one that is still to be done on the same key.
    pub(super) previous: Option<OperationId>,
    pub(super) first_share: u32,
    pub(super) last_share: u32,
}

/// Where an operation is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Before all that is in order.
    Front,
    /// Where it arrived.
    InOrder,
    /// Nowhere: a later operation has made it unseen.
    Dropped,
}

/// An effect whose outcome is an operation's. A list, so that joining two of them costs nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) slot: Slot,
    pub(super) next: Option<u32>,
}

/// A load that is still to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// The effect.
    pub slot: Slot,
    /// The operation that takes hold on its key first.
    pub after: OperationId,
    /// It is made only if the key existed when that took hold.
    pub only_if_existed: bool,
}

/// What Redis is to do, in order.
#[derive(Debug)]
pub struct Plan<'e> {
    pub(super) operations: Vec<Operation<'e>>,
    pub(super) shares: Vec<Share>,
    pub(super) front: Vec<OperationId>,
    pub(super) in_order: Vec<OperationId>,
    pub(super) absorbed: Vec<RuleId>,
    pub(super) warms: Vec<Load>,
    pub(super) agains: Vec<(OperationId, Duration)>,
}

impl<'e> Plan<'e> {
    /// An operation of this plan.
    pub fn operation(&self, operation: OperationId) -> &Operation<'e> {
        &self.operations[operation.index()]
    }

    /// The deletions to be done before all else, a slice for each rule, those that raise a fence
    /// apart (`true`).
    pub fn deletions_by_rule(&self) -> impl Iterator<Item = (RuleId, bool, &[OperationId])> {
        let kind = |operation: &OperationId| {
            let operation = &self.operations[operation.index()];
            (operation.rule, operation.mark.is_some())
        };
        self.front.chunk_by(move |a, b| kind(a) == kind(b)).map(move |chunk| {
            let (rule, is_fenced) = kind(&chunk[0]);
            (rule, is_fenced, chunk)
        })
    }

    /// The deletions to be done before all else.
    pub fn deletions(&self) -> &[OperationId] {
        &self.front
    }

    /// The operations to be done after those, in this order.
    pub fn in_order(&self) -> &[OperationId] {
        &self.in_order
    }

    /// The effects whose outcome the operation decides.
    pub fn slots(&self, operation: OperationId) -> impl Iterator<Item = Slot> {
        let share = |index: u32| self.shares[index as usize];
        std::iter::successors(Some(share(self.operation(operation).first_share)), move |current| {
            current.next.map(share)
        })
        .map(|share| share.slot)
    }

    /// The rules of effects that need no command of their own, one entry an effect.
    pub fn absorbed(&self) -> &[RuleId] {
        &self.absorbed
    }

    /// The loads still to be made, in order.
    pub fn warms(&self) -> &[Load] {
        &self.warms
    }

    /// The deletions and invalidations that are to be done once more, each so long after.
    pub fn agains(&self) -> &[(OperationId, Duration)] {
        &self.agains
    }

    /// Whether a later operation surely gives the key of this deletion a value.
    pub fn is_followed_by_value(&self, deletion: OperationId) -> bool {
        let target = self.operation(deletion).target;
        let later = |other: &&OperationId| {
            self.operation(deletion).place == Place::Front || **other > deletion
        };
        self.in_order.iter().filter(later).map(|&other| self.operation(other)).any(|other| {
            other.target == target
                && other.mark.is_none()
                && matches!(other.command, Command::Write(_) | Command::Bump(_))
        })
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}
