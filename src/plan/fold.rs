//! Folds the effects of a span of the history into the few that still matter, one for each key or
//! tag.
//!
//! A [`Batch`](super::Batch) leaves Redis as its effects would. A replay of the past must do less:
//! it must not make anything staler than it is today, and it may cost misses. So for each key:
//!
//! - The last deletion or write supersedes everything before it. If its event is not among those to
//!   apply, nothing is done to the key.
//! - A write remains a write only if a fence can decide whether it is still the newest. It needs a
//!   version, and must be younger than the lifetime of fences. Otherwise the key is deleted.
//! - Among two writes of one entity the higher version remains. If the versions are equal, nothing
//!   shows which is newer, and the key is deleted. Versions of events that are not applied count
//!   too, since Redis may have lost their fences.
//! - A write becomes a deletion if a later event, applied or not, invalidated one of its tags or
//!   shortened the key's life.
//! - The result raises all fences that the folded effects would have raised.
//! - A replayed letter is older than its place. Its write becomes a deletion. If it is not applied,
//!   it supersedes nothing.
//! - A counter is bumped once. It only has to become a number that it did not have before.
//! - The longest second delete (`again`) of its deletions is kept.
//! - A key that may be a tag's set is not changed alone. Its tag is invalidated, since its members
//!   could not be found otherwise.
//!
//! The result depends on later effects and on earlier versions. So a span may be cut at any place,
//! and the part after the cut is folded separately. Earlier versions are recorded in fences. If
//! some were only read and never raised a fence, later writes become deletions.

mod pending;
#[cfg(test)]
mod tests;

use std::time::Duration;

use foldhash::{HashMap, HashMapExt};

use self::pending::{
    Pending, PendingAction, Sooner, TARGET_BYTES, raise, sooner, weight, write_weight,
};
use super::fence_version::VersionOrder;
use crate::registry::{Action, Effect, Expiry, RuleId, Version, Write};

/// Limits of what a fold keeps in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldLimits {
    /// Number of keys and tags.
    pub targets: usize,
    /// Size of their names and values, in bytes.
    pub bytes: usize,
}

impl Default for FoldLimits {
    fn default() -> Self {
        Self { targets: 1_000_000, bytes: 48 << 20 }
    }
}

/// A span of the history, reduced to the effects that still matter. Events must be added in order.
///
/// ```
/// use unstale::plan::Fold;
/// use unstale::registry::{Action, Effect, RuleId};
///
/// let effect = |target: &str, action| Effect {
///     rule: RuleId(0),
///     target: target.to_owned(),
///     action,
///     version: None,
///     again: None,
/// };
/// let mut fold = Fold::new("cache_tag:");
/// for offset in 0..1_000 {
///     fold.choose(offset, effect("user:42", Action::Delete), true);
///     fold.choose(offset, effect("menu", Action::InvalidateTag), true);
/// }
/// let left = fold.take(true);
/// assert_eq!(left.len(), 2, "one effect for each key and tag");
/// assert!(fold.is_empty());
/// ```
#[derive(Debug)]
pub struct Fold {
    tag_prefix: String,
    keys: HashMap<String, Pending>,
    tags: HashMap<String, Invalidations>,
    superseded: u64,
    bytes: usize,
    /// A version was dropped that had not raised a fence.
    forgot: bool,
}

/// The invalidations of one tag.
#[derive(Debug)]
struct Invalidations {
    /// Offset of the newest one, applied or not.
    newest: u64,
    /// Offset and rule of the newest one that is applied.
    chosen: Option<(u64, RuleId)>,
    again: Option<Duration>,
}

/// One effect that replaces all effects of the span on its target.
#[derive(Debug, Clone, PartialEq)]
pub struct Folded {
    /// The oldest offset from which the effect follows.
    pub since: u64,
    /// The effect.
    pub effect: Effect,
}

impl Fold {
    /// Returns an empty fold. A key that begins with `tag_prefix` (`UNSTALE_TAG_PREFIX`) may be a
    /// tag's set.
    pub fn new(tag_prefix: &str) -> Self {
        Self {
            tag_prefix: tag_prefix.to_owned(),
            keys: HashMap::new(),
            tags: HashMap::new(),
            superseded: 0,
            bytes: 0,
            forgot: false,
        }
    }

