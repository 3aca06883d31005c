//! Effects of a span of the past → the few that still matter, one for each key or tag.
//!
//! A [`Batch`](super::Batch) leaves Redis as its effects would. A span that is over must do less:
//! it must never make anything staler than it is today, and it may cost misses. So, of all that was
//! done to one key:
//! - The last deletion or write stands for what came before it. Where it is not to be done itself
//!   (its event is known, but not chosen), nothing is: what came before gives way to it.
//! - A write stands only where a fence can tell whether it is still the newest: it has a version,
//!   and is younger than fences are. Else the key is deleted. Of two writes of one entity the
//!   higher version stands; where they are equal, nobody knows which is newer: the key is deleted.
//!   The versions of events that are not chosen count in that: Redis may have lost their fences.
//! - A write becomes a deletion where a later event, chosen or not, invalidated one of its tags or
//!   shortened the key's life.
//! - Whatever stands raises the fences that all of it would have raised.
//! - A counter is bumped once, however often it was: what counts is that it becomes a number that
//!   it has not had.
//! - The longest second pass (`again`) that any of its deletions asked for is asked for.
//! - A key that may itself be a tag's set is not touched alone: its tag is invalidated, or its
//!   members could no longer be found.
//!
//! What stands depends on what came later, and on the versions that came before: so a span may be
//! cut at any place, and what is behind the cut be folded anew. Versions from before the cut are in
//! the fences that were raised; where some were but known, no write stands behind it.

#[cfg(test)]
mod tests;

use std::time::Duration;

use foldhash::{HashMap, HashMapExt};

use super::mark::{self, Mark};
use crate::registry::{Action, Effect, Expiry, RuleId, Version, Write};

/// How much is kept at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldLimits {
    /// Keys and tags.
    pub targets: usize,
    /// What they take with their names and values, in bytes.
    pub bytes: usize,
}

impl Default for FoldLimits {
    fn default() -> Self {
        Self { targets: 1_000_000, bytes: 48 << 20 }
    }
}

/// What a span of the history still means; its events are to come in order.
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
    keys: HashMap<String, Standing>,
    tags: HashMap<String, Invalidations>,
    gave_way: u64,
    bytes: usize,
    /// There were versions that neither are known any more nor raised a fence.
    forgot: bool,
}

/// Of one tag.
#[derive(Debug)]
struct Invalidations {
    /// The newest one, chosen or not.
    newest: u64,
    /// The newest one that is chosen.
    chosen: Option<(u64, RuleId)>,
    again: Option<Duration>,
}

/// What is to be done to a key.
#[derive(Debug)]
struct Standing {
    /// Where in the history it stands: what is done to other keys is done before or after it.
    at: u64,
    /// The oldest offset that it follows from.
    since: u64,
    rule: RuleId,
    what: What,
    /// The highest version of each entity; two of one entity where two events had it.
    versions: Vec<Version>,
    /// After how long it is to be deleted a second time.
    again: Option<Duration>,
}

#[derive(Debug)]
enum What {
    /// Its versions are those of events that are not chosen.
    Nothing,
    Delete,
    Bump,
    Expire(Expiry),
    Write {
        write: Box<Write>,
        version: Box<Version>,
        /// The key was deleted before, by whatever it was: should the write turn out not to be the
        /// newest, that must have been done.
        deleted: Option<RuleId>,
    },
}

/// One effect that stands for all that the span did to its target.
#[derive(Debug, Clone, PartialEq)]
pub struct Folded {
    /// The history from here on is all that it follows from.
    pub since: u64,
    /// What to do.
    pub effect: Effect,
}

impl Fold {
    /// Of nothing yet. Keys that begin with `tag_prefix` (`UNSTALE_TAG_PREFIX`) may be sets of
    /// tags.
    pub fn new(tag_prefix: &str) -> Self {
        Self {
            tag_prefix: tag_prefix.to_owned(),
            keys: HashMap::new(),
            tags: HashMap::new(),
            gave_way: 0,
            bytes: 0,
            forgot: false,
        }
    }

    /// Keys and tags that something is known of.
    pub fn len(&self) -> usize {
        self.keys.len() + self.tags.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.tags.is_empty()
    }

    /// Whether no more should be kept.
    pub fn is_full(&self, limits: FoldLimits) -> bool {
        self.len() >= limits.targets || self.bytes >= limits.bytes
    }

    /// Effects that gave way to events that are not chosen.
    pub fn gave_way(&self) -> u64 {
        self.gave_way
    }

