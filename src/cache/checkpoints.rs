//! Checkpoints, by which workers notice that Redis lost writes: by a restore from an old snapshot,
//! or the promotion of a replica that missed writes.
//!
//! Snapshots and replication keep a prefix of the writes. Each worker has a field in a hash with a
//! number. It advances the number from its last known value, after each batch and once a second.
//! If Redis lost part of a confirmed batch, it also lost a later value of that field. A script that
//! finds another number writes nothing, so that the evidence stays.
//!
//! Beside the number is the worker's low watermark (see `worker/low_watermark.rs`). It came back
//! with the rest, and shows from where the history is to be applied again.
//!
//! The primaries of a cluster lose writes independently. There, 128 hashes are spread evenly over
//! the slots, whichever nodes serve them. Each second advances all of them. After a batch, one is
//! advanced on each primary that ran part of it (`cluster/checkpoint_writes.rs`). Everything else
//! is as with one hash.
//!
//! The files, in reading order:
//!
//! - `own`: the numbers that this process has sent, and those that Redis confirmed
//! - `calls`: entering, advancing and leaving checkpoints
//! - `moved`: whether slots moved, or a server was replaced
//! - `writes`: advancing a checkpoint after a batch
//! - `place`: low watermarks, and where a heal begins
//! - `heal`, `turn`: the turn to heal, and its end
//! - `progress`, `progress_calls`: how far a heal has come, and which events killed workers
//! - `record`: the record of the last heal
//! - `rules`: the registries by whose rules a heal was done
//! - `owed`: heals that could not be done in time
//! - `lost`: events that may be lost
//! - `acknowledged`: findings that an operator has acknowledged
//! - `steps`: the retry steps that workers use
//! - `queue_marks`: the marks of the queues that workers have made
//! - `brokers`, `census`: whose history the checkpoints refer to, and counts of the broker
//!
//! Reading and replaying the history is not done here: see [`ops::heal`](crate::ops::heal).

mod acknowledged;
mod brokers;
mod calls;
mod census;
mod heal;
mod lost;
mod moved;
mod owed;
mod own;
mod place;
mod progress;
mod progress_calls;
mod queue_marks;
mod record;
mod refused;
mod rules;
mod steps;
mod turn;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redis::{Cmd, Value};

pub use acknowledged::Acknowledged;
pub use census::LastCount;
pub use lost::LostEvents;
pub use owed::{OwedHeal, OwedHeals};
pub(super) use own::{CheckpointWrite, OwnCheckpoints};
pub use place::{HealFrom, LowWatermark};
pub use progress::{DeadlyRange, HealProgress};
pub use record::{HealDetails, HealRecord, Owed};
pub use refused::RefusedEffects;
pub use rules::{FieldChange, Unhealed};

use super::answer::{text_of, text_pairs};
use super::failure::CommandError;
use place::NO_BOUND;
use progress::{AFTER_LOSS, BESIDE, SURVIVED};

/// Maximum age of another worker's checkpoint for a worker without a memory of its own. An older
/// one may mean that Redis lost writes, or that no worker ran.
const FRESH: Duration = Duration::from_secs(10);

/// Prefix of the field of a worker that has ended.
const STOPPED: &str = "stopped:";

/// Time for which the fields of dead workers are kept: their events in flight may not have been
/// redelivered yet.
const DEAD_KEPT: Duration = Duration::from_secs(3_600);

/// Answer to a worker that enters its checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entered {
    /// Redis has all that it confirmed. Holds all checkpoints, as they were before ours.
    Good(Checkpoints),
    /// Redis lost writes, or may have. The history is to be applied again first.
    ToHeal(Checkpoints),
}

/// Result of a tick, in which a worker advances its checkpoints. It does so once a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tick {
    /// This worker has no checkpoint, since its gate is closed.
    NotEntered,
    /// Redis has all that it confirmed. Holds all checkpoints.
    Good(Checkpoints),
    /// Redis lost writes.
    LostWrites,
    /// The server was restarted or replaced by a replica. Our checkpoints do not show which writes
    /// of other workers it lost.
    Replaced,
    /// Another worker found that Redis lost writes.
    ToHeal,
}

/// Answer to a request for the turn to heal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealTurn {
    /// This worker heals. Holds all checkpoints, as they came back.
    Ours(Checkpoints),
    /// Another worker has the lock.
    Anothers,
    /// No worker: the heal is done.
    Done,
}

