//! The main lane. A batch is what has arrived since the last one was sent. Each batch is applied in
//! one round trip. Batches are acknowledged in order, when `acknowledgement.rs` decides so.
//!
//! [`run`] repeats three things: it decides the next step, collects the next event of the lane, and
//! acts on it.
//! - `step.rs`: decides.
//! - `arrivals.rs`: reads deliveries, or puts them back.
//! - `outage.rs`: holds batches while Redis is away.
//!
//! Loads and drains of big tags are in `slow_lane.rs`.

mod arrivals;
mod outage;
mod step;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::acknowledgement::{Acknowledge, LaneState, Unacknowledged};
use super::batch::{Applied, NotApplied, Resolved, Settled};
use super::in_order::InOrder;
use super::lane_end::LaneEnd;
use super::pipeline::Pipeline;
use super::prefetch_ramp::{FEW, PrefetchRamp};
use super::resolver::FirstLook;
use super::shared::Shared;
use super::suspected_poison::SuspectedPoison;
use super::yielding::{self, Yielding};
use crate::broker::{Delivery, Lane, SessionEnded};
use arrivals::Arrivals;
use step::{SLOW_LINK, Step, Take, UnderWay};

/// Time between two reports that the loop runs. With each report, the lane also counts the
/// deliveries in the connection's buffer, and holds them for the low watermark.
const BEAT: Duration = Duration::from_secs(1);

/// Consumes until a stop is requested, the session ends, or Redis was away too long.
pub(super) async fn run(
    shared: &Shared,
    lane: &mut Lane,
    pipeline: Pipeline<'_>,
    window: PrefetchRamp,
    yielding: &Yielding,
    stop: &CancellationToken,
    suspects: &mut SuspectedPoison<'_>,
) -> Result<LaneEnd, SessionEnded> {
    let arrivals = Arrivals::new(lane, pipeline, &shared.heal_state.watermark, &shared.readiness);
    let mut lane = MainLane::new(shared, arrivals, pipeline, window, suspects, stop);
    let mut asked = yielding.asked();
    lane.arrivals.lane.consume(lane.prefetch()).await?;
    loop {
        lane.send_waiting().await;
        lane.arrivals.uncover();
        if lane.arrivals.count() <= usize::from(FEW) && lane.yields {
            yielding.yields();
        }
        let under_way = lane.under_way();
        let Step::Wait(take) = under_way.step() else { return Ok(LaneEnd::Stopped) };
        let nothing_else = under_way.applying == 0 && !under_way.is_settling;
        let more_comes = lane.window.has_backlog() && !lane.stopping;
        let due = lane.unacknowledged.due(nothing_else, more_comes, Instant::now);
        match lane.next_event(take, due, &mut asked).await {
            Event::Arrived(deliveries) => lane.take(deliveries?).await?,
            Event::Read(batch) => lane.waiting.push_back(batch),
            Event::Applied(Ok(batch)) => lane.settle(batch).await,
            Event::Applied(Err(not_applied)) => {
                if !lane.hold(not_applied).await? {
                    return Ok(LaneEnd::Requeued);
                }
            }
            Event::Settled(batch) => lane.acknowledge(&batch?, lane.prefetch())?,
            Event::AcknowledgementDue => lane.acknowledge_all()?,
            Event::Beat => lane.arrivals.beat()?,
            Event::QueueSeenEmpty => lane.arrivals.note_if_all_read()?,
            Event::SlowLinkWaited => {}
            Event::YieldAsked(yields) => {
                lane.yields = yields;
                lane.arrivals.lane.consume(lane.prefetch()).await?;
            }
            Event::WoundDown => {
                lane.stopping = true;
                lane.arrivals.lane.cancel().await?;
            }
        }
    }
}

