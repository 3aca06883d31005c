//! The slow lane: loads and drains of big tags, which one round trip cannot finish, under their own
//! permits.
//!
//! Everything else is applied in `main_lane.rs`.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tracing::error;

use super::batch::{Batch, Unsettled};
use super::fill::{self, Tokens};
use super::suspects::{Suspects, Until};
use super::taken::Taken;
use super::{LaneEnd, Shared, copies};
use crate::broker::{Lane, LaneName, SessionEnded, Tag};
use crate::cache::Outage;
use crate::plan::{self, EffectOutcome, EffectRef};
use crate::registry::{Action, Effect};

/// Waits for `after`, then consumes until a stop is requested, the session ends, or Redis was away
/// too long.
pub(super) async fn run(
    shared: &Shared,
    lane: &mut Lane,
    publisher: &copies::Publisher,
    after: Duration,
    until: Until<'_>,
    suspects: &mut Suspects<'_>,
) -> Result<LaneEnd, SessionEnded> {
    tokio::select! {
        () = suspects.wound_down() => return Ok(LaneEnd::Stopped),
        () = tokio::time::sleep(after) => {}
    }
    let mut in_hand = FuturesUnordered::new();
    let mut stopping = false;
    lane.consume(shared.slow_prefetch()).await?;
    loop {
        shared.in_flight.set(LaneName::Slow, lane.in_flight());
        tokio::select! {
            biased;
            Some(done) = in_hand.next(), if !in_hand.is_empty() => {
                let done: Result<Option<Tag>, SessionEnded> = done;
                match done? {
                    Some(tag) => lane.ack_one(tag)?,
                    None => return Ok(LaneEnd::GaveBack),
                }
            }
            () = suspects.wound_down(), if !stopping => {
                stopping = true;
                lane.cancel().await?;
            }
            // The prefetch bounds the deliveries in flight. Without a consumer this call reports
            // the session's end, which no delivery in flight does during an outage of Redis.
            arrived = lane.next_batch(usize::from(shared.slow_prefetch())), if !stopping || lane.has_left_over() || !in_hand.is_empty() => {
                let mut arrived = arrived?;
                shared.in_flight.set(LaneName::Slow, lane.in_flight());
                suspects.take_from(shared, &mut arrived);
                in_hand.extend(arrived.into_iter().map(|delivery| {
                    // At once: a future that is never polled must count as in flight too.
                    let taken = Taken::new(shared, vec![delivery]);
                    handle(shared, publisher, until, taken)
                }));
            }
            else => return Ok(LaneEnd::Stopped),
        }
    }
}

/// Settles one delivery. Returns `None` if it is to be requeued, since Redis is away.
pub(super) async fn handle(
    shared: &Shared,
    publisher: &copies::Publisher,
    until: Until<'_>,
    taken: Taken,
) -> Result<Option<Tag>, SessionEnded> {
    let mut batch = shared.slow_resolver.read_one(shared, taken).await;
    let mut tokens = Tokens::new();
    let mut held_since = None;
    loop {
        let was_suspected = batch.is_suspected();
        match work(shared, &mut batch, &tokens, until).await {
            Ok(unsettled) => {
                batch.settle(shared, publisher, &unsettled).await?;
                return Ok(batch.last_tag());
            }
            Err(outage) => {
                shared.gate.close(&outage);
                batch.not_applied(&outage);
                if was_suspected && outage.broke_checkpoint {
                    batch.give_up(0);
                }
                if !shared
                    .gate
                    .hold(
                        until.stop,
                        &outage,
                        *held_since.get_or_insert_with(tokio::time::Instant::now),
                    )
                    .await
                {
                    return Ok(None);
                }
                tokens.renew();
            }
        }
    }
}

