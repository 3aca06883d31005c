//! The owed heals, as far as this worker knows. A heal is owed if the history could not be read
//! when it was due, or if events went to the history alone.
//!
//! `heal_beside.rs` does them beside live workers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tracing::{error, warn};

use super::heal_record::now_ms;
use super::low_watermark::Watermark;
use crate::cache::{Cache, HealFrom, OwedHeal};
use crate::config::Config;
use crate::ops::heal::window;

/// The owed heals, as far as this worker knows.
#[derive(Debug)]
pub(super) struct OwedHeals {
    state: Mutex<State>,
    watermark: Watermark,
    /// Time that a heal reaches back without a low watermark. `None` if this worker cannot heal.
    window: Option<SignedDuration>,
    /// Notified when there is something to save.
    pub(super) unsaved: Notify,
    pub(super) saved: Notify,
    /// Notified when there is something to heal.
    pub(super) due: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// An owed heal that Redis does not hold yet.
    pub(super) unsaved: Option<OwedHeal>,
    /// True if Redis held an owed heal at the last tick.
    pub(super) any: bool,
    /// True if the last tick showed a heal that was done only by rules other than this worker's.
    pub(super) by_other_rules: bool,
    /// The connection of a heal that has begun and has not ended.
    pub(super) healing: Option<Arc<Cache>>,
    pub(super) tried_at: Option<Instant>,
    /// The last logged cause.
    pub(super) logged: Option<String>,
}

impl OwedHeals {
    /// Returns no owed heal. One that is owed later begins at the low watermark.
    pub(super) fn new(config: &Config, watermark: Watermark) -> Self {
        let can_heal = config.heals() && config.amqp.history.is_some();
        Self {
            state: Mutex::default(),
            watermark,
            window: can_heal.then(|| window(config)),
            unsaved: Notify::new(),
            saved: Notify::new(),
            due: Notify::new(),
        }
    }

    /// Owes a heal from the low watermark on, since events may be in the history alone. Callers
    /// must wait until Redis can be used. Only then is the low watermark of stopped workers known.
    pub(super) fn owe_from_low(&self, cause: &str) {
        let Some(window) = self.window else {
            error!(
                "{cause}; nothing makes up for it without a history and healing: flush what must be right"
            );
            return;
        };
        let watermark = self.watermark.now();
        // If no low watermark exists, the heal begins UNSTALE_HEAL_WINDOW ago, or as long before
        // the history's end.
        let from =
            if watermark.time_ms == 0 { HealFrom::default() } else { HealFrom::low(watermark) }
                .or_window(window, Timestamp::now());
        warn!("{cause}; the history is applied again");
        self.owe(from, cause);
    }

    /// Owes a heal if a queue or the exchange was deleted, and waits until Redis holds that.
    pub(super) async fn owe_what_was_deleted(&self, was_deleted: &mut bool) {
        if std::mem::take(was_deleted) {
            self.owe_from_low(
                "a queue or the exchange was deleted: events may have gone to the history alone",
            );
        }
        self.saved().await;
    }

    /// Owes a heal from that place on. Redis holds it within a moment, and a worker does it.
    pub(super) fn owe(&self, from: HealFrom, cause: impl Into<String>) {
        let owed = OwedHeal::new(from, cause, now_ms());
        self.change(|state| match &mut state.unsaved {
            Some(before) => before.from = before.from.earlier(owed.from),
            unsaved => *unsaved = Some(owed),
        });
        self.unsaved.notify_one();
    }

    /// Waits until Redis holds all heals owed so far. From then on they survive the death of this
    /// worker.
    pub(super) async fn saved(&self) {
        loop {
            let saved = self.saved.notified();
            if self.change(|state| state.unsaved.is_none()) {
                return;
            }
            saved.await;
        }
    }

    /// Returns whether a heal is owed that Redis does not hold yet.
    pub(super) fn is_unsaved(&self) -> bool {
        self.change(|state| state.unsaved.is_some())
    }

    /// Returns whether any heal is owed.
    pub(super) fn any(&self) -> bool {
        self.change(|state| state.any || state.unsaved.is_some())
    }

    /// Notes that Redis holds an owed heal with that cause. The cause is logged, and the heal is
    /// tried again later.
    pub(super) fn knows(&self, cause: String) {
        self.change(|state| {
            (state.any, state.tried_at, state.logged) = (true, Some(Instant::now()), Some(cause))
        });
    }

    /// Evaluates the result of the last tick.
    pub(super) fn saw(&self, owed: Option<OwedHeal>, by_other_rules: bool) {
        let is_news = self.change(|state| {
            let is_news =
                (owed.is_some() && !state.any) || (by_other_rules && !state.by_other_rules);
            (state.any, state.by_other_rules) = (owed.is_some(), by_other_rules);
            if is_news {
                state.tried_at = None;
            }
            is_news
        });
        if is_news {
            self.due.notify_one();
        }
    }

    /// Gives up the turn to heal beside live workers, if this worker has it. Notes that this worker
    /// did not die of the heal.
    pub(super) async fn stop_healing(&self) {
        if let Some(cache) = self.change(|state| state.healing.clone())
            && cache.yield_heal_of(cache.id()).await.is_ok()
        {
            self.change(|state| state.healing = None);
        }
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
