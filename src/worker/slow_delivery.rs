//! Settles one delivery of the slow lane: everything that one round trip can do, then each load and
//! each drain of a big tag.

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::time::Instant;

use super::batch::{Applied, NotApplied, PartlyApplied, Resolved};
use super::drain::drain;
use super::in_flight::Taken;
use super::lane_end::Until;
use super::pipeline::Pipeline;
use super::warm::{self, Tokens};
use crate::broker::{SessionEnded, Tag};
use crate::cache::Outage;
use crate::plan::{self, EffectOutcome, EffectRef};
use crate::registry::Action;

/// Settles one delivery. Returns `None` if it is to be requeued, since Redis is away.
pub(super) async fn handle(
    pipeline: Pipeline<'_>,
    until: Until<'_>,
    taken: Taken,
) -> Result<Option<Tag>, SessionEnded> {
    let mut batch = pipeline.resolver.read_one(pipeline.registry.load_full(), taken).await;
    let mut tokens = Tokens::new();
    let mut held_since = None;
    loop {
        let NotApplied { batch: mut held, outage } =
            match apply(pipeline, batch, &tokens, until).await {
                Ok(applied) => return Ok(applied.settle(pipeline.settler).await?.last_tag()),
                Err(not_applied) => not_applied,
            };
        pipeline.gate.close(&outage);
        held.met(&outage);
        let since = *held_since.get_or_insert_with(Instant::now);
        if !pipeline.gate.hold(until.stop, &outage, since).await {
            return Ok(None);
        }
        if !pipeline.gate.passed_each_probe() {
            held.forget_lost_connections();
        }
        tokens.renew();
        batch = held;
    }
}

/// Does everything that the delivery asks for.
async fn apply(
    pipeline: Pipeline<'_>,
    batch: Resolved,
    tokens: &Tokens,
    until: Until<'_>,
) -> Result<Applied, NotApplied> {
    let _turn =
        if batch.is_suspected() { Some(pipeline.gate.turn_of_suspect().await) } else { None };
    let partly = batch.apply_quick_part(pipeline.cache).await?;
    match finish_all(pipeline, &partly, tokens, until).await {
        Ok(unfinished) => Ok(partly.applied(unfinished)),
        Err((position, outage)) => Err(partly.not_applied(position, outage)),
    }
}

/// Finishes the slow effects, all at once unless one of them may be the cause of outages. Returns
/// those that are unfinished after all.
///
/// # Errors
/// The position of an effect that met an outage, and the outage.
async fn finish_all(
    pipeline: Pipeline<'_>,
    partly: &PartlyApplied,
    tokens: &Tokens,
    until: Until<'_>,
) -> Result<Vec<(u32, EffectOutcome)>, (u32, Outage)> {
    let at_once = if partly.is_suspected() { 1 } else { usize::MAX };
    let unfinished: Vec<_> = stream::iter(partly.slow().iter().copied())
        .map(async |position| {
            let finished = finish(pipeline, partly, position, tokens, until).await;
            finished.map_err(|outage| (position, outage))
        })
        .buffer_unordered(at_once)
        .try_collect()
        .await?;
    Ok(unfinished.into_iter().flatten().collect())
}

/// Finishes one effect, and returns its outcome if it is unfinished. If no more may begin, longer
/// work is left to a slow lane, of another worker or later of this one.
async fn finish(
    pipeline: Pipeline<'_>,
    partly: &PartlyApplied,
    position: u32,
    tokens: &Tokens,
    until: Until<'_>,
) -> Result<Option<(u32, EffectOutcome)>, Outage> {
    let contents = partly.contents();
    let effect = &contents.requests[0].resolution.effects[position as usize];
    let slot = EffectRef { event: 0, position };
    if contents.requests[0].closers.as_ref().is_some_and(|closers| closers.leaves_out(position)) {
        return Ok(None);
    }
    let outcome = match &effect.action {
        Action::Warm(warm) => {
            warm::fill(pipeline, contents, (&effect.target, warm), &tokens.of(position), until)
                .await?
        }
        Action::InvalidateTag => drain(pipeline.cache, &contents.live, effect, until).await?,
        // No worker sends these to the slow lane. A message made by hand may ask for them.
        Action::Delete | Action::BumpVersion | Action::Expire(_) | Action::Write(_) => {
            let mut plan = plan::Batch::new(pipeline.cache.tag_prefix(), 1);
            plan.push_retried(slot, effect);
            let mut applied = pipeline.cache.apply(&plan.finish()).await?;
            applied.unsettled.pop().map(|(_, outcome)| outcome)
        }
    };
    Ok(outcome.map(|outcome| (position, contents.named(slot, outcome))))
}
