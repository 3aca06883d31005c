//! Who gets it wrong: the seed's own snippets, and plausible protocols that lose. The same driver
//! must find each of them out.

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

/// How a reader fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongReader {
    /// `GET`, load, `SETEX`, `SADD`, `EXPIRE`.
    Seed,
    /// A lease, and no look at the tags' generations.
    LeaseAlone,
    /// A look at the generations before the key is in the sets.
    GenerationFirst,
    /// A look at the lease, and then the value.
    LeaseFirst,
    /// All is right but the sets' time to live, which is the last member's,
    LastMembersLife,
    /// or the first member's,
    FirstMembersLife,
    /// or given to a set that is to stay,
    LifeForAll,
    /// or left to a set that one member is to stay in.
    LifeForSome,
}

/// How a worker applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongWorker {
    /// `DEL`; `SMEMBERS`, `DEL`, `DEL`; `SETEX`.
    Seed,
    /// The key goes before its lease.
    KeyBeforeLease,
    /// A `write` leaves the lease of who loads.
    WritesLeaveLeases,
    /// What a `warm` loaded is stored where its event's version is still the fence's, whatever
    /// became of the lease.
    WarmsUnderFences,
    /// The members of a tag go, and their leases stay.
    MembersWithoutLeases,
    /// The members of a tag are read, and go; then its set goes, with whatever was added meanwhile.
    MembersThenSet,
    /// The members of a tag are taken out of its set before they go.
    PopsMembers,
    /// A tag's set is detached, and nobody but who did it knows of that.
    KeepsNoRecord,
    /// A tag's set is detached under a name that an earlier one may still have.
    OneNameForAll,
    /// A tag's generation ends before a lease does.
    ShortGenerations,
    /// Fences whose versions are numbers of Lua.
    Numbers,
    /// Of two events of one version the first stands.
    FirstOfEqual,
    /// What an event wrote it writes again, whatever came since.
    SameEventAgain,
    /// Fences that only writes raise.
    WritesAloneRaise,
    /// A look at the fence, and then the value.
    FenceFirst,
    /// One fence for two entities, which are compared,
    EntitiesCompared,
    /// or replace each other.
    EntitiesReplaced,
    /// Fences that end before the last retry.
    ShortFences,
    /// An old deletion is thought to be done.
    SkipsOld,
    /// No fences at all.
    NoFences,
}

/// How members are pruned whose keys are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongUpkeep {
    /// A look at the key; then it leaves the set.
    AsksFirst,
    /// The same, and put back where the key has come meanwhile.
    PutsBack,
}

/// How the history is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrongReplay {
    /// Writes without a version are written.
    AppliesUnversioned,
    /// Writes are written whose fences have ended.
    AppliesOld,
    /// What is not chosen is not known.
    GivesNoWay,
    /// What stands before the end of the history is taken for the last word.
    CutsAsIfWhole,
}

/// What of the protocol is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    Seed,
    Reader(WrongReader),
    Worker(WrongWorker),
    Upkeep(WrongUpkeep),
    Replay(WrongReplay),
    /// Second passes are taken off their list before they are done.
    PopsFirst,
}

impl Wrong {
    /// Each loses something that nothing else of it does. With the seeds that find it out soonest,
    /// on one Redis and on a cluster: for `make test`.
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

    /// It shows only where time goes by.
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

    /// It shows in what becomes of tags.
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

    /// What it is to be found out by.
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

/// One step, one command.
async fn step(world: &World, turns: &Turns, words: &[&str]) -> Value {
    turns.next().await;
    world.ask(&command(words)).await
}

fn number(value: &Value) -> u64 {
    redis::from_redis_value(value.clone()).unwrap()
}
