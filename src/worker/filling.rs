//! Fills a key in four steps: a claim, a lease, a load and a fill. All workers and leasing readers
//! together run one load of a key at a time. If an invalidation overtakes a value, the value is
//! discarded and loaded again. This load also serves the workers that invalidated the key for the
//! same load meanwhile.
//!
//! The caller provides the source of values and the waiting times, so that `tests/it/model/` can
//! take the same steps in any order.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::cache::{
    Cache, Claim, CommandError, FillOutcome, Grant, LONGEST_LEASE, LoadToken, Outage,
};
use crate::causes::Explain;
use crate::loader::{LoadError, LoadOutcome};
use crate::plan::EffectOutcome;
use crate::quantity::format_duration;
use crate::reason::Reason;
use crate::registry::{Stale, Warm};

/// Maximum number of loads in a row that invalidations may overtake. Then the retry schedule delays
/// the next load of the key.
const MOST_OVERTAKEN: u32 = 8;

/// The source of a loaded value.
pub trait Source {
    /// The right to load now.
    type Turn;

    /// Waits for permission to load.
    fn admit(&self) -> impl Future<Output = Result<Self::Turn, LoadError>>;

    /// Loads the value.
    fn load(&self, turn: Self::Turn) -> impl Future<Output = Result<LoadOutcome, LoadError>>;
}

/// The durations of claims, leases and waits.
#[derive(Debug, Clone, Copy)]
pub struct FillPace {
    /// Time after which claims and leases end by themselves. After a worker's death the next worker
    /// waits for that.
    pub claim_ttl: Duration,
    /// Time after which claims and leases are renewed while they are needed.
    pub renewed_after: Duration,
    /// Time between two looks at a claim or lease of another holder.
    pub held_interval: Duration,
    /// Maximum time to wait for another load of the same key.
    pub longest_wait: Duration,
}

impl Default for FillPace {
    fn default() -> Self {
        Self {
            claim_ttl: Duration::from_secs(6),
            renewed_after: Duration::from_secs(2),
            held_interval: Duration::from_millis(50),
            longest_wait: Duration::from_secs(120),
        }
    }
}

/// The identity under which a load is claimed, and its event.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The event's id.
    pub event: &'a str,
    /// A unique name.
    pub name: &'a str,
    /// The earlier name of this asker, if it is unknown what was granted to that name.
    pub before: Option<&'a str>,
}

/// A key to be filled.
#[derive(Debug)]
pub struct Filling<'f, S> {
    cache: &'f Cache,
    key: &'f str,
    warm: &'f Warm,
    source: &'f S,
    pace: FillPace,
    token: LoadToken,
    before: Option<LoadToken>,
    stop: &'f CancellationToken,
}

/// The result of a load that ended.
enum Ended {
    /// The key has a value that was loaded after the event, by this worker or by another.
    Filled,
    /// There is nothing to fill the key with.
    Empty,
}

/// Why a key was not filled.
enum Unfilled {
    Load(LoadError),
    Held,
    Overtaken,
    /// A stop was requested. A load that has not begun is left to the next worker.
    Stopped,
    Redis(CommandError),
}

impl Unfilled {
    fn into_outcome(self) -> Result<EffectOutcome, Outage> {
        let again = |message: String| Ok(EffectOutcome::Retry { message, after: None });
        match self {
            Self::Load(error) => {
                let message = error.in_full();
                Ok(match error {
                    LoadError::Retry { after, .. } => EffectOutcome::Retry { message, after },
                    LoadError::NotAsked { after, .. } => EffectOutcome::NotTried { message, after },
                    LoadError::Refused { .. } => EffectOutcome::Dead {
                        reason: Reason::LoaderRefused,
                        message,
                        may_be_permitted: false,
                    },
                })
            }
            Self::Held => again("another load of the same key did not end in time".to_owned()),
            Self::Overtaken => again(format!(
                "the key was invalidated {MOST_OVERTAKEN} times in a row while it was loaded"
            )),
            Self::Stopped => Ok(EffectOutcome::Slow),
            Self::Redis(error) => error.into_outcome(),
        }
    }
}