    /// Returns the number of keys and tags.
    pub fn len(&self) -> usize {
        self.keys.len() + self.tags.len()
    }

    /// Returns whether the fold is empty.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.tags.is_empty()
    }

    /// Returns whether the fold has reached its limits.
    pub fn is_full(&self, limits: FoldLimits) -> bool {
        self.len() >= limits.targets || self.bytes >= limits.bytes
    }

    /// Returns the number of effects that were superseded by events that are not applied.
    pub fn superseded(&self) -> u64 {
        self.superseded
    }

    /// Adds the next effect of an event to apply, at that offset of the history. `fenced` means
    /// that the event is younger than the lifetime of fences.
    pub fn choose(&mut self, at: u64, effect: Effect, fenced: bool) {
        let Effect { rule, target, action, version, again } = effect;
        if let Some(tag) = self.tag_of(&target, &action) {
            let tag = tag.to_owned();
            return self.invalidate(at, Some((rule, again)), &tag);
        }
        match (action, version) {
            (Action::InvalidateTag, _) => self.invalidate(at, Some((rule, again)), &target),
            (Action::BumpVersion, _) => {
                self.replace(at, rule, target, PendingAction::Bump, None, None)
            }
            (Action::Expire(expiry), _) => self.expire(at, rule, target, expiry),
            (Action::Write(write), Some(version)) if fenced && !self.forgot => {
                self.write(at, rule, target, write, version)
            }
            (Action::Delete | Action::Warm(_) | Action::Write(_), version) => {
                self.replace(at, rule, target, PendingAction::Delete, version, again)
            }
        }
    }

    /// Adds the next effect of an event that is not applied. It supersedes what came before it, and
    /// later effects with a lower version.
    pub fn skip(&mut self, at: u64, effect: &Effect) {
        self.supersede(at, effect);
        let Some(version) = effect
            .version
            .as_deref()
            .filter(|_| self.tag_of(&effect.target, &effect.action).is_none())
        else {
            return;
        };
        match self.keys.get_mut(&effect.target) {
            Some(pending) => drop(raise(&mut pending.versions, version)),
            None => self.insert(
                at,
                effect.rule,
                effect.target.clone(),
                PendingAction::Nothing,
                Some(Box::new(version.clone())),
                None,
            ),
        }
    }

    /// Works like [`skip`](Self::skip) for an event after all that may be applied.
    pub fn supersede(&mut self, at: u64, effect: &Effect) {
        if let Action::InvalidateTag = effect.action {
            return self.invalidate(at, None, &effect.target);
        }
        if let Some(tag) = self.tag_of(&effect.target, &effect.action) {
            let tag = tag.to_owned();
            return self.invalidate(at, None, &tag);
        }
        if let Action::Expire(_) = effect.action {
            // The rest of the shorter life becomes a miss.
            return self.forget_value(&effect.target);
        }
        let Some(pending) = self.keys.get_mut(&effect.target) else { return };
        if matches!(pending.action, PendingAction::Nothing) {
            return;
        }
        self.superseded += 1;
        self.bytes -= weight(&effect.target, &pending.action);
        if pending.versions.is_empty() {
            self.keys.remove(&effect.target);
            return;
        }
        (pending.action, pending.again) = (PendingAction::Nothing, None);
        self.bytes += weight(&effect.target, &pending.action);
    }

    /// Adds an effect of a replayed letter that is not applied. Its event is older than its place,
    /// so it supersedes nothing. A write that it may have overwritten becomes a deletion.
    pub fn doubt(&mut self, at: u64, effect: &Effect) {
        match self.tag_of(&effect.target, &effect.action) {
            Some(tag) => self.invalidate(at, None, tag),
            None if effect.action == Action::InvalidateTag => {
                self.invalidate(at, None, &effect.target)
            }
            None => self.forget_value(&effect.target),
        }
    }

    /// Turns a write to the key into a deletion.
    fn forget_value(&mut self, key: &str) {
        if let Some(pending) = self.keys.get_mut(key)
            && let PendingAction::Write { write, .. } = &pending.action
        {
            self.bytes -= write_weight(write);
            pending.action = PendingAction::Delete;
            self.superseded += 1;
        }
    }

    /// Returns the remaining effects in the history's order and empties the fold.
    ///
    /// `whole` means that no later part of the history is known. Otherwise a later event may
    /// supersede a write, so its key is deleted instead.
    pub fn take(&mut self, whole: bool) -> Vec<Folded> {
        let mut all: Vec<(u64, Folded)> = Vec::with_capacity(self.len());
        let tags = std::mem::take(&mut self.tags);
        // A value that was invalidated since must not exist, even for a moment.
        let is_last_word = |write: &Write, at: u64| {
            whole
                && !write
                    .tags
                    .iter()
                    .any(|tag| tags.get(tag).is_some_and(|invalidations| invalidations.newest > at))
        };
        for (target, Pending { at, since, rule, action, mut versions, mut again }) in
            self.keys.drain()
        {
            let mut push = |rule, action, version: Option<Box<Version>>| {
                let again = if action == Action::Delete { again.take() } else { None };
                all.push((
                    at,
                    Folded {
                        since,
                        effect: Effect { rule, target: target.clone(), action, version, again },
                    },
                ));
            };
            // These raise no fences.
            self.forgot |= !whole
                && !versions.is_empty()
                && matches!(
                    action,
                    PendingAction::Nothing | PendingAction::Bump | PendingAction::Expire(_)
                );
            match action {
                PendingAction::Nothing => {}
                PendingAction::Bump => push(rule, Action::BumpVersion, None),
                PendingAction::Expire(expiry) => push(rule, Action::Expire(expiry), None),
                PendingAction::Write { write, version, deleted } if is_last_word(&write, at) => {
                    versions.retain(|other| *other != *version);
                    if deleted.is_some() && versions.is_empty() {
                        push(deleted.unwrap_or(rule), Action::Delete, None);
                    }
                    // Versions of another entity that wrote or deleted the same key.
                    versions.into_iter().for_each(|other| {
                        push(deleted.unwrap_or(rule), Action::Delete, Some(Box::new(other)))
                    });
                    push(rule, Action::Write(write), Some(version));
                }
                PendingAction::Delete | PendingAction::Write { .. } if versions.is_empty() => {
                    push(rule, Action::Delete, None)
                }
                PendingAction::Delete | PendingAction::Write { .. } => {
                    versions
                        .into_iter()
                        .for_each(|version| push(rule, Action::Delete, Some(Box::new(version))));
                }
            }
        }
        for (target, invalidations) in tags {
            let Some((at, rule)) = invalidations.chosen else { continue };
            let effect = Effect {
                rule,
                target,
                action: Action::InvalidateTag,
                version: None,
                again: invalidations.again,
            };
            all.push((at, Folded { since: at, effect }));
        }
        self.bytes = 0;
        // The sort is stable, so a key's deletion stays before its write. Within one event, keys go
        // before tags, in the same order each time.
        let is_tag = |folded: &Folded| folded.effect.action == Action::InvalidateTag;
        all.sort_by(|(at, one), (other_at, other)| {
            let in_event = || {
                is_tag(one)
                    .cmp(&is_tag(other))
                    .then_with(|| one.effect.target.cmp(&other.effect.target))
            };
            at.cmp(other_at).then_with(in_event)
        });
        all.into_iter().map(|(_, folded)| folded).collect()
    }

    /// Returns the tag whose set the key may be. A counter is not a set.
    fn tag_of<'k>(&self, key: &'k str, action: &Action) -> Option<&'k str> {
        match action {
            Action::InvalidateTag | Action::BumpVersion => None,
            _ if self.tag_prefix.is_empty() => None,
            _ => key.strip_prefix(self.tag_prefix.as_str()),
        }
    }

    /// Adds an invalidation. `chosen` is the rule of an event to apply, with the delay of its
    /// second delete.
    fn invalidate(&mut self, at: u64, chosen: Option<(RuleId, Option<Duration>)>, tag: &str) {
        let (chosen, again) =
            (chosen.map(|(rule, _)| (at, rule)), chosen.and_then(|(_, again)| again));
        match self.tags.get_mut(tag) {
            Some(invalidations) => {
                invalidations.newest = at;
                invalidations.chosen = chosen.or(invalidations.chosen);
                invalidations.again = invalidations.again.max(again);
            }
            None => {
                self.bytes += TARGET_BYTES + tag.len();
                self.tags.insert(tag.to_owned(), Invalidations { newest: at, chosen, again });
            }
        }
    }

    /// Adds an effect that supersedes all effects before it on its key.
    fn replace(
        &mut self,
        at: u64,
        rule: RuleId,
        key: String,
        action: PendingAction,
        version: Option<Box<Version>>,
        again: Option<Duration>,
    ) {
        let Some(pending) = self.keys.get_mut(&key) else {
            return self.insert(at, rule, key, action, version, again);
        };
        pending.again = pending.again.max(again);
        self.bytes = self.bytes + weight(&key, &action) - weight(&key, &pending.action);
        if let Some(version) = version {
            raise(&mut pending.versions, &version);
        }
        (pending.at, pending.since, pending.rule, pending.action) = (at, at, rule, action);
    }

    fn expire(&mut self, at: u64, rule: RuleId, key: String, expiry: Expiry) {
        let Some(pending) = self.keys.get_mut(&key) else {
            return self.insert(at, rule, key, PendingAction::Expire(expiry), None, None);
        };
        match &mut pending.action {
            PendingAction::Nothing => {
                (pending.action, pending.since) = (PendingAction::Expire(expiry), at)
            }
            // A deletion is stronger than a shorter life, and a counter to bump stays alive.
            PendingAction::Delete | PendingAction::Bump => return,
            PendingAction::Expire(earlier) => match sooner(*earlier, expiry) {
                Some(Sooner::Earlier) => return,
                Some(Sooner::Later) => {
                    *earlier = expiry;
                    pending.since = at;
                }
                None => pending.action = PendingAction::Delete,
            },
            PendingAction::Write { write, .. } => {
                self.bytes -= write_weight(write);
                pending.action = PendingAction::Delete;
            }
        }
        (pending.at, pending.rule) = (at, rule);
    }

    fn write(
        &mut self,
        at: u64,
        rule: RuleId,
        key: String,
        write: Box<Write>,
        version: Box<Version>,
    ) {
        let Some(pending) = self.keys.get_mut(&key) else {
            let action = PendingAction::Write { write, version: version.clone(), deleted: None };
            return self.insert(at, rule, key, action, Some(version), None);
        };
        match raise(&mut pending.versions, &version) {
            Some(VersionOrder::Old) => {
                self.superseded += u64::from(matches!(pending.action, PendingAction::Nothing));
                return;
            }
            Some(VersionOrder::Tied) => {
                return self.replace(at, rule, key, PendingAction::Delete, None, None);
            }
            // The first version, or one of another entity: the later effect supersedes the earlier
            // one.
            Some(VersionOrder::Newer) | None => {}
        }
        let (since, deleted) = match pending.action {
            PendingAction::Nothing
            | PendingAction::Write { deleted: None, .. }
            | PendingAction::Bump => (at, None),
            PendingAction::Write { deleted, .. } => (pending.since, deleted),
            // A shorter life would be lost too, together with a write that is not the newest.
            PendingAction::Delete | PendingAction::Expire(_) => (pending.since, Some(pending.rule)),
        };
        let action = PendingAction::Write { write, version, deleted };
        self.bytes = self.bytes + weight(&key, &action) - weight(&key, &pending.action);
        (pending.at, pending.since, pending.rule, pending.action) = (at, since, rule, action);
    }

    fn insert(
        &mut self,
        at: u64,
        rule: RuleId,
        key: String,
        action: PendingAction,
        version: Option<Box<Version>>,
        again: Option<Duration>,
    ) {
        self.bytes += weight(&key, &action);
        let versions = version.into_iter().map(|version| *version).collect();
        self.keys.insert(key, Pending { at, since: at, rule, action, versions, again });
    }
}
