//! Coalesces the effects of many events into one plan.
//!
//! The plan has the fewest operations that leave Redis as the effects would, applied one by one in
//! order of arrival. The exception is a key of a tag that is still draining, which may become a
//! miss.
//!
//! Each shortcut is exact, for these reasons:
//!
//! - A deletion commutes with every operation on another key: it neither reads a tag's set nor
//!   removes a key from one. So deletions go first, together, unless something must precede them.
//! - A later deletion or write of the same key hides deletions, expiries, counters and writes
//!   without tags. They are dropped.
//! - A write with tags also fills the tags' sets, which a deletion leaves alone. It stays, and the
//!   deletion stays after it. A later write replaces it only if that fills the same sets for at
//!   least as long.
//! - The second of two invalidations of a tag finds an empty set, unless a write with that tag is
//!   between them.
//! - Two bumps of a counter add up, unless an invalidation between them may have deleted it.
//! - The sooner of two expiries counts. An invalidation between them deletes the key in both
//!   orders.
//! - A `warm` of a cached key alone must see at its own turn whether the key exists. Its deletion
//!   keeps its place.
//! - A value that is served during its load is not deleted. Its operation keeps its place after
//!   all others on its key.
//! - A key that may be a tag's set uses no shortcut. It keeps its place, and nothing moves across
//!   it.
//! - Only Redis knows whether a versioned write sets its key. So it hides only older writes of its
//!   entity, which set the key only if it does too. A write that is older than an operation before
//!   it in the batch does nothing, and is dropped.
//! - Raising a fence is a join ([`FenceVersion`]). A dropped operation leaves its version to the
//!   deletion that hides it.

mod compare;
#[cfg(test)]
mod tests;

use std::time::Duration;

use foldhash::{HashMap, HashMapExt};

use self::compare::{hides, is_one_family, joined, sooner};
use super::fence_version::{FenceVersion, VersionOrder};
use super::operation::{Command, Load, Operation, OperationId, Place, Plan, Share};
use super::outcome::EffectRef;
use crate::registry::{Action, Effect, Expiry, Only, RuleId, Stale, Warm, Write};

/// Collects effects for a [`Plan`].
#[derive(Debug)]
pub struct Batch<'e> {
    tag_prefix: &'e str,
    operations: Vec<Operation<'e>>,
    shares: Vec<Share>,
    keys: HashMap<&'e str, KeyState>,
    /// The invalidation of each tag after which another one would find an empty set.
    tags: HashMap<&'e str, OperationId>,
    last_invalidation: Option<OperationId>,
    absorbed: Vec<RuleId>,
    loads: Vec<Load>,
    second_deletes: Vec<(OperationId, Duration)>,
    hoisting: bool,
}

/// The operations on a key that are still in the plan.
#[derive(Debug, Clone, Copy, Default)]
struct KeyState {
    /// Its deletion before the operations in order.
    front: Option<OperationId>,
    /// Its newest operation in order. [`Operation::previous`] leads to the older ones.
    newest: Option<OperationId>,
}

impl<'e> Batch<'e> {
    /// Returns an empty batch.
    ///
    /// A key that begins with `tag_prefix` (`UNSTALE_TAG_PREFIX`) may be a tag's set and keeps its
    /// place.
    pub fn new(tag_prefix: &'e str, effects: usize) -> Self {
        Self {
            tag_prefix,
            operations: Vec::with_capacity(effects),
            shares: Vec::with_capacity(effects),
            keys: HashMap::with_capacity(effects),
            tags: HashMap::new(),
            last_invalidation: None,
            absorbed: Vec::new(),
            loads: Vec::new(),
            second_deletes: Vec::new(),
            hoisting: true,
        }
    }

    /// Adds the next effect, in order of arrival.
    pub fn push(&mut self, effect_ref: EffectRef, effect: &'e Effect) {
        self.add_effect(effect_ref, effect, false);
    }

    /// Adds an effect that was tried before. If it warms cached keys only, the key counts as
    /// cached, since it was at the first attempt.
    pub fn push_retried(&mut self, effect_ref: EffectRef, effect: &'e Effect) {
        self.add_effect(effect_ref, effect, true);
    }