/// The next event of the main lane.
enum Event {
    /// The next report that the loop runs is due.
    Beat,
    /// The oldest batch that was applied is settled.
    Settled(Result<Settled, SessionEnded>),
    /// Redis has answered the oldest batch.
    Applied(Result<Applied, NotApplied>),
    /// The lane must stop, or must wind down for suspected poison messages.
    WoundDown,
    /// The slow lane asks to keep little in flight, or no longer asks.
    YieldAsked(bool),
    /// Another thread has read a delivery.
    Read(Resolved),
    /// A look at the queues saw no message waiting in the main queue.
    QueueSeenEmpty,
    /// Enough deliveries have arrived, or the session has ended.
    Arrived(Result<Vec<Delivery>, SessionEnded>),
    /// The last batch has been on its way for [`SLOW_LINK`].
    SlowLinkWaited,
    /// Settled deliveries must be acknowledged, even if they are few.
    AcknowledgementDue,
}

/// The main lane of one session.
struct MainLane<'r, 'w> {
    shared: &'r Shared,
    arrivals: Arrivals<'r>,
    pipeline: Pipeline<'r>,
    window: PrefetchRamp,
    suspects: &'r mut SuspectedPoison<'w>,
    stop: &'r CancellationToken,
    /// The delivery that another thread reads. To keep the order, the lane takes no others
    /// meanwhile.
    reading: InOrder<'r, Resolved>,
    /// Resolved batches that wait for an earlier batch. They are sent before all others.
    waiting: VecDeque<Resolved>,
    applying: InOrder<'r, Result<Applied, NotApplied>>,
    settling: InOrder<'r, Result<Settled, SessionEnded>>,
    unacknowledged: Unacknowledged,
    /// True if the batch on its way to Redis must be applied alone.
    alone: bool,
    sent_at: Instant,
    stopping: bool,
    /// True while little is kept in flight for the slow lane.
    yields: bool,
    /// When the first of the batches that failed in a row was held.
    held_since: Option<tokio::time::Instant>,
    beats: Interval,
}