    /// Adds the next effect of a chosen event, which stands at that offset. `fenced`: the event is
    /// younger than fences are.
    pub fn choose(&mut self, at: u64, effect: Effect, fenced: bool) {
        let Effect { rule, target, action, version, again } = effect;
        if let Some(tag) = self.tag_of(&target, &action) {
            let tag = tag.to_owned();
            return self.invalidate(at, Some((rule, again)), &tag);
        }
        match (action, version) {
            (Action::InvalidateTag, _) => self.invalidate(at, Some((rule, again)), &target),
            (Action::BumpVersion, _) => self.stand(at, rule, target, What::Bump, None, None),
            (Action::Expire(expiry), _) => self.expire(at, rule, target, expiry),
            (Action::Write(write), Some(version)) if fenced && !self.forgot => {
                self.write(at, rule, target, write, version)
            }
            (Action::Delete | Action::Warm(_) | Action::Write(_), version) => {
                self.stand(at, rule, target, What::Delete, version, again)
            }
        }
    }

    /// Adds the next effect of an event that is not chosen: it is not done, but what came before
    /// gives way to it, and so does what comes later and is older.
    pub fn pass_over(&mut self, at: u64, effect: &Effect) {
        self.give_way(at, effect);
        let Some(version) = effect
            .version
            .as_deref()
            .filter(|_| self.tag_of(&effect.target, &effect.action).is_none())
        else {
            return;
        };
        match self.keys.get_mut(&effect.target) {
            Some(standing) => drop(raise(&mut standing.versions, version)),
            None => self.insert(
                at,
                effect.rule,
                effect.target.clone(),
                What::Nothing,
                Some(Box::new(version.clone())),
                None,
            ),
        }
    }

    /// As [`pass_over`](Self::pass_over), for an event behind all that may be chosen.
    pub fn give_way(&mut self, at: u64, effect: &Effect) {
        if let Action::InvalidateTag = effect.action {
            return self.invalidate(at, None, &effect.target);
        }
        if let Some(tag) = self.tag_of(&effect.target, &effect.action) {
            let tag = tag.to_owned();
            return self.invalidate(at, None, &tag);
        }
        let Some(standing) = self.keys.get_mut(&effect.target) else { return };
        if let Action::Expire(_) = effect.action {
            // As much of it as is left of the shorter life is a miss.
            if let What::Write { write, .. } = &standing.what {
                self.bytes -= write_weight(write);
                standing.what = What::Delete;
                self.gave_way += 1;
            }
            return;
        }
        if matches!(standing.what, What::Nothing) {
            return;
        }
        self.gave_way += 1;
        self.bytes -= weight(&effect.target, &standing.what);
        if standing.versions.is_empty() {
            self.keys.remove(&effect.target);
            return;
        }
        (standing.what, standing.again) = (What::Nothing, None);
        self.bytes += weight(&effect.target, &standing.what);
    }

