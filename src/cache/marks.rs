//! Marks, by which workers notice that Redis went back: a restore from an old snapshot, or the promotion of a replica that missed writes.
//!
//! Snapshots and replication keep a prefix of the writes. Each worker has a field in a hash whose number it moves on, from the very number that it knows,
//! behind each batch and each second. What Redis lost of a batch that it had confirmed, it lost of that field too; and a script that finds another number
//! than it must writes nothing, so that the evidence stays. Beside the number stands how far back lies what the worker has not applied yet (see
//! `worker/low.rs`): it came back with the rest, and tells from where the history is to be applied again.
//!
//! The primaries of a cluster go back one by one. There, 128 hashes lie evenly over the slots, wherever these are served: each second moves on all of
//! them, and behind a batch stands, on each primary that did something of it, one that lies there (`cluster/seal.rs`). All else is as with one hash.

mod calls;
mod chain;
mod heal;
mod place;
mod progress;

use std::sync::LazyLock;
use std::time::Duration;

use redis::{Cmd, Value};

pub(super) use chain::{Chain, Seal};
pub use place::{HealFrom, LowWatermark};
pub use progress::{Died, HealProgress};

use super::failure::CommandError;
use super::slot::{self, SLOTS};
use super::workers::text_pairs;

/// Whoever remembers nothing takes a mark of another worker for fresh that is no older. An older one may mean that Redis went back, or that nobody ran.
const FRESH: Duration = Duration::from_secs(10);

/// Time that the lock of a heal holds, unless it is renewed: a thread of its own does, and so does each batch.
const HEAL_LOCK: Duration = Duration::from_secs(3);

/// The fields of workers that are gone are kept for so long: what they had in hand may have come to nobody yet.
const DEAD_KEPT: Duration = Duration::from_secs(3_600);

/// From one slot with marks to the next: a primary that serves so many in a row has some.
const SLOTS_PER_MARK: u16 = 128;

/// The slot of the first; no multiple of anything that slots are moved by.
const FIRST_SLOT: u16 = 97;

/// The hash tags of a cluster's marks, whose slots are these, and no worker's to choose: all must find the same.
static CLUSTER_TAGS: LazyLock<Vec<String>> =
    LazyLock::new(|| slot::tags_of((0..SLOTS / SLOTS_PER_MARK).map(|mark| slot_of(usize::from(mark)))));

/// Whether a worker may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entered {
    /// It may: Redis holds all that it confirmed. What all marks say, as they were before ours.
    Good(Marks),
    /// Redis went back, or may have: the history is to be applied again first.
    ToHeal(Marks),
}

/// What a tick found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tick {
    /// Our mark does not stand, since the gate is closed.
    NotEntered,
    /// Redis holds all that it confirmed. What all marks say.
    Good(Marks),
    /// It does not.
    WentBack,
    /// Another worker found that it does not.
    ToHeal,
}

/// Whose turn it is to heal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Ours. What all marks say, as they came back.
    Ours(Marks),
    /// Another's; it holds the lock.
    Anothers,
    /// Nobody's: it is done.
    Done,
}

/// The hash of marks as it was at one moment; of a cluster, all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    /// Redis' clock, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    fields: Vec<(String, String)>,
}

/// The last heal that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealRecord {
    /// When it began and ended, by Redis' clock; milliseconds since the Unix epoch.
    pub began_ms: u64,
    /// See above.
    pub ended_ms: u64,
    /// From when on the history was applied again, by the worker's clock.
    pub from_ms: u64,
    /// How many there have been.
    pub count: u64,
    /// Whether the history reached back so far.
    pub complete: bool,
}

impl Marks {
    /// The earliest arrival of anything that had not been applied yet, as far as anybody says.
    pub fn lowest_ms(&self) -> Option<u64> {
        self.fields
            .iter()
            .filter(|(field, _)| !["wanted", "lock", "heal"].contains(&field.as_str()))
            .filter_map(|(_, mark)| low_of(mark))
            .min()
    }

    /// Whether a heal is wanted, or under way.
    pub fn is_wanted(&self) -> bool {
        self.values("wanted").next().is_some()
    }

