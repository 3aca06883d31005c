//! Where this process stands among the marks: which numbers it has sent, and which it knows to be
//! there.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::super::address::Address;
use super::LowWatermark;

/// What this process knows of its marks.
#[derive(Debug)]
pub(in crate::cache) struct Chain {
    state: Mutex<State>,
    /// Held while a seal is made and sent with what it stands behind.
    pub(super) order: Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) mode: Mode,
    /// As in the last tick, for the seals until the next.
    pub(super) low: LowWatermark,
    /// One a hash.
    pub(super) marks: Vec<Mark>,
    /// Primaries of a cluster that did something while none of the marks lay there.
    pub(super) uncovered: Vec<Address>,
}

/// Our field of one hash.
#[derive(Debug, Clone, Default)]
pub(super) struct Mark {
    /// The number sent last.
    pub(super) sent: u64,
    /// The number confirmed last, and the server's clock when it last said the time; nothing before
    /// the first.
    pub(super) confirmed: Option<(u64, u64)>,
    /// The number sent last for the lock.
    pub(super) lock: u64,
    /// The server's clock when we took the lock.
    pub(super) lock_since_ms: u64,
    /// In a cluster: who served it at the last tick.
    pub(super) home: Option<Address>,
    /// In a cluster: it alone of its server's marks stands behind the latest batch there.
    pub(super) is_ahead: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    /// Commands of people have no field, and their batches no seals.
    #[default]
    Off,
    Worker,
    Healer,
}

/// What stands behind a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) struct Seal {
    pub(super) mode: Mode,
    /// As a place in [`State::marks`].
    pub(super) mark: usize,
    pub(super) number: u64,
}

/// How a seal is to be made.
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

    /// Returns whether a heal after a loss is ours.
    pub(in crate::cache) fn heals(&self) -> bool {
        self.change(|state| state.mode == Mode::Healer)
    }

    /// Whether batches are sealed.
    pub(in crate::cache) fn seals(&self) -> bool {
        self.change(|state| state.mode != Mode::Off)
    }

    /// That seal was not done, for certain, and nothing was sent behind it: its number is free
    /// again.
    pub(in crate::cache) fn not_done(&self, Seal { mode, mark, .. }: Seal) {
        self.change(|state| match mode {
            Mode::Worker => state.marks[mark].sent -= 1,
            Mode::Healer => state.marks[mark].lock -= 1,
            Mode::Off => {}
        });
    }

    /// A server did something, and has no mark that could stand behind it.
    pub(in crate::cache) fn leaves_uncovered(&self, server: &Address) {
        self.change(|state| {
            if !state.uncovered.contains(server) {
                state.uncovered.push(server.clone());
            }
        });
    }
}

impl Seal {
    /// As a place among the marks.
    pub(in crate::cache) fn mark(self) -> usize {
        self.mark
    }
}

impl State {
    /// The next number of a mark or its lock.
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

    /// That seal is there.
    pub(super) fn sealed(&mut self, Seal { mode, mark, number }: Seal) {
        let mark = &mut self.marks[mark];
        if let (Some((confirmed, _)), Mode::Worker) = (&mut mark.confirmed, mode) {
            *confirmed = (*confirmed).max(number);
            mark.is_ahead = true;
        }
    }

    /// A mark moved on with the others, at that time by its server's clock.
    pub(super) fn moved_on(&mut self, mark: usize, number: u64, now_ms: u64) {
        let mark = &mut self.marks[mark];
        let number = mark.confirmed.map_or(number, |(confirmed, _)| confirmed.max(number));
        mark.confirmed = Some((number, now_ms));
    }

    /// All marks moved on, and were there; the connections have stood since they did so last. So a
    /// mark that a server has come by stands behind all that it did.
    pub(super) fn all_moved_on(&mut self, homes: Vec<Address>) {
        self.uncovered.retain(|server| !homes.contains(server));
        let homes = homes.into_iter().map(Some).chain(std::iter::repeat(None));
        for (mark, home) in self.marks.iter_mut().zip(homes) {
            mark.home = home;
            mark.is_ahead = false;
        }
    }

    /// A mark by which it cannot be told whether a server went back, though all are as they must
    /// be; `homes` are where they are now. One that stood alone behind a batch and has left the
    /// server: what that one lost since, the others there do not tell.
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
            // A server that is replaced takes all its marks along.
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

    /// Five marks, three of them at the first server, with a batch behind the first.
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
