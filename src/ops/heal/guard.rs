//! The lock of a heal. A thread of its own renews it, so that no work of the heal can delay a
//! renewal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cache::{Cache, CommandError, HealProgress, Outage};
use crate::causes::Explain;
use crate::config::Config;
use crate::ops::replay::DEATHS_MAX;

/// Time between two renewals. The lock's expiry is several times longer.
const RENEW_INTERVAL: Duration = Duration::from_millis(700);

/// Maximum time without progress before the lock is left to another worker, because this process
/// hangs.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// Maximum time in which a worker that lost the lock records that it is alive.
const SURVIVOR_TIMEOUT: Duration = Duration::from_secs(2);

/// Holds the lock until it is dropped, and records the progress of the heal.
#[derive(Debug)]
pub struct HealGuard<'c> {
    cache: &'c Cache,
    found: HealProgress,
    lost: watch::Receiver<Option<Outage>>,
    alive: Arc<Alive>,
    _keeper: DropGuard,
}

/// The time at which the heal last made progress.
#[derive(Debug)]
struct Alive {
    since: Instant,
    at_ms: AtomicU64,
}

impl Alive {
    fn note(&self) {
        self.at_ms.store(
            u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    fn silence(&self) -> Duration {
        self.since
            .elapsed()
            .saturating_sub(Duration::from_millis(self.at_ms.load(Ordering::Relaxed)))
    }
}

impl<'c> HealGuard<'c> {
    /// Begins to renew the lock, which `cache` has taken. `found` is the recorded progress of
    /// earlier heals.
    pub fn begin(config: &Config, cache: &'c Cache, found: HealProgress) -> Self {
        let (report_lost, lost) = watch::channel(None);
        let stop = CancellationToken::new();
        let alive = Arc::new(Alive { since: Instant::now(), at_ms: AtomicU64::new(0) });
        let (token, shows) = (stop.clone(), Arc::clone(&alive));
        let (redis, queue, worker) =
            (config.redis.clone(), config.amqp.queue.clone(), cache.id().to_owned());
        let keeper = cache.for_keeper(&redis, &queue);
        let spawned = std::thread::Builder::new().name("heal-lock".into()).spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build()
            else {
                return;
            };
            let Ok(keeper) = keeper else { return };
            let kept = runtime.block_on(token.run_until_cancelled(keep(&keeper, &worker, &shows)));
            if let Some(outage) = kept {
                report_lost.send_replace(Some(outage));
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(
                error = error.in_full(),
                "heal lock thread could not start: the lock is renewed between batches only"
            );
        }
        Self { cache, found, lost, alive, _keeper: stop.drop_guard() }
    }

    /// Returns the recorded progress of earlier heals: where to begin, and where they died.
    pub fn found(&self) -> &HealProgress {
        &self.found
    }

    /// Checks that earlier heals really died, before an event is skipped because of them. A worker
    /// that only lost the lock records that it is alive.
    ///
    /// # Errors
    /// An outage.
    pub async fn confirm_deaths(&mut self) -> Result<(), Outage> {
        if self.found.is_to_pass_over(DEATHS_MAX) {
            tokio::time::sleep(SURVIVOR_TIMEOUT).await;
            let confirmed = self.cache.without_survivors(self.found.clone()).await;
            self.found = confirmed.map_err(CommandError::into_outage)?;
        }
        Ok(())
    }

    /// Records the progress of the heal, in one round trip.
    ///
    /// # Errors
    /// An outage, also if another worker has taken the lock.
    pub async fn note(&self, progress: &HealProgress) -> Result<(), Outage> {
        self.alive();
        self.cache.note_heal_progress(progress).await
    }

    /// Shows that the heal is alive although there is no progress to record, such as while it waits
    /// for the broker.
    pub fn alive(&self) {
        self.alive.note();
    }

    /// Waits until the lock is lost.
    pub async fn lost(&self) -> Outage {
        let mut lost = self.lost.clone();
        let outage = lost.wait_for(Option::is_some).await.ok().and_then(|outage| outage.clone());
        match outage {
            Some(outage) => outage,
            // The thread ended without an outage. The checkpoint write after each batch still
            // detects a lost lock.
            None => std::future::pending().await,
        }
    }
}

/// Renews the lock until it is lost.
async fn keep(cache: &Cache, worker: &str, alive: &Alive) -> Outage {
    let mut missed = false;
    loop {
        if alive.silence() > SILENCE_MAX {
            return Outage::new(format!(
                "the heal has made no progress for {} s",
                SILENCE_MAX.as_secs()
            ));
        }
        let is_up = cache.state().is_up() || cache.probe().await.is_ok();
        if is_up {
            match cache.keep_heal_of(worker).await {
                Ok(()) => missed = false,
                // Redis itself refuses twice: the end of a connection would leave the state down.
                Err(outage) if missed && cache.state().is_up() => {
                    // This worker lives, so this is not a death. If this write fails, it is
                    // repeated later.
                    let _noted = cache.yield_heal_of(worker).await;
                    return outage;
                }
                Err(_) => missed = cache.state().is_up(),
            }
        }
        tokio::time::sleep(RENEW_INTERVAL).await;
    }
}
