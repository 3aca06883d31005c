//! The checkpoints of this process: the numbers that it has sent, and those that Redis confirmed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::super::address::Address;
use super::LowWatermark;

/// Knowledge of this process about its checkpoints.
#[derive(Debug)]
pub(in crate::cache) struct Chain {
    state: Mutex<State>,
    /// Lock that is held while a checkpoint write is made and sent with its batch.
    pub(super) order: Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) mode: Mode,
    /// Low watermark of the last tick, which the writes until the next one repeat.
    pub(super) low: LowWatermark,
    /// One for each hash.
    pub(super) marks: Vec<Mark>,
    /// Primaries of a cluster that ran commands while they had no checkpoint.
    pub(super) uncovered: Vec<Address>,
}

/// Our field of one hash.
#[derive(Debug, Clone, Default)]
pub(super) struct Mark {
    /// Number sent last.
    pub(super) sent: u64,
    /// Number confirmed last, and the server's clock when it last sent its time; `None` before the
    /// first.
    pub(super) confirmed: Option<(u64, u64)>,
    /// Number sent last for the lock.
    pub(super) lock: u64,
    /// Server's clock when we took the lock.
    pub(super) lock_since_ms: u64,
    /// In a cluster: the node that served it at the last tick.
    pub(super) home: Option<Address>,
    /// In a cluster: whether it is the only checkpoint behind the latest batch on its node.
    pub(super) is_ahead: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    /// Commands of operators have no field, and their batches no checkpoint.
    #[default]
    Off,
    Worker,
    Healer,
}

/// A checkpoint write behind a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) struct Seal {
    pub(super) mode: Mode,
    /// Place in [`OwnState::checkpoints`].
    pub(super) mark: usize,
    pub(super) number: u64,
}

/// Content of a checkpoint write that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) seal: Seal,
    pub(super) expected: u64,
    pub(super) low_ms: u64,
}

impl Chain {
    pub(in crate::cache) fn new(marks: usize) -> Self {
        let state = State { marks: vec![Mark::default(); marks], ..State::default() };
        Self { state: Mutex::new(state), order: Mutex::default() }
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns whether this process has the turn to heal after a loss.
    pub(in crate::cache) fn heals(&self) -> bool {
        self.change(|state| state.mode == Mode::Healer)
    }

    /// Returns whether batches write checkpoints.
    pub(in crate::cache) fn seals(&self) -> bool {
        self.change(|state| state.mode != Mode::Off)
    }

    /// Frees the number of a write that certainly was not done, with nothing sent behind it.
    pub(in crate::cache) fn not_done(&self, Seal { mode, mark, .. }: Seal) {
        self.change(|state| match mode {
            Mode::Worker => state.marks[mark].sent -= 1,
            Mode::Healer => state.marks[mark].lock -= 1,
            Mode::Off => {}
        });
    }

    /// Notes that a server ran commands and has no checkpoint that could be written behind them.
    pub(in crate::cache) fn leaves_uncovered(&self, server: &Address) {
        self.change(|state| {
            if !state.uncovered.contains(server) {
                state.uncovered.push(server.clone());
            }
        });
    }
}

impl Seal {
    /// Returns its place among the checkpoints.
    pub(in crate::cache) fn mark(self) -> usize {
        self.mark
    }
}

impl State {
    /// Draws the next number of a checkpoint or its lock.
    pub(super) fn draft(&mut self, mark: usize) -> Option<Draft> {
        let last = match self.mode {
            Mode::Off => return None,
            Mode::Worker => &mut self.marks[mark].sent,
            Mode::Healer => &mut self.marks[mark].lock,
        };
        let expected = *last;
        *last += 1;
        Some(Draft {
            seal: Seal { mode: self.mode, mark, number: *last },
            expected,
            low_ms: self.low.time_ms,
        })
    }

    /// Notes that a write was done.
    pub(super) fn sealed(&mut self, Seal { mode, mark, number }: Seal) {
        let mark = &mut self.marks[mark];
        if let (Some((confirmed, _)), Mode::Worker) = (&mut mark.confirmed, mode) {
            *confirmed = (*confirmed).max(number);
            mark.is_ahead = true;
        }
    }

