//! The main lane. Batches form by themselves, are applied in one round trip each, and are
//! acknowledged whole and in order, when `acknowledgement.rs` says.
//!
//! - `arrivals.rs`: reads deliveries, or puts them back.
//! - `outage.rs`: holds batches while Redis is away.
//!
//! Loads and drains of big tags are in `slow_lane.rs`.

mod arrivals;
mod outage;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::acknowledgement::{Acknowledge, JustSettled, LaneState, Unacknowledged};
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

pub(super) use outage::handle;

/// Maximum number of batches on their way to Redis at once. They fill a slow link, and the prefetch
/// bounds them too.
const MAX_APPLYING: usize = 16;

/// Minimum time between sending a batch and taking more deliveries. A nearby Redis answers sooner,
/// and a larger batch then saves commands and wakeups. On a slow link several batches are on their
/// way.
const SLOW_LINK: Duration = Duration::from_micros(500);

/// Number of events that make a batch on a slow link, while other batches are on their way.
const GATHERED: usize = 50;

/// Time between two reports that the loop runs. Each also counts the deliveries that wait in the
/// connection's buffer.
const BEAT: Duration = Duration::from_secs(1);

/// Consumes until a stop is requested, the session ends, or Redis was away too long.
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
    let mut settled = Unacknowledged::default();
    // Batches that are read and not sent, since an earlier batch is not done. They are sent before
    // any other.
    let mut waiting: VecDeque<Batch> = VecDeque::new();
    // A delivery that is read on another thread. Nothing is taken meanwhile, so that the order is
    // kept.
    let mut reading = InOrder::new();
    let mut arrivals = Arrivals::new(lane);
    // True while a batch is applied that must be applied alone.
    let mut alone = false;
    let mut asked = yielding.asked();
    let mut sent_at = Instant::now();
    let (mut stopping, mut yields) = (false, false);
    // When batches began to fail in a row.
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
        let due = settled.due(
            is_alone && settling.is_empty(),
            window.has_backlog() && !stopping,
            Instant::now(),
        );
        tokio::select! {
            biased;
            _ = beats.tick() => arrivals.beat(shared)?,
            batch = settling.next(), if !settling.is_empty() => {
                let batch: Result<SettledBatch, SessionEnded> = batch;
                let state = LaneState {
                    prefetch: prefetch(&window, yields),
                    has_suspects: suspects.any(),
                };
                acknowledge(arrivals.lane, &mut settled, &batch?, state)?;
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
                        acknowledge_all(arrivals.lane, &mut settled)?;
                        shared.gate.close(&outage);
                        batch.not_applied(&outage);
                        // The batches that were sent behind the failed batch are applied again
                        // behind it, which keeps the order.
                        let mut held = VecDeque::from([batch]);
                        while !applying.is_empty() {
                            let (mut behind, _): (Batch, Result<Unsettled, Outage>) = applying.next().await;
                            behind.note_tried();
                            held.push_back(behind);
                        }
                        held.append(&mut waiting);
                        // A delivery that is read on another thread precedes all that would be
                        // taken.
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
            () = at(due), if settled.any() => acknowledge_all(arrivals.lane, &mut settled)?,
        }
    }
}

/// Returns the prefetch to consume with. While the main lane yields, it is small. Few other
/// messages then suffer if a slow-lane message ends the worker.
fn prefetch(window: &Window, yields: bool) -> u16 {
    if yields { window.prefetch().min(FEW) } else { window.prefetch() }
}

/// Waits until then; `None` means not at all.
async fn at(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}

/// Adds a settled batch, and acknowledges what is due.
fn acknowledge(
    lane: &Lane,
    settled: &mut Unacknowledged,
    (batch, has_republished): &SettledBatch,
    state: LaneState,
) -> Result<(), SessionEnded> {
    let just_settled = JustSettled {
        through: batch.last_tag(),
        deliveries: batch.deliveries().len(),
        has_republished: *has_republished,
    };
    match settled.add(just_settled, state, Instant::now()) {
        Acknowledge::Later => Ok(()),
        Acknowledge::Through(tag) => lane.ack_through(tag),
        Acknowledge::EachAlone { before } => {
            before.map_or(Ok(()), |tag| lane.ack_through(tag))?;
            batch.deliveries().iter().try_for_each(|delivery| lane.ack_one(delivery.tag()))
        }
    }
}

/// Acknowledges all settled deliveries.
fn acknowledge_all(lane: &Lane, settled: &mut Unacknowledged) -> Result<(), SessionEnded> {
    settled.take().map_or(Ok(()), |tag| lane.ack_through(tag))
}

/// A batch, and true if messages were republished for it.
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
