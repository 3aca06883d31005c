//! The marks of the queues, as far as this worker knows, and what one look finds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use crate::broker::Session;

/// The marks, as far as this worker knows.
#[derive(Debug, Default)]
pub(in crate::worker) struct QueueMarks(Mutex<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    /// How often each mark was made when this worker last saw it.
    pub(super) made: BTreeMap<String, u64>,
    /// Queues whose mark this session has made or bound, or may not make.
    pub(super) settled: BTreeSet<String>,
    /// Queues whose mark the broker does not show to this session.
    pub(super) hidden: BTreeSet<String>,
}

/// Findings of one look.
#[derive(Debug, Default)]
pub(in crate::worker) struct Look {
    /// Each queue of which the broker shows whether it has a mark.
    pub(super) queues: Vec<Found>,
}

/// A queue of which the broker shows whether it has a mark.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) queue: String,
    pub(super) has_mark: bool,
    /// How often Redis says that the mark was made.
    pub(super) held: Option<u64>,
    /// How often the mark was made, by Redis or by the memory of this worker.
    pub(super) made: Option<u64>,
    /// The queue was deleted since this worker, or an earlier one, saw the mark.
    pub(super) is_replaced: bool,
}

impl Look {
    /// Returns whether a queue was deleted and declared again.
    pub(in crate::worker) fn any_replaced(&self) -> bool {
        self.queues.iter().any(|found| found.is_replaced)
    }

    /// Returns whether one of the queues with consumers was. They need a new session.
    pub(in crate::worker) fn lane_is_replaced(&self, session: &Session) -> bool {
        let lanes = [&session.names().main, &session.names().slow];
        self.queues.iter().any(|found| found.is_replaced && lanes.contains(&&found.queue))
    }
}

impl QueueMarks {
    /// Notes that a session begins.
    pub(in crate::worker) fn session_begins(&self) {
        self.change(|state| {
            state.settled.clear();
            state.hidden.clear();
        });
    }

    pub(super) fn found(&self, queue: &str, has_mark: bool, held: Option<u64>) -> Found {
        let ours = self.change(|state| state.made.get(queue).copied());
        let made = ours.max(held);
        let is_replaced =
            if has_mark { ours.is_some_and(|ours| made > Some(ours)) } else { made.is_some() };
        Found { queue: queue.to_owned(), has_mark, held, made, is_replaced }
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_replaced_if_its_mark_is_gone_or_was_made_again() {
        let marks = QueueMarks::default();
        let is_replaced = |has_mark, held| marks.found("q", has_mark, held).is_replaced;
        assert!(!is_replaced(false, None), "no worker has made it yet");
        assert!(!is_replaced(true, None) && !is_replaced(true, Some(3)), "a new worker");
        assert!(is_replaced(false, Some(3)), "an earlier worker has made it");
        marks.change(|state| state.made.insert("q".to_owned(), 3));
        assert!(!is_replaced(true, Some(3)));
        assert!(!is_replaced(true, Some(2)) && !is_replaced(true, None), "Redis went back");
        assert!(is_replaced(true, Some(4)), "another worker has noticed it");
        assert!(is_replaced(false, None), "this worker has seen it");
    }
}
