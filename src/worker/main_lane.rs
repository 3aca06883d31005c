//! The main lane: batches that form by themselves, applied in one round trip each, acknowledged
//! whole and in order.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::batch::{Batch, Unsettled};
use super::in_order::InOrder;
use super::resolver::FirstLook;
use super::suspects::Suspects;
use super::taken::Taken;
use super::unread::Unread;
use super::window::{FEW, Window};
use super::yielding::{self, Yielding};
use super::{LaneEnd, Shared, copies};
use crate::broker::{Delivery, Lane, LaneName, SessionEnded, Tag};
use crate::cache::Outage;

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

/// Of a backlog more is to come: with nothing in hand otherwise, what is settled waits so long for
/// it.
const MORE_COMES: Duration = Duration::from_millis(2);

/// Nor does it wait longer for what is in hand beside it: Redis may be silent, and the broker take
/// no copies.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(100);

/// Between two signs of life, after which the deliveries that wait in the connection's buffer are
/// counted too.
const BEAT: Duration = Duration::from_secs(1);

/// For copies under way when everything else is given back.
const SETTLE_BEFORE_GIVING_BACK: Duration = Duration::from_secs(5);

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
    let mut unread = Unread::default();
    // The batch under way is one that must be alone.
    let mut alone = false;
    let mut asked = yielding.asked();
    let mut sent_at = Instant::now();
    let (mut stopping, mut yields) = (false, false);
    // Since when nothing could be applied.
    let mut held_since: Option<tokio::time::Instant> = None;
    let mut beats = tokio::time::interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    lane.consume(window.prefetch()).await?;
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
        if !unread.is_empty() && !lane.has_left_over() {
            unread.are_none();
        }
        let in_flight = lane.in_flight();
        shared.in_flight.set(LaneName::Main, in_flight);
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
        if stopping && nothing_under_way && !lane.has_left_over() && !settled.any() {
            return Ok(LaneEnd::Stopped);
        }
        let is_alone = applying.is_empty();
        let gathering = !is_alone && sent_at.elapsed() < SLOW_LINK;
        let enough = |arrived| is_alone || arrived >= GATHERED;
        let due = settled.due(is_alone && settling.is_empty(), window.has_backlog() && !stopping);
        tokio::select! {
            biased;
            _ = beats.tick() => {
                shared.readiness.beat();
                lane.take_in()?;
                unread.are_only(&shared.low, lane.not_given_out());
            }
            batch = settling.next(), if !settling.is_empty() => {
                let batch: Result<SettledBatch, SessionEnded> = batch;
                settled.note(lane, &batch?, suspects, prefetch(&window, yields) / ACKNOWLEDGED_PART)?;
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
                        settled.acknowledge(lane)?;
                        shared.gate.close(&outage);
                        batch.not_applied(&outage);
                        // What was sent behind the failed batch is applied again behind it: order
                        // is kept.
                        let mut held = VecDeque::from([batch]);
                        while !applying.is_empty() {
                            let (behind, _): (Batch, Result<Unsettled, Outage>) = applying.next().await;
                            held.push_back(behind);
                        }
                        held.append(&mut waiting);
                        // What is read apart goes before all that would be taken.
                        let takes = outage.out_of_memory && !stopping && reading.is_empty();
                        let since = *held_since.get_or_insert_with(tokio::time::Instant::now);
                        let held_back = HeldBack { outage: &outage, since, batches: &mut held, unread: &mut unread, takes };
                        if !hold(shared, lane, &mut settling, &mut settled, held_back, stop, suspects).await? {
                            return Ok(LaneEnd::GaveBack);
                        }
                        waiting = held;
                    }
                }
            }
            () = suspects.wound_down(), if !stopping => {
                stopping = true;
                lane.cancel().await?;
            }
            asked = yielding::changed(&mut asked, yields), if !stopping => {
                yields = asked;
                lane.consume(prefetch(&window, yields)).await?;
            }
            batch = reading.next(), if !reading.is_empty() => waiting.push_back(batch),
            () = shared.low.asks(), if !stopping => {
                if lane.all_read()? {
                    shared.low.all_read();
                }
            }
            arrived = lane.next_batch_of(enough, shared.config.batch),
                if (!stopping || lane.has_left_over()) && may_take && !gathering =>
            {
                let mut deliveries = arrived?;
                shared.in_flight.set(LaneName::Main, lane.in_flight());
                suspects.take_from(shared, &mut deliveries);
                if deliveries.is_empty() {
                    continue;
                }
                let (read, left) = resolver.read(shared, deliveries);
                unread.put_back(&shared.low, &left);
                lane.put_back(left);
                shared.metrics.batch(read.deliveries().len());
                let changed = window.after(read.deliveries(), shared.waiting.load(Ordering::Relaxed));
                if changed.is_some() && !stopping && !yields && !suspects.any() {
                    lane.consume(window.prefetch()).await?;
                }
                match read {
                    FirstLook::Done(batch) => {
                        applying.push(apply(shared, batch)).await;
                        sent_at = Instant::now();
                    }
                    FirstLook::Heavy(heavy) => reading.push(resolver.read_apart(shared, heavy)).await,
                }
                if lane.all_read()? {
                    shared.low.all_read();
                }
            }
            () = tokio::time::sleep_until((sent_at + SLOW_LINK).into()), if gathering => {}
            () = due, if settled.any() => settled.acknowledge(lane)?,
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

