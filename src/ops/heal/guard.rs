//! The turn to heal: its lock is kept on a thread of its own, so that no work of the heal can cost
//! it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cache::{Cache, CommandError, ConnectionState, HealProgress, Outage};
use crate::config::Config;
use crate::ops::replay::DEATHS_MAX;

/// Time between two renewals: several fit into the lock's own time.
const RENEW: Duration = Duration::from_millis(700);

/// Maximum time without a note of progress before the lock is left to another worker: this process
/// hangs.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// Maximum time until a worker that lost its turn has noted that it lives.
const NOTED_WITHIN: Duration = Duration::from_secs(2);

/// Keeps the lock until it is dropped, and notes the progress of the heal.
#[derive(Debug)]
pub struct Guard<'c> {
    cache: &'c Cache,
    found: HealProgress,
    lost: watch::Receiver<Option<Outage>>,
    alive: Arc<Alive>,
    _keeper: DropGuard,
}

/// When the heal last showed a sign of life.
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

impl<'c> Guard<'c> {
    /// Begins to keep the lock, which `cache` has taken. `found` is what heals before this one have
    /// noted.
    pub fn begin(config: &Config, cache: &'c Cache, found: HealProgress) -> Self {
        let (tell, lost) = watch::channel(None);
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
                tell.send_replace(Some(outage));
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to keep the heal's lock: the heal keeps it between batches alone");
        }
        Self { cache, found, lost, alive, _keeper: stop.drop_guard() }
    }

    /// Returns what heals before this one have noted: where to begin, and what they died of.
    pub fn found(&self) -> &HealProgress {
        &self.found
    }

    /// Makes certain that heals died before an event is passed over: a worker that but lost its
    /// turn says so.
    ///
    /// # Errors
    /// An outage.
    pub async fn confirm_deaths(&mut self) -> Result<(), Outage> {
        if self.found.is_to_pass_over(DEATHS_MAX) {
            tokio::time::sleep(NOTED_WITHIN).await;
            let confirmed = self.cache.without_survivors(self.found.clone()).await;
            self.found = confirmed.map_err(|error| match error {
                CommandError::Outage(outage) => outage,
                CommandError::Refused(cause) | CommandError::Failed(cause) => Outage::new(cause),
            })?;
        }
        Ok(())
    }

    /// Notes how far the heal is. Cheap: one round trip.
    ///
    /// # Errors
    /// An outage: also where the turn to heal is not ours any more.
    pub async fn note(&self, progress: &HealProgress) -> Result<(), Outage> {
        self.alive();
        self.cache.note_heal_progress(progress).await
    }

    /// Shows that the heal goes on where there is nothing to note, such as a broker that is waited
    /// for.
    pub fn alive(&self) {
        self.alive.note();
    }

    /// Waits until the turn to heal is lost.
    pub async fn lost(&self) -> Outage {
        let mut lost = self.lost.clone();
        let outage = lost.wait_for(Option::is_some).await.ok().and_then(|outage| outage.clone());
        match outage {
            Some(outage) => outage,
            // The thread has ended without a word: the seals behind each batch still tell.
            None => std::future::pending().await,
        }
    }
}

/// Renews the lock until it is another's.
async fn keep(cache: &Cache, worker: &str, alive: &Alive) -> Outage {
    let mut missed: Option<Outage> = None;
    loop {
        if alive.silence() > SILENCE_MAX {
            return Outage::new(format!(
                "the heal has made no progress for {} s",
                SILENCE_MAX.as_secs()
            ));
        }
        let is_up = cache.state() == ConnectionState::Up || cache.probe().await.is_ok();
        if is_up {
            match cache.keep_heal_of(worker).await {
                Ok(()) => missed = None,
                // Said twice: it is not the end of a connection.
                Err(outage)
                    if missed.as_ref() == Some(&outage) && cache.state() == ConnectionState::Up =>
                {
                    // A death is another thing. It is noted again where this fails.
                    let _noted = cache.yield_heal_of(worker).await;
                    return outage;
                }
                Err(outage) => missed = Some(outage),
            }
        }
        tokio::time::sleep(RENEW).await;
    }
}
