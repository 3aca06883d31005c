//! The main lane: batches that form by themselves, applied in one round trip each, acknowledged
//! whole and in order.
//!
//! - `arrivals.rs`: deliveries are read, or put back.
//! - `settled.rs`: settled deliveries are acknowledged.
//! - `outage.rs`: batches are held while Redis is away.

mod arrivals;
mod outage;
mod settled;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::batch::{Batch, Unsettled};
use super::in_order::InOrder;
use super::resolver::FirstLook;
use super::suspects::Suspects;
use super::window::{FEW, Window};
use super::yielding::{self, Yielding};
use super::{LaneEnd, Shared, copies};
use crate::broker::{Lane, SessionEnded};
use crate::cache::Outage;
use arrivals::Arrivals;
use outage::{HeldBack, hold};
use settled::Settled;

pub(super) use outage::handle;

/// Batches that may be on their way to Redis at once: enough to fill a slow link; the prefetch
/// bounds them anyway.
const MAX_APPLYING: usize = 16;

/// With a batch on its way nothing more is taken for so long: by then a Redis that is near has
/// answered, and a larger batch costs it fewer commands, and us fewer wakings. A slow link is
/// filled with several batches.
const SLOW_LINK: Duration = Duration::from_micros(500);

/// So many make a batch on a slow link, while others are on their way.
const GATHERED: usize = 50;

/// Of what may be in hand, settled deliveries make up so small a part when they are acknowledged
/// while more arrive: to a quorum queue an acknowledgement is an entry in its log, and what it may
/// then give out it reads at once.
const ACKNOWLEDGED_PART: u16 = 8;

/// Between two signs of life, after which the deliveries that wait in the connection's buffer are
/// counted too.
const BEAT: Duration = Duration::from_secs(1);

