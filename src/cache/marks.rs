//! Marks, by which workers notice that Redis went back: a restore from an old snapshot, or the
//! promotion of a replica that missed writes.
//!
//! Snapshots and replication keep a prefix of the writes. Each worker has a field in a hash whose
//! number it moves on, from the very number that it knows, behind each batch and each second. What
//! Redis lost of a batch that it had confirmed, it lost of that field too; and a script that finds
//! another number than it must writes nothing, so that the evidence stays. Beside the number stands
//! how far back lies what the worker has not applied yet (see `worker/low.rs`): it came back with
//! the rest, and tells from where the history is to be applied again.
//!
//! The primaries of a cluster go back one by one. There, 128 hashes lie evenly over the slots,
//! wherever these are served: each second moves on all of them, and behind a batch stands, on each
//! primary that did something of it, one that lies there (`cluster/seal.rs`). All else is as with
//! one hash.

mod brokers;
mod calls;
mod census;
mod chain;
mod heal;
mod owed;
mod place;
mod progress;
mod record;
mod rules;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use redis::{Cmd, Value};

pub use census::LastCount;
pub(super) use chain::{Chain, Seal};
pub use owed::{OwedHeal, OwedHeals};
pub use place::{HealFrom, LowWatermark};
pub use progress::{Died, HealProgress};
pub use record::{HealDetails, HealRecord, Owed};
pub use rules::{Change, Unhealed};

use super::Cache;
use super::failure::CommandError;
use super::slot::{self, SLOTS};
use super::workers::{text_of, text_pairs};
use progress::{AFTER_LOSS, BESIDE, SURVIVED};

/// Whoever remembers nothing takes a mark of another worker for fresh that is no older. An older
/// one may mean that Redis went back, or that nobody ran.
const FRESH: Duration = Duration::from_secs(10);

/// Time that the lock of a heal holds, unless it is renewed: a thread of its own does, and so does
/// each batch.
const HEAL_LOCK: Duration = Duration::from_secs(3);

/// The low watermark of a field that covers nothing any more.
const NO_BOUND: u64 = 9_007_199_254_740_991;

/// Prefix of the field of a worker that has ended.
const STOPPED: &str = "stopped:";

/// The fields of workers that are gone are kept for so long: what they had in hand may have come to
/// nobody yet.
const DEAD_KEPT: Duration = Duration::from_secs(3_600);

/// From one slot with marks to the next: a primary that serves so many in a row has some.
const SLOTS_PER_MARK: u16 = 128;

/// The slot of the first; no multiple of anything that slots are moved by.
const FIRST_SLOT: u16 = 97;

/// The hash tags of a cluster's marks, whose slots are these, and no worker's to choose: all must
/// find the same.
static CLUSTER_TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    slot::tags_of((0..SLOTS / SLOTS_PER_MARK).map(|mark| slot_of(usize::from(mark))))
});

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
    /// It was restarted, or a replica took its place: what it lost of other workers' writes, ours
    /// do not show.
    Replaced,
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

/// Why Redis may not hold all that it confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// No checkpoint tells.
    Unknown,
    /// It was restarted, or a replica took its place.
    Replaced,
    /// A worker's checkpoint is not what that worker had written.
    Lost,
}

/// The hash of marks as it was at one moment; of a cluster, all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    /// Redis' clock, in milliseconds since the Unix epoch; in a cluster, that of the first hash's
    /// primary.
    pub now_ms: u64,
    hashes: Vec<Hash>,
}

/// One hash.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Hash {
    /// The clock of the server that has it.
    now_ms: u64,
    /// The identity of that server; empty where it does not tell.
    server: String,
    fields: Vec<(String, String)>,
}

impl Marks {
    fn of(now_ms: u64, server: String, fields: Vec<(String, String)>) -> Self {
        Self { now_ms, hashes: vec![Hash { now_ms, server, fields }] }
    }

    /// Returns the earliest arrival of anything that had not been applied yet, as far as anybody
    /// says.
    pub fn lowest(&self) -> Option<LowWatermark> {
        self.lowest_of(|_| true)
    }

    /// As [`lowest`](Self::lowest), by time alone.
    pub fn lowest_ms(&self) -> Option<u64> {
        self.lowest().map(|low| low.time_ms)
    }

    /// Returns the earliest of what these fields cover.
    pub fn lowest_of(&self, is_meant: impl Fn(&str) -> bool) -> Option<LowWatermark> {
        let lows = self
            .hashes
            .iter()
            .flat_map(|hash| hash.marks().filter(|mark| is_meant(mark.field)).map(|mark| mark.low));
        lows.filter(|low| low.time_ms < NO_BOUND).reduce(LowWatermark::lower)
    }