/// Does everything that the delivery asks for, and returns the unfinished effects. A message that
/// the main lane republished does not ask for what the main lane has done.
async fn work(
    shared: &Shared,
    batch: &mut Batch,
    tokens: &Tokens,
    until: Until<'_>,
) -> Result<Unsettled, Outage> {
    if batch.is_suspected() {
        // An earlier break is not attributed to this event. Other workers may have such a delivery
        // too.
        shared.cache.confirm_checkpoint().await?;
    }
    let (slow, mut rest) = match batch.requests[0].only.clone() {
        Some(only) => (only, Vec::new()),
        // It was resolved with another registry. Everything is done here, the quick part first.
        None => quick_part(shared, batch).await?,
    };
    let batch = &*batch;
    let mut pending: FuturesUnordered<_> =
        slow.into_iter().map(|position| finish(shared, batch, position, tokens, until)).collect();
    while let Some(finished) = pending.next().await {
        rest.extend(finished?);
    }
    rest.sort_unstable_by_key(|(position, _)| *position);
    Ok(if rest.is_empty() { Unsettled::new() } else { Unsettled::from([(0, rest)]) })
}

/// Applies everything that one round trip can do. Returns the positions of slow effects, and the
/// other unfinished effects.
async fn quick_part(
    shared: &Shared,
    batch: &mut Batch,
) -> Result<(Vec<u32>, Vec<(u32, EffectOutcome)>), Outage> {
    let unsettled = batch.apply(shared).await?.remove(&0).unwrap_or_default();
    let (slow, rest): (Vec<_>, Vec<_>) =
        unsettled.into_iter().partition(|(_, outcome)| *outcome == EffectOutcome::Slow);
    Ok((slow.into_iter().map(|(position, _)| position).collect(), rest))
}

/// Finishes one effect, and returns its outcome if it is unfinished. If no more may begin, longer
/// work is left to a slow lane, of another worker or later of this one.
async fn finish(
    shared: &Shared,
    batch: &Batch,
    position: u32,
    tokens: &Tokens,
    until: Until<'_>,
) -> Result<Option<(u32, EffectOutcome)>, Outage> {
    let effect = &batch.requests[0].resolution.effects[position as usize];
    let outcome = match &effect.action {
        Action::Warm(warm) => {
            fill::warm(shared, batch, &effect.target, warm, &tokens.of(position), until).await?
        }
        Action::InvalidateTag => drain(shared, batch, effect, until).await?,
        // No worker sends these to the slow lane. A message made by hand may ask for them.
        Action::Delete | Action::BumpVersion | Action::Expire(_) | Action::Write(_) => {
            let mut plan = plan::Batch::new(shared.cache.tag_prefix(), 1);
            plan.push_retried(EffectRef { event: 0, position }, effect);
            shared.cache.apply(&plan.finish()).await?.unsettled.pop().map(|(_, outcome)| outcome)
        }
    };
    Ok(outcome.map(|outcome| (position, batch.named(EffectRef { event: 0, position }, outcome))))
}

/// Deletes the members of a big tag, slice by slice: those that this event's invalidation detached,
/// and those of other invalidations.
async fn drain(
    shared: &Shared,
    batch: &Batch,
    effect: &Effect,
    until: Until<'_>,
) -> Result<Option<EffectOutcome>, Outage> {
    let count = |existed, gone| batch.live.metrics.keys(effect.rule, existed, gone);
    match shared.cache.drain_tag(&effect.target, until.no_more, count).await {
        Ok(drained) => {
            tell_of_lost(drained.lost);
            Ok((!drained.complete).then_some(EffectOutcome::Slow))
        }
        Err(error) => error.into_outcome().map(Some),
    }
}

/// Logs that members stay though their tags were invalidated.
pub(super) fn tell_of_lost(detached_sets: u64) {
    if detached_sets > 0 {
        error!(
            detached_sets,
            "sets of invalidated tags were gone before they were drained: Redis evicted them (maxmemory-policy), or somebody deleted \
             unstale:drain*; their members stay until their TTL"
        );
    }
}
