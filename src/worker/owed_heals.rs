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
use crate::cache::{
    Acknowledged, Cache, Checkpoints, CommandError, HealFrom, LostEvents, LowWatermark, OwedHeal,
};
use crate::config::Config;
use crate::ops::heal::window;

/// The owed heals, as far as this worker knows.
#[derive(Debug)]
pub(super) struct OwedHeals {
    state: Mutex<State>,
    watermark: Watermark,
    /// Time that a heal reaches back without a low watermark.
    window: SignedDuration,
    /// True if there is a history, and healing is on.
    can_heal: bool,
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
    /// The low watermark of the last look that found no queue replaced.
    pub(super) low_at_look: Option<LowWatermark>,
    /// Span from which events may be lost.
    pub(super) lost: Option<LostEvents>,
    /// True if Redis does not hold that span yet.
    lost_is_new: bool,
    /// The last logged cause.
    pub(super) logged: Option<String>,
}

impl OwedHeals {
    /// Returns no owed heal. One that is owed later begins at the low watermark.
    pub(super) fn new(config: &Config, watermark: Watermark) -> Self {
        Self {
            state: Mutex::default(),
            watermark,
            window: window(config),
            can_heal: config.heals() && config.amqp.history.is_some(),
            unsaved: Notify::new(),
            saved: Notify::new(),
            due: Notify::new(),
        }
    }

    /// Owes a heal from the low watermark on, since events may be in the history alone. Callers
    /// must wait until Redis can be used. Only then is the low watermark of stopped workers known.
    pub(super) fn owe_from_low(&self, cause: &str) {
        // The watermark passes a queue that looks empty, also if somebody has just replaced it.
        let now = self.watermark.now();
        let watermark = self.change(|state| state.low_at_look).map_or(now, |low| low.lower(now));
        self.owe_from(
            if watermark.time_ms == 0 { HealFrom::default() } else { HealFrom::low(watermark) },
            cause,
        );
    }

    /// Notes the low watermark from before a look that found no queue replaced.
    pub(super) fn looked(&self, low: LowWatermark) {
        self.change(|state| state.low_at_look = Some(low));
    }

    /// Owes a heal as [`owe_from_low`](Self::owe_from_low) does, from that place on.
    ///
    /// If there is no place, the heal begins `UNSTALE_HEAL_WINDOW` ago, or as long before the
    /// history's end.
    pub(super) fn owe_from(&self, from: HealFrom, cause: &str) {
        if self.can_heal {
            warn!("{cause}; the history is applied again");
            self.owe(from.or_window(self.window, Timestamp::now()), cause);
            return;
        }
        error!(
            "{cause}; without a history and healing, these events cannot be applied again: delete the keys that must be correct"
        );
        let now_ms = now_ms();
        let from = from.or_window(self.window, Timestamp::now());
        let from_ms = from.time.and_then(|time| u64::try_from(time.as_millisecond()).ok());
        self.lose(LostEvents {
            from_ms: from_ms.unwrap_or(0).min(now_ms),
            until_ms: now_ms,
            noticed_ms: now_ms,
        });
    }

    /// Notes that events of that span may be lost. Redis holds it as of the next tick.
    pub(super) fn lose(&self, lost: LostEvents) {
        error!(
            "events between {} and {} may be lost: no queue and no history holds them any more. Keys that they would have invalidated may be \
             stale; publish the events of that time again, or delete keys that must be correct",
            text_of(lost.from_ms),
            text_of(lost.until_ms),
        );
        self.change(|state| {
            state.lost = Some(state.lost.map_or(lost, |before| before.and(lost)));
            state.lost_is_new = true;
        });
    }

    /// Saves in Redis that events may be lost, also after Redis went back. Forgets a span that an
    /// operator has acknowledged.
    pub(super) async fn note_lost(
        &self,
        cache: &Cache,
        marks: &Checkpoints,
    ) -> Result<(), CommandError> {
        let acknowledged_ms = marks.acknowledged_ms(Acknowledged::LostEvents);
        let lost = self.change(|state| {
            if let Some(lost) = state.lost.as_mut().filter(|_| state.lost_is_new) {
                *lost = lost.noticed_at(marks);
            }
            state.lost_is_new = false;
            state.lost = state.lost.filter(|lost| acknowledged_ms < Some(lost.noticed_ms));
            state.lost
        });
        match lost {
            Some(lost) => cache.note_lost(marks, lost).await,
            None => Ok(()),
        }
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

/// Returns a time in milliseconds since the Unix epoch as text.
fn text_of(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.unwrap_or(Timestamp::MAX).to_string()
}
