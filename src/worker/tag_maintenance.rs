//! Maintains Redis beside the events. Finishes drains that were left over, removes dead members
//! from tag sets, and checks what Redis may evict.
//!
//! One worker at a time maintains the tags, over all queues; a lock in Redis determines which. Each
//! step takes a fraction of a millisecond in Redis, and steps are spread.

mod rounds;

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::rounds::{Rounds, Step};
use super::drain;
use super::gate::Gate;
use super::live::CurrentRegistry;
use crate::cache::{Asides, Cache, CommandError, Eviction, Outage, SCAN_STEP, new_token};
use crate::causes::chain;
use crate::telemetry::Metrics;

/// Time after which an unrenewed lock ends, so that another worker follows a dead one. It exceeds
/// the longest pause between two renewals.
const LOCK_TTL: Duration = Duration::from_secs(15);
const LOCK_RENEWED_AFTER: Duration = Duration::from_secs(4);

/// Time between two looks for abandoned drains, and for members that others have set aside. A drain
/// is abandoned if its event is lost or dead.
const DRAINS_INTERVAL: Duration = Duration::from_secs(60);

/// Time before the next attempt after Redis refused a command, since rights change rarely.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// Pause per member, which limits Redis to 20,000 members a second, or 100,000 if many members are
/// dead. A scanned key costs a tenth of a member.
const PER_MEMBER: Duration = Duration::from_micros(50);
const PER_MEMBER_IN_A_HURRY: Duration = Duration::from_micros(10);
const PER_SCANNED_KEY: Duration = Duration::from_micros(10);

/// Everything that the maintenance uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Maintenance<'s> {
    pub(super) cache: &'s Cache,
    pub(super) gate: &'s Gate,
    pub(super) registry: &'s CurrentRegistry,
    pub(super) metrics: &'s Metrics,
    /// True if dead members are removed from tag sets.
    pub(super) maintains_tags: bool,
}

