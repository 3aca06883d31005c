//! Filling a key: a claim, a lease, a load, a fill. Of a key one load is under way at a time over
//! all workers and leasing readers. A value that an invalidation overtook is thrown away and loaded
//! again, so whoever invalidated the key meanwhile for the same load is done with.
//!
//! Where values come from and how long is waited are the caller's, so that `tests/it/model/` can
//! take the same steps in any order.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::cache::{
    Cache, Claim, CommandError, FillOutcome, Grant, LONGEST_LEASE, LoadToken, Outage,
};
use crate::plan::EffectOutcome;
use crate::quantity::format_duration;
use crate::reason::Reason;
use crate::registry::{Stale, Warm};
use crate::warm::{LoadError, Loaded};

/// Loads in a row that may be overtaken by invalidations, before the retry ladder gives the key
/// some rest.
const MOST_OVERTAKEN: u32 = 8;

/// Where a value is loaded from.
pub trait Source {
    /// The right to load now.
    type Turn;

    /// Waits for its turn.
    fn admit(&self) -> impl Future<Output = Result<Self::Turn, LoadError>>;

    /// Loads.
    fn load(&self, turn: Self::Turn) -> impl Future<Output = Result<Loaded, LoadError>>;
}

/// How long is held and waited.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Claims and leases end by themselves after so long: after a worker's death the next one waits
    /// for it.
    pub claim_ttl: Duration,
    /// They are renewed after so long, while they are needed.
    pub renewed_after: Duration,
    /// Between two looks at what somebody else holds.
    pub held_interval: Duration,
    /// Others' loads of the same key are waited for so long.
    pub longest_wait: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            claim_ttl: Duration::from_secs(6),
            renewed_after: Duration::from_secs(2),
            held_interval: Duration::from_millis(50),
            longest_wait: Duration::from_secs(120),
        }
    }
}

/// Who loads what, for which event.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The event's id.
    pub event: &'a str,
    /// Nobody else has this name.
    pub name: &'a str,
    /// The name that it asked by before, where nobody knows what was granted to that.
    pub before: Option<&'a str>,
}

/// A key to be filled.
#[derive(Debug)]
pub struct Filling<'f, S> {
    cache: &'f Cache,
    key: &'f str,
    warm: &'f Warm,
    source: &'f S,
    pace: Pace,
    token: LoadToken,
    before: Option<LoadToken>,
    stop: &'f CancellationToken,
}

/// What a load came to.
enum Ended {
    /// The key has a value that was loaded after the event, by us or by another.
    Filled,
    /// There is nothing to fill it with.
    Empty,
}

/// Why a key was left as it was.
enum Unfilled {
    Load(LoadError),
    Held,
    Overtaken,
    /// We are to stop: what is not under way is left to the next worker.
    Stopped,
    Redis(CommandError),
}

