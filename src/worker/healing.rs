//! Determines whether Redis holds everything that it confirmed, and heals it otherwise. No worker
//! consumes until one worker has applied the history again from before the loss.
//!
//! If the broker cannot serve the history, the heal is owed (see `owed.rs`) and consuming goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use tracing::{error, info, warn};

use super::owed::now_ms;
use super::{Shared, birth, brokers};
use crate::backoff::Backoff;
use crate::broker::{BrokerError, Inspector, QueueState, RECONNECT_PAUSES};
use crate::cache::{
    Checkpoints, CommandError, Doubt, Entered, HealDetails, HealFrom, HealRecord, HealTurn, Outage,
    Owed, OwedHeal,
};
use crate::causes::Explain;
use crate::http::Readiness;
use crate::ops::heal::{HealGuard, Healed, NotHealed, heal, window};

/// Time between two looks at the heal of another worker.
const WAIT: Duration = Duration::from_millis(200);

/// Maximum time that events wait for a history that the broker cannot serve.
const HISTORY_PATIENCE: Duration = Duration::from_secs(5);

/// Log message for a heal that left something out.
pub(super) const LEFT_OUT: &str = "the heal left out events at which heals died, or which could not be resolved or applied in time: nothing of them is applied again";

/// Why it is unknown whether Redis holds everything that it confirmed.
#[derive(Debug)]
pub(super) enum Unhealed {
    /// Redis cannot be used.
    Redis(Outage),
    /// The broker refuses the worker.
    Broker(BrokerError),
    /// Workers of another broker share the checkpoints.
    SharedMarks(String),
}

impl Unhealed {
    /// Returns true if waiting cannot resolve it.
    pub(super) fn needs_person(&self) -> bool {
        match self {
            Self::Redis(outage) => outage.needs_person,
            Self::Broker(error) => error.is_final(),
            Self::SharedMarks(_) => true,
        }
    }
}

impl From<Outage> for Unhealed {
    fn from(outage: Outage) -> Self {
        Self::Redis(outage)
    }
}

impl From<CommandError> for Unhealed {
    fn from(error: CommandError) -> Self {
        Self::Redis(outage(error))
    }
}

/// Returns an error of Redis as an outage. A refusal for good keeps a worker from working just as
/// an outage does.
pub(super) fn outage(error: CommandError) -> Outage {
    error.outage_or(Outage::no_checkpoints)
}

/// Heals Redis before the gate opens.
#[derive(Debug)]
pub(super) struct Healer<'s> {
    shared: &'s Shared,
    readiness: Readiness,
    /// True if this worker has had a checkpoint before, and remembers it.
    remembers: AtomicBool,
    /// True while a heal of this worker has begun and has not ended.
    heals: AtomicBool,
}

impl<'s> Healer<'s> {
    pub(super) fn new(shared: &'s Shared, readiness: Readiness) -> Self {
        Self { shared, readiness, remembers: AtomicBool::new(false), heals: AtomicBool::new(false) }
    }

    /// Waits until Redis holds everything that it confirmed. Heals it if it is this worker's turn.
    pub(super) async fn ensure(&self) -> Result<(), Unhealed> {
        // A worker whose user RabbitMQ refuses must not heal first.
        self.shared.is_first_ever().await;
        if self.shared.config.heals() {
            let is_first = !self.remembers.load(Ordering::Relaxed);
            if let Err(cause) = brokers::settle(self.shared, is_first).await? {
                return Err(Unhealed::SharedMarks(cause));
            }
            self.enter().await.inspect_err(|_| self.shared.metrics.set_paused("healing", false))?;
        }
        self.shared.metrics.set_paused("healing", false);
        // From now on a missing queue is a loss.
        self.shared.first_ever.send_replace(Some(false));
        self.readiness.set_healed(Ok(()));
        Ok(())
    }