/// Maintains Redis; never returns.
pub(super) async fn run(of: Maintenance<'_>) -> Infallible {
    let Maintenance { cache, gate, .. } = of;
    if !of.maintains_tags {
        info!(
            tag_prefix = ?cache.tag_prefix(),
            "tag maintenance is off: members whose keys are gone stay in the sets of tags (UNSTALE_TAG_MAINTENANCE)"
        );
    }
    let (mut eviction, mut refused) = (Eviction::Safe, None);
    let mut asked = false;
    loop {
        gate.open().await;
        let Err(error) = maintain(of, &mut eviction, &mut asked).await;
        match error {
            CommandError::Outage(outage) => gate.close(&outage),
            CommandError::Refused(cause)
            | CommandError::NotPermitted(cause)
            | CommandError::Failed(cause) => {
                let cause = chain(&cause).to_string();
                if refused.as_ref() != Some(&cause) {
                    info!(
                        %cause,
                        "this worker does not maintain tags: members whose keys are gone stay in their sets; docs/reference/redis-permissions.md has the ACL for it"
                    );
                }
                refused = Some(cause);
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }
}

/// Maintains Redis until an error occurs.
async fn maintain(
    of: Maintenance<'_>,
    logged: &mut Eviction,
    asked: &mut bool,
) -> Result<Infallible, CommandError> {
    log_eviction(of.cache, logged).await?;
    if !*asked {
        warn_of_refused_keys(of.cache, of.registry).await?;
        *asked = true;
    }
    let token = new_token();
    loop {
        if of.cache.lock_tag_maintenance(&token, LOCK_TTL).await? {
            debug!("this worker maintains the tags");
            look_after_tags(of, &token).await?;
        }
        tokio::time::sleep(LOCK_TTL / 2).await;
    }
}

async fn log_eviction(cache: &Cache, logged: &mut Eviction) -> Result<(), Outage> {
    let eviction = cache.eviction().await?;
    if eviction != *logged {
        match &eviction {
            Eviction::Risky { policy, consequence } => warn!(
                maxmemory_policy = %policy,
                "Redis {consequence}. Set maxmemory-policy noeviction, with room to spare, or give the cache of other data a Redis of its own"
            ),
            Eviction::Unknown => info!(
                "Redis does not show its maxmemory-policy (INFO and CONFIG GET are refused, or do not have it): make sure that it is noeviction, or \
                 that memory suffices"
            ),
            Eviction::Safe => info!("Redis evicts no keys any more"),
        }
        *logged = eviction;
    }
    Ok(())
}

/// Warns of rules whose keys the Redis user's ACL refuses, as far as that shows without an event.
async fn warn_of_refused_keys(cache: &Cache, registry: &CurrentRegistry) -> Result<(), Outage> {
    // This key is certainly allowed. If it is refused, the command itself is refused.
    if cache.refuses_key("unstale:seq").await? {
        return Ok(());
    }
    let registry = Arc::clone(&registry.load().registry);
    let mut warned = HashSet::new();
    for (rule, key) in registry.sample_keys() {
        if !warned.contains(&rule.0) && cache.refuses_key(&key).await? {
            warned.insert(rule.0);
            let rule = &registry.rules[rule.0 as usize].name;
            warn!(
                %rule,
                ?key,
                "the ACL of our Redis user refuses keys such as this rule names: its events will be dead-lettered (redis_refused). Grant a ~pattern for \
                 them"
            );
        }
    }
    Ok(())
}

/// Maintains the tags while this worker has the lock.
async fn look_after_tags(of: Maintenance<'_>, token: &str) -> Result<(), CommandError> {
    let cache = of.cache;
    let mut renewed = Instant::now();
    let mut drained: Option<Instant> = None;
    let (mut rounds, mut asides) = (Rounds::new(Instant::now()), cache.asides());
    loop {
        if renewed.elapsed() > LOCK_RENEWED_AFTER {
            if !cache.lock_tag_maintenance(token, LOCK_TTL).await? {
                return Ok(());
            }
            renewed = Instant::now();
        }
        if drained.is_none_or(|last| last.elapsed() > DRAINS_INTERVAL) {
            if !drain_left_over(cache, renewed).await? {
                continue;
            }
            drained = Some(Instant::now());
            if of.maintains_tags {
                let left = cache.sets_with_members_aside().await?;
                left.iter().for_each(|set| asides.note(set, Instant::now()));
            }
        }
        if !of.maintains_tags {
            tokio::time::sleep(LOCK_RENEWED_AFTER).await;
            continue;
        }
        let pause = match asides.due(Instant::now()) {
            Some(set) => settle(cache, &set, &mut asides).await?,
            None => step(of, &mut rounds, &mut asides).await?,
        };
        tokio::time::sleep(pause.min(LOCK_RENEWED_AFTER)).await;
    }
}

/// Goes on with drains whose events no worker handles any more. Returns true if it finished before
/// the lock must be renewed.
async fn drain_left_over(cache: &Cache, renewed: Instant) -> Result<bool, CommandError> {
    let cancel = CancellationToken::new();
    let give_up_in_time = |_, _| {
        if renewed.elapsed() > LOCK_RENEWED_AFTER {
            cancel.cancel();
        }
    };
    let drained = cache.drain_all(&cancel, give_up_in_time).await?;
    drain::log_lost(drained.lost);
    if drained.existed + drained.gone > 0 {
        info!(keys = drained.existed, "drained tags that an earlier invalidation had left over");
    }
    Ok(drained.complete)
}

/// Checks for the second time some members that were set aside. Returns how long to pause
/// afterwards.
async fn settle(cache: &Cache, set: &[u8], asides: &mut Asides) -> Result<Duration, CommandError> {
    match cache.take_second_look(set).await {
        Ok(true) => {
            return Ok(PER_MEMBER_IN_A_HURRY * u32::try_from(SCAN_STEP).unwrap_or(u32::MAX));
        }
        Ok(false) => asides.settled(set, Instant::now()),
        Err(CommandError::Outage(outage)) => return Err(outage.into()),
        Err(_) => asides.forget(set),
    }
    Ok(Duration::ZERO)
}

/// Does one step, and returns how long to pause afterwards.
async fn step(
    of: Maintenance<'_>,
    rounds: &mut Rounds,
    asides: &mut Asides,
) -> Result<Duration, CommandError> {
    let now = Instant::now();
    match rounds.next(now) {
        Step::Wait(until) => {
            let until = asides.next_due().map_or(until, |due| due.min(until));
            Ok(until.saturating_duration_since(now))
        }
        Step::Scan(cursor) => {
            let found = of.cache.tag_sets(cursor).await?;
            if let Some(found) = rounds.scanned(found.next, found.sets, Instant::now()) {
                debug!(
                    sets = found.looks,
                    members = found.looked,
                    pruned = found.gone,
                    "looked through the tags"
                );
            }
            Ok(PER_SCANNED_KEY * u32::try_from(SCAN_STEP).unwrap_or(u32::MAX))
        }
        Step::Slice { set, cursor } => match of.cache.maintain_slice(&set, cursor, false).await {
            Ok(slice) => {
                rounds.sliced(slice.next, slice.looked, slice.gone, Instant::now());
                of.metrics.pruned(slice.gone);
                if slice.gone > 0 {
                    asides.note(&set, Instant::now());
                }
                let per_member =
                    if slice.gone * 10 > slice.looked { PER_MEMBER_IN_A_HURRY } else { PER_MEMBER };
                Ok(per_member * u32::try_from(slice.looked).unwrap_or(u32::MAX))
            }
            Err(CommandError::Outage(outage)) => Err(outage.into()),
            // The key is no longer a set, or the ACL refuses it.
            Err(_) => {
                rounds.skipped();
                Ok(PER_MEMBER)
            }
        },
    }
}