    /// Returns the fields of workers that have ended, or have been silent for so long that they
    /// count as dead, and whose arrivals nobody else covers yet.
    pub fn gone(&self, but: &str) -> Vec<String> {
        let mut silent: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
        for hash in &self.hashes {
            for Mark { field, low, at_ms } in hash.marks() {
                let is_stopped = field.starts_with(STOPPED);
                if field == but || (field.contains(':') && !is_stopped) {
                    continue;
                }
                let is_silent = is_stopped || hash.now_ms.saturating_sub(at_ms) > millis(FRESH);
                let (silent, covers) = silent.entry(field).or_insert((true, false));
                *silent &= is_silent;
                *covers |= low.time_ms < NO_BOUND;
            }
        }
        silent
            .into_iter()
            .filter(|(_, (silent, covers))| *silent && *covers)
            .map(|(field, _)| field.to_owned())
            .collect()
    }

    /// Whether a heal is wanted, or under way.
    pub fn is_wanted(&self) -> bool {
        self.values("wanted").next().is_some()
    }

    /// Returns why a heal is wanted.
    pub fn doubt(&self) -> Doubt {
        let why = |why: &str| match why {
            "lost" => Some(Doubt::Lost),
            "replaced" => Some(Doubt::Replaced),
            "elsewhere" => None,
            _ => Some(Doubt::Unknown),
        };
        self.values("why").filter_map(why).max().unwrap_or(Doubt::Unknown)
    }

    /// Returns the last heal after a loss, or what may have been one.
    pub fn last_heal(&self) -> Option<HealRecord> {
        let details = |record: &HealRecord| {
            self.values("heal:details").find_map(|text| {
                HealDetails::read(text).filter(|details| details.began_ms == record.began_ms)
            })
        };
        let last = self
            .values("heal")
            .filter_map(HealRecord::read)
            .max_by_key(|record| record.ended_ms)?;
        let details = details(&last).unwrap_or_default();
        Some(HealRecord {
            complete: last.complete || details.owed == Some(Owed::Paid),
            details,
            ..last
        })
    }

    /// Returns the identities of all servers, each once; nothing where one does not tell.
    fn servers(&self) -> Vec<String> {
        let servers: BTreeSet<&str> = self.hashes.iter().map(|hash| hash.server.as_str()).collect();
        if servers.contains("") {
            Vec::new()
        } else {
            servers.into_iter().map(str::to_owned).collect()
        }
    }

    /// Returns how far the heal is, of which we take over the turn. `work` names what is done, and
    /// by which rules: other work begins anew.
    pub fn take_over_progress(&self, cache: &Cache, from: HealFrom, work: &str) -> HealProgress {
        let text = self.values(cache.heal_kind().progress).next().unwrap_or_default();
        HealProgress::read(text).taken_over(cache.id(), self.servers(), from, work, |worker| {
            worker == cache.id() || self.has_survived(worker)
        })
    }

    /// Returns whether a worker has noted that it did not die of its heal.
    pub(super) fn has_survived(&self, worker: &str) -> bool {
        let fields = self.hashes.iter().flat_map(|hash| &hash.fields);
        fields.into_iter().any(|(field, _)| field.strip_prefix(SURVIVED) == Some(worker))
    }

    /// Returns how far the heal after a loss is, if one is under way.
    pub fn progress(&self) -> Option<HealProgress> {
        let texts = self.values(AFTER_LOSS.progress).chain(self.values(BESIDE.progress));
        texts.map(HealProgress::read).next()
    }

    fn values(&self, field: &str) -> impl Iterator<Item = &str> {
        self.hashes
            .iter()
            .flat_map(|hash| &hash.fields)
            .filter(move |(name, _)| name == field)
            .map(|(_, value)| value.as_str())
    }

    /// What all say together; the clock is the first one's.
    fn together(all: impl Iterator<Item = Self>) -> Self {
        all.reduce(|mut together, marks| {
            together.hashes.extend(marks.hashes);
            together
        })
        .unwrap_or_default()
    }
}

/// A field that covers arrivals.
struct Mark<'f> {
    field: &'f str,
    low: LowWatermark,
    at_ms: u64,
}

impl Hash {
    fn marks(&self) -> impl Iterator<Item = Mark<'_>> {
        let offset = |field: &str| {
            let offset =
                self.fields.iter().find(|(name, _)| name.strip_prefix("offset:") == Some(field));
            offset.and_then(|(_, offset)| offset.parse().ok())
        };
        self.fields.iter().filter_map(move |(field, mark)| {
            if field == "lock" || field == "heal" {
                return None;
            }
            let mut parts = mark.split(':').map(str::parse::<u64>);
            let (Some(Ok(_)), Some(Ok(time_ms)), Some(Ok(at_ms)), None) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                return None;
            };
            Some(Mark { field, low: LowWatermark { time_ms, offset: offset(field) }, at_ms })
        })
    }

    /// The identity of the server that wrote the marks last.
    fn written_on(&self) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == "server").map(|(_, server)| server.as_str())
    }
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

