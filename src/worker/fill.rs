//! One `warm`: a claim, a lease, a load, a fill. Of a key one load is under way at a time over all workers and leasing readers. A value that an
//! invalidation overtook is thrown away and loaded again, so whoever invalidated the key meanwhile for the same load is done with.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::batch::Batch;
use super::{Live, Shared};
use crate::cache::{Claim, CommandError, Fill, Grant, LONGEST_LEASE, LoadToken, Outage, new_token};
use crate::event::{Decoded, decode};
use crate::plan::EffectOutcome;
use crate::quantity::format_duration;
use crate::reason::Reason;
use crate::registry::{Stale, Warm};
use crate::warm::{Admitted, LoadContext, LoadError, Loaded};

/// Claims and leases are renewed while they are needed: after a worker's death the next one waits for so long.
const CLAIM_TTL: Duration = Duration::from_secs(6);
const RENEWED_AFTER: Duration = Duration::from_secs(2);

/// Between two looks at what somebody else holds.
const HELD_INTERVAL: Duration = Duration::from_millis(50);

/// Others' loads of the same key are waited for so long.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Loads in a row that may be overtaken by invalidations, before the retry ladder gives the key some rest.
const MOST_OVERTAKEN: u32 = 8;

/// What the loads of one delivery are known by: others each time that an outage of Redis interrupts it.
#[derive(Debug)]
pub(super) struct Tokens {
    stem: String,
    round: u32,
}

/// Who asks for one effect's load, and who asked before the outage.
#[derive(Debug)]
pub(super) struct Asker {
    name: String,
    before: Option<String>,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { stem: new_token(), round: 0 }
    }

    /// There was an outage: nobody knows what was granted.
    pub(super) fn renew(&mut self) {
        self.round += 1;
    }

    /// For the effect at that position.
    pub(super) fn of(&self, position: u32) -> Asker {
        let name = |round: u32| format!("{}-{position}-{round}", self.stem);
        Asker { name: name(self.round), before: self.round.checked_sub(1).map(name) }
    }
}

/// Loads and fills `key`, which was deleted before unless its old value is served, for the one event of `batch`; what is left to do, if
/// anything.
///
/// # Errors
/// The outage: to be done again, whole.
pub(super) async fn warm(
    shared: &Shared,
    batch: &Batch,
    key: &str,
    warm: &Warm,
    asker: &Asker,
    stop: &CancellationToken,
) -> Result<Option<EffectOutcome>, Outage> {
    let message = batch.deliveries[0].message();
    let event = match decode(&message, shared.config.max_body_bytes) {
        Ok(Decoded::Event(event)) => Some(event),
        Ok(_) | Err(_) => None,
    };
    let event_id = event.as_ref().map_or("", |event| &*event.id);
    let (what, of_event) = (hash_of_load(warm), hash(&[event_id.as_bytes()]));
    let token = |name: &str| LoadToken::new(what, of_event, name);
    let load = Load {
        shared,
        live: &batch.live,
        context: LoadContext { event_id, traceparent: event.as_ref().and_then(|event| event.traceparent.as_deref()) },
        key,
        warm,
        token: token(&asker.name),
        stop,
    };
    let (outcome, is_empty) = match load.claimed(asker.before.as_deref().map(token)).await {
        Ok(Ended::Filled) => (None, false),
        Ok(Ended::Empty) => (None, true),
        Err(unfilled) => (Some(unfilled.into_outcome()?), false),
    };
    let attempts_made = batch.requests[0].attempts_before + 1;
    let for_good = match &outcome {
        None => is_empty,
        Some(EffectOutcome::Retry { after, .. }) => shared.policy.ladder.rung(attempts_made, *after).is_none(),
        Some(EffectOutcome::Dead { .. }) => true,
        // Another worker loads it in a moment.
        Some(EffectOutcome::Slow) => false,
    };
    if warm.stale == Stale::Serve && for_good {
        // What was served meanwhile is not to be served any longer.
        match shared.cache.delete_value(key).await {
            Err(CommandError::Outage(outage)) => return Err(outage),
            Err(error) => return error.into_outcome().map(Some),
            Ok(()) => {}
        }
    }
    Ok(outcome)
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
            Self::Load(LoadError::Retry { after, message }) => Ok(EffectOutcome::Retry { message, after }),
            Self::Load(LoadError::Refused { message }) => Ok(EffectOutcome::Dead { reason: Reason::LoaderRefused, message }),
            Self::Held => again("another load of the same key did not end in time".to_owned()),
            Self::Overtaken => again(format!("the key was invalidated {MOST_OVERTAKEN} times in a row while it was loaded")),
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

/// One effect's load.
struct Load<'l> {
    shared: &'l Shared,
    live: &'l Live,
    context: LoadContext<'l>,
    key: &'l str,
    warm: &'l Warm,
    token: LoadToken,
    stop: &'l CancellationToken,
}

