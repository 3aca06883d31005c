//! Contents of events, and the origin that values carry.

use std::time::Duration;

use unstale::registry::{Action, Effect, Expiry, LoaderId, Only, Stale, Warm, Write};

use super::world::{KEYS, TAGS};
use crate::cache::{at, effect};

/// Entities that write the same keys. Each has versions of its own.
const FAMILIES: [&str; 2] = ["row", "part"];

/// First versions. A double cannot distinguish those above the first number. The second family's
/// are far lower.
pub(super) const FIRST_VERSIONS: [u64; 2] = [9_007_199_254_740_992, 1];

/// Time after which a second delete is due.
pub(super) const AGAIN: Duration = Duration::from_secs(30);

/// Lifetime of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// Shorter than any lease.
    Moment,
    Hour,
    Forever,
}

impl Life {
    pub(super) fn any(random: &mut fastrand::Rng) -> Self {
        [Self::Moment, Self::Hour, Self::Forever][random.usize(..3)]
    }

    /// Returns the lifetime; `None` means for ever.
    pub(super) fn time(self) -> Option<Duration> {
        match self {
            Self::Moment => Some(Duration::from_secs(30)),
            Self::Hour => Some(Duration::from_secs(36_000)),
            Self::Forever => None,
        }
    }

    fn expiry(self) -> Expiry {
        self.time().map_or(Expiry::Never, |ttl| Expiry::After { ttl, jitter: 0.0 })
    }
}

/// Version of one entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) family: usize,
    pub(super) version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Write { key: usize, order: Option<Order>, tags: Vec<usize>, life: Life },
    Delete { key: usize, order: Option<Order> },
    Warm { key: usize, order: Option<Order>, tags: Vec<usize>, stale: Stale, only: Only },
    InvalidateTag(usize),
}

impl Change {
    pub(super) fn key(&self) -> Option<usize> {
        match self {
            Self::Write { key, .. } | Self::Delete { key, .. } | Self::Warm { key, .. } => {
                Some(*key)
            }
            Self::InvalidateTag(_) => None,
        }
    }

    fn order(&self) -> Option<Order> {
        match self {
            Self::Write { order, .. } | Self::Delete { order, .. } | Self::Warm { order, .. } => {
                *order
            }
            Self::InvalidateTag(_) => None,
        }
    }

    /// Returns whether this is a warm that leaves the old value while it loads.
    pub(super) fn serves(&self) -> bool {
        matches!(self, Self::Warm { stale: Stale::Serve, .. })
    }
}

/// One effect of an event.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) id: u64,
    /// Position of the effect in its event, from 1.
    pub(super) place: u32,
    pub(super) change: Change,
    /// The effect asks for a second delete.
    pub(super) again: bool,
    /// No event has this effect: a replay made it, or it is a second delete.
    pub(super) is_made: bool,
}

impl Event {
    /// Returns a second delete, or a deletion without a version.
    pub(super) fn made(change: Change) -> Self {
        Self { id: 0, place: 0, change, again: false, is_made: true }
    }

    /// Returns the key and its version.
    pub(super) fn row(&self) -> Option<(usize, Order)> {
        Some((self.change.key()?, self.change.order()?))
    }

    /// Returns whether it is the newer of two events of one entity.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        let (Some((key, own)), Some((of, its))) = (self.row(), other.row()) else { return false };
        let is_later = self.id == other.id && self.place > other.place;
        (key, own.family) == (of, its.family)
            && (own.version > its.version || (own.version == its.version && is_later))
    }

    /// Returns whether it leaves nothing of what another wrote to the key of both.
    pub(super) fn outdoes(&self, write: &Self) -> bool {
        let is_tied = self.row().is_some() && self.row() == write.row();
        let is_another = self.id != write.id || (self.is_made && self.place == write.place);
        self.is_newer_than(write) || (is_tied && is_another)
    }

    /// Returns the effect as the registry would, for the event at that place of all.
    pub(super) fn as_effect(&self, place: usize) -> Effect {
        let names = |tags: &[usize]| tags.iter().map(|&tag| TAGS[tag].to_owned()).collect();
        let action = match &self.change {
            Change::Write { tags, life, .. } => Action::Write(Box::new(Write {
                value: written(place, tags),
                expiry: life.expiry(),
                tags: names(tags),
            })),
            Change::Delete { .. } => Action::Delete,
            Change::Warm { tags, stale, only, .. } => {
                let expiry = Life::Hour.expiry();
                Action::Warm(Box::new(Warm {
                    loader: LoaderId(0),
                    url: String::new(),
                    expiry,
                    tags: names(tags),
                    stale: *stale,
                    only: *only,
                }))
            }
            Change::InvalidateTag(tag) => {
                return self.asking_again(effect(0, TAGS[*tag], Action::InvalidateTag));
            }
        };
        let plain =
            self.asking_again(effect(0, KEYS[self.change.key().expect("not of a tag")], action));
        match self.change.order() {
            Some(Order { family, version }) => {
                at((FAMILIES[family], &version.to_string()), (self.id, self.place), plain)
            }
            None => plain,
        }
    }

    fn asking_again(&self, effect: Effect) -> Effect {
        let has_again =
            self.again && matches!(effect.action, Action::Delete | Action::InvalidateTag);
        Effect { again: has_again.then_some(AGAIN), ..effect }
    }
}

/// Returns the value that a write stores. It shows its effect and its tags.
pub(super) fn written(event: usize, tags: &[usize]) -> String {
    format!("w:{event}:{}", text(tags))
}

/// Returns the value that a reader or a warm stores. It shows its load time and its tags.
pub(super) fn loaded(at: u64, tags: &[usize]) -> String {
    format!("r:{at}:{}", text(tags))
}

/// Returns the value that a stranger stores. It shows its store time.
pub(super) fn stored(at: u64) -> String {
    format!("s:{at}:")
}

fn text(tags: &[usize]) -> String {
    tags.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// Returns the origin of a value, its number, and its tags.
pub(super) fn read(value: &str) -> (&str, u64, Vec<usize>) {
    let mut parts = value.split(':');
    let (kind, number) = (parts.next().unwrap(), parts.next().unwrap().parse().unwrap());
    (kind, number, parts.next().unwrap().split(',').filter_map(|tag| tag.parse().ok()).collect())
}
