//! Evidence that an object was deleted and declared again.
//!
//! Events may be in the history alone since the deletion. A history that was declared again holds
//! nothing from before.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::queue_specs::Kind;

/// Depth of the check of existing objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Compares the arguments too, at the start of a session.
    Arguments,
    /// Checks existence only, later: a queue's arguments cannot change.
    Existence,
}

/// Evidence that outlives its attempt, such as a session that fails to begin or an interrupted
/// check.
#[derive(Debug, Clone, Default)]
pub struct DeletionSeen(Arc<Evidence>);

#[derive(Debug, Default)]
struct Evidence {
    is_noted: AtomicBool,
    /// The main queue was declared, and neither it nor the history existed.
    neither_existed: AtomicBool,
    /// The history was declared.
    declared_history: AtomicBool,
    /// Missing objects that this worker does not declare.
    missing: Mutex<BTreeSet<String>>,
}

impl DeletionSeen {
    /// Returns whether there is evidence, and keeps it.
    pub fn is_noted(&self) -> bool {
        self.0.is_noted.load(Ordering::SeqCst)
    }

    /// Returns whether there is evidence, and clears it: a heal is owed now.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.is_noted.swap(false, Ordering::SeqCst)
    }

    fn note(&self) {
        self.0.is_noted.store(true, Ordering::SeqCst);
    }

    /// Returns whether neither the main queue nor the history existed before the first session.
    pub fn neither_existed(&self) -> bool {
        self.0.neither_existed.load(Ordering::SeqCst)
    }

    /// Notes that the first session has begun, so that missing objects existed before.
    pub fn objects_exist(&self) {
        self.0.neither_existed.store(false, Ordering::SeqCst);
    }

    /// Returns whether this worker declared the history, and clears it.
    #[must_use]
    pub fn take_declared_history(&self) -> bool {
        self.0.declared_history.swap(false, Ordering::SeqCst)
    }

    fn declared(&self, shows: Shows) {
        match shows {
            Shows::Nothing => {}
            Shows::Deletion => self.note(),
            Shows::NeitherExisted => self.0.neither_existed.store(true, Ordering::SeqCst),
            Shows::NewHistory => self.0.declared_history.store(true, Ordering::SeqCst),
        }
    }

    /// Notes whether an object that this worker does not declare exists during the session.
    ///
    /// Its absence is evidence once, until it exists again.
    pub(super) fn looked_at(&self, kind: Kind, object: &str, exists: bool) {
        if !owes_heal(kind, Depth::Existence) {
            return;
        }
        let mut missing = self.0.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if exists {
            missing.remove(object);
        } else if missing.insert(object.to_owned()) {
            self.note();
        }
    }
}

/// Evidence that the declaration of a missing object gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shows {
    Nothing,
    /// Events may be in the history alone.
    Deletion,
    /// Neither the main queue nor the history existed. Only the checkpoints in Redis show whether
    /// this is a first start.
    NeitherExisted,
    /// The history holds nothing from before.
    NewHistory,
}

/// Declaration of a missing object.
///
/// Dropping it notes the evidence, even if no answer came, because the broker may have declared the
/// object.
#[derive(Debug)]
pub(super) struct Declaring<'d> {
    seen: &'d DeletionSeen,
    shows: Shows,
}

impl<'d> Declaring<'d> {
    /// Returns the declaration of an object of that kind. `is_first`: the first session found no
    /// history.
    pub(super) fn new(seen: &'d DeletionSeen, is_first: bool, kind: Kind, depth: Depth) -> Self {
        let shows = match kind {
            Kind::History => Shows::NewHistory,
            Kind::Main if is_first => Shows::NeitherExisted,
            _ if !is_first && owes_heal(kind, depth) => Shows::Deletion,
            _ => Shows::Nothing,
        };
        Self { seen, shows }
    }

    /// Notes nothing, because the broker refused to declare it.
    pub(super) fn refused(mut self) {
        self.shows = Shows::Nothing;
    }
}

impl Drop for Declaring<'_> {
    fn drop(&mut self) {
        self.seen.declared(self.shows);
    }
}

/// Returns whether a declaration owes a heal.
///
/// A new retry queue at the start belongs to a changed schedule. A retry queue that vanishes later
/// takes its messages along.
pub(super) fn owes_heal(kind: Kind, depth: Depth) -> bool {
    match kind {
        Kind::Exchange | Kind::Main | Kind::Slow => true,
        Kind::Retry => depth == Depth::Existence,
        Kind::Dead | Kind::History => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_is_evidence_unless_it_was_refused() {
        let seen = DeletionSeen::default();
        let declare = |is_first, kind, depth| Declaring::new(&seen, is_first, kind, depth);
        declare(false, Kind::Main, Depth::Arguments).refused();
        declare(true, Kind::Main, Depth::Arguments).refused();
        drop(declare(false, Kind::Retry, Depth::Arguments));
        drop(declare(false, Kind::Dead, Depth::Existence));
        drop(declare(true, Kind::Slow, Depth::Arguments));
        assert!(!seen.is_noted() && !seen.neither_existed() && !seen.take_declared_history());
        drop(declare(false, Kind::Slow, Depth::Arguments));
        assert!(seen.is_noted() && seen.take() && !seen.take());
        drop(declare(true, Kind::Main, Depth::Arguments));
        assert!(seen.neither_existed() && !seen.is_noted());
        drop(declare(true, Kind::History, Depth::Arguments));
        assert!(seen.take_declared_history() && !seen.take_declared_history());
    }

    #[test]
    fn what_others_declare_is_evidence_once_each_time_that_it_is_missing() {
        let seen = DeletionSeen::default();
        let look = |kind, object, exists| {
            seen.looked_at(kind, object, exists);
            seen.take()
        };
        assert!(!look(Kind::Main, "main", true));
        assert!(look(Kind::Retry, "retry", false));
        assert!(!look(Kind::Retry, "retry", false), "the heal is owed by now");
        assert!(look(Kind::Exchange, "events", false), "another one");
        assert!(!look(Kind::Retry, "retry", true));
        assert!(look(Kind::Retry, "retry", false), "it was deleted once more");
        assert!(!look(Kind::Dead, "dead", false) && !look(Kind::History, "history", false));
    }
}