    fn add_effect(&mut self, effect_ref: EffectRef, effect: &'e Effect, again: bool) {
        let share = id(self.shares.len());
        self.shares.push(Share { effect_ref, next: None });
        let fence_version = effect.version.as_deref().map(FenceVersion::of);
        let arrival = Arrival { target: &effect.target, rule: effect.rule, fence_version, share };
        let deletion = match &effect.action {
            Action::InvalidateTag => self.invalidate(arrival),
            action if effect.target.starts_with(self.tag_prefix) => {
                self.keep_in_place(arrival, action, effect_ref, again)
            }
            Action::Delete => self.delete(arrival),
            Action::Warm(warm) => return self.warm(arrival, warm, effect_ref, again),
            Action::BumpVersion => return self.bump(arrival),
            Action::Expire(expiry) => return self.expire(arrival, *expiry),
            Action::Write(write) => return self.write(arrival, write),
        };
        if let Some(after) = effect.again {
            self.second_deletes.push((deletion, after));
        }
    }

    /// Returns the operations in the order for Redis.
    pub fn finish(self) -> Plan<'e> {
        let place =
            |place| move |(_, operation): &(usize, &Operation<'_>)| operation.place == place;
        let ids = |wanted| {
            self.operations
                .iter()
                .enumerate()
                .filter(place(wanted))
                .map(|(index, _)| OperationId(id(index)))
        };
        let mut front: Vec<_> = ids(Place::Front).collect();
        front.sort_by_key(|operation| {
            let operation = &self.operations[operation.index()];
            (operation.rule, operation.fence_version.is_some())
        });
        let in_order = ids(Place::InOrder).collect();
        Plan {
            operations: self.operations,
            shares: self.shares,
            front,
            in_order,
            absorbed: self.absorbed,
            loads: self.loads,
            second_deletes: self.second_deletes,
        }
    }

    fn warm(&mut self, arrival: Arrival<'e>, warm: &Warm, effect_ref: EffectRef, again: bool) {
        let only_if_existed = warm.only == Only::Present && !again;
        let newest = self.keys.get(arrival.target).and_then(|state| state.newest.or(state.front));
        let newest_is =
            |command| newest.filter(|&newest| self.operations[newest.index()].command == command);
        let after = match warm.stale {
            Stale::Drop if only_if_existed => {
                if newest_is(Command::Delete).is_some() {
                    // The key does not exist, so there is nothing to warm. The effect that deleted
                    // it may warm it.
                    self.delete(arrival);
                    return;
                }
                self.add_newest(arrival, Command::Delete)
            }
            Stale::Drop => self.delete(arrival),
            Stale::Serve => {
                let unmoved =
                    |&newest: &OperationId| self.last_invalidation.is_none_or(|last| last < newest);
                let same = newest_is(Command::Serve).filter(unmoved);
                match same.filter(|&same| {
                    is_one_family(
                        self.operations[same.index()].fence_version,
                        arrival.fence_version,
                    )
                }) {
                    Some(same) => {
                        let operation = &mut self.operations[same.index()];
                        operation.fence_version =
                            joined(operation.fence_version, arrival.fence_version);
                        self.absorb(same, arrival);
                        same
                    }
                    None => self.add_newest(arrival, Command::Serve),
                }
            }
        };
        self.operations[after.index()].asks |= only_if_existed;
        self.loads.push(Load { effect_ref, after, only_if_existed });
    }

