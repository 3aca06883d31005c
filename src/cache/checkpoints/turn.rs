//! The commands on checkpoints that both kinds of backend also send by themselves, above all to
//! take the turn to heal.

use std::ops::Range;

use redis::Cmd;

use super::super::context::Context;
use super::super::lifetime;
use super::super::script::{HEAL_TAKE, Script, Sent};
use super::own::{Mode, OwnState};
use super::progress::HEAL_LOCK;
use super::{Checkpoints, HealTurn};

impl Context {
    /// Returns a script's call on one of the hashes.
    pub(in crate::cache) fn checkpoint_call(
        &self,
        script: &Script,
        place: usize,
        mut sent: Sent,
    ) -> Cmd {
        script.call(&mut sent, [self.checkpoint_hashes[place].as_bytes()].into_iter())
    }

    /// Returns the commands that read all hashes: see [`Checkpoints::of_hashes`].
    pub(in crate::cache) fn checkpoint_reads(&self) -> Vec<Cmd> {
        self.checkpoint_hashes.iter().map(|hash| super::arguments("HGETALL", &[hash])).collect()
    }

    /// Returns the calls that ask for the locks of these hashes. `when` is the condition for the
    /// script. They must be made while no checkpoint write is in flight.
    pub(in crate::cache) fn lock_calls(
        &self,
        places: Range<usize>,
        when: &str,
        sent: impl Fn() -> Sent,
    ) -> Vec<Cmd> {
        let take = |state: &mut OwnState, place: usize| {
            state.mode = Mode::Off;
            state.checkpoints[place].lock += 1;
            let mut command = self.checkpoint_call(&HEAL_TAKE, place, sent());
            command
                .arg(&self.id)
                .arg(state.checkpoints[place].lock)
                .arg(lifetime::millis(HEAL_LOCK))
                .arg(when);
            command
        };
        self.own_checkpoints.change(|state| places.map(|place| take(state, place)).collect())
    }

    /// Notes that this process has all locks.
    pub(in crate::cache) fn has_turn(&self, answers: Vec<(i64, Checkpoints)>) -> HealTurn {
        self.own_checkpoints.change(|state| {
            state.mode = Mode::Healer;
            for (checkpoint, (_, checkpoints)) in state.checkpoints.iter_mut().zip(&answers) {
                checkpoint.lock_since_ms = checkpoints.now_ms;
                checkpoint.lock_confirmed = checkpoint.lock;
            }
        });
        HealTurn::Ours(Checkpoints::together(
            answers.into_iter().map(|(_, checkpoints)| checkpoints),
        ))
    }
}
