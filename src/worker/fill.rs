//! One `warm`: a lease, a load, a fill that an invalidation in between makes void.

use std::time::Duration;

use tokio::time::Instant;

use super::{Live, Shared};
use crate::broker::Delivery;
use crate::cache::{CommandError, Grant, Outage, new_token};
use crate::event::{Decoded, decode};
use crate::plan::EffectOutcome;
use crate::reason::Reason;
use crate::registry::Warm;
use crate::warm::{Admitted, LoadContext, LoadError, Loaded};

/// Beyond the load's own timeout: for the fill, and for clocks.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// Between two looks at a lease that somebody else holds.
const HELD_INTERVAL: Duration = Duration::from_millis(50);

/// What the leases of one delivery are known by: others each time that an outage of Redis interrupts it.
#[derive(Debug)]
pub(super) struct Tokens {
    stem: String,
    round: u32,
}

/// What one effect's lease is known by, and what it was known by before the outage.
#[derive(Debug)]
pub(super) struct Token {
    token: String,
    before: Option<String>,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { stem: new_token(), round: 0 }
    }

    /// There was an outage: nobody knows which leases were granted.
    pub(super) fn renew(&mut self) {
        self.round += 1;
    }

    /// For the effect at that position.
    pub(super) fn of(&self, position: u32) -> Token {
        let name = |round: u32| format!("{}-{position}-{round}", self.stem);
        Token { token: name(self.round), before: self.round.checked_sub(1).map(name) }
    }
}

/// Loads and fills `key`, which was deleted before; what is left to do, if anything.
///
/// # Errors
/// The outage: to be done again, whole.
pub(super) async fn warm(
    shared: &Shared,
    live: &Live,
    delivery: &Delivery,
    key: &str,
    warm: &Warm,
    token: &Token,
) -> Result<Option<EffectOutcome>, Outage> {
    match load_and_fill(shared, live, delivery, key, warm, token).await {
        Ok(()) => Ok(None),
        Err(Unfilled::Load(LoadError::Retry { after, message })) => Ok(Some(EffectOutcome::Retry { message, after })),
        Err(Unfilled::Load(LoadError::Refused { message })) => Ok(Some(EffectOutcome::Dead { reason: Reason::LoaderRefused, message })),
        Err(Unfilled::Held) => {
            let message = "another load of the same key did not end in time".to_owned();
            Ok(Some(EffectOutcome::Retry { message, after: None }))
        }
        Err(Unfilled::Redis(error)) => error.into_outcome().map(Some),
    }
}

/// Why a key was left deleted.
enum Unfilled {
    Load(LoadError),
    Held,
    Redis(CommandError),
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

async fn load_and_fill(
    shared: &Shared,
    live: &Live,
    delivery: &Delivery,
    key: &str,
    warm: &Warm,
    Token { token, before }: &Token,
) -> Result<(), Unfilled> {
    let cache = &shared.cache;
    if let Some(before) = before {
        // Else it would be waited for until it runs out. A fill by it that still comes is refused.
        cache.release_lease(key, before).await?;
    }
    // Its turn comes before its lease: others must not wait for a load that only waits itself.
    let admitted = live.loaders.admit(warm).await?;
    let lease = admitted.timeout() + LEASE_MARGIN;
    let since = grant(shared, key, token, lease).await?;
    match load(shared, admitted, delivery).await {
        Ok(Loaded::Value(value)) => {
            // Refused, it was invalidated since the load began: whoever did that left a miss, and a miss is right.
            cache.fill(key, token, since, &value, warm.expiry, &warm.tags).await?;
        }
        Ok(Loaded::Absent) => cache.release_lease(key, token).await?,
        Err(error) => {
            cache.release_lease(key, token).await?;
            return Err(error.into());
        }
    }
    Ok(())
}

/// Waits for the lease, as long as anybody's load may take.
async fn grant(shared: &Shared, key: &str, token: &str, lease: Duration) -> Result<u64, Unfilled> {
    let deadline = Instant::now() + lease;
    loop {
        match shared.cache.grant_lease(key, token, lease).await? {
            Grant::Granted { since } => return Ok(since),
            Grant::Held if Instant::now() >= deadline => return Err(Unfilled::Held),
            Grant::Held => tokio::time::sleep(HELD_INTERVAL).await,
        }
    }
}

async fn load(shared: &Shared, admitted: Admitted<'_>, delivery: &Delivery) -> Result<Loaded, LoadError> {
    let message = delivery.message();
    let event = match decode(&message, shared.config.max_body_bytes) {
        Ok(Decoded::Event(event)) => Some(event),
        Ok(_) | Err(_) => None,
    };
    let context = LoadContext {
        event_id: event.as_ref().map_or("", |event| &*event.id),
        traceparent: event.as_ref().and_then(|event| event.traceparent.as_deref()),
    };
    admitted.load(&context).await
}