    fn delete(&mut self, mut arrival: Arrival<'e>) -> OperationId {
        let mut state = self.keys.get(arrival.target).copied().unwrap_or_default();
        let unseen_from = self.shares_of_unseen(&mut state, &mut arrival.fence_version);
        let existing = state.newest.or(state.front);
        let is_same = |existing: &Operation<'e>| {
            existing.command == Command::Delete
                && is_one_family(existing.fence_version, arrival.fence_version)
        };
        let deletion = if let Some(existing) =
            existing.filter(|&existing| is_same(&self.operations[existing.index()]))
        {
            let operation = &mut self.operations[existing.index()];
            operation.fence_version = joined(operation.fence_version, arrival.fence_version);
            self.absorb(existing, arrival);
            existing
        } else {
            let place = if self.hoisting && state.newest.is_none() && state.front.is_none() {
                Place::Front
            } else {
                Place::InOrder
            };
            let deletion = self.add(arrival, Command::Delete, place, state.newest);
            if place == Place::Front {
                state.front = Some(deletion);
            } else {
                state.newest = Some(deletion);
            }
            deletion
        };
        self.adopt(deletion, unseen_from);
        self.keys.insert(arrival.target, state);
        deletion
    }

    /// Drops the newest operations that a deletion hides, as long as it can raise their fences too.
    /// Returns the list of their shares.
    fn shares_of_unseen(
        &mut self,
        state: &mut KeyState,
        fence_version: &mut Option<FenceVersion<'e>>,
    ) -> Option<(u32, u32)> {
        let mut unseen = None;
        while let Some(newest) = state.newest {
            let operation = self.operations[newest.index()];
            match operation.command {
                Command::Delete | Command::Serve => break,
                Command::Write(write) if !write.tags.is_empty() => break,
                _ if !is_one_family(operation.fence_version, *fence_version) => break,
                _ => *fence_version = joined(operation.fence_version, *fence_version),
            }
            state.newest = operation.previous;
            unseen = Some(self.drop_operation(newest, unseen));
        }
        unseen
    }

    fn write(&mut self, arrival: Arrival<'e>, write: &'e Write) {
        let mut state = self.keys.get(arrival.target).copied().unwrap_or_default();
        if let Some(newer) =
            arrival.fence_version.and_then(|fence_version| self.newer_than(fence_version, state))
        {
            return self.absorb(newer, arrival);
        }
        let mut unseen = None;
        let mut newer: Option<OperationId> = None;
        let mut current = state.newest;
        // An operation that stays may take effect or not, depending on the version of the one
        // before it. The same applies between the arriving write and an operation that stays.
        let mut version_between = false;
        while let Some(operation) = current {
            let Operation { command, previous, fence_version, asks, .. } =
                self.operations[operation.index()];
            if asks {
                break;
            }
            let dropped = match command {
                Command::Write(_) if fence_version.is_some() && version_between => false,
                Command::Write(earlier) => {
                    hides((earlier, fence_version), (write, arrival.fence_version))
                }
                Command::Bump(_) | Command::Expire(_) => arrival.fence_version.is_none(),
                Command::Delete | Command::Serve | Command::InvalidateTag => false,
            };
            if dropped {
                match newer {
                    Some(newer) => self.operations[newer.index()].previous = previous,
                    None => state.newest = previous,
                }
                unseen = Some(self.drop_operation(operation, unseen));
            } else {
                newer = Some(operation);
                version_between |= fence_version.is_some();
            }
            current = previous;
        }
        let operation = self.add(arrival, Command::Write(write), Place::InOrder, state.newest);
        self.adopt(operation, unseen);
        state.newest = Some(operation);
        self.keys.insert(arrival.target, state);
        if !self.tags.is_empty() {
            for tag in &write.tags {
                self.tags.remove(tag.as_str());
            }
        }
    }

    /// Returns the operation after which a write of that version does nothing, since an earlier
    /// operation raised the fence above it.
    fn newer_than(&self, fence_version: FenceVersion<'e>, state: KeyState) -> Option<OperationId> {
        let mut newest = true;
        let mut current = state.newest.or(state.front);
        while let Some(id) = current {
            let operation = &self.operations[id.index()];
            if let Some(before) =
                operation.fence_version.filter(|before| before.is_of_family(&fence_version))
            {
                let is_higher = (before.version.digits.len(), &before.version.digits)
                    > (fence_version.version.digits.len(), &fence_version.version.digits);
                // The same event once more does nothing, or deletes the key if another event had
                // the same version.
                // That deletion has a visible effect if the key was set since, or if the operation
                // before it left the value alone.
                let decides_the_value = newest && operation.command != Command::Serve;
                if is_higher
                    || (decides_the_value && fence_version.against(&before) == VersionOrder::Old)
                {
                    return Some(id);
                }
            }
            newest = false;
            current = operation.previous.or(state.front.filter(|&front| front != id));
        }
        None
    }

    fn bump(&mut self, arrival: Arrival<'e>) {
        let state = self.keys.entry(arrival.target).or_default();
        if let Some(newest) =
            state.newest.filter(|&newest| self.last_invalidation.is_none_or(|last| last < newest))
            && let Command::Bump(by) = &mut self.operations[newest.index()].command
            && let Some(sum) = by.checked_add(1)
        {
            *by = sum;
            self.absorb(newest, arrival);
        } else {
            self.add_newest(arrival, Command::Bump(1));
        }
    }

    fn expire(&mut self, arrival: Arrival<'e>, expiry: Expiry) {
        let mut current = self.keys.entry(arrival.target).or_default().newest;
        while let Some(operation) = current {
            let Operation { command: Command::Expire(earlier), previous, .. } =
                &mut self.operations[operation.index()]
            else {
                break;
            };
            if let Some(sooner) = sooner(*earlier, expiry) {
                *earlier = sooner;
                return self.absorb(operation, arrival);
            }
            current = *previous;
        }
        self.add_newest(arrival, Command::Expire(expiry));
    }

    fn invalidate(&mut self, arrival: Arrival<'e>) -> OperationId {
        if let Some(&earlier) = self.tags.get(arrival.target) {
            self.absorb(earlier, arrival);
            return earlier;
        }
        let operation = self.add(arrival, Command::InvalidateTag, Place::InOrder, None);
        self.tags.insert(arrival.target, operation);
        self.last_invalidation = Some(operation);
        operation
    }

    /// Adds an operation on a key that may be a tag's set. Its content decides which keys an
    /// invalidation deletes.
    fn keep_in_place(
        &mut self,
        arrival: Arrival<'e>,
        action: &'e Action,
        effect_ref: EffectRef,
        again: bool,
    ) -> OperationId {
        let command = match action {
            Action::Warm(warm) if warm.stale == Stale::Serve => Command::Serve,
            Action::Delete | Action::Warm(_) => Command::Delete,
            Action::InvalidateTag => Command::InvalidateTag,
            Action::BumpVersion => Command::Bump(1),
            Action::Expire(expiry) => Command::Expire(*expiry),
            Action::Write(write) => Command::Write(write),
        };
        let operation = self.add(arrival, command, Place::InOrder, None);
        if let Action::Warm(warm) = action {
            self.loads.push(Load {
                effect_ref,
                after: operation,
                only_if_existed: warm.only == Only::Present && !again,
            });
        }
        self.keys.clear();
        self.tags.clear();
        self.hoisting = false;
        operation
    }

    fn add(
        &mut self,
        arrival: Arrival<'e>,
        command: Command<'e>,
        place: Place,
        previous: Option<OperationId>,
    ) -> OperationId {
        let operation = OperationId(id(self.operations.len()));
        let Arrival { target, rule, fence_version, share } = arrival;
        self.operations.push(Operation {
            target,
            rule,
            command,
            fence_version,
            place,
            asks: false,
            previous,
            first_share: share,
            last_share: share,
        });
        operation
    }

    fn add_newest(&mut self, arrival: Arrival<'e>, command: Command<'e>) -> OperationId {
        let previous = self.keys.get(arrival.target).and_then(|state| state.newest);
        let operation = self.add(arrival, command, Place::InOrder, previous);
        self.keys.entry(arrival.target).or_default().newest = Some(operation);
        operation
    }

    /// Lets an operation decide the outcome of one more effect.
    fn absorb(&mut self, operation: OperationId, arrival: Arrival<'e>) {
        self.absorbed.push(arrival.rule);
        self.adopt(operation, Some((arrival.share, arrival.share)));
    }

    fn adopt(&mut self, operation: OperationId, shares: Option<(u32, u32)>) {
        let Some((first, last)) = shares else { return };
        let operation = &mut self.operations[operation.index()];
        self.shares[operation.last_share as usize].next = Some(first);
        operation.last_share = last;
    }

    /// Drops an operation, and puts its shares before those of `unseen`.
    fn drop_operation(&mut self, operation: OperationId, unseen: Option<(u32, u32)>) -> (u32, u32) {
        let operation = &mut self.operations[operation.index()];
        operation.place = Place::Dropped;
        self.absorbed.push(operation.rule);
        let (first, last) = (operation.first_share, operation.last_share);
        match unseen {
            Some((next, end)) => {
                self.shares[last as usize].next = Some(next);
                (first, end)
            }
            None => (first, last),
        }
    }
}

/// An effect that has just arrived. Its share is already in the list.
#[derive(Debug, Clone, Copy)]
struct Arrival<'e> {
    target: &'e str,
    rule: RuleId,
    fence_version: Option<FenceVersion<'e>>,
    share: u32,
}

/// Converts an index. Lists are shorter than `u32::MAX`, since effects are limited per event and
/// events per batch.
fn id(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
