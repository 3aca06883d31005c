//! Wrong protocols: the snippets that this project started from, and plausible protocols that lose
//! writes.
//!
//! The same driver must find the fault of each of them.
//!
//! In reading order: `readers`, `workers`, `fences`, `tags`. Faults of the replay are in the
//! model's own `replay`.

mod fences;
mod readers;
mod tags;
mod workers;

use redis::{Cmd, Value};

pub(super) use self::readers::reader;
pub(super) use self::tags::upkeep;
pub(super) use self::workers::{second_passes, worker};
use super::judge::{LOST_PASS, OLDER_WRITE, SKIPPED, STALE_LOAD};
use super::turns::Turns;
use super::world::World;

/// Wrong way of a reader to fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongReader {
    /// `GET`, load, `SETEX`, `SADD`, `EXPIRE`.
    Seed,
    /// Takes a lease, and does not check the tags' generations.
    LeaseAlone,
    /// Checks the generations before the key is in the sets.
    GenerationFirst,
    /// Checks the lease, and then sets the value.
    LeaseFirst,
    /// Sets the time to live of the sets to that of the last member. The rest is right.
    LastMembersLife,
    /// Sets the time to live of the sets to that of the first member.
    FirstMembersLife,
    /// Gives a time to live to a set that must stay.
    LifeForAll,
    /// Leaves a time to live on a set in which one member must stay.
    LifeForSome,
}

/// Wrong way of a worker to apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongWorker {
    /// Deletes with `DEL`, a tag with `SMEMBERS`, `DEL`, `DEL`, and writes with `SETEX`.
    Seed,
    /// Deletes the key before its lease.
    KeyBeforeLease,
    /// A `write` leaves the lease of a running load.
    WritesLeaveLeases,
    /// Stores a loaded value if its event's version is still that of the fence, without a check of
    /// the lease.
    WarmsUnderFences,
    /// Deletes the members of a tag, and leaves their leases.
    MembersWithoutLeases,
    /// Reads the members of a tag, deletes them, and then deletes the set with all that was added
    /// meanwhile.
    MembersThenSet,
    /// Removes the members of a tag from its set before it deletes them.
    PopsMembers,
    /// Detaches a tag's set, without a record that other workers can find.
    KeepsNoRecord,
    /// Detaches a tag's set under a name that an earlier one may still have.
    OneNameForAll,
    /// Ends a tag's generation before a lease ends.
    ShortGenerations,
    /// Compares the versions of fences as numbers of Lua.
    Numbers,
    /// Keeps the first of two events of one version.
    FirstOfEqual,
    /// Writes an event's value again, even if newer events followed.
    SameEventAgain,
    /// Raises fences by writes only.
    WritesAloneRaise,
    /// Checks the fence, and then sets the value.
    FenceFirst,
    /// Uses one fence for two entities, and compares them.
    EntitiesCompared,
    /// Uses one fence for two entities, and each replaces the other.
    EntitiesReplaced,
    /// Expires fences before the last retry.
    ShortFences,
    /// Skips an old deletion as if it were done.
    SkipsOld,
    /// Uses no fences.
    NoFences,
}

/// Wrong way to remove members whose keys are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongUpkeep {
    /// Checks the key, and then removes it from the set.
    AsksFirst,
    /// Does the same, and puts the member back if the key has come meanwhile.
    PutsBack,
}

/// Wrong way to replay the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongReplay {
    /// Applies writes without a version.
    AppliesUnversioned,
    /// Applies writes whose fences have expired.
    AppliesOld,
    /// Ignores events that are not chosen.
    GivesNoWay,
    /// Treats the last event before a cut as the last of the history.
    CutsAsIfWhole,
}

/// Fault of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    Seed,
    Reader(WrongReader),
    Worker(WrongWorker),
    Upkeep(WrongUpkeep),
    Replay(WrongReplay),
    /// Removes second deletes from their list before they are done.
    PopsFirst,
}