    /// The last heal.
    pub fn last_heal(&self) -> Option<HealRecord> {
        self.values("heal").filter_map(HealRecord::read).max_by_key(|record| record.ended_ms)
    }

    fn values(&self, field: &str) -> impl Iterator<Item = &str> {
        self.fields.iter().filter(move |(name, _)| name == field).map(|(_, value)| value.as_str())
    }

    /// What all say together; the clock is the first one's.
    fn together(all: impl Iterator<Item = Self>) -> Self {
        all.reduce(|mut together, marks| {
            together.fields.extend(marks.fields);
            together
        })
        .unwrap_or_default()
    }
}

impl HealRecord {
    /// The value of a field `heal`.
    fn read(text: &str) -> Option<Self> {
        let parts: Vec<u64> = text.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        let [began_ms, ended_ms, from_ms, count, complete] = parts[..] else { return None };
        Some(Self { began_ms, ended_ms, from_ms, count, complete: complete == 1 })
    }
}

/// The second number of `number:low:at`.
fn low_of(mark: &str) -> Option<u64> {
    let mut parts = mark.split(':');
    let (Some(_), Some(low), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else { return None };
    low.parse().ok()
}

/// The names of the hashes of a queue's marks: one, or in a cluster several.
pub(super) fn names(queue: &str, in_cluster: bool) -> Vec<String> {
    if in_cluster {
        CLUSTER_TAGS.iter().map(|tag| super::side_keys::marks_with_tag(tag, queue)).collect()
    } else {
        vec![super::side_keys::marks(queue)]
    }
}

/// In a cluster: the slot of the hash at that place.
pub(super) fn slot_of(mark: usize) -> u16 {
    u16::try_from(mark).unwrap_or(0) % (SLOTS / SLOTS_PER_MARK) * SLOTS_PER_MARK + FIRST_SLOT
}

/// A script's word, then what it tells: its server's clock and, where there are any, all fields.
fn read_answer(answer: &Value) -> Result<(i64, Marks), CommandError> {
    let Value::Array(answer) = answer else { return Err(unexpected()) };
    let (Some(Value::Int(word)), Some(Value::Int(now_ms))) = (answer.first(), answer.get(1)) else { return Err(unexpected()) };
    let fields = answer.get(2).map_or(Some(Vec::new()), text_pairs).ok_or_else(unexpected)?;
    Ok((*word, Marks { now_ms: u64::try_from(*now_ms).unwrap_or(0), fields }))
}

fn arguments(name: &str, arguments: &[&str]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(arguments);
    command
}

fn unexpected() -> CommandError {
    CommandError::Failed("marks: an answer of another shape than expected".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_far_as_they_are_marks() {
        let fields = [
            ("a", "7:300:9"),
            ("b", "8:200:9"),
            ("replay:x", "0:100:9"),
            ("wanted", "5"),
            ("lock", "1:2:3"),
            ("heal", "1:2:3:4:1"),
            ("c", "odd"),
        ];
        let fields = fields.map(|(field, value)| (field.to_owned(), value.to_owned())).to_vec();
        let marks = Marks { now_ms: 9, fields };
        assert_eq!((marks.lowest_ms(), marks.is_wanted()), (Some(100), true));
        let heal = HealRecord { began_ms: 1, ended_ms: 2, from_ms: 3, count: 4, complete: true };
        assert_eq!(marks.last_heal(), Some(heal));
        let later = Marks { now_ms: 8, fields: vec![("heal".into(), "5:6:7:8:0".into()), ("d".into(), "1:90:9".into())] };
        let together = Marks::together([marks, later].into_iter());
        assert_eq!((together.now_ms, together.lowest_ms(), together.last_heal().map(|heal| heal.count)), (9, Some(90), Some(8)));
        assert_eq!((Marks::default().lowest_ms(), Marks::default().last_heal()), (None, None));
    }

    #[test]
    fn the_marks_of_a_cluster_lie_evenly_over_its_slots() {
        let names = names("q{x}", true);
        let slots: Vec<u16> = names.iter().map(|name| slot::slot(name.as_bytes())).collect();
        assert_eq!(slots, (0..128).map(|mark| mark * 128 + 97).collect::<Vec<u16>>());
        assert_eq!(super::names("q", false), ["unstale:mark:q"]);
    }
}
