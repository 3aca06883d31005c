//! The Lua scripts, each in a file of its own, and how a pipeline calls them. Those of readers, and
//! the pieces that both sides share, are in the package `unstale-reader`.

use std::sync::LazyLock;

use redis::{Arg, Cmd};
use unstale_reader::protocol::scripts as shared;

/// A script and its SHA-1, by which Redis knows it.
#[derive(Debug)]
pub(super) struct Script {
    source: String,
    sha1: String,
    /// Bit of the script in [`Sent`].
    bit: u8,
}

/// The scripts that a pipeline has sent in full so far.
#[derive(Debug, Default)]
pub(super) struct Sent(u64);

impl Sent {
    /// Returns a set with all scripts. A server that does not know one gets it in full later (see
    /// [`whole`]).
    pub(super) fn all() -> Self {
        Self(u64::MAX)
    }
}

impl Script {
    fn new(bit: u8, source: String) -> Self {
        Self { sha1: redis::Script::new(&source).get_hash().to_owned(), source, bit }
    }

    /// Returns a call of the script. The first call in a batch sends the source (EVAL), which also
    /// caches it for the later ones. So a `SCRIPT FLUSH`, a restart or a failover between two
    /// batches costs nothing, and no batch runs again after its successor.
    pub(super) fn call<'k>(
        &self,
        sent: &mut Sent,
        keys: impl ExactSizeIterator<Item = &'k [u8]>,
    ) -> Cmd {
        let mut command = Cmd::new();
        if sent.0 & (1 << self.bit) == 0 {
            sent.0 |= 1 << self.bit;
            command.arg("EVAL").arg(&self.source);
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

/// Returns a call by SHA-1 as one that sends the source.
pub(super) fn whole(call: &Cmd) -> Option<Cmd> {
    let mut arguments = call.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => bytes,
        _ => b"",
    });
    let (_, name) = (arguments.next()?, arguments.next()?);
    let script = ALL.iter().find(|script| script.sha1.as_bytes() == name)?;
    let mut command = Cmd::new();
    command.arg("EVAL").arg(&script.source);
    for argument in arguments {
        command.arg(argument);
    }
    Some(command)
}

/// Scripts that are called by SHA-1 although perhaps no worker has sent them: those of clusters and
/// of checkpoints.
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
    &SCHEDULE_SECOND_DELETES,
    &SET_ASIDE,
    &LOOK_ASIDE,
    &COME_BACK,
    &CHECKPOINT_WRITE,
    &CHECKPOINT_TICK,
    &CHECKPOINT_ENTER,
    &CHECKPOINT_HOLD,
    &HEAL_TAKE,
    &HEAL_CHECKPOINT,
    &HEAL_FINISH,
    &HEAL_KEEP,
    &HEAL_BESIDE,
    &HEAL_BESIDE_END,
    &CHECKPOINT_LEAVE,
    &CHECKPOINT_TAKE_OVER,
    &BUMP_PAST,
    &CHECKPOINT_CENSUS,
    &HEAL_YIELD,
    &SCAN_MEMBERS,
];

/// A part of a script: a file of ours, or a constant of the package of readers.
macro_rules! piece {
    ($file:literal) => {
        include_str!(concat!("lua/", $file))
    };
    ($shared:ident) => {
        shared::$shared
    };
}

macro_rules! scripts {
    ($($name:ident = $bit:literal: $($piece:tt),+;)+) => {
        $(
            #[doc = concat!("Joined from ", $("`", stringify!($piece), "` ",)+ ".")]
            pub(super) static $name: LazyLock<Script> =
                LazyLock::new(|| Script::new($bit, [$(piece!($piece)),+].concat()));
        )+

        /// Checks that no two scripts share a bit: the second would not be sent in full, and be
        /// unknown.
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
    WRITE_TAGGED = 0: TAG_MEMBER, "caught.lua", "write_tagged.lua";
    INVALIDATE_TAGS = 1: "refusal.lua", TEXT, "side_key.lua", "sequence.lua", "invalidate_tags.lua";
    DRAIN_SLICE = 2: "side_key.lua", "members.lua", "drain_slice.lua";
    GRANT_LEASE = 3: TEXT, "grant_lease.lua";
    FILL = 4: FILL;
    RELEASE_LEASE = 5: RELEASE;
    MAINTAIN_SLICE = 6: "side_key.lua", "members.lua", "maintain_slice.lua";
    KEEP_LOCK = 7: TEXT, "keep_lock.lua";
    CLAIM_LOAD = 10: TEXT, "claim_load.lua";
    KEEP_LOAD = 11: TEXT, "keep_load.lua";
    END_LOAD = 12: TEXT, "end_load.lua";
    DELETE_FENCED = 8: "fence.lua", "delete_fenced.lua";
    WRITE_FENCED = 9: "refusal.lua", TAG_MEMBER, "caught.lua", "fence.lua", "write_fenced.lua";
    SCHEDULE_SECOND_DELETES = 13: TEXT, "second_delete_clock.lua", "schedule_second_deletes.lua";
    RAISE_FENCE = 30: "fence.lua", "raise_fence.lua";
    DUE_SECOND_DELETES = 14: TEXT, "second_delete_clock.lua", "due_second_deletes.lua";
    FINISH_SECOND_DELETES = 15: TEXT, "second_delete_clock.lua", "finish_second_deletes.lua";
    REPORT_WORKER = 16: "report_worker.lua";
    NUMBERS = 24: TEXT, "sequence.lua", "numbers.lua";
    DETACH_TAG = 25: "refusal.lua", TEXT, "side_key.lua", "members.lua", "detach_tag.lua";
    DROP_DETACHED = 26: "drop_detached.lua";
    ADD_MEMBER = 27: TAG_MEMBER, "add_member.lua";
    JOIN_TAG = 28: JOIN;
    CHECKPOINT_WRITE = 17: "checkpoint_write.lua";
    CHECKPOINT_TICK = 18: "checkpoint.lua", "checkpoint_tick.lua";
    CHECKPOINT_ENTER = 19: "checkpoint.lua", "checkpoint_enter.lua";
    CHECKPOINT_HOLD = 20: "checkpoint.lua", "checkpoint_hold.lua";
    HEAL_TAKE = 21: "checkpoint.lua", "heal_take.lua";
    HEAL_CHECKPOINT = 22: "heal_checkpoint.lua";
    HEAL_FINISH = 23: "checkpoint.lua", "heal_finish.lua";
    FORWARD_SEQUENCE = 29: TEXT, "sequence.lua", "forward_sequence.lua";
    SET_ASIDE = 31: "set_aside.lua";
    LOOK_ASIDE = 32: "members.lua", "look_aside.lua";
    COME_BACK = 33: "come_back.lua";
    HEAL_KEEP = 34: "heal_keep.lua";
    HEAL_BESIDE = 35: "checkpoint.lua", "heal_beside.lua";
    HEAL_BESIDE_END = 36: "checkpoint.lua", "heal_beside_end.lua";
    CHECKPOINT_LEAVE = 37: "checkpoint.lua", "checkpoint_leave.lua";
    CHECKPOINT_TAKE_OVER = 38: "checkpoint.lua", "checkpoint_take_over.lua";
    BUMP_PAST = 39: "bump_past.lua";
    CHECKPOINT_CENSUS = 42: "checkpoint.lua", "checkpoint_census.lua";
    HEAL_YIELD = 40: "checkpoint.lua", "heal_yield.lua";
    TAKE_SECOND_LOOK = 41: "side_key.lua", "members.lua", "take_second_look.lua";
    SCAN_MEMBERS = 43: "members.lua", "scan_members.lua";
}