impl Load<'_> {
    /// Loads if nobody else does the same, holding nothing while it waits.
    async fn claimed(&self, before: Option<LoadToken>) -> Result<Ended, Unfilled> {
        let cache = &self.shared.cache;
        if let Some(before) = before {
            // Else it would be waited for until it runs out. A fill by it that still comes is refused.
            cache.end_load(self.key, &before, None).await?;
        }
        let deadline = Instant::now() + LONGEST_WAIT;
        let mut first = true;
        loop {
            match cache.claim_load(self.key, &self.token, CLAIM_TTL, first).await? {
                Claim::Covered => return Ok(Ended::Filled),
                Claim::Load => break,
                Claim::Wait if Instant::now() >= deadline || self.stop.is_cancelled() => {
                    cache.end_load(self.key, &self.token, None).await?;
                    return Err(if self.stop.is_cancelled() { Unfilled::Stopped } else { Unfilled::Held });
                }
                Claim::Wait => sleep(HELD_INTERVAL).await,
            }
            first = false;
        }
        let ended = self.until_filled().await;
        if let Err(Unfilled::Redis(CommandError::Outage(outage))) = ended {
            return Err(CommandError::Outage(outage).into());
        }
        // An old value that is served tells nothing.
        let is_filled = matches!(ended, Ok(Ended::Filled)) && self.warm.stale == Stale::Drop;
        cache.end_load(self.key, &self.token, is_filled.then_some(CLAIM_TTL)).await?;
        ended
    }

    /// Loads until no invalidation came in between. Told to stop, it ends the load under way and begins no other.
    async fn until_filled(&self) -> Result<Ended, Unfilled> {
        let cache = &self.shared.cache;
        let deadline = Instant::now() + LONGEST_WAIT;
        let mut overtaken = 0;
        while overtaken < MOST_OVERTAKEN {
            if self.stop.is_cancelled() {
                return Err(Unfilled::Stopped);
            }
            cache.keep_load(self.key, &self.token, CLAIM_TTL).await?;
            if self.keeping(self.filled_by_a_reader(deadline)).await?? {
                return Ok(Ended::Filled);
            }
            let admitted = self.keeping(self.stop.run_until_cancelled(self.live.loaders.admit(self.warm))).await?;
            self.tell_of_loader();
            let admitted = admitted.ok_or(Unfilled::Stopped)??;
            // Its turn comes before its lease: readers must not wait for a load that only waits itself.
            let Grant::Granted { since } = cache.grant_lease(self.key, self.token.as_str(), CLAIM_TTL).await? else { continue };
            cache.keep_load(self.key, &self.token, CLAIM_TTL).await?;
            let loaded = self.keeping(self.load(admitted)).await?;
            self.tell_of_loader();
            match loaded {
                Ok(Loaded::Value(value)) => {
                    match cache.fill(self.key, self.token.as_str(), since, &value, self.warm.expiry, &self.warm.tags).await? {
                        Fill::Filled => return Ok(Ended::Filled),
                        Fill::Over => return Ok(Ended::Empty),
                        Fill::Refused => {}
                    }
                }
                Err(error @ LoadError::Retry { .. }) => return Err(error.into()),
                // Said of what was there before an invalidation, it says nothing of now.
                Ok(Loaded::Absent) | Err(LoadError::Refused { .. }) if !cache.release_lease(self.key, self.token.as_str()).await? => {}
                Ok(Loaded::Absent) => return Ok(Ended::Empty),
                Err(error @ LoadError::Refused { .. }) => return Err(error.into()),
            }
            overtaken += 1;
        }
        Err(Unfilled::Overtaken)
    }

    /// Waits while a reader holds the lease. Whether it has filled the key: it began after our deletion, so that is as good as a load of ours.
    /// An old value that is served tells nothing.
    async fn filled_by_a_reader(&self, deadline: Instant) -> Result<bool, Unfilled> {
        let cache = &self.shared.cache;
        let mut was_held = false;
        while cache.lease_is_held(self.key).await? {
            if self.stop.is_cancelled() {
                return Err(Unfilled::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(Unfilled::Held);
            }
            was_held = true;
            sleep(HELD_INTERVAL).await;
        }
        Ok(was_held && self.warm.stale == Stale::Drop && cache.has_value(self.key).await?)
    }

    async fn load(&self, admitted: Admitted<'_>) -> Result<Loaded, LoadError> {
        // Tags remember their invalidations for some time longer, and not for ever.
        tokio::time::timeout(LONGEST_LEASE, admitted.load(&self.context)).await.unwrap_or_else(|_| {
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
                () = sleep(RENEWED_AFTER) => self.shared.cache.keep_load(self.key, &self.token, CLAIM_TTL).await?,
            }
        }
    }

    fn tell_of_loader(&self) {
        if let Some((name, open)) = self.live.loaders.standing(self.warm.loader) {
            self.shared.metrics.set_loader_open(name, open);
        }
    }
}

/// What decides what a load would leave in the cache, and whether an old value may be there meanwhile.
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
