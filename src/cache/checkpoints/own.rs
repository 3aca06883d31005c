//! The checkpoints of this process: the numbers that it has sent, and those that Redis confirmed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::super::address::Address;
use super::LowWatermark;

/// Knowledge of this process about its checkpoints.
#[derive(Debug)]
pub(in crate::cache) struct OwnCheckpoints {
    state: Mutex<OwnState>,
    /// Lock that is held while a checkpoint write is made and sent with its batch.
    pub(super) order: Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct OwnState {
    pub(super) mode: Mode,
    /// Low watermark of the last tick, which the writes until the next one repeat.
    pub(super) low: LowWatermark,
    /// One for each hash.
    pub(super) checkpoints: Vec<OwnCheckpoint>,
    /// Primaries of a cluster that ran commands while they had no checkpoint.
    pub(super) uncovered: Vec<Address>,
}

/// Our field of one hash.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnCheckpoint {
    /// Number sent last.
    pub(super) sent: u64,
    /// Number confirmed last, and the server's clock when it last sent its time; `None` before the
    /// first.
    pub(super) confirmed: Option<(u64, u64)>,
    /// Number sent last for the lock.
    pub(super) lock: u64,
    /// Number confirmed last for the lock.
    pub(super) lock_confirmed: u64,
    /// Server's clock when we took the lock.
    pub(super) lock_since_ms: u64,
    /// In a cluster: the node that served it at the last tick.
    pub(super) home: Option<Address>,
    /// In a cluster: whether it is the only checkpoint after the latest batch on its node.
    pub(super) covers_alone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    /// Commands of operators have no field, and their batches no checkpoint.
    #[default]
    Off,
    Worker,
    Healer,
}

/// A checkpoint write after a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) struct CheckpointWrite {
    pub(super) mode: Mode,
    /// Place in [`OwnState::checkpoints`].
    pub(super) checkpoint: usize,
    pub(super) number: u64,
}

/// Content of a checkpoint write that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WriteDraft {
    pub(super) write: CheckpointWrite,
    pub(super) expected: u64,
    pub(super) low_ms: u64,
}

impl OwnCheckpoints {
    pub(in crate::cache) fn new(checkpoints: usize) -> Self {
        let state = OwnState {
            checkpoints: vec![OwnCheckpoint::default(); checkpoints],
            ..OwnState::default()
        };
        Self { state: Mutex::new(state), order: Mutex::default() }
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut OwnState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns whether this process has the turn to heal after a loss.
    pub(in crate::cache) fn heals(&self) -> bool {
        self.change(|state| state.mode == Mode::Healer)
    }

    /// Returns whether batches write checkpoints.
    pub(in crate::cache) fn are_written(&self) -> bool {
        self.change(|state| state.mode != Mode::Off)
    }

    /// Frees the number of a write that certainly was not done, with nothing sent after it.
    pub(in crate::cache) fn not_done(
        &self,
        CheckpointWrite { mode, checkpoint, .. }: CheckpointWrite,
    ) {
        self.change(|state| match mode {
            Mode::Worker => state.checkpoints[checkpoint].sent -= 1,
            Mode::Healer => state.checkpoints[checkpoint].lock -= 1,
            Mode::Off => {}
        });
    }

    /// Notes that a server ran commands and has no checkpoint that could be written after them.
    pub(in crate::cache) fn note_uncovered(&self, server: &Address) {
        self.change(|state| {
            if !state.uncovered.contains(server) {
                state.uncovered.push(server.clone());
            }
        });
    }
}

impl CheckpointWrite {
    /// Returns its place among the checkpoints.
    pub(in crate::cache) fn checkpoint(self) -> usize {
        self.checkpoint
    }
}

impl OwnState {
    /// Draws the next number of a checkpoint or its lock.
    pub(super) fn draft(&mut self, checkpoint: usize) -> Option<WriteDraft> {
        let last = match self.mode {
            Mode::Off => return None,
            Mode::Worker => &mut self.checkpoints[checkpoint].sent,
            Mode::Healer => &mut self.checkpoints[checkpoint].lock,
        };
        let expected = *last;
        *last += 1;
        Some(WriteDraft {
            write: CheckpointWrite { mode: self.mode, checkpoint, number: *last },
            expected,
            low_ms: self.low.time_ms,
        })
    }

    /// Notes that a write was done.
    pub(super) fn note_write(
        &mut self,
        CheckpointWrite { mode, checkpoint, number }: CheckpointWrite,
    ) {
        let checkpoint = &mut self.checkpoints[checkpoint];
        match (mode, &mut checkpoint.confirmed) {
            (Mode::Healer, _) => {
                checkpoint.lock_confirmed = checkpoint.lock_confirmed.max(number);
            }
            (Mode::Worker, Some((confirmed, _))) => {
                *confirmed = (*confirmed).max(number);
                checkpoint.covers_alone = true;
            }
            (Mode::Worker, None) | (Mode::Off, _) => {}
        }
    }

