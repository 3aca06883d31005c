//! Determines whether Redis holds everything that it confirmed, and heals it otherwise. Workers
//! consume only after one of them has applied the history again from before the loss.
//!
//! If the broker cannot serve the history, the heal is owed (see `owed_heals.rs`), and workers
//! consume.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use tracing::{error, info, warn};

use super::heal_record::{LEFT_OUT, REFUSED, from, has_nothing_to_heal, now_ms, outage, record};
use super::heal_state::Heals;
use crate::backoff::Backoff;
use crate::broker::{BrokerError, Inspector, QueueState, RECONNECT_PAUSES};
use crate::cache::{
    Checkpoints, CommandError, Doubt, Entered, HealDetails, HealTurn, Outage, Owed, OwedHeal,
};
use crate::causes::Explain;
use crate::ops::heal::{HealGuard, HealSpan, Healed, NotHealed, heal, window};

/// Time between two looks at the heal of another worker.
const WAIT: Duration = Duration::from_millis(200);

/// Maximum time for which workers do not consume because the broker cannot serve the history.
const HISTORY_PATIENCE: Duration = Duration::from_secs(5);

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

/// Heals Redis before the gate opens.
#[derive(Debug)]
pub(super) struct Healer<'s> {
    heals: Heals<'s>,
    /// True if this worker has had a checkpoint before, and remembers it.
    remembers: AtomicBool,
    /// True while a heal of this worker has begun and has not ended.
    has_begun: AtomicBool,
}

impl<'s> Healer<'s> {
    pub(super) fn new(heals: Heals<'s>) -> Self {
        Self { heals, remembers: AtomicBool::new(false), has_begun: AtomicBool::new(false) }
    }

    /// Waits until Redis holds everything that it confirmed. Heals it if it is this worker's turn.
    pub(super) async fn ensure(&self) -> Result<(), Unhealed> {
        let Heals { config, cache, metrics, readiness, state, .. } = self.heals;
        // This waits for the first session: a worker whose user RabbitMQ refuses must not heal.
        let is_first_ever = state.is_first_ever().await;
        if config.heals() {
            if is_first_ever {
                self.owe_what_is_gone().await?;
            }
            let is_first = !self.remembers.load(Ordering::Relaxed);
            if let Err(cause) = state
                .broker_identity
                .settle(cache, readiness, (config, &state.owed), is_first)
                .await?
            {
                return Err(Unhealed::SharedMarks(cause));
            }
            self.enter().await.inspect_err(|_| metrics.set_paused("healing", false))?;
        }
        metrics.set_paused("healing", false);
        // From now on a missing queue is a loss.
        state.first_ever.send_replace(Some(false));
        readiness.set_healed(Ok(()));
        Ok(())
    }

    /// Owes a heal if workers used the queue and the history before, although neither existed when
    /// this worker started. The events that waited are lost, so the heal will not be complete.
    async fn owe_what_is_gone(&self) -> Result<(), CommandError> {
        let Heals { cache, state, .. } = self.heals;
        let marks = cache.read_checkpoints().await?;
        if marks.lowest().is_some() {
            state.history_start.is_now();
            state.owed.owe_from(
                from(&marks),
                "the queue and the history were deleted while no worker ran, or RabbitMQ was replaced by another one",
            );
        }
        Ok(())
    }