/// Reason to doubt that Redis has all that it confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// No checkpoint shows.
    Unknown,
    /// The server was restarted or replaced by a replica.
    Replaced,
    /// A worker's checkpoint is not what that worker had written.
    Lost,
}

/// All checkpoints at one moment: one hash, or all hashes of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpoints {
    /// Redis' clock, in milliseconds since the Unix epoch. In a cluster, the clock of the first
    /// hash's primary.
    pub now_ms: u64,
    hashes: Vec<CheckpointHash>,
}

/// One hash.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct CheckpointHash {
    /// Clock of the server with the hash.
    now_ms: u64,
    /// Identity of that server; empty if it is not known.
    server: String,
    fields: Vec<(String, String)>,
}

impl Checkpoints {
    fn of(now_ms: u64, server: String, fields: Vec<(String, String)>) -> Self {
        Self { now_ms, hashes: vec![CheckpointHash { now_ms, server, fields }] }
    }

    /// Returns the lowest low watermark of all fields.
    pub fn lowest(&self) -> Option<LowWatermark> {
        self.lowest_of(|_| true)
    }

    /// Returns the time of [`lowest`](Self::lowest).
    pub fn lowest_ms(&self) -> Option<u64> {
        self.lowest().map(|low| low.time_ms)
    }

    /// Returns the lowest low watermark of the fields that `is_meant` accepts.
    pub fn lowest_of(&self, is_meant: impl Fn(&str) -> bool) -> Option<LowWatermark> {
        let lows = self.hashes.iter().flat_map(|hash| {
            hash.checkpoints()
                .filter(|checkpoint| is_meant(checkpoint.field))
                .map(|checkpoint| checkpoint.low)
        });
        lows.filter(|low| low.time_ms < NO_BOUND).reduce(LowWatermark::lower)
    }

    /// Returns the fields of ended or dead workers whose low watermarks no other field includes
    /// yet. A worker counts as dead if it has not advanced its field for a time.
    pub fn gone(&self, but: &str) -> Vec<String> {
        let mut silent: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
        for hash in &self.hashes {
            for Checkpoint { field, low, at_ms } in hash.checkpoints() {
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

    /// Returns the time by Redis' clock, that long after these checkpoints were read.
    pub fn now_ms_after(&self, passed: Duration) -> u64 {
        self.now_ms.saturating_add(millis(passed))
    }

    /// Returns whether a heal is due or in progress.
    pub fn is_wanted(&self) -> bool {
        self.values("wanted").next().is_some()
    }

    /// Returns the reason for the heal.
    pub fn doubt(&self) -> Doubt {
        let why = |why: &str| match why {
            "lost" => Some(Doubt::Lost),
            "replaced" => Some(Doubt::Replaced),
            "elsewhere" => None,
            _ => Some(Doubt::Unknown),
        };
        self.values("why").filter_map(why).max().unwrap_or(Doubt::Unknown)
    }

    /// Returns the record of the last heal, after a loss or a possible one.
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

    /// Returns the identities of all servers without repetition, or none if one is not known.
    fn servers(&self) -> Vec<String> {
        let servers: BTreeSet<&str> = self.hashes.iter().map(|hash| hash.server.as_str()).collect();
        if servers.contains("") {
            Vec::new()
        } else {
            servers.into_iter().map(str::to_owned).collect()
        }
    }

    /// Returns whether a worker has noted that its heal did not kill it.
    pub(super) fn has_survived(&self, worker: &str) -> bool {
        let fields = self.hashes.iter().flat_map(|hash| &hash.fields);
        fields.into_iter().any(|(field, _)| field.strip_prefix(SURVIVED) == Some(worker))
    }

    /// Returns the progress of the current heal, if there is one.
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

    /// Reads the fields of all hashes, which were read at that time.
    pub(super) fn of_hashes(now_ms: u64, answers: &[Value]) -> Result<Self, CommandError> {
        let fields =
            answers.iter().map(text_pairs).collect::<Option<Vec<_>>>().ok_or_else(unexpected)?;
        Ok(Self::together(fields.into_iter().map(|fields| Self::of(now_ms, String::new(), fields))))
    }

    /// Joins hashes into one. The clock is that of the first.
    fn together(all: impl Iterator<Item = Self>) -> Self {
        all.reduce(|mut together, checkpoints| {
            together.hashes.extend(checkpoints.hashes);
            together
        })
        .unwrap_or_default()
    }
}

/// A field with a low watermark.
struct Checkpoint<'f> {
    field: &'f str,
    low: LowWatermark,
    at_ms: u64,
}

impl CheckpointHash {
    fn checkpoints(&self) -> impl Iterator<Item = Checkpoint<'_>> {
        let offset = |field: &str| {
            let offset =
                self.fields.iter().find(|(name, _)| name.strip_prefix("offset:") == Some(field));
            offset.and_then(|(_, offset)| offset.parse().ok())
        };
        self.fields.iter().filter_map(move |(field, checkpoint)| {
            if field == "lock" || field == "heal" {
                return None;
            }
            let mut parts = checkpoint.split(':').map(str::parse::<u64>);
            let (Some(Ok(_)), Some(Ok(time_ms)), Some(Ok(at_ms)), None) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                return None;
            };
            Some(Checkpoint { field, low: LowWatermark { time_ms, offset: offset(field) }, at_ms })
        })
    }

