//! Heals beside live workers, which are safe at any time: those that are owed, since the history
//! could not be read when they were due, or since events went to the history alone; and those by
//! the rules of this worker, where another one healed by its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::Shared;
use super::healing::outage;
use crate::cache::{self, Cache, HealDetails, HealFrom, HealRecord, Marks, Outage, OwedHeal, OwedHeals, Paid, Turn};
use crate::ops::heal::{Guard, Healed, NotHealed, heal};

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(30);

/// For so long after a heal by other rules, a worker with rules of its own heals again.
const OTHER_RULES_MS: u64 = 60_000;

/// Before what Redis did not take is said again.
const SAVE_AGAIN: Duration = Duration::from_secs(1);

/// Heals that are owed, as far as this worker knows.
#[derive(Debug, Default)]
pub(super) struct Owed {
    state: Mutex<State>,
    /// There is something to save.
    unsaved: Notify,
    saved: Notify,
    /// There is something to pay.
    due: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Redis does not hold it yet.
    unsaved: Option<OwedHeal>,
    /// Redis held some at the last tick.
    any: bool,
    /// At the last tick there was a heal by other rules than ours.
    by_other_rules: bool,
    tried_at: Option<Instant>,
    /// The cause that was logged.
    logged: Option<String>,
}

impl Owed {
    /// Owes a heal from that place on. Redis holds it within a moment, and a worker pays it.
    pub(super) fn owe(&self, from: HealFrom, cause: impl Into<String>) {
        let owed = OwedHeal::new(from, cause, now_ms());
        self.change(|state| match &mut state.unsaved {
            Some(before) => before.from = before.from.earlier(owed.from),
            unsaved => *unsaved = Some(owed),
        });
        self.unsaved.notify_one();
    }

    /// Waits until Redis holds all that was owed so far: nothing is forgotten then, whatever
    /// becomes of this worker.
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

    /// Redis holds that a heal is owed, for that cause: it was logged, and is tried again in a
    /// while.
    pub(super) fn knows(&self, cause: String) {
        self.change(|state| (state.any, state.tried_at, state.logged) = (true, Some(Instant::now()), Some(cause)));
    }

