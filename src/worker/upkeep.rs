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
use super::{Shared, slow_lane};
use crate::cache::{Asides, CommandError, Eviction, Outage, SCAN_STEP, new_token};
use crate::causes::chain;

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

/// Maintains Redis until `stop`.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    if !shared.config.maintains_tags() {
        info!(
            tag_prefix = ?shared.cache.tag_prefix(),
            "tag maintenance is off: members whose keys are gone stay in the sets of tags (UNSTALE_TAG_MAINTENANCE)"
        );
    }
    let work = async {
        let (mut eviction, mut refused) = (Eviction::Safe, None);
        let mut asked = false;
        loop {
            shared.gate.open().await;
            let Err(error) = stand(&shared, &mut eviction, &mut asked).await;
            match error {
                CommandError::Outage(outage) => shared.gate.close(&outage),
                CommandError::Refused(cause) | CommandError::Failed(cause) => {
                    let cause = chain(&cause).to_string();
                    if refused.as_ref() != Some(&cause) {
                        info!(
                            %cause,
                            "tags are not looked after: members whose keys are gone stay in their sets; docs/reference/redis-permissions.md has the ACL for it"
                        );
                    }
                    refused = Some(cause);
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Maintains Redis until an error occurs.
async fn stand(
    shared: &Shared,
    told: &mut Eviction,
    asked: &mut bool,
) -> Result<Infallible, CommandError> {
    tell_of_eviction(shared, told).await?;
    if !*asked {
        warn_of_refused_keys(shared).await?;
        *asked = true;
    }
    let token = new_token();
    loop {
        if shared.cache.lock_tag_maintenance(&token, LOCK_TTL).await? {
            debug!("the upkeep of tags is this worker's");
            look_after_tags(shared, &token).await?;
        }
        tokio::time::sleep(LOCK_TTL / 2).await;
    }
}

async fn tell_of_eviction(shared: &Shared, told: &mut Eviction) -> Result<(), Outage> {
    let eviction = shared.cache.eviction().await?;
    if eviction != *told {
        match &eviction {
            Eviction::Risky { policy, consequence } => warn!(
                maxmemory_policy = %policy,
                "Redis {consequence}. Set maxmemory-policy noeviction, with room to spare, or give the cache of other data a Redis of its own"
            ),
            Eviction::Unknown => info!(
                "Redis does not tell its maxmemory-policy (INFO and CONFIG GET are refused, or do not have it): make sure that it is noeviction, or \
                 that memory suffices"
            ),
            Eviction::Safe => info!("Redis evicts no keys any more"),
        }
        *told = eviction;
    }
    Ok(())
}

/// Warns of rules whose keys the Redis user's ACL refuses, as far as that shows without an event.
async fn warn_of_refused_keys(shared: &Shared) -> Result<(), Outage> {
    // This key is certainly allowed. If it is refused, the command itself is refused.
    if shared.cache.refuses_key("unstale:seq").await? {
        return Ok(());
    }
    let registry = Arc::clone(&shared.live.load().registry);
    let mut warned = HashSet::new();
    for (rule, key) in registry.sample_keys() {
        if !warned.contains(&rule.0) && shared.cache.refuses_key(&key).await? {
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
async fn look_after_tags(shared: &Shared, token: &str) -> Result<(), CommandError> {
    let mut renewed = Instant::now();
    let mut drained: Option<Instant> = None;
    let (mut rounds, mut asides) = (Rounds::new(Instant::now()), shared.cache.asides());
    loop {
        if renewed.elapsed() > LOCK_RENEWED_AFTER {
            if !shared.cache.lock_tag_maintenance(token, LOCK_TTL).await? {
                return Ok(());
            }
            renewed = Instant::now();
        }
        if drained.is_none_or(|last| last.elapsed() > DRAINS_INTERVAL) {
            if !drain_left_over(shared, renewed).await? {
                continue;
            }
            drained = Some(Instant::now());
            if shared.config.maintains_tags() {
                let left = shared.cache.sets_with_members_aside().await?;
                left.iter().for_each(|set| asides.note(set, Instant::now()));
            }
        }
        if !shared.config.maintains_tags() {
            tokio::time::sleep(LOCK_RENEWED_AFTER).await;
            continue;
        }
        let pause = match asides.due(Instant::now()) {
            Some(set) => settle(shared, &set, &mut asides).await?,
            None => step(shared, &mut rounds, &mut asides).await?,
        };
        tokio::time::sleep(pause.min(LOCK_RENEWED_AFTER)).await;
    }
}

/// Goes on with drains whose events no worker handles any more. Returns true if it finished before
/// the lock must be renewed.
async fn drain_left_over(shared: &Shared, renewed: Instant) -> Result<bool, CommandError> {
    let cancel = CancellationToken::new();
    let give_up_in_time = |_, _| {
        if renewed.elapsed() > LOCK_RENEWED_AFTER {
            cancel.cancel();
        }
    };
    let drained = shared.cache.drain_all(&cancel, give_up_in_time).await?;
    slow_lane::tell_of_lost(drained.lost);
    if drained.existed + drained.gone > 0 {
        info!(keys = drained.existed, "drained tags that an earlier invalidation had left over");
    }
    Ok(drained.complete)
}

/// Checks for the second time some members that were set aside. Returns how long to pause
/// afterwards.
async fn settle(
    shared: &Shared,
    set: &[u8],
    asides: &mut Asides,
) -> Result<Duration, CommandError> {
    match shared.cache.take_second_look(set).await {
        Ok(true) => {
            return Ok(PER_MEMBER_IN_A_HURRY * u32::try_from(SCAN_STEP).unwrap_or(u32::MAX));
        }
        Ok(false) => asides.settled(set, Instant::now()),
        Err(CommandError::Outage(outage)) => return Err(outage.into()),
        Err(CommandError::Refused(_) | CommandError::Failed(_)) => asides.forget(set),
    }
    Ok(Duration::ZERO)
}

/// Does one step, and returns how long to pause afterwards.
async fn step(
    shared: &Shared,
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
            let found = shared.cache.tag_sets(cursor).await?;
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
        Step::Slice { set, cursor } => match shared.cache.maintain_slice(&set, cursor, false).await
        {
            Ok(slice) => {
                rounds.sliced(slice.next, slice.looked, slice.gone, Instant::now());
                shared.metrics.pruned(slice.gone);
                if slice.gone > 0 {
                    asides.note(&set, Instant::now());
                }
                let per_member =
                    if slice.gone * 10 > slice.looked { PER_MEMBER_IN_A_HURRY } else { PER_MEMBER };
                Ok(per_member * u32::try_from(slice.looked).unwrap_or(u32::MAX))
            }
            Err(CommandError::Outage(outage)) => Err(outage.into()),
            // The key is no longer a set, or the ACL refuses it.
            Err(CommandError::Refused(_) | CommandError::Failed(_)) => {
                rounds.skipped();
                Ok(PER_MEMBER)
            }
        },
    }
}