/// A script's word, then what it tells: its server's clock and, where there are any, all fields and
/// the server's identity.
fn read_answer(answer: &Value) -> Result<(i64, Marks), CommandError> {
    let Value::Array(answer) = answer else { return Err(unexpected()) };
    let (Some(Value::Int(word)), Some(Value::Int(now_ms))) = (answer.first(), answer.get(1)) else {
        return Err(unexpected());
    };
    let fields = answer.get(2).map_or(Some(Vec::new()), text_pairs).ok_or_else(unexpected)?;
    let server = answer.get(3).and_then(text_of).unwrap_or_default();
    Ok((*word, Marks::of(u64::try_from(*now_ms).unwrap_or(0), server, fields)))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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

    fn hash(now_ms: u64, server: &str, fields: &[(&str, &str)]) -> Marks {
        let fields =
            fields.iter().map(|&(field, value)| (field.to_owned(), value.to_owned())).collect();
        Marks::of(now_ms, server.to_owned(), fields)
    }

    #[test]
    fn fields_are_read_as_far_as_they_are_marks() {
        let marks = hash(
            9,
            "r:1",
            &[
                ("a", "7:300:9"),
                ("offset:a", "30"),
                ("b", "8:200:9"),
                ("replay:x", "0:100:9"),
                ("dead", "7:9007199254740991:9"),
                ("offset:nobody", "1"),
                ("wanted", "5"),
                ("why", "lost"),
                ("lock", "1:2:3"),
                ("lock:beside", "abc:9007199254740991:3"),
                ("heal", "1:2:3:4:1"),
                ("heal:details", r#"{"began_ms":1,"from_offset":5,"passed_over":[6]}"#),
                ("c", "odd"),
            ],
        );
        assert_eq!(marks.lowest(), Some(LowWatermark { time_ms: 100, offset: Some(30) }));
        assert_eq!((marks.is_wanted(), marks.doubt()), (true, Doubt::Lost));
        let details =
            HealDetails { began_ms: 1, from_offset: Some(5), passed_over: vec![6], owed: None };
        let heal =
            HealRecord { began_ms: 1, ended_ms: 2, from_ms: 3, count: 4, complete: true, details };
        assert_eq!(marks.last_heal(), Some(heal));
        let later = hash(
            8,
            "r:2",
            &[
                ("heal", "5:6:7:8:0"),
                ("heal:details", r#"{"began_ms":1}"#),
                ("d", "1:90:9"),
                ("offset:d", "40"),
            ],
        );
        let together = Marks::together([marks, later].into_iter());
        assert_eq!(
            (together.now_ms, together.lowest()),
            (9, Some(LowWatermark { time_ms: 90, offset: Some(30) }))
        );
        let heal = together.last_heal().unwrap();
        assert_eq!(
            (heal.count, heal.details),
            (8, HealDetails::default()),
            "the details of another heal are not its own"
        );
        assert_eq!(together.servers(), ["r:1", "r:2"]);
        assert_eq!((Marks::default().lowest(), Marks::default().last_heal()), (None, None));
    }

    #[test]
    fn workers_count_as_gone_that_no_server_has_heard_for_10_s() {
        let one = hash(
            20_000,
            "",
            &[("me", "1:1:1"), ("quiet", "1:1:9000"), ("lives", "1:1:9000"), ("replay:x", "0:1:1")],
        );
        let other = hash(
            20_000,
            "",
            &[
                ("quiet", "1:1:9999"),
                ("lives", "1:1:10000"),
                ("stopped:s", "0:7:20000"),
                ("done", "1:9007199254740991:1"),
            ],
        );
        let together = Marks::together([one, other].into_iter());
        assert_eq!(together.gone("me"), ["quiet", "stopped:s"]);
        assert_eq!(
            together.lowest_of(|field| field == "stopped:s"),
            Some(LowWatermark { time_ms: 7, offset: None })
        );
        assert_eq!(together.servers(), Vec::<String>::new(), "nobody knows who they are");
    }

    #[test]
    fn the_marks_of_a_cluster_lie_evenly_over_its_slots() {
        let names = names("q{x}", true);
        let slots: Vec<u16> = names.iter().map(|name| slot::slot(name.as_bytes())).collect();
        assert_eq!(slots, (0..128).map(|mark| mark * 128 + 97).collect::<Vec<u16>>());
        assert_eq!(super::names("q", false), ["unstale:mark:q"]);
    }
}
