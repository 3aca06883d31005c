//! Runs heals while workers consume. This is safe at any time.
//!
//! - Owed heals: the history could not be read when they were due, Redis refused some of their
//!   effects, or events reached only the history.
//! - Heals by the rules of this worker, after another worker healed by different rules.
//!
//! Heals before the gate opens are in `healing.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::heal_record::{LEFT_OUT, REFUSED, details, now_ms, outage};
use super::heal_state::Heals;
use super::live::Live;
use super::owed_heals::OwedHeals;
use crate::cache::{Cache, Checkpoints, FieldChange, HealFrom, HealTurn, Outage, OwedHeal};
use crate::causes::Explain;
use crate::ops::heal::{HealGuard, HealSpan, Healed, heal};

/// Time between two attempts at a heal.
const AGAIN: Duration = Duration::from_secs(10);

/// Time before an owed heal that Redis did not accept is saved again.
const SAVE_AGAIN: Duration = Duration::from_secs(1);

/// Saves the owed heals in Redis, and performs them. Returns only if this worker does not heal.
///
/// Saving does not wait for a heal, which may read days of history. Redis must hold an owed heal
/// before this worker consumes, so that a crash does not lose it.
pub(super) async fn run(heals: Heals<'_>) {
    let Heals { cache, gate, state, .. } = heals;
    let owed = &state.owed;
    if !heals.config.heals() {
        return;
    }
    let save = async {
        loop {
            gate.open().await;
            match save_once(owed, cache).await {
                Ok(()) => owed.unsaved.notified().await,
                Err(outage) => {
                    debug!(cause = outage.in_full(), "Redis does not hold yet that a heal is owed");
                    let _ = tokio::time::timeout(SAVE_AGAIN, owed.unsaved.notified()).await;
                }
            }
        }
    };
    let pay = async {
        loop {
            gate.open().await;
            pay_if_due(heals).await;
            let _ = tokio::time::timeout(AGAIN, owed.due.notified()).await;
        }
    };
    tokio::join!(save, pay);
}

