//! The Lua scripts, each in a file of its own, and how a pipeline calls them.

use std::sync::LazyLock;

use redis::{Arg, Cmd};

/// A script and its name in Redis' cache of scripts.
#[derive(Debug)]
pub(super) struct Script {
    source: &'static str,
    sha1: String,
    /// Its bit in [`Sent`].
    bit: u8,
}

/// Which scripts a pipeline has sent whole so far.
#[derive(Debug, Default)]
pub(super) struct Sent(u64);

impl Sent {
    /// As if all had been sent: where the script is not known, it is sent whole then (see
    /// [`whole`]).
    pub(super) fn all() -> Self {
        Self(u64::MAX)
    }
}

impl Script {
    fn new(bit: u8, source: &'static str) -> Self {
        Self { source, sha1: redis::Script::new(source).get_hash().to_owned(), bit }
    }

    /// A call of the script. The first of a batch sends it whole (EVAL), which also puts it into
    /// the cache for those after it: so a `SCRIPT FLUSH`, a restart or a failover between two
    /// batches costs nothing, and none has to run again behind its successor.
    pub(super) fn call<'k>(
        &self,
        sent: &mut Sent,
        keys: impl ExactSizeIterator<Item = &'k [u8]>,
    ) -> Cmd {
        let mut command = Cmd::new();
        if sent.0 & (1 << self.bit) == 0 {
            sent.0 |= 1 << self.bit;
            command.arg("EVAL").arg(self.source);
        } else {
            command.arg("EVALSHA").arg(&self.sha1);
        }
        command.arg(keys.len());
        for key in keys {
            command.arg(key);
        }
        command
    }
}

/// The call of a script by its name as one that sends it whole.
pub(super) fn whole(call: &Cmd) -> Option<Cmd> {
    let mut arguments = call.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => bytes,
        _ => b"",
    });
    let (_, name) = (arguments.next()?, arguments.next()?);
    let script = ALL.iter().find(|script| script.sha1.as_bytes() == name)?;
    let mut command = Cmd::new();
    command.arg("EVAL").arg(script.source);
    for argument in arguments {
        command.arg(argument);
    }
    Some(command)
}

/// The scripts that are called by their name where nobody has sent them before: in a cluster, by
/// plans, fills and upkeep, and by those who ask marks.
static ALL: [&LazyLock<Script>; 29] = [
    &NUMBERS,
    &DETACH_TAG,
    &DROP_DETACHED,
    &ADD_MEMBER,
    &JOIN_TAG,
    &FILL,
    &DELETE_FENCED,
    &WRITE_FENCED,
    &RAISE_FENCE,
    &SCHEDULE_AGAIN,
    &SET_ASIDE,
    &LOOK_ASIDE,
    &COME_BACK,
    &MARK_SEAL,
    &MARK_TICK,
    &MARK_ENTER,
    &MARK_HOLD,
    &HEAL_TAKE,
    &HEAL_SEAL,
    &HEAL_FINISH,
    &HEAL_KEEP,
    &HEAL_BESIDE,
    &HEAL_BESIDE_END,
    &MARK_LEAVE,
    &MARK_TAKE_OVER,
    &BUMP_PAST,
    &MARK_CENSUS,
    &HEAL_YIELD,
    &SCAN_MEMBERS,
];

macro_rules! scripts {
    ($($name:ident = $bit:literal: $($file:literal),+;)+) => {
        $(
            #[doc = concat!("See ", $("`lua/", $file, "` ",)+ ".")]
            pub(super) static $name: LazyLock<Script> =
                LazyLock::new(|| Script::new($bit, concat!($(include_str!(concat!("lua/", $file))),+)));
        )+

        /// Two with one bit in a pipeline: the second would not be sent whole, and not be known.
        const _: () = {
            let bits = [$($bit),+];
            let (mut taken, mut at) = (0_u64, 0);
            while at < bits.len() {
                assert!(taken & (1 << bits[at]) == 0, "two scripts have the same bit");
                taken |= 1 << bits[at];
                at += 1;
            }
        };
    };
}