    /// Takes in what the last tick showed.
    pub(super) fn saw(&self, owed: Option<OwedHeal>, by_other_rules: bool) {
        let is_news = self.change(|state| {
            let is_news = (owed.is_some() && !state.any) || (by_other_rules && !state.by_other_rules);
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

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Saves and pays what is owed, until `stop`. Saving does not wait for a payment, which may read days
/// of history: a crash must not forget the debt, and nothing is consumed until Redis holds it.
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
                    debug!(cause = %outage, "Redis does not hold yet that a heal is owed");
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

/// Has Redis hold what it does not hold yet, then asks for a payment.
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

/// Pays what is due.
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
        let is_news = owed.change(|state| state.logged.replace(cause.clone()).as_ref() != Some(&cause));
        if is_news {
            error!(%cause, retry_in_s = AGAIN.as_secs(), "a heal is owed and cannot be done: `unstale status` says what to do");
        }
    }
}

/// Takes the turn to heal beside live workers, and does what is to be done. An error says why it is
/// still owed.
async fn pay(shared: &Shared) -> Result<(), String> {
    let Shared { config, .. } = shared;
    let cache = Cache::connect(&config.redis, &config.amqp.queue).map_err(|error| error.to_string())?.healing_beside();
    let redis = |outage: Outage| outage.cause;
    cache.probe().await.map_err(redis)?;
    let Turn::Ours(marks) = cache.take_heal_beside().await.map_err(outage).map_err(redis)? else { return Ok(()) };
    let done = match Work::of(shared, &marks) {
        None => Ok(None),
        Some(work) => perform(shared, &cache, &marks, &work).await.map(|is_whole| Some((work, is_whole))),
    };
    // The record of a heal that had been put off says that it was not whole.
    let put_off = marks.last_heal().filter(|heal| heal.details.owed == Some(cache::Owed::Due));
    let made_whole = put_off.map(|heal| HealDetails { began_ms: heal.began_ms, owed: Some(cache::Owed::Paid), ..heal.details });
    let (paid, result) = match &done {
        Ok(Some((Work { what: What::Owed(owed), .. }, is_whole))) => (Paid::Owed(owed, made_whole.as_ref().filter(|_| *is_whole)), Ok(())),
        Ok(Some((Work { what: What::Rules(details), .. }, _))) => (Paid::Rules(details), Ok(())),
        Ok(None) => (Paid::Nothing, Ok(())),
        Err(cause) => (Paid::Nothing, Err(cause.clone())),
    };
    cache.end_heal_beside(paid).await.map_err(outage).map_err(redis)?;
    if paid != Paid::Nothing {
        shared.owed.change(|state| (state.any, state.by_other_rules, state.tried_at, state.logged) = (false, false, None, None));
    }
    result
}

/// A heal beside live workers.
#[derive(Debug)]
struct Work {
    what: What,
    from: HealFrom,
}

#[derive(Debug)]
enum What {
    Owed(OwedHeals),
    /// The details of the heal that was done by other rules, with ours among them.
    Rules(HealDetails),
}

impl Work {
    /// Returns what is to be done, if anything.
    fn of(shared: &Shared, marks: &Marks) -> Option<Self> {
        let owed = marks.owed();
        if let Some(OwedHeal { from, .. }) = owed.all {
            return Some(Self { what: What::Owed(owed), from });
        }
        let heal = healed_by_other_rules(shared, marks)?;
        let time = i64::try_from(heal.from_ms).ok().and_then(|from| Timestamp::from_millisecond(from).ok());
        let from = HealFrom { offset: heal.details.from_offset, time };
        let mut details = HealDetails { began_ms: heal.began_ms, ..heal.details };
        details.digests.push(shared.live.load().registry.digest().to_owned());
        Some(Self { what: What::Rules(details), from })
    }
}

/// Heals. Whether all of it was read and applied; an error says why it is still to be done.
async fn perform(shared: &Shared, cache: &Cache, marks: &Marks, work: &Work) -> Result<bool, String> {
    let Shared { config, metrics, .. } = shared;
    let live = shared.live.load_full();
    let (why, name) = match &work.what {
        What::Owed(_) => ("a heal was owed", "owed"),
        What::Rules(_) => ("another worker healed by other rules than ours", "rules"),
    };
    let progress = marks.take_over_progress(cache, work.from, &format!("{name} {}", live.registry.digest()));
    let (from, began) = (progress.from, Instant::now());
    let guard = Guard::begin(config, cache, progress);
    guard.note(guard.found()).await.map_err(|outage| outage.cause)?;
    info!(%from, "{why}: applying the history again beside the events that come");
    match heal(config, &live.registry, cache, from, &guard).await {
        Ok(Healed::Applied { events, effects, complete, passed_over, .. }) => {
            metrics.healed();
            info!(%from, events, effects, seconds = began.elapsed().as_secs_f64(), complete, "healed beside the events that came");
            if !passed_over.is_empty() {
                error!(offsets = ?passed_over, "the heal passed over events at which heals died: nothing of them is applied again");
            } else if !complete {
                warn!(%from, "the history does not hold all that was to be applied again: the rest stays readable until its TTL");
            }
            Ok(complete)
        }
        Ok(Healed::NoHistory) if config.amqp.history.is_none() => {
            error!(%from, "UNSTALE_HISTORY=off: nothing can be applied again; flush what must be right");
            Ok(false)
        }
        Ok(Healed::NoHistory) => Err("there is no history: a worker declares it again, and what the old one held is gone".to_owned()),
        Err(NotHealed::Redis(outage)) => Err(outage.cause),
        Err(NotHealed::Broker(error)) => Err(error.to_string()),
        Err(NotHealed::History(cause)) => Err(cause),
    }
}

/// A heal a moment ago, by rules that are not ours.
pub(super) fn healed_by_other_rules(shared: &Shared, marks: &Marks) -> Option<HealRecord> {
    let live = shared.live.load();
    let digest = live.registry.digest();
    marks.last_heal().filter(|heal| {
        let digests = &heal.details.digests;
        marks.now_ms.abs_diff(heal.ended_ms) < OTHER_RULES_MS && !digests.is_empty() && !digests.iter().any(|known| known == digest)
    })
}
