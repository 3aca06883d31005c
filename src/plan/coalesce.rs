//! Effects of many events → the fewest operations that leave Redis as the effects would, one by
//! one, in order of arrival.
//!
//! Why each shortcut is exact (keys of a tag that still drains aside, which may turn into misses):
//! - A deletion commutes with everything but operations on the same key: it removes no key from a
//!   tag's set and reads none. So the deletions of keys that nothing must precede go first,
//!   together.
//! - What a later deletion or write of a key makes unseen is dropped: deletions, expiries, counters
//!   and writes without tags. A write with tags also fills the tags' sets, which a deletion leaves
//!   alone: it stays, and the deletion stays behind it; a later write replaces it only where that
//!   fills the same sets for at least as long.
//! - Of two invalidations of a tag the second finds an empty set, unless a write with that tag lies
//!   between.
//! - Two bumps of a counter add up, unless an invalidation between them may have deleted it.
//! - Of two expiries the sooner one counts; an invalidation between them deletes the key in both
//!   orders.
//! - What is warmed only if it was cached must learn that at its own turn: its deletion keeps its
//!   place. What is served while it loads is no deletion: it keeps its place too, behind everything
//!   on its key.
//! - A key that may itself be a tag's set shares none of this: it keeps its place, and nothing
//!   moves across it.
//! - Whether a versioned write sets its key, only Redis can tell: it makes unseen nothing but older
//!   writes of its entity, which set the key only where it would. One that is older than what
//!   stands before it in the batch does nothing, and gives way. Raising a fence is a join
//!   ([`Mark`]): what is dropped leaves its version to the deletion that made it unseen.

#[cfg(test)]
mod tests;

use std::time::Duration;

use foldhash::{HashMap, HashMapExt};

use super::mark::{Mark, Standing};
use super::operation::{Command, Load, Operation, OperationId, Place, Plan, Share};
use super::outcome::Slot;
use crate::registry::{Action, Effect, Expiry, Only, RuleId, Stale, Warm, Write};

/// Effects on their way to a [`Plan`].
#[derive(Debug)]
pub struct Batch<'e> {
    tag_prefix: &'e str,
    operations: Vec<Operation<'e>>,
    shares: Vec<Share>,
    keys: HashMap<&'e str, KeyState>,
    /// The invalidation of each tag that a further one would find its set empty after.
    tags: HashMap<&'e str, OperationId>,
    last_invalidation: Option<OperationId>,
    absorbed: Vec<RuleId>,
    warms: Vec<Load>,
    agains: Vec<(OperationId, Duration)>,
    hoisting: bool,
}

/// What is still to be done on a key.
#[derive(Debug, Clone, Copy, Default)]
struct KeyState {
    /// Its deletion before all that is in order.
    front: Option<OperationId>,
    /// The newest operation in order; older ones by [`Operation::previous`].
    newest: Option<OperationId>,
}

impl<'e> Batch<'e> {
    /// An empty batch. Keys that begin with `tag_prefix` (`UNSTALE_TAG_PREFIX`) may be sets of tags
    /// and are left in their place.
    pub fn new(tag_prefix: &'e str, effects: usize) -> Self {
        Self {
            tag_prefix,
            operations: Vec::with_capacity(effects),
            shares: Vec::with_capacity(effects),
            keys: HashMap::with_capacity(effects),
            tags: HashMap::new(),
            last_invalidation: None,
            absorbed: Vec::new(),
            warms: Vec::new(),
            agains: Vec::new(),
            hoisting: true,
        }
    }

    /// Adds the next effect, in order of arrival.
    pub fn push(&mut self, slot: Slot, effect: &'e Effect) {
        self.add_effect(slot, effect, false);
    }

    /// Adds an effect that was tried before: what was to be warmed only if it was cached was cached
    /// then.
    pub fn push_again(&mut self, slot: Slot, effect: &'e Effect) {
        self.add_effect(slot, effect, true);
    }