impl From<LoadError> for Unfilled {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

impl From<CommandError> for Unfilled {
    fn from(error: CommandError) -> Self {
        Self::Redis(error)
    }
}

impl<'f, S: Source> Filling<'f, S> {
    /// Returns a filling of a key that was deleted before, unless its old value is served. Once
    /// `stop` is cancelled, it begins no new load.
    pub fn new(
        cache: &'f Cache,
        (key, warm): (&'f str, &'f Warm),
        source: &'f S,
        asker: Asker<'_>,
        pace: FillPace,
        stop: &'f CancellationToken,
    ) -> Self {
        let (what, of_event) = (hash_of_load(warm), hash(&[asker.event.as_bytes()]));
        let token = |name: &str| LoadToken::new(what, of_event, name);
        Self {
            cache,
            key,
            warm,
            source,
            pace,
            token: token(asker.name),
            before: asker.before.map(token),
            stop,
        }
    }

    /// Loads the value and fills the key. Returns the outcome if the effect is unfinished.
    /// `is_tried_again` returns true if a load that failed now will be tried again, for the pause
    /// that the loader asked for.
    ///
    /// # Errors
    /// Returns the outage. The whole filling must then be done again.
    pub async fn fill(
        &self,
        is_tried_again: impl FnOnce(Option<Duration>) -> bool,
    ) -> Result<Option<EffectOutcome>, Outage> {
        let (outcome, is_empty) = match self.claimed().await {
            Ok(Ended::Filled) => (None, false),
            Ok(Ended::Empty) => (None, true),
            Err(unfilled) => (Some(self.bounded(unfilled.into_outcome()?)), false),
        };
        let for_good = match &outcome {
            None => is_empty,
            Some(EffectOutcome::Retry { after, .. }) => !is_tried_again(*after),
            Some(EffectOutcome::Dead { .. }) => true,
            // Another worker loads it in a moment, or it is tried again later.
            Some(EffectOutcome::Slow | EffectOutcome::NotTried { .. }) => false,
        };
        if self.warm.stale == Stale::Serve && for_good {
            // The old value must not be served any longer.
            match self.cache.delete_value(self.key).await {
                Err(CommandError::Outage(outage)) => return Err(outage),
                Err(error) => return error.into_outcome().map(Some),
                Ok(()) => {}
            }
        }
        Ok(outcome)
    }

    /// Ends the load after [`fill`](Self::fill) was dropped, so that no other load waits for it to
    /// expire. The whole filling must still be done.
    ///
    /// # Errors
    /// Returns the outage. The whole filling must then be done again.
    pub async fn interrupted(&self) -> Result<Option<EffectOutcome>, Outage> {
        match self.cache.end_load(self.key, &self.token, None).await {
            Ok(()) => Ok(Some(EffectOutcome::Slow)),
            Err(error) => error.into_outcome().map(Some),
        }
    }

    /// Returns an outcome that uses up attempts, if the old value is served. The old value is
    /// deleted once the attempts are used up, so a wait for its loader must count too.
    fn bounded(&self, outcome: EffectOutcome) -> EffectOutcome {
        match outcome {
            EffectOutcome::NotTried { message, after } if self.warm.stale == Stale::Serve => {
                EffectOutcome::Retry { message, after: Some(after) }
            }
            outcome => outcome,
        }
    }

    /// Claims the load, and loads unless another load does the same. Holds nothing while it waits.
    async fn claimed(&self) -> Result<Ended, Unfilled> {
        let (cache, claim_ttl) = (self.cache, self.pace.claim_ttl);
        if let Some(before) = &self.before {
            // Otherwise others would wait until the earlier claim expires. A fill under the earlier
            // name is refused.
            cache.end_load(self.key, before, None).await?;
        }
        let deadline = Instant::now() + self.pace.longest_wait;
        let mut first = true;
        loop {
            match cache.claim_load(self.key, &self.token, claim_ttl, first).await? {
                Claim::Covered => return Ok(Ended::Filled),
                Claim::Load => break,
                Claim::Wait if Instant::now() >= deadline || self.stop.is_cancelled() => {
                    cache.end_load(self.key, &self.token, None).await?;
                    return Err(if self.stop.is_cancelled() {
                        Unfilled::Stopped
                    } else {
                        Unfilled::Held
                    });
                }
                Claim::Wait => sleep(self.pace.held_interval).await,
            }
            first = false;
        }
        let ended = self.until_filled().await;
        if let Err(Unfilled::Redis(CommandError::Outage(outage))) = ended {
            return Err(CommandError::Outage(outage).into());
        }
        // A served old value does not show whether a fill has happened.
        let is_filled = matches!(ended, Ok(Ended::Filled)) && self.warm.stale == Stale::Drop;
        cache.end_load(self.key, &self.token, is_filled.then_some(claim_ttl)).await?;
        ended
    }