/// Saves in Redis each owed heal that it does not hold yet, then asks for the heal.
async fn save_once(owed: &OwedHeals, cache: &Cache) -> Result<(), Outage> {
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

/// Performs the heal that is due, if any.
async fn pay_if_due(heals: Heals<'_>) {
    let owed = &heals.state.owed;
    let due = owed.change(|state| {
        let due = state.tried_at.is_none_or(|at| at.elapsed() >= AGAIN);
        if due && (state.any || state.by_other_rules) {
            state.tried_at = Some(Instant::now());
            true
        } else {
            false
        }
    });
    if due && let Err(cause) = pay(heals).await {
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
async fn pay(heals: Heals<'_>) -> Result<(), String> {
    let Heals { config, registry, state, .. } = heals;
    let owed = &state.owed;
    let redis = |outage: Outage| outage.in_full();
    // Ends a heal that an outage of Redis interrupted.
    let before = owed.change(|state| state.healing.clone());
    if let Some(before) = before {
        before.probe().await.map_err(redis)?;
        owed.stop_healing().await;
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
    owed.change(|state| state.healing = Some(Arc::clone(&cache)));
    let live = registry.load_full();
    let result = match Work::of(&marks, &live) {
        None => Ok(None),
        Some(work) => perform(heals, &live, &cache, &marks, &work).await.map(Some),
    };
    let Done { changes, refused } = match &result {
        Ok(done) => done.clone().unwrap_or_default(),
        Err(_) => {
            owed.stop_healing().await;
            Done::default()
        }
    };
    cache.end_heal_beside(&changes).await.map_err(outage).map_err(redis)?;
    owed.change(|state| {
        state.healing = None;
        if refused.is_some() {
            (state.any, state.by_other_rules, state.logged) = (true, false, refused);
        } else if !changes.is_empty() {
            (state.any, state.by_other_rules, state.tried_at, state.logged) =
                (false, false, None, None);
        }
    });
    result.map(drop)
}

/// Result of a heal beside live workers.
#[derive(Debug, Clone, Default)]
struct Done {
    /// Changes that note the heal as done.
    changes: Vec<FieldChange>,
    /// Describes the effects that Redis refused. They are still owed.
    refused: Option<String>,
}

/// A heal that must be done beside live workers.
#[derive(Debug)]
struct Work {
    /// The owed heal. `None` if workers with other rules healed, and these rules must follow.
    owed: Option<OwedHeal>,
    from: HealFrom,
    /// The offset at which the range to apply again ends, if it is known.
    end_offset: Option<u64>,
    /// Changes that note the heal as done.
    changes: Vec<FieldChange>,
}

impl Work {
    /// Returns the heal that must be done by the rules of `live`, if any.
    fn of(marks: &Checkpoints, live: &Live) -> Option<Self> {
        let owed = marks.owed();
        let changes = owed.paid();
        if let Some(owed) = owed.all.filter(|owed| owed.is_due(marks.now_ms)) {
            let (from, end_offset) = (owed.from, owed.end_offset);
            return Some(Self { owed: Some(owed), from, end_offset, changes });
        }
        let unhealed = marks.unhealed_by(&live.resolution_digest)?;
        Some(Self {
            owed: None,
            from: unhealed.from,
            end_offset: unhealed.end_offset,
            changes: unhealed.changes,
        })
    }
}

/// Heals, and returns what notes the heal as done.
///
/// # Errors
/// Returns the cause for which the heal must still be done.
async fn perform(
    heals: Heals<'_>,
    live: &Live,
    cache: &Cache,
    marks: &Checkpoints,
    work: &Work,
) -> Result<Done, String> {
    let Heals { config, metrics, state, .. } = heals;
    let digest = live.resolution_digest.as_str();
    let only_rules = work.owed.as_ref().map_or_else(Vec::new, |owed| owed.only_rules(digest));
    let (why, name) = match &work.owed {
        Some(OwedHeal { refused: Some(_), .. }) => ("Redis refused effects of a heal", "refused"),
        Some(_) => ("a heal was owed", "owed"),
        None => ("other workers healed by other rules than ours", "rules"),
    };
    let is_rest = !only_rules.is_empty();
    let progress = cache.take_over_progress(marks, work.from, &format!("{name} {digest}"));
    let (from, began) = (progress.from, Instant::now());
    let mut guard = HealGuard::begin(config, cache, progress);
    guard.confirm_deaths().await.map_err(|outage| outage.in_full())?;
    guard.note(guard.found()).await.map_err(|outage| outage.in_full())?;
    info!(%from, "{why}: applying the history again beside the events that come");
    let known = state.watermark.newest_sample();
    let span = HealSpan { from, end_offset: work.end_offset, only_rules };
    let healed = heal(config, &live.registry, cache, span, &guard).await;
    let judged = match healed {
        Ok(healed) => state.history_start.judge(config, marks, (from, known), healed).await,
        not_healed => not_healed,
    };
    match judged {
        Ok(Healed::Applied { events, effects, begin, complete, end, passed_over, refused }) => {
            metrics.healed();
            info!(%from, events, effects, seconds = began.elapsed().as_secs_f64(), complete, "healed beside the events that came");
            if !passed_over.is_empty() {
                error!(offsets = ?passed_over, "{LEFT_OUT}");
            } else if !complete && refused.is_none() {
                warn!(%from, "the history does not hold all events of the heal: other old values stay readable until their TTL");
            }
            let mut changes = work.changes.clone();
            let cause = refused.as_ref().map(ToString::to_string);
            if let Some(refused) = refused {
                if state.owed.change(|state| state.logged != cause) {
                    error!(cause = %refused, "{REFUSED}");
                }
                let before = work.owed.as_ref().filter(|owed| owed.refused.is_some());
                let owed = OwedHeal::of_refused(
                    refused,
                    (work.end_offset.unwrap_or(end), digest),
                    before,
                    now_ms(),
                    marks.now_ms_after(began.elapsed()),
                );
                changes.push(owed.note(cache.id()));
            }
            if work.owed.is_some() && !complete && passed_over.is_empty() && cause.is_none() {
                let lost = state.history_start.lost_since(from);
                state.owed.lose(lost);
                changes.push(marks.note_lost(lost));
            }
            // A heal of refused effects is not noted: the heal before it applied all other effects,
            // and was noted.
            if work.owed.is_some() && !is_rest {
                changes.extend(marks.note_heal(cache.id(), (begin, end), digest, began.elapsed()));
            }
            changes.extend(
                details(marks, (begin, work.end_offset), complete, passed_over, cause.is_some())
                    .map(|details| details.note()),
            );
            Ok(Done { changes, refused: cause })
        }
        Ok(Healed::NoHistory) if config.amqp.history.is_none() => {
            error!(%from, "UNSTALE_HISTORY=off: nothing can be applied again; delete the keys that must be correct");
            let mut changes = work.changes.clone();
            if work.owed.is_some() {
                let lost = state.history_start.lost_since(from);
                state.owed.lose(lost);
                changes.push(marks.note_lost(lost));
            }
            Ok(Done { changes, refused: None })
        }
        Ok(Healed::NoHistory) => Err(
            "there is no history: a worker declares it again, without the events of the old one"
                .to_owned(),
        ),
        Err(error) => Err(error.in_full()),
    }
}