    /// What stands, in the history's order, and is kept no longer. `whole`: nothing that is known
    /// of the history is still to come; else a write may yet turn out not to be the last word, and
    /// its key is deleted.
    pub fn take(&mut self, whole: bool) -> Vec<Folded> {
        let mut all: Vec<(u64, Folded)> = Vec::with_capacity(self.len());
        let tags = std::mem::take(&mut self.tags);
        // Not even for a moment is a value there that was invalidated since.
        let is_last_word = |write: &Write, at: u64| {
            whole
                && !write
                    .tags
                    .iter()
                    .any(|tag| tags.get(tag).is_some_and(|invalidations| invalidations.newest > at))
        };
        for (target, Standing { at, since, rule, what, mut versions, mut again }) in
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
                && matches!(what, What::Nothing | What::Bump | What::Expire(_));
            match what {
                What::Nothing => {}
                What::Bump => push(rule, Action::BumpVersion, None),
                What::Expire(expiry) => push(rule, Action::Expire(expiry), None),
                What::Write { write, version, deleted } if is_last_word(&write, at) => {
                    versions.retain(|other| *other != *version);
                    if deleted.is_some() && versions.is_empty() {
                        push(deleted.unwrap_or(rule), Action::Delete, None);
                    }
                    // Another entity's write or deletion of the same key.
                    versions.into_iter().for_each(|other| {
                        push(deleted.unwrap_or(rule), Action::Delete, Some(Box::new(other)))
                    });
                    push(rule, Action::Write(write), Some(version));
                }
                What::Delete | What::Write { .. } if versions.is_empty() => {
                    push(rule, Action::Delete, None)
                }
                What::Delete | What::Write { .. } => {
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
        // Stable: a key's deletion stays before its write. Of one event, keys go before tags, in
        // the same order each time.
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

    /// The tag whose set the key may be. A counter is no set.
    fn tag_of<'k>(&self, key: &'k str, action: &Action) -> Option<&'k str> {
        match action {
            Action::InvalidateTag | Action::BumpVersion => None,
            _ if self.tag_prefix.is_empty() => None,
            _ => key.strip_prefix(self.tag_prefix.as_str()),
        }
    }

    /// `chosen`: the rule of a chosen event, and the second pass that it asks for.
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

    /// What makes all that came before unseen.
    fn stand(
        &mut self,
        at: u64,
        rule: RuleId,
        key: String,
        what: What,
        version: Option<Box<Version>>,
        again: Option<Duration>,
    ) {
        let Some(standing) = self.keys.get_mut(&key) else {
            return self.insert(at, rule, key, what, version, again);
        };
        standing.again = standing.again.max(again);
        self.bytes = self.bytes + weight(&key, &what) - weight(&key, &standing.what);
        if let Some(version) = version {
            raise(&mut standing.versions, &version);
        }
        (standing.at, standing.since, standing.rule, standing.what) = (at, at, rule, what);
    }

    fn expire(&mut self, at: u64, rule: RuleId, key: String, expiry: Expiry) {
        let Some(standing) = self.keys.get_mut(&key) else {
            return self.insert(at, rule, key, What::Expire(expiry), None, None);
        };
        match &mut standing.what {
            What::Nothing => (standing.what, standing.since) = (What::Expire(expiry), at),
            // Stronger than any shortening; and a counter that is to be bumped will live on.
            What::Delete | What::Bump => return,
            What::Expire(earlier) => match sooner(*earlier, expiry) {
                Some(Sooner::Earlier) => return,
                Some(Sooner::Later) => {
                    *earlier = expiry;
                    standing.since = at;
                }
                None => standing.what = What::Delete,
            },
            What::Write { write, .. } => {
                self.bytes -= write_weight(write);
                standing.what = What::Delete;
            }
        }
        (standing.at, standing.rule) = (at, rule);
    }

    fn write(
        &mut self,
        at: u64,
        rule: RuleId,
        key: String,
        write: Box<Write>,
        version: Box<Version>,
    ) {
        let Some(standing) = self.keys.get_mut(&key) else {
            let what = What::Write { write, version: version.clone(), deleted: None };
            return self.insert(at, rule, key, what, Some(version), None);
        };
        match raise(&mut standing.versions, &version) {
            Some(mark::Standing::Old) => {
                self.gave_way += u64::from(matches!(standing.what, What::Nothing));
                return;
            }
            Some(mark::Standing::Tied) => {
                return self.stand(at, rule, key, What::Delete, None, None);
            }
            // Of another entity, or the first one: the later stands.
            Some(mark::Standing::Newer) | None => {}
        }
        let (since, deleted) = match standing.what {
            What::Nothing | What::Write { deleted: None, .. } | What::Bump => (at, None),
            What::Write { deleted, .. } => (standing.since, deleted),
            // A shorter life, too, would be lost with a write that is not the newest.
            What::Delete | What::Expire(_) => (standing.since, Some(standing.rule)),
        };
        let what = What::Write { write, version, deleted };
        self.bytes = self.bytes + weight(&key, &what) - weight(&key, &standing.what);
        (standing.at, standing.since, standing.rule, standing.what) = (at, since, rule, what);
    }

    fn insert(
        &mut self,
        at: u64,
        rule: RuleId,
        key: String,
        what: What,
        version: Option<Box<Version>>,
        again: Option<Duration>,
    ) {
        self.bytes += weight(&key, &what);
        let versions = version.into_iter().map(|version| *version).collect();
        self.keys.insert(key, Standing { at, since: at, rule, what, versions, again });
    }
}

/// Adds a version to the highest of each entity: how it stands to that of its own, where there is
/// one.
fn raise(versions: &mut Vec<Version>, version: &Version) -> Option<mark::Standing> {
    let mark = Mark::of(version);
    let is_of_family = |other: &Version| Mark::of(other).is_of_family(&mark);
    let highest =
        versions.iter().filter(|other| is_of_family(other)).map(Mark::of).reduce(Mark::join);
    let standing = highest.map(|highest| mark.against(&highest));
    match standing {
        Some(mark::Standing::Old) => {}
        // Two are enough to tell that nobody knows which is newer.
        Some(mark::Standing::Tied) if highest.is_some_and(|highest| highest.tied) => {}
        Some(mark::Standing::Tied) | None => versions.push(version.clone()),
        Some(mark::Standing::Newer) => {
            versions.retain(|other| !is_of_family(other));
            versions.push(version.clone());
        }
    }
    standing
}

enum Sooner {
    Earlier,
    Later,
}

/// Which of two expiries is never later than the other; none where only Redis' clock could tell.
fn sooner(earlier: Expiry, later: Expiry) -> Option<Sooner> {
    let earlier_is_sooner = match (earlier, later) {
        (Expiry::At(earlier), Expiry::At(later)) => earlier < later,
        (Expiry::After { ttl: earlier, .. }, Expiry::After { ttl: later, .. }) => earlier < later,
        _ => return None,
    };
    Some(if earlier_is_sooner { Sooner::Earlier } else { Sooner::Later })
}

/// What a target takes beside its name and its value: a place in a table, a version.
const TARGET_BYTES: usize = 200;

/// In bytes.
fn weight(key: &str, what: &What) -> usize {
    TARGET_BYTES
        + key.len()
        + if let What::Write { write, .. } = what { write_weight(write) } else { 0 }
}

fn write_weight(write: &Write) -> usize {
    write.value.len() + write.tags.iter().map(String::len).sum::<usize>()
}