    fn add_effect(&mut self, slot: Slot, effect: &'e Effect, again: bool) {
        let share = id(self.shares.len());
        self.shares.push(Share { slot, next: None });
        let mark = effect.version.as_deref().map(Mark::of);
        let arrival = Arrival { target: &effect.target, rule: effect.rule, mark, share };
        let deletion = match &effect.action {
            Action::InvalidateTag => self.invalidate(arrival),
            action if effect.target.starts_with(self.tag_prefix) => {
                self.keep_in_place(arrival, action, slot, again)
            }
            Action::Delete => self.delete(arrival),
            Action::Warm(warm) => return self.warm(arrival, warm, slot, again),
            Action::BumpVersion => return self.bump(arrival),
            Action::Expire(expiry) => return self.expire(arrival, *expiry),
            Action::Write(write) => return self.write(arrival, write),
        };
        if let Some(after) = effect.again {
            self.agains.push((deletion, after));
        }
    }

    /// The operations in the order in which Redis is to do them.
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
            (operation.rule, operation.mark.is_some())
        });
        let in_order = ids(Place::InOrder).collect();
        Plan {
            operations: self.operations,
            shares: self.shares,
            front,
            in_order,
            absorbed: self.absorbed,
            warms: self.warms,
            agains: self.agains,
        }
    }

    fn warm(&mut self, arrival: Arrival<'e>, warm: &Warm, slot: Slot, again: bool) {
        let only_if_existed = warm.only == Only::Present && !again;
        let newest = self.keys.get(arrival.target).and_then(|state| state.newest.or(state.front));
        let newest_is =
            |command| newest.filter(|&newest| self.operations[newest.index()].command == command);
        let after = match warm.stale {
            Stale::Drop if only_if_existed => {
                if newest_is(Command::Delete).is_some() {
                    // Nothing is there to be warmed; who deleted it warms it, perhaps.
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
                match same
                    .filter(|&same| is_one_family(self.operations[same.index()].mark, arrival.mark))
                {
                    Some(same) => {
                        let operation = &mut self.operations[same.index()];
                        operation.mark = joined(operation.mark, arrival.mark);
                        self.absorb(same, arrival);
                        same
                    }
                    None => self.add_newest(arrival, Command::Serve),
                }
            }
        };
        self.operations[after.index()].asks |= only_if_existed;
        self.warms.push(Load { slot, after, only_if_existed });
    }

    fn delete(&mut self, mut arrival: Arrival<'e>) -> OperationId {
        let mut state = self.keys.get(arrival.target).copied().unwrap_or_default();
        let unseen_from = self.shares_of_unseen(&mut state, &mut arrival.mark);
        let existing = state.newest.or(state.front);
        let is_same = |existing: &Operation<'e>| {
            existing.command == Command::Delete && is_one_family(existing.mark, arrival.mark)
        };
        let deletion = if let Some(existing) =
            existing.filter(|&existing| is_same(&self.operations[existing.index()]))
        {
            let operation = &mut self.operations[existing.index()];
            operation.mark = joined(operation.mark, arrival.mark);
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

    /// Drops the newest operations on a key as far as a deletion makes them unseen and can raise
    /// the fence for them, and returns the list of their shares.
    fn shares_of_unseen(
        &mut self,
        state: &mut KeyState,
        mark: &mut Option<Mark<'e>>,
    ) -> Option<(u32, u32)> {
        let mut unseen = None;
        while let Some(newest) = state.newest {
            let operation = self.operations[newest.index()];
            match operation.command {
                Command::Delete | Command::Serve => break,
                Command::Write(write) if !write.tags.is_empty() => break,
                _ if !is_one_family(operation.mark, *mark) => break,
                _ => *mark = joined(operation.mark, *mark),
            }
            state.newest = operation.previous;
            unseen = Some(self.drop_operation(newest, unseen));
        }
        unseen
    }

    fn write(&mut self, arrival: Arrival<'e>, write: &'e Write) {
        let mut state = self.keys.get(arrival.target).copied().unwrap_or_default();
        if let Some(newer) = arrival.mark.and_then(|mark| self.newer_than(mark, state)) {
            return self.absorb(newer, arrival);
        }
        let mut unseen = None;
        let mut newer: Option<OperationId> = None;
        let mut current = state.newest;
        // What stays between may be done, or not, for the version of what came before it; and the
        // arrival for that of what stays.
        let mut version_between = false;
        while let Some(operation) = current {
            let Operation { command, previous, mark, asks, .. } =
                self.operations[operation.index()];
            if asks {
                break;
            }
            let dropped = match command {
                Command::Write(_) if mark.is_some() && version_between => false,
                Command::Write(earlier) => gives_way((earlier, mark), (write, arrival.mark)),
                Command::Bump(_) | Command::Expire(_) => arrival.mark.is_none(),
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
                version_between |= mark.is_some();
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

    /// The operation on a key that leaves nothing to do for a write of that version: what stands
    /// before raised the fence beyond it.
    fn newer_than(&self, mark: Mark<'e>, state: KeyState) -> Option<OperationId> {
        let mut newest = true;
        let mut current = state.newest.or(state.front);
        while let Some(id) = current {
            let operation = &self.operations[id.index()];
            if let Some(before) = operation.mark.filter(|before| before.is_of_family(&mark)) {
                let is_lower = (before.version.digits.len(), &before.version.digits)
                    > (mark.version.digits.len(), &mark.version.digits);
                // The same event once more does nothing, or deletes where another event had the
                // same version. That deletion is seen if the key was set since, or if the operation
                // before it left the value alone.
                let decides_the_value = newest && operation.command != Command::Serve;
                if is_lower || (decides_the_value && mark.against(&before) == Standing::Old) {
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

    /// A key that may be a tag's set: what it holds decides what an invalidation deletes.
    fn keep_in_place(
        &mut self,
        arrival: Arrival<'e>,
        action: &'e Action,
        slot: Slot,
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
            self.warms.push(Load {
                slot,
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
        let Arrival { target, rule, mark, share } = arrival;
        self.operations.push(Operation {
            target,
            rule,
            command,
            mark,
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

    /// Puts the shares of an operation that need not be done before those of `unseen`.
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

/// An effect that has just arrived, its share already in the list.
#[derive(Debug, Clone, Copy)]
struct Arrival<'e> {
    target: &'e str,
    rule: RuleId,
    mark: Option<Mark<'e>>,
    share: u32,
}

/// Whether the later write of a key leaves nothing to be seen of the earlier one: it is done
/// wherever that one is, and fills the same sets. They are filled in order, up to the first that is
/// refused: those of the earlier one must come first.
fn gives_way(
    (earlier, before): (&Write, Option<Mark<'_>>),
    (later, mark): (&Write, Option<Mark<'_>>),
) -> bool {
    let is_done = match (before, mark) {
        (None, None) => true,
        (Some(before), Some(mark)) => {
            mark.is_of_family(&before) && mark.against(&before) == Standing::Newer
        }
        _ => false,
    };
    is_done
        && (earlier.tags.is_empty()
            || (outlasts(later.expiry, earlier.expiry) && later.tags.starts_with(&earlier.tags)))
}

/// Whether one operation can raise the fence for both.
fn is_one_family(first: Option<Mark<'_>>, second: Option<Mark<'_>>) -> bool {
    first.zip(second).is_none_or(|(first, second)| first.is_of_family(&second))
}

fn joined<'e>(first: Option<Mark<'e>>, second: Option<Mark<'e>>) -> Option<Mark<'e>> {
    match (first, second) {
        (Some(first), Some(second)) => Some(first.join(second)),
        (first, second) => first.or(second),
    }
}

/// Whether a tag's set is kept at least as long for the first as for the second.
fn outlasts(first: Expiry, second: Expiry) -> bool {
    match (first, second) {
        (Expiry::Never, _) => true,
        (Expiry::After { ttl, .. }, Expiry::After { ttl: other, .. }) => ttl >= other,
        (Expiry::At(at), Expiry::At(other)) => at >= other,
        _ => false,
    }
}

/// The one expiry that does what both do, if one can.
fn sooner(first: Expiry, second: Expiry) -> Option<Expiry> {
    match (first, second) {
        (Expiry::At(at), Expiry::At(other)) => Some(Expiry::At(at.min(other))),
        (Expiry::After { ttl, jitter }, Expiry::After { ttl: other, jitter: spread })
            if jitter == spread =>
        {
            Some(Expiry::After { ttl: ttl.min(other), jitter })
        }
        _ => None,
    }
}

/// A place in a list that is never as long as `u32::MAX`: effects are limited by event and events
/// by batch.
fn id(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