/// Consumes until told to stop, until the session ends, or until Redis was away too long.
pub(super) async fn run(
    shared: &Shared,
    lane: &mut Lane,
    publisher: &copies::Publisher,
    mut window: Window,
    yielding: &Yielding,
    stop: &CancellationToken,
    suspects: &mut Suspects<'_>,
) -> Result<LaneEnd, SessionEnded> {
    let resolver = &shared.main_resolver;
    let mut applying = InOrder::new();
    let mut settling = InOrder::new();
    let mut settled = Settled::default();
    // Read and not sent, since what came before is not done; sent before anything else.
    let mut waiting: VecDeque<Batch> = VecDeque::new();
    // A delivery that is read on a thread apart. Nothing is taken meanwhile: order is kept.
    let mut reading = InOrder::new();
    let mut arrivals = Arrivals::new(lane);
    // The batch under way is one that must be alone.
    let mut alone = false;
    let mut asked = yielding.asked();
    let mut sent_at = Instant::now();
    let (mut stopping, mut yields) = (false, false);
    // Since when nothing could be applied.
    let mut held_since: Option<tokio::time::Instant> = None;
    let mut beats = tokio::time::interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    arrivals.lane.consume(window.prefetch()).await?;
    loop {
        while let Some(next) = waiting.front() {
            if !applying.is_empty()
                && (alone || next.is_suspected() || applying.len() >= MAX_APPLYING)
            {
                break;
            }
            alone = next.is_suspected();
            if let Some(batch) = waiting.pop_front() {
                applying.push(apply(shared, batch)).await;
                sent_at = Instant::now();
            }
        }
        arrivals.uncover();
        let in_flight = arrivals.count(shared);
        if yields && in_flight <= usize::from(FEW) {
            yielding.yields();
        }
        alone &= !applying.is_empty();
        let may_take = !alone
            && applying.len() < MAX_APPLYING
            && waiting.is_empty()
            && reading.is_empty()
            && resolver.has_room();
        let nothing_under_way =
            applying.is_empty() && waiting.is_empty() && reading.is_empty() && settling.is_empty();
        if stopping && nothing_under_way && !arrivals.lane.has_left_over() && !settled.any() {
            return Ok(LaneEnd::Stopped);
        }
        let is_alone = applying.is_empty();
        let gathering = !is_alone && sent_at.elapsed() < SLOW_LINK;
        let enough = |arrived| is_alone || arrived >= GATHERED;
        let due = settled.due(is_alone && settling.is_empty(), window.has_backlog() && !stopping);
        tokio::select! {
            biased;
            _ = beats.tick() => arrivals.beat(shared)?,
            batch = settling.next(), if !settling.is_empty() => {
                let batch: Result<SettledBatch, SessionEnded> = batch;
                let at_once = prefetch(&window, yields) / ACKNOWLEDGED_PART;
                settled.note(arrivals.lane, &batch?, suspects, at_once)?;
            }
            applied = applying.next(), if !applying.is_empty() => {
                let (batch, applied): (Batch, Result<Unsettled, Outage>) = applied;
                match applied {
                    Ok(unsettled) => {
                        held_since = None;
                        settling.push(settle(shared, publisher, batch, unsettled)).await;
                    }
                    Err(outage) => {
                        let mut batch = batch;
                        settled.acknowledge(arrivals.lane)?;
                        shared.gate.close(&outage);
                        batch.not_applied(&outage);
                        // What was sent behind the failed batch is applied again behind it: order
                        // is kept.
                        let mut held = VecDeque::from([batch]);
                        while !applying.is_empty() {
                            let (mut behind, _): (Batch, Result<Unsettled, Outage>) = applying.next().await;
                            behind.note_tried();
                            held.push_back(behind);
                        }
                        held.append(&mut waiting);
                        // What is read apart goes before all that would be taken.
                        let takes = outage.out_of_memory && !stopping && reading.is_empty();
                        let since = *held_since.get_or_insert_with(tokio::time::Instant::now);
                        let held_back = HeldBack { outage: &outage, since, batches: &mut held, takes };
                        if !hold(shared, &mut arrivals, &mut settling, &mut settled, held_back, stop, suspects).await? {
                            return Ok(LaneEnd::GaveBack);
                        }
                        waiting = held;
                    }
                }
            }
            () = suspects.wound_down(), if !stopping => {
                stopping = true;
                arrivals.lane.cancel().await?;
            }
            asked = yielding::changed(&mut asked, yields), if !stopping => {
                yields = asked;
                arrivals.lane.consume(prefetch(&window, yields)).await?;
            }
            batch = reading.next(), if !reading.is_empty() => waiting.push_back(batch),
            () = shared.low.asks(), if !stopping => arrivals.note_if_all_read(shared)?,
            arrived = arrivals.lane.next_batch_of(enough, shared.config.batch),
                if (!stopping || arrivals.lane.has_left_over()) && may_take && !gathering =>
            {
                let Some(read) = arrivals.read(shared, suspects, arrived?) else { continue };
                shared.metrics.batch(read.deliveries().len());
                let changed = window.after(read.deliveries(), shared.waiting.load(Ordering::Relaxed));
                if changed.is_some() && !stopping && !yields && !suspects.any() {
                    arrivals.lane.consume(window.prefetch()).await?;
                }
                match read {
                    FirstLook::Done(batch) => {
                        applying.push(apply(shared, batch)).await;
                        sent_at = Instant::now();
                    }
                    FirstLook::Heavy(heavy) => reading.push(resolver.read_apart(shared, heavy)).await,
                }
                arrivals.note_if_all_read(shared)?;
            }
            () = tokio::time::sleep_until((sent_at + SLOW_LINK).into()), if gathering => {}
            () = due, if settled.any() => settled.acknowledge(arrivals.lane)?,
        }
    }
}

/// What to consume with: while the main lane yields, so little that few neighbours suffer if a
/// message in the slow lane ends the worker.
fn prefetch(window: &Window, yields: bool) -> u16 {
    if yields { window.prefetch().min(FEW) } else { window.prefetch() }
}

/// A batch, and whether copies were made of it.
type SettledBatch = (Batch, bool);

async fn apply(shared: &Shared, mut batch: Batch) -> (Batch, Result<Unsettled, Outage>) {
    let applied = batch.apply(shared).await;
    (batch, applied)
}

async fn settle(
    shared: &Shared,
    publisher: &copies::Publisher,
    batch: Batch,
    unsettled: Unsettled,
) -> Result<SettledBatch, SessionEnded> {
    let copied = batch.settle(shared, publisher, &unsettled).await?;
    Ok((batch, copied))
}
