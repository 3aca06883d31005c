//! The slow lane: what one round trip cannot finish — loads, and drains of big tags — under its own
//! permits.

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

/// Consumes, after a while, until told to stop, until the session ends, or until Redis was away too
/// long.
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
            // The prefetch bounds what is in hand. Without a consumer it tells of the session's
            // end, which nothing in hand does in an outage of Redis.
            arrived = lane.next_batch(usize::from(shared.slow_prefetch())), if !stopping || lane.has_left_over() || !in_hand.is_empty() => {
                let mut arrived = arrived?;
                shared.in_flight.set(LaneName::Slow, lane.in_flight());
                suspects.take_from(shared, &mut arrived);
                in_hand.extend(arrived.into_iter().map(|delivery| {
                    // At once: what is never polled must be known to have been in flight.
                    let taken = Taken::new(shared, vec![delivery]);
                    handle(shared, publisher, until, taken)
                }));
            }
            else => return Ok(LaneEnd::Stopped),
        }
    }
}

/// Settles one delivery; `None` when it is to be given back, since Redis is away.
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

/// Does all that the delivery asks for, and gives what is left. A copy of the main lane's making
/// asks for nothing that was done there.
async fn work(
    shared: &Shared,
    batch: &mut Batch,
    tokens: &Tokens,
    until: Until<'_>,
) -> Result<Unsettled, Outage> {
    if batch.is_suspected() {
        // What broke before is not blamed on it: other workers may have such a delivery too.
        shared.cache.confirm_checkpoint().await?;
    }
    let (slow, mut rest) = match batch.requests[0].only.clone() {
        Some(only) => (only, Vec::new()),
        // Made with another registry: all of it is done here, the quick part first.
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

/// Applies what one round trip can do. The positions that it cannot, and the other effects that are
/// not done.
async fn quick_part(
    shared: &Shared,
    batch: &mut Batch,
) -> Result<(Vec<u32>, Vec<(u32, EffectOutcome)>), Outage> {
    let unsettled = batch.apply(shared).await?.remove(&0).unwrap_or_default();
    let (slow, rest): (Vec<_>, Vec<_>) =
        unsettled.into_iter().partition(|(_, outcome)| *outcome == EffectOutcome::Slow);
    Ok((slow.into_iter().map(|(position, _)| position).collect(), rest))
}

/// Finishes one effect; what is left of it, if anything. Where no more is to be begun, what takes
/// longer is left to the slow lane of another worker, or of this one later.
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
        // Nobody sends these here; a hand-made copy that does is done.
        Action::Delete | Action::BumpVersion | Action::Expire(_) | Action::Write(_) => {
            let mut plan = plan::Batch::new(shared.cache.tag_prefix(), 1);
            plan.push_retried(EffectRef { event: 0, position }, effect);
            shared.cache.apply(&plan.finish()).await?.unsettled.pop().map(|(_, outcome)| outcome)
        }
    };
    Ok(outcome.map(|outcome| (position, batch.named(EffectRef { event: 0, position }, outcome))))
}

/// Deletes the members of a big tag, slice by slice: what this event's invalidation detached, and
/// what others' did.
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

/// Says that members of tags stay, though their tags were invalidated.
pub(super) fn tell_of_lost(detached_sets: u64) {
    if detached_sets > 0 {
        error!(
            detached_sets,
            "sets of invalidated tags were gone before they were drained: Redis evicted them (maxmemory-policy), or somebody deleted \
             unstale:drain*; their members stay until their TTL"
        );
    }
}