    /// Loads until no invalidation overtakes the load. Once `stop` is cancelled, it ends the
    /// current load and begins no other.
    async fn until_filled(&self) -> Result<Ended, Unfilled> {
        let (cache, claim_ttl) = (self.cache, self.pace.claim_ttl);
        let deadline = Instant::now() + self.pace.longest_wait;
        let mut overtaken = 0;
        while overtaken < MOST_OVERTAKEN {
            if self.stop.is_cancelled() {
                return Err(Unfilled::Stopped);
            }
            cache.keep_load(self.key, &self.token, claim_ttl).await?;
            if self.keeping(self.filled_by_a_reader(deadline)).await?? {
                return Ok(Ended::Filled);
            }
            let turn = self
                .keeping(self.stop.run_until_cancelled(self.source.admit()))
                .await?
                .ok_or(Unfilled::Stopped)??;
            // The permission comes before the lease. Otherwise readers would wait for a load that
            // waits itself.
            let Grant::Granted { since } =
                cache.grant_lease(self.key, self.token.as_str(), claim_ttl).await?
            else {
                continue;
            };
            cache.keep_load(self.key, &self.token, claim_ttl).await?;
            match self.keeping(self.load(turn)).await? {
                Ok(LoadOutcome::Value(value)) => {
                    match cache
                        .fill(
                            self.key,
                            self.token.as_str(),
                            since,
                            &value,
                            self.warm.expiry,
                            &self.warm.tags,
                        )
                        .await?
                    {
                        FillOutcome::Filled => return Ok(Ended::Filled),
                        FillOutcome::Over => return Ok(Ended::Empty),
                        FillOutcome::Refused => {}
                    }
                }
                Err(error @ (LoadError::Retry { .. } | LoadError::NotAsked { .. })) => {
                    return Err(error.into());
                }
                // The answer is about the time before an invalidation, and does not apply now.
                Ok(LoadOutcome::Absent) | Err(LoadError::Refused { .. })
                    if !cache.release_lease(self.key, self.token.as_str()).await? => {}
                Ok(LoadOutcome::Absent) => return Ok(Ended::Empty),
                Err(error @ LoadError::Refused { .. }) => return Err(error.into()),
            }
            overtaken += 1;
        }
        Err(Unfilled::Overtaken)
    }

    /// Waits while a reader holds the lease. Returns true if that reader has filled the key. The
    /// reader began after this event's deletion, so its value is as good as a load by this worker.
    /// A served old value does not show whether a fill has happened.
    async fn filled_by_a_reader(&self, deadline: Instant) -> Result<bool, Unfilled> {
        let cache = self.cache;
        let mut was_held = false;
        while cache.lease_is_held(self.key).await? {
            if self.stop.is_cancelled() {
                return Err(Unfilled::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(Unfilled::Held);
            }
            was_held = true;
            sleep(self.pace.held_interval).await;
        }
        Ok(was_held && self.warm.stale == Stale::Drop && cache.has_value(self.key).await?)
    }

    async fn load(&self, turn: S::Turn) -> Result<LoadOutcome, LoadError> {
        // Tags remember their invalidations for some time longer, and not for ever.
        tokio::time::timeout(LONGEST_LEASE, self.source.load(turn)).await.unwrap_or_else(|_| {
            let cause = format!("the load took more than {}", format_duration(LONGEST_LEASE));
            Err(LoadError::Retry { after: None, cause: cause.into() })
        })
    }

    /// Does the work, and keeps the claim and the lease meanwhile.
    async fn keeping<T>(&self, work: impl Future<Output = T>) -> Result<T, CommandError> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = sleep(self.pace.renewed_after) => self.cache.keep_load(self.key, &self.token, self.pace.claim_ttl).await?,
            }
        }
    }
}

/// Returns a hash of everything that determines what a load leaves in the cache, and whether an old
/// value may be there meanwhile.
fn hash_of_load(warm: &Warm) -> u64 {
    let (expiry, stale) = (format!("{:?}", warm.expiry), format!("{:?}", warm.stale));
    let fields = [warm.url.as_bytes(), expiry.as_bytes(), stale.as_bytes()];
    hash(&fields.into_iter().chain(warm.tags.iter().map(String::as_bytes)).collect::<Vec<_>>())
}

/// Returns a hash that is the same in every worker.
fn hash(fields: &[&[u8]]) -> u64 {
    let mut hasher = Sha256::new();
    for field in fields {
        hasher.update((field.len() as u64).to_be_bytes());
        hasher.update(field);
    }
    hasher.finalize().iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}
