//! Drains one big tag for an event: deletes its members, slice by slice.

use tracing::error;

use super::lane_end::Until;
use super::live::Live;
use crate::cache::{Cache, Outage};
use crate::plan::EffectOutcome;
use crate::registry::Effect;

/// Deletes the members that this event's invalidation detached, and those of other invalidations.
/// Returns the outcome if the effect is unfinished.
///
/// # Errors
/// Returns the outage. The drain must then be done again.
pub(super) async fn drain(
    cache: &Cache,
    live: &Live,
    effect: &Effect,
    until: Until<'_>,
) -> Result<Option<EffectOutcome>, Outage> {
    let count = |existed, gone| live.metrics.keys(effect.rule, existed, gone);
    match cache.drain_tag(&effect.target, until.no_more, count).await {
        Ok(drained) => {
            log_lost(drained.lost);
            Ok((!drained.complete).then_some(EffectOutcome::Slow))
        }
        Err(error) => error.into_outcome().map(Some),
    }
}

/// Logs that members stay although their tags were invalidated.
pub(super) fn log_lost(detached_sets: u64) {
    if detached_sets > 0 {
        error!(
            detached_sets,
            "sets of invalidated tags vanished before they were drained: Redis evicted them (maxmemory-policy), or a client deleted \
             unstale:drain*; their members stay until their TTL"
        );
    }
}
