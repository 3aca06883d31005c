//! Evidence that an object was deleted, and had to be declared anew: events may be in the history
//! alone since.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::queue_specs::Kind;
use super::topology::Depth;

/// Evidence that outlives the attempt that found it: a session that cannot begin after all, or a
/// look that is broken off.
#[derive(Debug, Clone, Default)]
pub struct DeletionSeen(Arc<AtomicBool>);

impl DeletionSeen {
    /// Returns whether there is any, and keeps it.
    pub fn is_noted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Returns whether there is any, and forgets it: a heal is owed now.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

/// A declaration of what was missing. Dropped, it notes the evidence: also where no answer came,
/// since the broker may have declared the object all the same.
#[derive(Debug)]
pub(super) struct Declaring<'d>(Option<&'d DeletionSeen>);

impl<'d> Declaring<'d> {
    /// Returns one of an object of that kind. `seen` is `None` where nothing existed before.
    pub(super) fn new(seen: Option<&'d DeletionSeen>, kind: Kind, depth: Depth) -> Self {
        Self(seen.filter(|_| owes_heal(kind, depth)))
    }

    /// Notes nothing: the broker refused to declare it.
    pub(super) fn refused(mut self) {
        self.0 = None;
    }
}

impl Drop for Declaring<'_> {
    fn drop(&mut self) {
        if let Some(seen) = self.0 {
            seen.0.store(true, Ordering::SeqCst);
        }
    }
}

/// A retry queue that is new at the start belongs to a changed schedule; one that vanishes later
/// took its messages along.
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
        Declaring::new(Some(&seen), Kind::Main, Depth::Arguments).refused();
        drop(Declaring::new(Some(&seen), Kind::Retry, Depth::Arguments));
        drop(Declaring::new(Some(&seen), Kind::Dead, Depth::Existence));
        drop(Declaring::new(None, Kind::Main, Depth::Arguments));
        assert!(!seen.is_noted());
        drop(Declaring::new(Some(&seen), Kind::Slow, Depth::Arguments));
        assert!(seen.is_noted() && seen.take() && !seen.take());
    }
}
