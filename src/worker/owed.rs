//! Runs heals beside live workers, which is safe at any time.
//!
//! - Owed heals: the history could not be read when they were due, or events went to the history
//!   alone.
//! - Heals by the rules of this worker, after another worker healed by its own rules.
//!
//! Heals before the gate opens are in `healing.rs`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::healing::{LEFT_OUT, outage};
use super::{Live, Shared, birth};
use crate::cache::{
    self, Cache, Checkpoints, FieldChange, HealDetails, HealFrom, HealTurn, Outage, OwedHeal,
};
use crate::causes::Explain;
use crate::ops::heal::{HealGuard, Healed, heal};

/// Time between two attempts at a heal.
const AGAIN: Duration = Duration::from_secs(30);

/// Time before an owed heal that Redis did not accept is saved again.
const SAVE_AGAIN: Duration = Duration::from_secs(1);

/// The owed heals, as far as this worker knows.
#[derive(Debug, Default)]
pub(super) struct Owed {
    state: Mutex<State>,
    /// Notified when there is something to save.
    unsaved: Notify,
    saved: Notify,
    /// Notified when there is something to heal.
    due: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// An owed heal that Redis does not hold yet.
    unsaved: Option<OwedHeal>,
    /// True if Redis held an owed heal at the last tick.
    any: bool,
    /// True if the last tick showed a heal that was done only by rules other than this worker's.
    by_other_rules: bool,
    /// The connection of a heal that has begun and has not ended.
    healing: Option<Arc<Cache>>,
    tried_at: Option<Instant>,
    /// The last logged cause.
    logged: Option<String>,
}

impl Owed {
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

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Saves and does the owed heals until `stop`. Saving does not wait for a heal, which may read days
/// of history. A crash must not forget an owed heal, and nothing is consumed until Redis holds it.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    if !shared.config.heals() {
        return;
    }
    let save = async {
        loop {
            shared.gate.open().await;
            match save_once(&shared.owed, &shared.cache).await {
                Ok(()) => shared.owed.unsaved.notified().await,
                Err(outage) => {
                    debug!(cause = outage.in_full(), "Redis does not hold yet that a heal is owed");
                    let _ = tokio::time::timeout(SAVE_AGAIN, shared.owed.unsaved.notified()).await;
                }
            }
        }
    };
    let pay = async {
        loop {
            shared.gate.open().await;
            pay_if_due(&shared).await;
            let _ = tokio::time::timeout(AGAIN, shared.owed.due.notified()).await;
        }
    };
    stop.run_until_cancelled(async { tokio::join!(save, pay) }).await;
}

/// Saves in Redis each owed heal that it does not hold yet, then asks for the heal.
async fn save_once(owed: &Owed, cache: &Cache) -> Result<(), Outage> {
    while let Some(unsaved) = owed.change(|state| state.unsaved.clone()) {
        cache.owe_heal(&unsaved).await.map_err(outage)?;
        owed.change(|state| {
            (state.any, state.tried_at) = (true, None);
            if state.unsaved.as_ref() == Some(&unsaved) {
                state.unsaved = None;
            }
        });
        owed.saved.notify_waiters();
        owed.due.notify_one();
        warn!(cause = %unsaved.cause, from = %unsaved.from, "the history is applied again beside the events that come");
    }
    Ok(())
}

/// Does the heals that are due.
async fn pay_if_due(shared: &Shared) {
    let owed = &shared.owed;
    let due = owed.change(|state| {
        let due = state.tried_at.is_none_or(|at| at.elapsed() >= AGAIN);
        if due && (state.any || state.by_other_rules) {
            state.tried_at = Some(Instant::now());
            true
        } else {
            false
        }
    });
    if due && let Err(cause) = pay(shared).await {
        let is_news =
            owed.change(|state| state.logged.replace(cause.clone()).as_ref() != Some(&cause));
        if is_news {
            error!(%cause, retry_in_s = AGAIN.as_secs(), "a heal is owed and cannot be done: `unstale status` says what to do");
        }
    }
}

/// Takes the turn to heal beside live workers, and heals.
///
/// # Errors
/// Returns the cause for which the heal is still owed.
async fn pay(shared: &Shared) -> Result<(), String> {
    let Shared { config, .. } = shared;
    let redis = |outage: Outage| outage.in_full();
    // A heal that an outage of Redis interrupted.
    let before = shared.owed.change(|state| state.healing.clone());
    if let Some(before) = before {
        before.probe().await.map_err(redis)?;
        shared.owed.stop_healing().await;
    }
    let cache = Cache::connect(&config.redis, &config.amqp.queue)
        .map_err(|error| error.in_full())?
        .healing_beside();
    cache.probe().await.map_err(redis)?;
    let HealTurn::Ours(marks) = cache.take_heal_beside().await.map_err(outage).map_err(redis)?
    else {
        return Ok(());
    };
    let cache = Arc::new(cache);
    shared.owed.change(|state| state.healing = Some(Arc::clone(&cache)));
    let live = shared.live.load_full();
    let result = match Work::of(&marks, &live) {
        None => Ok(None),
        Some(work) => perform(shared, &live, &cache, &marks, &work).await.map(Some),
    };
    let changes =
        result.as_ref().map_or_else(|_| Vec::new(), |done| done.clone().unwrap_or_default());
    if result.is_err() {
        shared.owed.stop_healing().await;
    }
    cache.end_heal_beside(&changes).await.map_err(outage).map_err(redis)?;
    shared.owed.change(|state| {
        state.healing = None;
        if !changes.is_empty() {
            (state.any, state.by_other_rules, state.tried_at, state.logged) =
                (false, false, None, None);
        }
    });
    result.map(drop)
}