impl Unfilled {
    fn into_outcome(self) -> Result<EffectOutcome, Outage> {
        let again = |message: String| Ok(EffectOutcome::Retry { message, after: None });
        match self {
            Self::Load(LoadError::Retry { after, message }) => {
                Ok(EffectOutcome::Retry { message, after })
            }
            Self::Load(LoadError::NotAsked { after, message }) => {
                Ok(EffectOutcome::NotTried { message, after })
            }
            Self::Load(LoadError::Refused { message }) => {
                Ok(EffectOutcome::Dead { reason: Reason::LoaderRefused, message })
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
    /// Of a key that was deleted before, unless its old value is served. Told to stop, it begins no
    /// load anew.
    pub fn new(
        cache: &'f Cache,
        (key, warm): (&'f str, &'f Warm),
        source: &'f S,
        asker: Asker<'_>,
        pace: Pace,
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

    /// Loads and fills; what is left to do, if anything. `is_tried_again`: whether a load that
    /// failed now will be tried again, where its loader asked for so long a pause.
    ///
    /// # Errors
    /// The outage: to be done again, whole.
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
            // Another worker loads it in a moment, or it is tried in a while.
            Some(EffectOutcome::Slow | EffectOutcome::NotTried { .. }) => false,
        };
        if self.warm.stale == Stale::Serve && for_good {
            // What was served meanwhile is not to be served any longer.
            match self.cache.delete_value(self.key).await {
                Err(CommandError::Outage(outage)) => return Err(outage),
                Err(error) => return error.into_outcome().map(Some),
                Ok(()) => {}
            }
        }
        Ok(outcome)
    }

    /// Ends the load, after [`fill`](Self::fill) was dropped: nobody waits for it until it runs
    /// out. The whole is left to do.
    ///
    /// # Errors
    /// The outage: to be done again, whole.
    pub async fn interrupted(&self) -> Result<Option<EffectOutcome>, Outage> {
        match self.cache.end_load(self.key, &self.token, None).await {
            Ok(()) => Ok(Some(EffectOutcome::Slow)),
            Err(error) => error.into_outcome().map(Some),
        }
    }

    /// An old value that is served goes once the attempts are used up, so waiting for its loader
    /// uses them up too.
    fn bounded(&self, outcome: EffectOutcome) -> EffectOutcome {
        match outcome {
            EffectOutcome::NotTried { message, after } if self.warm.stale == Stale::Serve => {
                EffectOutcome::Retry { message, after: Some(after) }
            }
            outcome => outcome,
        }
    }

    /// Loads if nobody else does the same, holding nothing while it waits.
    async fn claimed(&self) -> Result<Ended, Unfilled> {
        let (cache, claim_ttl) = (self.cache, self.pace.claim_ttl);
        if let Some(before) = &self.before {
            // Else it would be waited for until it runs out. A fill by it that still comes is
            // refused.
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
        // An old value that is served tells nothing.
        let is_filled = matches!(ended, Ok(Ended::Filled)) && self.warm.stale == Stale::Drop;
        cache.end_load(self.key, &self.token, is_filled.then_some(claim_ttl)).await?;
        ended
    }

    /// Loads until no invalidation came in between. Told to stop, it ends the load under way and
    /// begins no other.
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
            // Its turn comes before its lease: readers must not wait for a load that only waits
            // itself.
            let Grant::Granted { since } =
                cache.grant_lease(self.key, self.token.as_str(), claim_ttl).await?
            else {
                continue;
            };
            cache.keep_load(self.key, &self.token, claim_ttl).await?;
            match self.keeping(self.load(turn)).await? {
                Ok(Loaded::Value(value)) => {
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
                // Said of what was there before an invalidation, it says nothing of now.
                Ok(Loaded::Absent) | Err(LoadError::Refused { .. })
                    if !cache.release_lease(self.key, self.token.as_str()).await? => {}
                Ok(Loaded::Absent) => return Ok(Ended::Empty),
                Err(error @ LoadError::Refused { .. }) => return Err(error.into()),
            }
            overtaken += 1;
        }
        Err(Unfilled::Overtaken)
    }

    /// Waits while a reader holds the lease. Whether it has filled the key: it began after our
    /// deletion, so that is as good as a load of ours. An old value that is served tells nothing.
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

    async fn load(&self, turn: S::Turn) -> Result<Loaded, LoadError> {
        // Tags remember their invalidations for some time longer, and not for ever.
        tokio::time::timeout(LONGEST_LEASE, self.source.load(turn)).await.unwrap_or_else(|_| {
            let message = format!("the load took more than {}", format_duration(LONGEST_LEASE));
            Err(LoadError::Retry { after: None, message })
        })
    }

    /// Does the work while the claim and the lease are kept.
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

/// What decides what a load would leave in the cache, and whether an old value may be there
/// meanwhile.
fn hash_of_load(warm: &Warm) -> u64 {
    let (expiry, stale) = (format!("{:?}", warm.expiry), format!("{:?}", warm.stale));
    let fields = [warm.url.as_bytes(), expiry.as_bytes(), stale.as_bytes()];
    hash(&fields.into_iter().chain(warm.tags.iter().map(String::as_bytes)).collect::<Vec<_>>())
}

/// The same in every worker.
fn hash(fields: &[&[u8]]) -> u64 {
    let mut hasher = Sha256::new();
    for field in fields {
        hasher.update((field.len() as u64).to_be_bytes());
        hasher.update(field);
    }
    hasher.finalize().iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}
