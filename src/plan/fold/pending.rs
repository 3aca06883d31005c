//! The effect on a key so far, with its versions, its expiry and its memory.

use std::time::Duration;

use super::super::fence_version::{FenceVersion, VersionOrder};
use crate::registry::{Expiry, RuleId, Version, Write};

/// The effect on a key so far.
#[derive(Debug)]
pub(super) struct Pending {
    /// Its offset in the history, which orders it among the effects on other keys.
    pub(super) at: u64,
    /// The oldest offset from which it follows.
    pub(super) since: u64,
    pub(super) rule: RuleId,
    pub(super) action: PendingAction,
    /// The highest version of each entity. Two of one entity if two events had the version.
    pub(super) versions: Vec<Version>,
    /// Delay of the second delete.
    pub(super) again: Option<Duration>,
}

/// The action that remains to be done on a key.
#[derive(Debug)]
pub(super) enum PendingAction {
    /// Only events that are not applied. Their versions still count.
    Nothing,
    Delete,
    Bump,
    Expire(Expiry),
    Write {
        write: Box<Write>,
        version: Box<Version>,
        /// The rule of an earlier deletion of the key. If the write turns out not to be the newest,
        /// the deletion is still necessary.
        deleted: Option<RuleId>,
    },
}

/// Adds a version to the highest of each entity. Returns its order relative to the highest of its
/// own entity, if there is one.
pub(super) fn raise(versions: &mut Vec<Version>, version: &Version) -> Option<VersionOrder> {
    let fence_version = FenceVersion::of(version);
    let is_of_family = |other: &Version| FenceVersion::of(other).is_of_family(&fence_version);
    let highest = versions
        .iter()
        .filter(|other| is_of_family(other))
        .map(FenceVersion::of)
        .reduce(FenceVersion::join);
    let order = highest.map(|highest| fence_version.against(&highest));
    match order {
        Some(VersionOrder::Old) => {}
        // Two events with one version are enough to show that the order is unknown.
        Some(VersionOrder::Tied) if highest.is_some_and(|highest| highest.tied) => {}
        Some(VersionOrder::Tied) | None => versions.push(version.clone()),
        Some(VersionOrder::Newer) => {
            versions.retain(|other| !is_of_family(other));
            versions.push(version.clone());
        }
    }
    order
}

pub(super) enum Sooner {
    Earlier,
    Later,
}

/// Returns which of two expiries is never later than the other. `None` if only Redis' clock could
/// decide.
pub(super) fn sooner(earlier: Expiry, later: Expiry) -> Option<Sooner> {
    let earlier_is_sooner = match (earlier, later) {
        (Expiry::At(earlier), Expiry::At(later)) => earlier < later,
        (Expiry::After { ttl: earlier, .. }, Expiry::After { ttl: later, .. }) => earlier < later,
        _ => return None,
    };
    Some(if earlier_is_sooner { Sooner::Earlier } else { Sooner::Later })
}

/// Memory of a target beside its name and value: a place in a table, and a version. In bytes.
pub(super) const TARGET_BYTES: usize = 200;

/// Returns the memory of a target, in bytes.
pub(super) fn weight(key: &str, action: &PendingAction) -> usize {
    TARGET_BYTES
        + key.len()
        + if let PendingAction::Write { write, .. } = action { write_weight(write) } else { 0 }
}

pub(super) fn write_weight(write: &Write) -> usize {
    write.value.len() + write.tags.iter().map(String::len).sum::<usize>()
}
