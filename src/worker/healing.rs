//! Whether Redis holds all that it confirmed, and what is done where it does not: nothing is consumed until the history was applied again from before
//! the loss, by one worker for all.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::MissedTickBehavior;
use tracing::{debug, error, info, warn};

use super::Shared;
use crate::broker::{Backoff, BrokerError};
use crate::cache::{CommandError, Entered, HealFrom, HealProgress, HealRecord, Marks, Outage, Tick, Turn};
use crate::http::Readiness;
use crate::ops::heal::{Guard, Healed, NotHealed, heal};

/// Between two moves of our mark.
const TICK: Duration = Duration::from_secs(1);

/// Between two looks at the heal of another worker.
const WAIT: Duration = Duration::from_millis(200);

/// Clocks differ, and a chunk of the stream is stamped when it is written.
const MARGIN: SignedDuration = SignedDuration::from_secs(60);

/// Why it is not known that Redis holds all that it confirmed.
#[derive(Debug)]
pub(super) enum Unhealed {
    /// Redis cannot be worked with.
    Redis(Outage),
    /// The broker refuses us the history.
    Broker(BrokerError),
}

impl Unhealed {
    /// Waiting will not end it.
    pub(super) fn needs_person(&self) -> bool {
        match self {
            Self::Redis(outage) => outage.needs_person,
            Self::Broker(error) => error.is_final(),
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

/// What is refused for good keeps a worker from working just as an outage does.
fn outage(error: CommandError) -> Outage {
    match error {
        CommandError::Outage(outage) => outage,
        CommandError::Refused(cause) | CommandError::Failed(cause) => Outage::no_marks(&cause),
    }
}

/// Sees to it before the gate opens.
#[derive(Debug)]
pub(super) struct Healer<'s> {
    shared: &'s Shared,
    readiness: Readiness,
    /// Our mark has stood before: we remember it.
    remembers: AtomicBool,
}

impl<'s> Healer<'s> {
    pub(super) fn new(shared: &'s Shared, readiness: Readiness) -> Self {
        Self { shared, readiness, remembers: AtomicBool::new(false) }
    }

    /// Waits until Redis holds all that it confirmed, healing it where it is our turn.
    pub(super) async fn ensure(&self) -> Result<(), Unhealed> {
        if self.shared.config.heals() {
            self.enter().await.inspect_err(|_| self.shared.metrics.set_paused("healing", false))?;
        }
        self.shared.metrics.set_paused("healing", false);
        self.readiness.set_healed(Ok(()));
        Ok(())
    }

    async fn enter(&self) -> Result<(), Unhealed> {
        let Shared { cache, low, .. } = self.shared;
        let mut backoff = Backoff::new();
        loop {
            if let Entered::Good(marks) = cache.enter(low.now_ms()).await? {
                self.entered(&marks);
                return Ok(());
            }
            self.shared.metrics.set_paused("healing", true);
            match cache.take_heal().await? {
                Turn::Done => {}
                Turn::Anothers => {
                    self.readiness.set_healed(Err("Redis may have lost writes: another worker applies the history again".into()));
                    tokio::time::sleep(WAIT).await;
                }
                Turn::Ours(marks) => {
                    self.readiness.set_healed(Err("Redis may have lost writes: the history is applied again".into()));
                    match self.heal(&marks).await {
                        Ok(true) => {
                            self.entered(&marks);
                            return Ok(());
                        }
                        Ok(false) => warn!("Redis went back once more during the heal: it begins anew"),
                        Err(NotHealed::Redis(outage)) => return Err(outage.into()),
                        Err(NotHealed::History(cause)) => {
                            warn!(%cause, "the history cannot be read to heal Redis");
                            tokio::time::sleep(WAIT).await;
                        }
                        Err(NotHealed::Broker(error)) if error.is_final() => return Err(Unhealed::Broker(error)),
                        Err(NotHealed::Broker(error)) => {
                            let wait = backoff.next_delay(fastrand::f64());
                            warn!(cause = %error, retry_in_ms = wait.as_millis(), "the history cannot be read to heal Redis");
                            self.readiness
                                .set_healed(Err(format!("Redis may have lost writes, and the history cannot be read: {error}").into()));
                            tokio::time::sleep(wait).await;
                        }
                    }
                }
            }
        }
    }

    fn entered(&self, marks: &Marks) {
        if !self.remembers.swap(true, Ordering::Relaxed) {
            self.shared.low.inherit(marks.lowest_ms());
        }
    }

    /// Heals, in our turn. False where all is to be done again.
    async fn heal(&self, marks: &Marks) -> Result<bool, NotHealed> {
        let Shared { cache, config, low, .. } = self.shared;
        let from = self.from(marks);
        let lost = self.remembers.load(Ordering::Relaxed);
        if lost {
            warn!(%from, "Redis lost writes that it had confirmed (an old snapshot, or a replica promoted too early): applying the history again");
        } else {
            debug!(%from, "no worker has kept a mark in Redis of late: applying the history again, in case Redis went back");
        }
        cache.forward_sequence().await.map_err(outage)?;
        let live = self.shared.live.load_full();
        let guard = Guard::begin(config, cache, HealProgress::default());
        let place = HealFrom { offset: None, time: Some(from) };
        let healed = heal(config, &live.registry, cache, place, &guard).await?;
        drop(guard);
        let record = |complete| HealRecord {
            began_ms: marks.now_ms,
            ended_ms: marks.now_ms,
            from_ms: u64::try_from(from.as_millisecond()).unwrap_or(0),
            count: marks.last_heal().map_or(0, |last| last.count) + 1,
            complete,
        };
        let record = match healed {
            Healed::Applied { complete, .. } => Some(record(complete)),
            Healed::NoHistory if lost => Some(record(false)),
            Healed::NoHistory => None,
        };
        if !cache.finish_heal(record, low.now_ms()).await.map_err(outage)? {
            return Ok(false);
        }
        match healed {
            Healed::Applied { events, effects, complete, .. } => {
                self.shared.metrics.healed();
                info!(%from, events, effects, "healed: the history is applied again");
                if !complete {
                    warn!(%from, "the history begins later than the loss: what it does not reach stays readable until its TTL");
                }
            }
            Healed::NoHistory if lost => {
                error!("there is no history to heal Redis from: what it had lost stays readable until its TTL; flush what must be right");
            }
            // Where there is no history, there was no queue either: nothing can have arrived before.
            Healed::NoHistory => low.begin(),
        }
        Ok(true)
    }

    /// From when on the history is to be applied again.
    fn from(&self, marks: &Marks) -> Timestamp {
        let from = match marks.lowest_ms() {
            Some(lowest) => i64::try_from(lowest)
                .ok()
                .and_then(|lowest| Timestamp::from_millisecond(lowest).ok())
                .and_then(|low| low.checked_sub(MARGIN).ok()),
            None => {
                let window = self.shared.config.heal_window.and_then(|window| SignedDuration::try_from(window).ok());
                window.and_then(|window| Timestamp::now().checked_sub(window).ok())
            }
        };
        from.unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH)
    }
}

/// Moves our mark on while Redis can be worked with; never returns.
pub(super) async fn tick(shared: &Shared) -> Infallible {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        shared.gate.open().await;
        ticks.tick().await;
        let found = match shared.cache.tick(shared.low.now_ms()).await {
            Ok(Tick::NotEntered) => continue,
            Ok(Tick::Good(marks)) => {
                shared.low.set_lowest(marks.lowest_ms());
                continue;
            }
            Ok(Tick::WentBack) => Outage::went_back(),
            Ok(Tick::ToHeal) => Outage::new("another worker found that Redis has lost writes that it had confirmed"),
            Err(error) => outage(error),
        };
        // The lanes notice by it.
        shared.cache.give_up(&found);
        shared.gate.close(&found);
    }
}