/// A heal beside live workers.
#[derive(Debug)]
struct Work {
    /// True if the heal was owed; false if it was done by other rules alone.
    is_owed: bool,
    from: HealFrom,
    /// The offset behind everything that must be applied again, if it is known.
    end_offset: Option<u64>,
    /// Changes that note the heal as done.
    changes: Vec<FieldChange>,
}

impl Work {
    /// Returns the heal that must be done by those rules, if any.
    fn of(marks: &Checkpoints, live: &Live) -> Option<Self> {
        let owed = marks.owed();
        if let Some(OwedHeal { from, .. }) = &owed.all {
            return Some(Self {
                is_owed: true,
                from: *from,
                end_offset: None,
                changes: owed.paid(),
            });
        }
        let unhealed = marks.unhealed_by(live.registry.digest())?;
        Some(Self {
            is_owed: false,
            from: unhealed.from,
            end_offset: unhealed.end_offset,
            changes: unhealed.changes,
        })
    }
}

/// Heals, and returns the changes that note the heal as done.
///
/// # Errors
/// Returns the cause for which the heal must still be done.
async fn perform(
    shared: &Shared,
    live: &Live,
    cache: &Cache,
    marks: &Checkpoints,
    work: &Work,
) -> Result<Vec<FieldChange>, String> {
    let Shared { config, metrics, .. } = shared;
    let digest = live.registry.digest();
    let (why, name) = if work.is_owed {
        ("a heal was owed", "owed")
    } else {
        ("other workers healed by other rules than ours", "rules")
    };
    let progress = marks.take_over_progress(cache, work.from, &format!("{name} {digest}"));
    let (from, began) = (progress.from, Instant::now());
    let mut guard = HealGuard::begin(config, cache, progress);
    guard.confirm_deaths().await.map_err(|outage| outage.in_full())?;
    guard.note(guard.found()).await.map_err(|outage| outage.in_full())?;
    info!(%from, "{why}: applying the history again beside the events that come");
    let known = shared.low.newest_sample();
    let healed = heal(config, &live.registry, cache, (from, work.end_offset), &guard).await;
    let judged = match healed {
        Ok(healed) => birth::judge(shared, marks, (from, known), healed).await,
        not_healed => not_healed,
    };
    match judged {
        Ok(Healed::Applied { events, effects, begin, complete, end, passed_over }) => {
            metrics.healed();
            info!(%from, events, effects, seconds = began.elapsed().as_secs_f64(), complete, "healed beside the events that came");
            if !passed_over.is_empty() {
                error!(offsets = ?passed_over, "{LEFT_OUT}");
            } else if !complete {
                warn!(%from, "the history does not hold all that was to be applied again: the rest stays readable until its TTL");
            }
            let mut changes = work.changes.clone();
            if work.is_owed {
                changes.extend(marks.note_heal(cache.id(), (begin, end), digest, began.elapsed()));
            }
            changes.extend(
                details(marks, (begin, work.end_offset), complete, passed_over)
                    .map(|details| details.note()),
            );
            Ok(changes)
        }
        Ok(Healed::NoHistory) if config.amqp.history.is_none() => {
            error!(%from, "UNSTALE_HISTORY=off: nothing can be applied again; flush what must be right");
            Ok(work.changes.clone())
        }
        Ok(Healed::NoHistory) => Err(
            "there is no history: a worker declares it again, and what the old one held is gone"
                .to_owned(),
        ),
        Err(error) => Err(error.in_full()),
    }
}

/// Returns the new details of the last heal's record. They change if that heal was postponed or
/// left something out, and a heal between those offsets has now done it.
fn details(
    marks: &Checkpoints,
    (begin, end): (u64, Option<u64>),
    is_whole: bool,
    passed_over: Vec<u64>,
) -> Option<HealDetails> {
    let heal = marks.last_heal()?;
    let was_put_off = heal.details.owed == Some(cache::Owed::Due);
    let reached_all =
        heal.details.passed_over.iter().all(|offset| end.is_none_or(|end| *offset < end));
    let has_done_the_rest = is_whole
        && reached_all
        && !heal.details.passed_over.is_empty()
        && heal.details.from_offset.is_some_and(|from| begin <= from);
    (was_put_off || has_done_the_rest).then(|| HealDetails {
        began_ms: heal.began_ms,
        from_offset: Some(begin),
        passed_over,
        owed: is_whole.then_some(cache::Owed::Paid),
    })
}