scripts! {
    WRITE_TAGGED = 0: "tag_member.lua", "write_tagged.lua";
    INVALIDATE_TAGS = 1: "text.lua", "side_key.lua", "sequence.lua", "invalidate_tags.lua";
    DRAIN_SLICE = 2: "side_key.lua", "members.lua", "drain_slice.lua";
    GRANT_LEASE = 3: "text.lua", "grant_lease.lua";
    FILL = 4: "text.lua", "generation.lua", "tag_member.lua", "fill.lua";
    RELEASE_LEASE = 5: "text.lua", "release_lease.lua";
    PRUNE_SLICE = 6: "side_key.lua", "members.lua", "prune_slice.lua";
    KEEP_LOCK = 7: "text.lua", "keep_lock.lua";
    CLAIM_LOAD = 10: "text.lua", "claim_load.lua";
    KEEP_LOAD = 11: "text.lua", "keep_load.lua";
    END_LOAD = 12: "text.lua", "end_load.lua";
    DELETE_FENCED = 8: "fence.lua", "delete_fenced.lua";
    WRITE_FENCED = 9: "tag_member.lua", "fence.lua", "write_fenced.lua";
    SCHEDULE_AGAIN = 13: "schedule_again.lua";
    RAISE_FENCE = 30: "fence.lua", "raise_fence.lua";
    DUE_AGAIN = 14: "due_again.lua";
    DONE_AGAIN = 15: "done_again.lua";
    REPORT_WORKER = 16: "report_worker.lua";
    NUMBERS = 24: "text.lua", "sequence.lua", "numbers.lua";
    DETACH_TAG = 25: "text.lua", "side_key.lua", "members.lua", "detach_tag.lua";
    DROP_DETACHED = 26: "drop_detached.lua";
    ADD_MEMBER = 27: "tag_member.lua", "add_member.lua";
    JOIN_TAG = 28: "text.lua", "generation.lua", "tag_member.lua", "join_tag.lua";
    MARK_SEAL = 17: "mark_seal.lua";
    MARK_TICK = 18: "mark.lua", "mark_tick.lua";
    MARK_ENTER = 19: "mark.lua", "mark_enter.lua";
    MARK_HOLD = 20: "mark.lua", "mark_hold.lua";
    HEAL_TAKE = 21: "mark.lua", "heal_take.lua";
    HEAL_SEAL = 22: "heal_seal.lua";
    HEAL_FINISH = 23: "mark.lua", "heal_finish.lua";
    FORWARD_SEQUENCE = 29: "text.lua", "sequence.lua", "forward_sequence.lua";
    SET_ASIDE = 31: "set_aside.lua";
    LOOK_ASIDE = 32: "members.lua", "look_aside.lua";
    COME_BACK = 33: "come_back.lua";
    HEAL_KEEP = 34: "heal_keep.lua";
    HEAL_BESIDE = 35: "mark.lua", "heal_beside.lua";
    HEAL_BESIDE_END = 36: "mark.lua", "heal_beside_end.lua";
    MARK_LEAVE = 37: "mark.lua", "mark_leave.lua";
    MARK_TAKE_OVER = 38: "mark.lua", "mark_take_over.lua";
    BUMP_PAST = 39: "bump_past.lua";
    MARK_CENSUS = 42: "mark.lua", "mark_census.lua";
    HEAL_YIELD = 40: "mark.lua", "heal_yield.lua";
    SETTLE_ASIDE = 41: "side_key.lua", "members.lua", "settle_aside.lua";
    SCAN_MEMBERS = 43: "members.lua", "scan_members.lua";
}

/// The scripts of the readers' protocol, whole, by their published names: docs/READERS.md prints
/// them, and every client sends them.
pub const READER_SCRIPTS: [(&str, &str); 4] =
    [("read", READ), ("join", JOIN), ("fill", FILL_SOURCE), ("release", RELEASE_SOURCE)];

/// Finds a value, or takes the lease.
pub(crate) const READ: &str = concat!(include_str!("lua/text.lua"), include_str!("lua/read.lua"));
/// Adds a key to a tag's set and looks at the tag's generation: a fill's step for a tag whose set
/// has another slot than the key.
pub(crate) const JOIN: &str = concat!(
    include_str!("lua/text.lua"),
    include_str!("lua/generation.lua"),
    include_str!("lua/tag_member.lua"),
    include_str!("lua/join_tag.lua")
);
/// The fill itself, with the tags whose sets are on the key's server.
pub(crate) const FILL_SOURCE: &str = concat!(
    include_str!("lua/text.lua"),
    include_str!("lua/generation.lua"),
    include_str!("lua/tag_member.lua"),
    include_str!("lua/fill.lua")
);
/// Gives a lease back.
pub(crate) const RELEASE_SOURCE: &str =
    concat!(include_str!("lua/text.lua"), include_str!("lua/release_lease.lua"));