    async fn enter(&self) -> Result<(), Unhealed> {
        let Heals { cache, metrics, config, readiness, state, .. } = self.heals;
        let watermark = &state.watermark;
        let mut backoff = Backoff::new(RECONNECT_PAUSES);
        let mut unreadable_since: Option<Instant> = None;
        loop {
            self.survive().await?;
            if let Entered::Good(marks) = cache.enter(watermark.now()).await? {
                if !self.remembers.swap(true, Ordering::Relaxed) {
                    let is_alone = !marks.others_consume(cache.id());
                    watermark.inherit(marks.lowest(), self.heals.longest_wait(&marks), is_alone);
                    if marks.lowest().is_some() {
                        info!(
                            from = %from(&marks), is_alone,
                            "no heal is needed: Redis holds what workers left; if it loses writes now, a heal begins there"
                        );
                    }
                }
                return Ok(());
            }
            metrics.set_paused("healing", true);
            let marks = match cache.take_heal().await? {
                HealTurn::Done => continue,
                HealTurn::Anothers => {
                    readiness.set_healed(Err(
                        "Redis may have lost writes: another worker applies the history again"
                            .into(),
                    ));
                    tokio::time::sleep(WAIT).await;
                    continue;
                }
                HealTurn::Ours(marks) => marks,
            };
            readiness
                .set_healed(Err("Redis may have lost writes: the history is applied again".into()));
            let cause = match self.heal(&marks).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    warn!("Redis lost writes again during the heal: the heal begins anew");
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
                        // Without the broker, workers could not consume either.
                        unreadable_since = None;
                        self.wait_for_broker(&away, &mut backoff).await;
                        continue;
                    }
                },
            };
            if unreadable_since.get_or_insert_with(Instant::now).elapsed() < HISTORY_PATIENCE {
                let wait = backoff.next_delay(fastrand::f64()).min(HISTORY_PATIENCE / 2);
                warn!(%cause, retry_in_ms = wait.as_millis(), "the history cannot be read to heal Redis");
                readiness.set_healed(Err(format!(
                    "Redis may have lost writes, and the history cannot be read: {cause}"
                )
                .into()));
                tokio::time::sleep(wait).await;
            } else if self.owe(&marks, cause).await? {
                return Ok(());
            }
        }
    }

    /// Notes that this worker did not die in its unfinished heal, so that no death is counted.
    async fn survive(&self) -> Result<(), CommandError> {
        let cache = self.heals.cache;
        if self.has_begun.load(Ordering::Relaxed) {
            cache.yield_heal_of(cache.id()).await?;
            self.has_begun.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn wait_for_broker(&self, away: &BrokerError, backoff: &mut Backoff) {
        let wait = backoff.next_delay(fastrand::f64());
        let cause = away.in_full();
        warn!(cause, retry_in_ms = wait.as_millis(), "waiting for RabbitMQ");
        self.heals
            .readiness
            .set_healed(Err(
                format!("Redis may have lost writes, and RabbitMQ is away: {cause}").into()
            ));
        tokio::time::sleep(wait).await;
    }

    /// Owes the heal, so that consuming goes on. Returns false if the heal must be tried again.
    async fn owe(&self, marks: &Checkpoints, cause: String) -> Result<bool, Unhealed> {
        let Heals { cache, config, state, .. } = self.heals;
        let (watermark, owed) = (&state.watermark, &state.owed);
        let from = from(marks).or_window(window(config), Timestamp::now());
        error!(
            %cause, %from,
            "the broker cannot serve the history: events are applied, and old values stay readable until the history is applied again; \
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
        if !cache.finish_heal(Some(&record), &[], watermark.now()).await? {
            return Ok(false);
        }
        self.has_begun.store(false, Ordering::Relaxed);
        if !self.remembers.swap(true, Ordering::Relaxed) {
            watermark.inherit(marks.lowest(), self.heals.longest_wait(marks), false);
        }
        owed.knows(said);
        Ok(true)
    }

    /// Heals, in this worker's turn. Returns false if the heal must begin again.
    async fn heal(&self, marks: &Checkpoints) -> Result<bool, NotHealed> {
        let Heals { cache, config, registry, metrics, state, .. } = self.heals;
        let watermark = &state.watermark;
        // The log mentions the start of a heal only if both servers can be reached. Without a
        // history, it mentions only a certain loss.
        let inspector = Inspector::connect(&config.amqp).await?;
        let is_new = config.amqp.history.is_none()
            || matches!(inspector.queue(&inspector.names().history).await?, QueueState::Missing);
        inspector.close().await;
        let live = registry.load_full();
        let progress = cache.take_over_progress(marks, from(marks), &live.resolution_digest);
        let doubt = marks.doubt();
        let (from, goes_on) = (progress.from, progress.applied_to);
        let is_new_broker = state.is_first_ever().await;
        let has_nothing = is_new_broker && has_nothing_to_heal(doubt, goes_on);
        match (doubt, goes_on) {
            _ if has_nothing => {}
            (_, Some(offset)) => info!(%from, offset, "continuing the heal of another worker"),
            (Doubt::Lost, None) => {
                warn!(%from, "Redis lost writes that it had confirmed (an old snapshot, or a replica promoted too early): applying the history again");
            }
            (_, None) if is_new => {}
            (Doubt::Replaced, None) => {
                info!(%from, "Redis was restarted, or a replica took its place: applying the history again, in case it lost writes");
            }
            (Doubt::Unknown, None) => {
                info!(%from, "no checkpoint in Redis shows whether it lost writes: applying the history again");
            }
        }
        let began = (Instant::now(), SystemTime::now());
        self.has_begun.store(true, Ordering::Relaxed);
        let mut guard = HealGuard::begin(config, cache, progress);
        guard.confirm_deaths().await?;
        // If this heal dies too, the next one must know of the earlier deaths and their events.
        guard.note(guard.found()).await?;
        cache.forward_sequence().await.map_err(outage)?;
        let known = watermark.newest_sample();
        let healed = if has_nothing {
            Healed::NoHistory
        } else {
            let span = HealSpan { from, ..HealSpan::default() };
            heal(config, &live.registry, cache, span, &guard).await?
        };
        let healed = state.history_start.judge(config, marks, (from, known), healed).await?;
        let mut changes = Vec::new();
        let record = match &healed {
            // The first start: the queue and the history are as new as the worker.
            Healed::Applied { events: 0, complete: true, end, .. } if doubt == Doubt::Unknown => {
                watermark.begin(began.1, *end, None);
                None
            }
            Healed::Applied { events, begin, complete, end, passed_over, refused, .. } => {
                watermark.begin(began.1, *end, passed_over.iter().min().copied());
                // A heal without events need not be repeated by other rules.
                if *events > 0 || !complete || goes_on.is_some() {
                    changes = marks.note_heal(
                        cache.id(),
                        (*begin, *end),
                        &live.resolution_digest,
                        began.0.elapsed(),
                    );
                }
                if let Some(refused) = refused {
                    let owed = OwedHeal::of_refused(
                        refused.clone(),
                        (*end, live.resolution_digest.as_str()),
                        None,
                        now_ms(),
                        marks.now_ms_after(began.0.elapsed()),
                    );
                    cache.owe_heal(&owed).await.map_err(outage)?;
                }
                let details = HealDetails {
                    from_offset: Some(*begin),
                    passed_over: passed_over.clone(),
                    owed: refused.is_some().then_some(Owed::Due),
                    ..HealDetails::default()
                };
                Some(record(marks, from, *complete, details))
            }
            Healed::NoHistory if doubt == Doubt::Lost => {
                Some(record(marks, from, false, HealDetails::default()))
            }
            // Without a history there was no queue either, so no earlier event can have arrived.
            Healed::NoHistory => {
                watermark.begin(began.1, 0, None);
                None
            }
        };
        if !cache.finish_heal(record.as_ref(), &changes, watermark.now()).await.map_err(outage)? {
            return Ok(false);
        }
        self.has_begun.store(false, Ordering::Relaxed);
        self.remembers.store(true, Ordering::Relaxed);
        match healed {
            Healed::Applied { .. } if record.is_none() => {}
            Healed::Applied { events, effects, begin, passed_over, refused, .. } => {
                let complete = record.as_ref().is_some_and(|record| record.complete);
                metrics.healed();
                info!(%from, first_offset = begin, events, effects, seconds = began.0.elapsed().as_secs_f64(), complete, "healed: the history is applied again");
                let is_refused = refused.is_some();
                if let Some(refused) = refused {
                    error!(cause = %refused, "{REFUSED}");
                    state.owed.knows(refused.to_string());
                }
                if !passed_over.is_empty() {
                    error!(offsets = ?passed_over, "{LEFT_OUT}");
                } else if !complete && !is_refused {
                    warn!(%from, "the history does not hold all events of the heal: other old values stay readable until their TTL");
                }
            }
            Healed::NoHistory if doubt == Doubt::Lost => {
                error!(
                    "there is no history to heal Redis from: old values stay readable until their TTL; delete the keys that must be correct"
                );
            }
            Healed::NoHistory => {}
        }
        Ok(true)
    }
}