    /// Returns the number of the lock, if that worker has it.
    fn lock_of(&self, worker: &str) -> Option<u64> {
        let (_, lock) = self.fields.iter().find(|(field, _)| field == AFTER_LOSS.lock)?;
        let (number, _) = lock.strip_prefix(worker)?.strip_prefix(':')?.split_once(':')?;
        number.parse().ok()
    }

    /// Returns the identity of the server that last wrote the checkpoints.
    fn written_on(&self) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == "server").map(|(_, server)| server.as_str())
    }
}

/// Reads a script's answer: a number, the server's clock, and optionally all fields and the
/// server's identity.
fn read_answer(answer: &Value) -> Result<(i64, Checkpoints), CommandError> {
    let Value::Array(answer) = answer else { return Err(unexpected()) };
    let (Some(Value::Int(word)), Some(Value::Int(now_ms))) = (answer.first(), answer.get(1)) else {
        return Err(unexpected());
    };
    let fields = answer.get(2).map_or(Some(Vec::new()), text_pairs).ok_or_else(unexpected)?;
    let server = answer.get(3).and_then(text_of).unwrap_or_default();
    Ok((*word, Checkpoints::of(u64::try_from(*now_ms).unwrap_or(0), server, fields)))
}

/// Reads the answers of a script, one of each hash.
pub(super) fn read_answers(answers: &[Value]) -> Result<Vec<(i64, Checkpoints)>, CommandError> {
    answers.iter().map(read_answer).collect()
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
    CommandError::Failed("checkpoints: unexpected answer".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(now_ms: u64, server: &str, fields: &[(&str, &str)]) -> Checkpoints {
        let fields =
            fields.iter().map(|&(field, value)| (field.to_owned(), value.to_owned())).collect();
        Checkpoints::of(now_ms, server.to_owned(), fields)
    }

    #[test]
    fn fields_that_are_not_checkpoints_are_ignored() {
        let checkpoints = hash(
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
        assert_eq!(checkpoints.lowest(), Some(LowWatermark { time_ms: 100, offset: Some(30) }));
        assert_eq!((checkpoints.is_wanted(), checkpoints.doubt()), (true, Doubt::Lost));
        let details =
            HealDetails { began_ms: 1, from_offset: Some(5), passed_over: vec![6], owed: None };
        let heal =
            HealRecord { began_ms: 1, ended_ms: 2, from_ms: 3, count: 4, complete: true, details };
        assert_eq!(checkpoints.last_heal(), Some(heal));
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
        let together = Checkpoints::together([checkpoints, later].into_iter());
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
        assert_eq!(
            (Checkpoints::default().lowest(), Checkpoints::default().last_heal()),
            (None, None)
        );
    }

    #[test]
    fn a_worker_is_gone_after_10_s_of_silence_on_every_server() {
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
        let together = Checkpoints::together([one, other].into_iter());
        assert_eq!(together.gone("me"), ["quiet", "stopped:s"]);
        assert_eq!(
            together.lowest_of(|field| field == "stopped:s"),
            Some(LowWatermark { time_ms: 7, offset: None })
        );
        assert_eq!(together.servers(), Vec::<String>::new(), "nobody knows who they are");
    }
}