    /// Notes that a tick advanced a checkpoint, at that time by its server's clock.
    pub(super) fn note_advance(&mut self, checkpoint: usize, number: u64, now_ms: u64) {
        let checkpoint = &mut self.checkpoints[checkpoint];
        let number = checkpoint.confirmed.map_or(number, |(confirmed, _)| confirmed.max(number));
        checkpoint.confirmed = Some((number, now_ms));
    }

    /// Notes that a tick advanced all checkpoints over connections that have lasted since the
    /// previous tick. So a checkpoint that has moved to a server shows losses of all commands of
    /// that server.
    pub(super) fn note_all_advanced(&mut self, homes: Vec<Address>) {
        self.uncovered.retain(|server| !homes.contains(server));
        let homes = homes.into_iter().map(Some).chain(std::iter::repeat(None));
        for (checkpoint, home) in self.checkpoints.iter_mut().zip(homes) {
            checkpoint.home = home;
            checkpoint.covers_alone = false;
        }
    }

    /// Returns a checkpoint that leaves a doubt whether a server lost writes, though all numbers
    /// are right. `homes` are the nodes that serve them now.
    ///
    /// The doubt is a checkpoint that was the only one to show a loss of a batch, and has left its
    /// server. The others there do not show what that server lost since.
    pub(super) fn doubtful(&self, homes: &[Address]) -> Option<usize> {
        if !self.uncovered.is_empty() {
            return Some(0);
        }
        let mut moves: HashMap<(&Address, &Address), usize> = HashMap::new();
        let mut together: HashMap<&Address, usize> = HashMap::new();
        for (checkpoint, now) in self.checkpoints.iter().zip(homes) {
            if let Some(before) = &checkpoint.home {
                *moves.entry((before, now)).or_default() += 1;
                *together.entry(before).or_default() += 1;
            }
        }
        self.checkpoints.iter().zip(homes).position(|(checkpoint, now)| {
            let Some(before) = checkpoint.home.as_ref().filter(|_| checkpoint.covers_alone) else {
                return false;
            };
            // A server that is replaced takes all its checkpoints along.
            moves.get(&(before, now)).copied().unwrap_or(0) * 2
                <= together.get(before).copied().unwrap_or(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn homes(ports: &[u16]) -> Vec<Address> {
        ports.iter().map(|&port| Address { host: "h".into(), port }).collect()
    }

    /// Five checkpoints, three of them on the first server, with a batch after the first.
    fn state() -> OwnState {
        let mut state = OwnState {
            mode: Mode::Worker,
            checkpoints: vec![OwnCheckpoint::default(); 5],
            ..OwnState::default()
        };
        for checkpoint in 0..5 {
            state.note_advance(checkpoint, 1, 9);
        }
        state.note_all_advanced(homes(&[1, 1, 1, 2, 2]));
        let draft = state.draft(0).unwrap();
        state.note_write(draft.write);
        state
    }

    #[test]
    fn an_unused_number_is_drawn_again() {
        let own_checkpoints = OwnCheckpoints::new(2);
        own_checkpoints.change(|state| state.mode = Mode::Worker);
        let first = own_checkpoints.change(|state| state.draft(1)).unwrap();
        assert_eq!((first.expected, first.write.number), (0, 1));
        own_checkpoints.not_done(first.write);
        assert_eq!(own_checkpoints.change(|state| state.draft(1)), Some(first));
        assert_eq!(
            own_checkpoints.change(|state| state.draft(1)).map(|next| next.expected),
            Some(1)
        );
    }

    #[test]
    fn a_checkpoint_that_left_its_server_alone_after_a_batch_leaves_a_doubt() {
        let state = state();
        assert_eq!(state.doubtful(&homes(&[1, 1, 1, 2, 2])), None, "nothing moved");
        assert_eq!(state.doubtful(&homes(&[3, 3, 3, 2, 2])), None, "a replica took over");
        assert_eq!(state.doubtful(&homes(&[1, 2, 1, 2, 2])), None, "another checkpoint moved");
        assert_eq!(state.doubtful(&homes(&[2, 1, 1, 2, 2])), Some(0));
    }

    #[test]
    fn no_doubt_is_left_once_all_checkpoints_advanced() {
        let mut state = state();
        state.note_all_advanced(homes(&[1, 1, 1, 2, 2]));
        assert_eq!(state.doubtful(&homes(&[2, 1, 1, 2, 2])), None);
        state.uncovered = homes(&[3]);
        assert_eq!(
            state.doubtful(&homes(&[1, 1, 1, 2, 2])),
            Some(0),
            "a server without checkpoints"
        );
        state.note_all_advanced(homes(&[1, 1, 3, 2, 2]));
        assert_eq!(state.doubtful(&homes(&[1, 1, 1, 2, 2])), None, "it has one now");
    }
}