impl<'r, 'w> MainLane<'r, 'w> {
    fn new(
        shared: &'r Shared,
        arrivals: Arrivals<'r>,
        pipeline: Pipeline<'r>,
        window: PrefetchRamp,
        suspects: &'r mut SuspectedPoison<'w>,
        stop: &'r CancellationToken,
    ) -> Self {
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            shared,
            arrivals,
            pipeline,
            window,
            suspects,
            stop,
            reading: InOrder::new(),
            waiting: VecDeque::new(),
            applying: InOrder::new(),
            settling: InOrder::new(),
            unacknowledged: Unacknowledged::default(),
            alone: false,
            sent_at: Instant::now(),
            stopping: false,
            yields: false,
            held_since: None,
            beats,
        }
    }

    fn under_way(&self) -> UnderWay {
        let applying = self.applying.len();
        let since_sent = if applying > 0 { self.sent_at.elapsed() } else { Duration::ZERO };
        UnderWay {
            applying,
            is_alone: self.alone && applying > 0,
            waiting: self.waiting.len(),
            is_reading: !self.reading.is_empty(),
            is_settling: !self.settling.is_empty(),
            is_unacknowledged: self.unacknowledged.any(),
            has_left_over: self.arrivals.lane.has_left_over(),
            has_room: self.pipeline.resolver.has_room(),
            is_stopping: self.stopping,
            since_sent,
        }
    }

    /// Waits for the next event. `take`: which deliveries are taken meanwhile. `due`: when settled
    /// deliveries must be acknowledged; `None` means at once.
    async fn next_event(
        &mut self,
        take: Take,
        due: Option<Instant>,
        asked: &mut watch::Receiver<bool>,
    ) -> Event {
        let enough = |arrived| matches!(take, Take::AtLeast(count) if arrived >= count);
        tokio::select! {
            biased;
            _ = self.beats.tick() => Event::Beat,
            batch = self.settling.next(), if !self.settling.is_empty() => Event::Settled(batch),
            batch = self.applying.next(), if !self.applying.is_empty() => Event::Applied(batch),
            () = self.suspects.wound_down(), if !self.stopping => Event::WoundDown,
            asked = yielding::changed(asked, self.yields), if !self.stopping => {
                Event::YieldAsked(asked)
            }
            batch = self.reading.next(), if !self.reading.is_empty() => Event::Read(batch),
            () = self.shared.heal_state.watermark.asks(), if !self.stopping => Event::QueueSeenEmpty,
            arrived = self.arrivals.lane.next_batch_of(enough, self.shared.config.batch),
                if matches!(take, Take::AtLeast(_)) => Event::Arrived(arrived),
            () = at(Some(self.sent_at + SLOW_LINK)), if take == Take::AfterSlowLink => {
                Event::SlowLinkWaited
            }
            () = at(due), if self.unacknowledged.any() => Event::AcknowledgementDue,
        }
    }

    /// Sends to Redis the waiting batches that may be sent now.
    async fn send_waiting(&mut self) {
        while let Some(next) = self.waiting.front() {
            let is_suspected = next.is_suspected();
            let under_way = UnderWay {
                applying: self.applying.len(),
                is_alone: self.alone,
                ..UnderWay::default()
            };
            if !under_way.may_send(is_suspected) {
                break;
            }
            self.alone = is_suspected;
            if let Some(batch) = self.waiting.pop_front() {
                self.applying.push(batch.apply(self.pipeline.cache, self.pipeline.gate)).await;
                self.sent_at = Instant::now();
            }
        }
    }

    /// Resolves arrived deliveries, and sends the batch to Redis. A heavy delivery first goes to
    /// another thread.
    async fn take(&mut self, arrived: Vec<Delivery>) -> Result<(), SessionEnded> {
        let Some(read) = self.arrivals.read(self.suspects, arrived) else { return Ok(()) };
        self.pipeline.settler.metrics.batch(read.deliveries().len());
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        let changed = self.window.after(read.deliveries(), waiting);
        if changed.is_some() && !self.stopping && !self.yields && !self.suspects.any() {
            self.arrivals.lane.consume(self.window.prefetch()).await?;
        }
        match read {
            FirstLook::Done(batch) => {
                self.applying.push(batch.apply(self.pipeline.cache, self.pipeline.gate)).await;
                self.alone = false;
                self.sent_at = Instant::now();
            }
            FirstLook::Heavy(heavy) => {
                self.reading.push(self.pipeline.resolver.read_apart(heavy)).await;
            }
        }
        self.arrivals.note_if_all_read()
    }

    /// Begins to settle a batch.
    async fn settle(&mut self, batch: Applied) {
        self.held_since = None;
        self.settling.push(batch.settle(self.pipeline.settler)).await;
    }

    /// Returns the prefetch to consume with. It is small while the main lane yields: if a slow-lane
    /// message then kills the worker, few other messages are redelivered.
    fn prefetch(&self) -> u16 {
        let prefetch = self.window.prefetch();
        if self.yields { prefetch.min(FEW) } else { prefetch }
    }

    /// Adds a settled batch, and acknowledges what is due.
    fn acknowledge(&mut self, batch: &Settled, prefetch: u16) -> Result<(), SessionEnded> {
        let lane = &self.arrivals.lane;
        let state = LaneState { prefetch, has_suspects: self.suspects.any() };
        match self.unacknowledged.add(batch.summary(), state, Instant::now) {
            Acknowledge::Later => Ok(()),
            Acknowledge::Through(tag) => lane.ack_through(tag),
            Acknowledge::EachAlone { before } => {
                before.map_or(Ok(()), |tag| lane.ack_through(tag))?;
                batch.tags().try_for_each(|tag| lane.ack_one(tag))
            }
        }
    }

    /// Acknowledges all settled deliveries.
    fn acknowledge_all(&mut self) -> Result<(), SessionEnded> {
        self.unacknowledged.take().map_or(Ok(()), |tag| self.arrivals.lane.ack_through(tag))
    }
}

/// Waits until `due`. Returns at once if it is `None`.
async fn at(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}