    /// Notes that a tick advanced a checkpoint, at that time by its server's clock.
    pub(super) fn moved_on(&mut self, mark: usize, number: u64, now_ms: u64) {
        let mark = &mut self.marks[mark];
        let number = mark.confirmed.map_or(number, |(confirmed, _)| confirmed.max(number));
        mark.confirmed = Some((number, now_ms));
    }

    /// Notes that a tick advanced all checkpoints over connections that have lasted since the
    /// previous tick. So a checkpoint that has come to a server covers all that the server did.
    pub(super) fn all_moved_on(&mut self, homes: Vec<Address>) {
        self.uncovered.retain(|server| !homes.contains(server));
        let homes = homes.into_iter().map(Some).chain(std::iter::repeat(None));
        for (mark, home) in self.marks.iter_mut().zip(homes) {
            mark.home = home;
            mark.is_ahead = false;
        }
    }

    /// Returns a checkpoint that leaves a doubt whether a server lost writes, though all numbers
    /// are right. `homes` are the nodes that serve them now.
    ///
    /// The doubt is a checkpoint that alone covered a batch and has left its server. The others
    /// there do not show what that server lost since.
    pub(super) fn doubtful(&self, homes: &[Address]) -> Option<usize> {
        if !self.uncovered.is_empty() {
            return Some(0);
        }
        let mut moves: HashMap<(&Address, &Address), usize> = HashMap::new();
        let mut together: HashMap<&Address, usize> = HashMap::new();
        for (mark, now) in self.marks.iter().zip(homes) {
            if let Some(before) = &mark.home {
                *moves.entry((before, now)).or_default() += 1;
                *together.entry(before).or_default() += 1;
            }
        }
        self.marks.iter().zip(homes).position(|(mark, now)| {
            let Some(before) = mark.home.as_ref().filter(|_| mark.is_ahead) else { return false };
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

    /// Five checkpoints, three of them on the first server, with a batch behind the first.
    fn state() -> State {
        let mut state =
            State { mode: Mode::Worker, marks: vec![Mark::default(); 5], ..State::default() };
        for mark in 0..5 {
            state.moved_on(mark, 1, 9);
        }
        state.all_moved_on(homes(&[1, 1, 1, 2, 2]));
        let draft = state.draft(0).unwrap();
        state.sealed(draft.seal);
        state
    }

    #[test]
    fn a_number_that_was_not_used_is_used_again() {
        let chain = Chain::new(2);
        chain.change(|state| state.mode = Mode::Worker);
        let first = chain.change(|state| state.draft(1)).unwrap();
        assert_eq!((first.expected, first.seal.number), (0, 1));
        chain.not_done(first.seal);
        assert_eq!(chain.change(|state| state.draft(1)), Some(first));
        assert_eq!(chain.change(|state| state.draft(1)).map(|next| next.expected), Some(1));
    }

    #[test]
    fn a_mark_that_left_its_server_alone_right_after_a_batch_leaves_a_doubt() {
        let state = state();
        assert_eq!(state.doubtful(&homes(&[1, 1, 1, 2, 2])), None, "nothing moved");
        assert_eq!(state.doubtful(&homes(&[3, 3, 3, 2, 2])), None, "a replica took over");
        assert_eq!(state.doubtful(&homes(&[1, 2, 1, 2, 2])), None, "another mark moved");
        assert_eq!(state.doubtful(&homes(&[2, 1, 1, 2, 2])), Some(0));
    }

    #[test]
    fn once_all_have_moved_on_nothing_hangs_on_one() {
        let mut state = state();
        state.all_moved_on(homes(&[1, 1, 1, 2, 2]));
        assert_eq!(state.doubtful(&homes(&[2, 1, 1, 2, 2])), None);
        state.uncovered = homes(&[3]);
        assert_eq!(state.doubtful(&homes(&[1, 1, 1, 2, 2])), Some(0), "a server without marks");
        state.all_moved_on(homes(&[1, 1, 3, 2, 2]));
        assert_eq!(state.doubtful(&homes(&[1, 1, 1, 2, 2])), None, "it has one now");
    }
}
