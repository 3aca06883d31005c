//! Heals that are owed: the history could not be read when they were due, or events went to the history alone. They are done beside live
//! workers, which is safe at any time.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::cache::HealFrom;

/// The heals that this worker knows to be owed and that Redis does not hold yet.
#[derive(Debug, Default)]
pub(super) struct Owed {
    unsaved: Mutex<Option<(HealFrom, String)>>,
    changed: Notify,
}

impl Owed {
    /// Owes a heal from that place on. Redis holds it within a moment, and a worker pays it.
    pub(super) fn owe(&self, from: HealFrom, cause: impl Into<String>) {
        let mut unsaved = self.unsaved.lock().unwrap_or_else(PoisonError::into_inner);
        let from = unsaved.as_ref().map_or(from, |(before, _)| before.earlier(from));
        *unsaved = Some((from, cause.into()));
        self.changed.notify_one();
    }
}