/// What is settled and not acknowledged yet: all up to a tag.
#[derive(Debug, Default)]
struct Settled {
    through: Option<Tag>,
    /// When the first of it was.
    since: Option<Instant>,
    deliveries: usize,
}

impl Settled {
    fn any(&self) -> bool {
        self.through.is_some()
    }

    /// One more batch, and all before it are; acknowledges them once there are that many.
    fn note(
        &mut self,
        lane: &Lane,
        (batch, copied): &SettledBatch,
        suspects: &Suspects<'_>,
        at_once: u16,
    ) -> Result<(), SessionEnded> {
        if suspects.any() {
            // Those stand among what is settled, and are not.
            self.acknowledge(lane)?;
            return batch.deliveries().iter().try_for_each(|delivery| lane.ack_one(delivery.tag()));
        }
        self.through = batch.last_tag();
        self.since.get_or_insert_with(Instant::now);
        self.deliveries += batch.deliveries().len();
        if *copied || self.deliveries >= usize::from(at_once) {
            self.acknowledge(lane)
        } else {
            Ok(())
        }
    }

    /// Waits until it is to be acknowledged, few as it may be.
    fn due(&self, nothing_in_hand: bool, more_comes: bool) -> impl Future<Output = ()> + use<> {
        let latest = self.since.map(|since| since + ACKNOWLEDGED_WITHIN);
        let due = match (nothing_in_hand, more_comes) {
            (true, false) => None,
            (true, true) => latest.map(|latest| latest.min(Instant::now() + MORE_COMES)),
            (false, _) => latest,
        };
        async move {
            if let Some(due) = due {
                tokio::time::sleep_until(due.into()).await;
            }
        }
    }

    fn acknowledge(&mut self, lane: &Lane) -> Result<(), SessionEnded> {
        self.since = None;
        self.deliveries = 0;
        self.through.take().map_or(Ok(()), |tag| lane.ack_through(tag))
    }
}

/// What waits for the end of an outage.
struct HeldBack<'h> {
    outage: &'h Outage,
    /// When the first of it failed.
    since: tokio::time::Instant,
    batches: &'h mut VecDeque<Batch>,
    unread: &'h mut Unread,
    /// Whether more is taken meanwhile, for its deletions.
    takes: bool,
}