    async fn enter(&self) -> Result<(), Unhealed> {
        let Shared { cache, low, metrics, config, .. } = self.shared;
        let mut backoff = Backoff::new(RECONNECT_PAUSES);
        let mut unreadable_since: Option<Instant> = None;
        loop {
            self.survive().await?;
            if let Entered::Good(marks) = cache.enter(low.now()).await? {
                if !self.remembers.swap(true, Ordering::Relaxed) {
                    let is_alone = !marks.others_consume(cache.id());
                    low.inherit(marks.lowest(), self.shared.longest_wait(&marks), is_alone);
                    if marks.lowest().is_some() {
                        info!(
                            from = %from(&marks), is_alone,
                            "no heal is needed: Redis holds what workers left; should it lose writes now, a heal begins there"
                        );
                    }
                }
                return Ok(());
            }
            metrics.set_paused("healing", true);
            let marks = match cache.take_heal().await? {
                HealTurn::Done => continue,
                HealTurn::Anothers => {
                    self.readiness.set_healed(Err(
                        "Redis may have lost writes: another worker applies the history again"
                            .into(),
                    ));
                    tokio::time::sleep(WAIT).await;
                    continue;
                }
                HealTurn::Ours(marks) => marks,
            };
            self.readiness
                .set_healed(Err("Redis may have lost writes: the history is applied again".into()));
            let cause = match self.heal(&marks).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    warn!("Redis went back once more during the heal: it begins anew");
                    continue;
                }
                Err(NotHealed::Redis(outage)) => return Err(outage.into()),
                Err(NotHealed::History(error)) => error.in_full(),
                Err(NotHealed::Broker(error)) => match Inspector::connect(&config.amqp).await {
                    Ok(inspector) => {
                        inspector.close().await;
                        error.in_full()
                    }
                    Err(refused) if refused.is_final() => return Err(Unhealed::Broker(refused)),
                    Err(away) => {
                        // Without the broker nothing could be consumed either.
                        unreadable_since = None;
                        self.wait_for_broker(&away, &mut backoff).await;
                        continue;
                    }
                },
            };
            if unreadable_since.get_or_insert_with(Instant::now).elapsed() < HISTORY_PATIENCE {
                let wait = backoff.next_delay(fastrand::f64()).min(HISTORY_PATIENCE / 2);
                warn!(%cause, retry_in_ms = wait.as_millis(), "the history cannot be read to heal Redis");
                self.readiness.set_healed(Err(format!(
                    "Redis may have lost writes, and the history cannot be read: {cause}"
                )
                .into()));
                tokio::time::sleep(wait).await;
            } else if self.owe(&marks, cause).await? {
                return Ok(());
            }
        }
    }

    /// Notes that an unfinished heal of this worker was not ended by its death.
    async fn survive(&self) -> Result<(), CommandError> {
        let cache = &self.shared.cache;
        if self.heals.load(Ordering::Relaxed) {
            cache.yield_heal_of(cache.id()).await?;
            self.heals.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn wait_for_broker(&self, away: &BrokerError, backoff: &mut Backoff) {
        let wait = backoff.next_delay(fastrand::f64());
        let cause = away.in_full();
        warn!(cause, retry_in_ms = wait.as_millis(), "waiting for RabbitMQ");
        self.readiness
            .set_healed(Err(
                format!("Redis may have lost writes, and RabbitMQ is away: {cause}").into()
            ));
        tokio::time::sleep(wait).await;
    }

    /// Owes the heal, so that consuming goes on. Returns false if the heal must be tried again.
    async fn owe(&self, marks: &Checkpoints, cause: String) -> Result<bool, Unhealed> {
        let Shared { cache, low, owed, config, .. } = self.shared;
        let from = from(marks).or_window(window(config), Timestamp::now());
        error!(
            %cause, %from,
            "the broker cannot serve the history: events are applied, and what Redis lost stays readable until the history was read; \
             `unstale status` says what to do"
        );
        let said = cause.clone();
        cache.owe_heal(&OwedHeal::new(from, cause, now_ms())).await?;
        let record = record(
            marks,
            from,
            false,
            HealDetails { owed: Some(Owed::Due), ..HealDetails::default() },
        );
        if !cache.finish_heal(Some(&record), &[], low.now()).await? {
            return Ok(false);
        }
        self.heals.store(false, Ordering::Relaxed);
        if !self.remembers.swap(true, Ordering::Relaxed) {
            low.inherit(marks.lowest(), self.shared.longest_wait(marks), false);
        }
        owed.knows(said);
        Ok(true)
    }

    /// Heals, in this worker's turn. Returns false if the heal must begin again.
    async fn heal(&self, marks: &Checkpoints) -> Result<bool, NotHealed> {
        let Shared { cache, config, low, .. } = self.shared;
        // The log mentions a heal only if both servers were reached and a history exists.
        let inspector = Inspector::connect(&config.amqp).await?;
        let is_new = config.amqp.history.is_none()
            || matches!(inspector.queue(&inspector.names().history).await?, QueueState::Missing);
        inspector.close().await;
        let live = self.shared.live.load_full();
        let progress = marks.take_over_progress(cache, from(marks), live.registry.digest());
        let doubt = marks.doubt();
        let (from, goes_on) = (progress.from, progress.applied_to);
        let is_new_broker = self.shared.is_first_ever().await;
        let has_nothing = is_new_broker && has_nothing_to_heal(doubt, goes_on);
        match (doubt, goes_on) {
            _ if has_nothing => {}
            (_, Some(offset)) => info!(%from, offset, "going on with the heal of another worker"),
            (Doubt::Lost, None) => {
                warn!(%from, "Redis lost writes that it had confirmed (an old snapshot, or a replica promoted too early): applying the history again");
            }
            (_, None) if is_new => {}
            (Doubt::Replaced, None) => {
                info!(%from, "Redis was restarted, or a replica took its place: applying the history again, in case it lost writes");
            }
            (Doubt::Unknown, None) => {
                info!(%from, "no checkpoint in Redis tells whether it lost writes: applying the history again");
            }
        }
        let began = (Instant::now(), SystemTime::now());
        self.heals.store(true, Ordering::Relaxed);
        let mut guard = HealGuard::begin(config, cache, progress);
        guard.confirm_deaths().await?;
        // The number of heals that died, and their events, must outlive this heal.
        guard.note(guard.found()).await?;
        cache.forward_sequence().await.map_err(outage)?;
        let known = low.newest_sample();
        let healed = if has_nothing {
            Healed::NoHistory
        } else {
            heal(config, &live.registry, cache, (from, None), &guard).await?
        };
        if is_new_broker && marks.lowest().is_some() {
            self.shared.birth.is_now();
        }
        let healed = birth::judge(self.shared, marks, (from, known), healed).await?;
        let mut changes = Vec::new();
        let record = match &healed {
            // A first start, with a queue and a history as new as the worker.
            Healed::Applied { events: 0, complete: true, end, .. } if doubt == Doubt::Unknown => {
                low.begin(began.1, *end, None);
                None
            }
            Healed::Applied { events, begin, complete, end, passed_over, .. } => {
                low.begin(began.1, *end, passed_over.iter().min().copied());
                // Without events, other rules would change nothing.
                if *events > 0 || !complete || goes_on.is_some() {
                    changes = marks.note_heal(
                        cache.id(),
                        (*begin, *end),
                        live.registry.digest(),
                        began.0.elapsed(),
                    );
                }
                let details = HealDetails {
                    from_offset: Some(*begin),
                    passed_over: passed_over.clone(),
                    ..HealDetails::default()
                };
                Some(record(marks, from, *complete, details))
            }
            Healed::NoHistory if doubt == Doubt::Lost => {
                Some(record(marks, from, false, HealDetails::default()))
            }
            // Without a history there was no queue either, so no earlier event can have arrived.
            Healed::NoHistory => {
                low.begin(began.1, 0, None);
                None
            }
        };
        if !cache.finish_heal(record.as_ref(), &changes, low.now()).await.map_err(outage)? {
            return Ok(false);
        }
        self.heals.store(false, Ordering::Relaxed);
        self.remembers.store(true, Ordering::Relaxed);
        match healed {
            Healed::Applied { .. } if record.is_none() => {}
            Healed::Applied { events, effects, begin, passed_over, .. } => {
                let complete = record.as_ref().is_some_and(|record| record.complete);
                self.shared.metrics.healed();
                info!(%from, first_offset = begin, events, effects, seconds = began.0.elapsed().as_secs_f64(), complete, "healed: the history is applied again");
                if !passed_over.is_empty() {
                    error!(offsets = ?passed_over, "{LEFT_OUT}");
                } else if !complete {
                    warn!(%from, "the history does not hold all that was to be applied again: the rest stays readable until its TTL");
                }
            }
            Healed::NoHistory if doubt == Doubt::Lost => {
                error!(
                    "there is no history to heal Redis from: what it had lost stays readable until its TTL; flush what must be right"
                );
            }
            Healed::NoHistory => {}
        }
        Ok(true)
    }
}

/// Returns whether a worker that found neither queue nor history has nothing to heal. No checkpoint
/// shows a loss, and no heal of another worker is running.
fn has_nothing_to_heal(doubt: Doubt, goes_on: Option<u64>) -> bool {
    doubt == Doubt::Unknown && goes_on.is_none()
}

/// Returns where the history must be applied again from.
fn from(marks: &Checkpoints) -> HealFrom {
    marks.lowest().map_or_else(HealFrom::default, HealFrom::low)
}

fn record(marks: &Checkpoints, from: HealFrom, complete: bool, details: HealDetails) -> HealRecord {
    HealRecord {
        began_ms: marks.now_ms,
        ended_ms: marks.now_ms,
        from_ms: from.time.and_then(|time| u64::try_from(time.as_millisecond()).ok()).unwrap_or(0),
        count: marks.last_heal().map_or(0, |last| last.count) + 1,
        complete,
        details,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_start_heals_nothing_only_where_no_loss_shows() {
        assert!(has_nothing_to_heal(Doubt::Unknown, None));
        for (doubt, goes_on) in [
            (Doubt::Lost, None),
            (Doubt::Replaced, None),
            (Doubt::Unknown, Some(0)),
            (Doubt::Lost, Some(7)),
        ] {
            assert!(!has_nothing_to_heal(doubt, goes_on), "{doubt:?} {goes_on:?}");
        }
    }
}