impl Wrong {
    /// All faults. Each loses a write that no other part of it loses.
    ///
    /// Each has the seeds that find it soonest, on one Redis and on a cluster, for `make test`.
    pub(super) const ALL: [(Self, [u64; 2]); 34] = [
        (Self::Seed, [0, 4]),
        (Self::Reader(WrongReader::LeaseAlone), [4, 4]),
        (Self::Reader(WrongReader::GenerationFirst), [7, 2]),
        (Self::Reader(WrongReader::LeaseFirst), [1, 1]),
        (Self::Reader(WrongReader::LastMembersLife), [4, 5]),
        (Self::Reader(WrongReader::FirstMembersLife), [4, 6]),
        (Self::Reader(WrongReader::LifeForAll), [6, 4]),
        (Self::Reader(WrongReader::LifeForSome), [0, 6]),
        (Self::Worker(WrongWorker::KeyBeforeLease), [1, 8]),
        (Self::Worker(WrongWorker::WritesLeaveLeases), [9, 0]),
        (Self::Worker(WrongWorker::WarmsUnderFences), [5, 0]),
        (Self::Worker(WrongWorker::MembersWithoutLeases), [3, 5]),
        (Self::Worker(WrongWorker::MembersThenSet), [3, 8]),
        (Self::Worker(WrongWorker::PopsMembers), [4, 8]),
        (Self::Worker(WrongWorker::KeepsNoRecord), [4, 9]),
        (Self::Worker(WrongWorker::OneNameForAll), [1, 4]),
        (Self::Worker(WrongWorker::ShortGenerations), [7, 1]),
        (Self::Upkeep(WrongUpkeep::AsksFirst), [6, 4]),
        (Self::Upkeep(WrongUpkeep::PutsBack), [5, 1]),
        (Self::Worker(WrongWorker::Numbers), [3, 1]),
        (Self::Worker(WrongWorker::FirstOfEqual), [3, 1]),
        (Self::Worker(WrongWorker::SameEventAgain), [3, 2]),
        (Self::Worker(WrongWorker::WritesAloneRaise), [8, 1]),
        (Self::Worker(WrongWorker::FenceFirst), [1, 1]),
        (Self::Worker(WrongWorker::EntitiesCompared), [9, 1]),
        (Self::Worker(WrongWorker::EntitiesReplaced), [8, 1]),
        (Self::Worker(WrongWorker::ShortFences), [1, 2]),
        (Self::Worker(WrongWorker::SkipsOld), [8, 0]),
        (Self::Worker(WrongWorker::NoFences), [3, 1]),
        (Self::Replay(WrongReplay::AppliesUnversioned), [1, 1]),
        (Self::Replay(WrongReplay::AppliesOld), [1, 1]),
        (Self::Replay(WrongReplay::GivesNoWay), [4, 4]),
        (Self::Replay(WrongReplay::CutsAsIfWhole), [2, 4]),
        (Self::PopsFirst, [5, 4]),
    ];

    pub(super) fn reader(self) -> Option<WrongReader> {
        match self {
            Self::Seed => Some(WrongReader::Seed),
            Self::Reader(wrong) => Some(wrong),
            _ => None,
        }
    }

    pub(super) fn worker(self) -> Option<WrongWorker> {
        match self {
            Self::Seed => Some(WrongWorker::Seed),
            Self::Worker(wrong) => Some(wrong),
            _ => None,
        }
    }

    pub(super) fn replay(self) -> Option<WrongReplay> {
        if let Self::Replay(wrong) = self { Some(wrong) } else { None }
    }

    /// Returns whether the fault shows only if time passes.
    pub(super) fn needs_clock(self) -> bool {
        use WrongReader::{FirstMembersLife, LastMembersLife, LifeForAll, LifeForSome};
        match self {
            Self::Reader(wrong) => {
                [FirstMembersLife, LastMembersLife, LifeForAll, LifeForSome].contains(&wrong)
            }
            Self::Worker(wrong) => {
                [WrongWorker::ShortGenerations, WrongWorker::ShortFences].contains(&wrong)
            }
            Self::Upkeep(_) => true,
            _ => false,
        }
    }

    /// Returns whether the fault shows in tags.
    pub(super) fn is_of_tags(self) -> bool {
        use WrongWorker::{
            KeepsNoRecord, MembersThenSet, MembersWithoutLeases, OneNameForAll, PopsMembers,
            ShortGenerations,
        };
        match self {
            Self::Reader(_) | Self::Upkeep(_) => true,
            Self::Worker(wrong) => [
                KeepsNoRecord,
                MembersThenSet,
                MembersWithoutLeases,
                OneNameForAll,
                PopsMembers,
                ShortGenerations,
            ]
            .contains(&wrong),
            _ => false,
        }
    }

    /// Returns whether the violation reveals the fault.
    pub(super) fn is_found_out_by(self, violation: &str) -> bool {
        use WrongWorker::{
            EntitiesCompared, KeepsNoRecord, KeyBeforeLease, MembersThenSet, MembersWithoutLeases,
            OneNameForAll, PopsMembers, ShortGenerations, SkipsOld, WarmsUnderFences,
            WritesLeaveLeases,
        };
        let expected = match self {
            Self::Upkeep(_) => return [STALE_LOAD, SKIPPED].contains(&violation),
            Self::Worker(EntitiesCompared) => return [STALE_LOAD, SKIPPED].contains(&violation),
            Self::Seed | Self::Reader(_) => STALE_LOAD,
            Self::Worker(
                KeyBeforeLease | WritesLeaveLeases | WarmsUnderFences | MembersWithoutLeases
                | MembersThenSet | PopsMembers | KeepsNoRecord | OneNameForAll | ShortGenerations,
            ) => STALE_LOAD,
            Self::Worker(SkipsOld) | Self::Replay(WrongReplay::AppliesUnversioned) => SKIPPED,
            Self::Worker(_) | Self::Replay(_) => OLDER_WRITE,
            Self::PopsFirst => LOST_PASS,
        };
        violation == expected
    }
}

fn command(words: &[&str]) -> Cmd {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command
}

/// Sends one command as one step.
async fn step(world: &World, turns: &Turns, words: &[&str]) -> Value {
    turns.next().await;
    world.ask(&command(words)).await
}

fn number(value: &Value) -> u64 {
    redis::from_redis_value(value.clone()).unwrap()
}