/// Waits for Redis while what was applied before the outage is settled. Where Redis takes deletions
/// alone, those of what is held and of what arrives meanwhile take effect. False when the rest is
/// to be given back: by then all that could be settled is, or its copies would be made twice.
async fn hold<F>(
    shared: &Shared,
    lane: &mut Lane,
    settling: &mut InOrder<F>,
    settled: &mut Settled,
    HeldBack { outage, since, batches, unread, mut takes }: HeldBack<'_>,
    stop: &CancellationToken,
    suspects: &mut Suspects<'_>,
) -> Result<bool, SessionEnded>
where
    F: Future<Output = Result<SettledBatch, SessionEnded>>,
{
    let mut beats = tokio::time::interval(BEAT);
    if outage.out_of_memory {
        for batch in batches.iter() {
            // Each try at a silent server takes seconds.
            if !batch.delete_now(shared).await {
                takes = false;
                break;
            }
        }
    }
    let resolver = &shared.main_resolver;
    let opened = {
        let mut opens = pin!(shared.gate.hold(stop, outage, since));
        loop {
            tokio::select! {
                biased;
                batch = settling.next(), if !settling.is_empty() => {
                    settled.note(lane, &batch?, suspects, 0)?;
                    shared.in_flight.set(LaneName::Main, lane.in_flight());
                }
                _ = beats.tick() => {
                    shared.readiness.beat();
                    lane.take_in()?;
                    unread.are_only(&shared.low, lane.not_given_out());
                    shared.in_flight.set(LaneName::Main, lane.in_flight());
                }
                opened = &mut opens => break opened,
                arrived = next_or_end(lane, takes && resolver.has_room(), shared.config.batch) => {
                    let mut deliveries = arrived?;
                    suspects.take_from(shared, &mut deliveries);
                    if deliveries.is_empty() {
                        continue;
                    }
                    let (read, left) = resolver.read(shared, deliveries);
                    unread.put_back(&shared.low, &left);
                    lane.put_back(left);
                    match read {
                        FirstLook::Done(batch) => {
                            takes = batch.delete_now(shared).await;
                            batches.push_back(batch);
                        }
                        // It may need room that only the held batches give back. What came behind
                        // it waits too.
                        FirstLook::Heavy(heavy) => {
                            takes = false;
                            unread.put_back(&shared.low, heavy.deliveries());
                            lane.put_back(heavy.into_deliveries());
                        }
                    }
                }
            }
        }
    };
    if !opened {
        // An alarm of the broker may make this take for ever.
        let settle_all = async {
            while !settling.is_empty() {
                settled.note(lane, &settling.next().await?, suspects, 0)?;
            }
            Ok::<(), SessionEnded>(())
        };
        tokio::time::timeout(SETTLE_BEFORE_GIVING_BACK, settle_all).await.unwrap_or(Ok(()))?;
    }
    Ok(opened)
}

/// The next deliveries where more may be taken; else waits for the session's end.
async fn next_or_end(
    lane: &mut Lane,
    takes: bool,
    max: usize,
) -> Result<Vec<Delivery>, SessionEnded> {
    if takes { lane.next_batch_of(|_| true, max).await } else { Err(lane.end().await) }
}

/// Settles one delivery by itself; `None` when it is to be given back, since Redis is away.
pub(super) async fn handle(
    shared: &Shared,
    publisher: &copies::Publisher,
    stop: &CancellationToken,
    taken: Taken,
) -> Result<Option<Tag>, SessionEnded> {
    let mut batch = shared.main_resolver.read_one(shared, taken).await;
    let mut held_since = None;
    loop {
        match batch.apply(shared).await {
            Ok(unsettled) => {
                batch.settle(shared, publisher, &unsettled).await?;
                return Ok(batch.last_tag());
            }
            Err(outage) => {
                shared.gate.close(&outage);
                batch.not_applied(&outage);
                if outage.out_of_memory {
                    batch.delete_now(shared).await;
                }
                if !shared
                    .gate
                    .hold(stop, &outage, *held_since.get_or_insert_with(tokio::time::Instant::now))
                    .await
                {
                    return Ok(None);
                }
            }
        }
    }
}

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
