//! Handles suspected poison messages, each alone.
//!
//! When a worker dies, everything in flight is redelivered once more, and the broker's delivery
//! limit counts that. A message in flight beside a poison message each time cannot have a higher
//! redelivery count than the poison message. So a delivery with a count of [`SUSPECT`] begins only
//! with nothing else in flight in its lane.
//!
//! - A suspected poison message of the main lane stops both lanes first. Plain deletes must not
//!   wait for loads, so running loads are interrupted soon and made again later.
//! - A suspected poison message of the slow lane stops only the slow lane, since a load takes
//!   seconds. The main lane goes on with little in flight (see [`yielding`](super::yielding)).
//! - A message that was redelivered since it was last published first goes to the end of its queue.
//!   The republished message carries its redelivery count. So the messages around it are applied
//!   before it begins again.
//! - Several that arrive together cannot be requeued without raising each count by one. They go to
//!   the end of their queue likewise.

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::in_flight::{InFlight, Taken};
use super::lane_end::{LaneEnd, Until};
use super::pipeline::Pipeline;
use super::slow_delivery;
use crate::broker::{DELIVERIES_AT_MOST, Delivery, Lane, LaneName, SessionEnded, Tag};
use crate::cache::LowWatermark;

/// Redelivery count from which a message may be the one that ends workers. A higher value would
/// allow other messages more than three redeliveries. A busy RabbitMQ also counts deliveries on
/// their way to a consumer that dies or is cancelled.
const SUSPECT: u64 = 2;

/// Number of unsuspected messages in a row that end the search.
const UNSUSPECTED: u32 = 16;

/// Maximum number of messages that one confirmation sets aside.
const SET_ASIDE_TOGETHER: usize = 64;

/// The suspected poison messages of one lane. Finding one winds the lane down, and the slow lane
/// with the main lane.
#[derive(Debug)]
pub(super) struct SuspectedPoison<'w> {
    wind_down: &'w CancellationToken,
    found: Vec<SuspectedMessage>,
}

/// One suspected poison message. Dropped before it is settled, it returns to its queue.
#[derive(Debug)]
pub(super) struct SuspectedMessage(Taken);

impl SuspectedMessage {
    fn new(in_flight: &InFlight, delivery: Delivery) -> Self {
        Self(in_flight.take(vec![delivery]))
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.0.deliveries[0]
    }

    /// Returns a bound for the arrival of its event.
    pub(super) fn bound(&self) -> LowWatermark {
        self.0.bound_of(self.delivery())
    }

    /// Notes that its republished message is confirmed, and that the low watermark includes it.
    pub(super) fn settled(&self) {
        self.0.settled();
    }

    /// Returns true if the messages around it were applied since it last began.
    fn may_begin(&self) -> bool {
        has_been_set_aside(self.delivery())
    }
}

impl<'w> SuspectedPoison<'w> {
    pub(super) fn new(wind_down: &'w CancellationToken) -> Self {
        Self { wind_down, found: Vec::new() }
    }

    /// Moves the suspected poison messages out of the arrived deliveries.
    pub(super) fn take_from(&mut self, in_flight: &InFlight, arrived: &mut Vec<Delivery>) {
        in_flight.forgive(arrived);
        if !arrived.iter().any(is_suspect) {
            return;
        }
        let suspects = arrived.extract_if(.., |delivery| is_suspect(delivery));
        self.found.extend(suspects.map(|delivery| SuspectedMessage::new(in_flight, delivery)));
        self.wind_down.cancel();
    }

    /// Returns true if any were found. Then tags below the newest are not all settled.
    pub(super) fn any(&self) -> bool {
        !self.found.is_empty()
    }

    /// Waits until the lane must stop, or must wind down for suspected poison messages.
    pub(super) async fn wound_down(&self) {
        self.wind_down.cancelled().await;
    }

    pub(super) fn into_found(self) -> Vec<SuspectedMessage> {
        self.found
    }
}

/// Returns true if a delivery is a suspected poison message. A message at its delivery limit is
/// not: the worker dead-letters it unread.
fn is_suspect(delivery: &Delivery) -> bool {
    delivery.counted_redeliveries().is_some_and(|times| times >= SUSPECT)
        && delivery.redelivery_count().is_some_and(|times| times < DELIVERIES_AT_MOST)
}

/// Returns true if the message was published to the end of its queue since it last began.
fn has_been_set_aside(delivery: &Delivery) -> bool {
    !delivery.redelivered()
}

/// A lane that has wound down, with its suspected poison messages.
pub(super) struct WoundDown<'l> {
    pub(super) name: LaneName,
    pub(super) lane: &'l mut Lane,
    pub(super) pipeline: Pipeline<'l>,
    pub(super) suspects: Vec<SuspectedMessage>,
}

/// Handles one of the suspected poison messages alone. The others go to the ends of their queues.
pub(super) async fn handle<const N: usize>(
    mut lanes: [WoundDown<'_>; N],
    until: Until<'_>,
) -> Result<LaneEnd, SessionEnded> {
    let concerned = lanes.each_ref().map(|lane| !lane.suspects.is_empty());
    let mut first = None;
    if !until.no_more.is_cancelled() {
        first = lanes.iter_mut().enumerate().find_map(|(at, lane)| {
            let place = lane.suspects.iter().rposition(SuspectedMessage::may_begin)?;
            Some((at, lane.suspects.remove(place)))
        });
    }
    for lane in &mut lanes {
        let aside = std::mem::take(&mut lane.suspects);
        set_aside(lane, &aside).await?;
    }
    if let Some((at, one)) = first {
        for lane in &lanes {
            lane.lane.acks_take_effect().await;
        }
        if begin(&mut lanes[at], one, until).await? == LaneEnd::Requeued {
            return Ok(LaneEnd::Requeued);
        }
    }
    for (lane, concerned) in lanes.iter_mut().zip(concerned) {
        if concerned && search(lane, until).await? == LaneEnd::Requeued {
            return Ok(LaneEnd::Requeued);
        }
    }
    Ok(LaneEnd::Stopped)
}

async fn set_aside(
    lane: &WoundDown<'_>,
    suspects: &[SuspectedMessage],
) -> Result<(), SessionEnded> {
    if suspects.is_empty() {
        return Ok(());
    }
    let deliveries: Vec<_> =
        suspects.iter().map(|suspect| (suspect.delivery(), suspect.bound())).collect();
    lane.pipeline.settler.publisher.publish_to_end(lane.name, &deliveries).await?;
    suspects.iter().for_each(SuspectedMessage::settled);
    suspects.iter().try_for_each(|suspect| lane.lane.ack_one(suspect.delivery().tag()))
}

/// Takes one message at a time until no more suspected poison messages are found. The lane has no
/// consumer meanwhile. Otherwise a busy broker would deliver the next message to it as the worker
/// dies.
async fn search(on: &mut WoundDown<'_>, until: Until<'_>) -> Result<LaneEnd, SessionEnded> {
    let enough = match on.name {
        LaneName::Main => UNSUSPECTED,
        // One message may be a load of many seconds.
        LaneName::Slow => 1,
    };
    let in_flight = on.pipeline.in_flight;
    let mut unsuspected = 0;
    let mut aside = Vec::new();
    while unsuspected < enough && !until.no_more.is_cancelled() {
        // Later ones meet little in flight anyway.
        let Some(delivery) = on.lane.get().await? else { break };
        let mut got = [delivery];
        in_flight.forgive(&mut got);
        let [delivery] = got;
        let one = SuspectedMessage::new(in_flight, delivery);
        if is_suspect(one.delivery()) {
            unsuspected = 0;
            if !one.may_begin() {
                aside.push(one);
                if aside.len() >= SET_ASIDE_TOGETHER {
                    set_aside(on, &std::mem::take(&mut aside)).await?;
                }
                continue;
            }
        } else {
            unsuspected += 1;
        }
        // Nothing else is in flight when it begins.
        set_aside(on, &std::mem::take(&mut aside)).await?;
        if begin(on, one, until).await? == LaneEnd::Requeued {
            return Ok(LaneEnd::Requeued);
        }
    }
    set_aside(on, &aside).await?;
    Ok(LaneEnd::Stopped)
}

/// Handles one delivery with nothing else in flight in its lane.
async fn begin(
    on: &mut WoundDown<'_>,
    one: SuspectedMessage,
    until: Until<'_>,
) -> Result<LaneEnd, SessionEnded> {
    let delivery = one.delivery();
    if is_suspect(delivery) {
        // A broker that lost an acknowledgement would redeliver that message too when the worker
        // dies.
        on.lane.acks_take_effect().await;
        let redeliveries = delivery.counted_redeliveries().unwrap_or_default();
        warn!(redeliveries, routing_key = ?delivery.routing_key(), "handled alone: redelivered before, it may be a poison message");
    }
    let (name, pipeline) = (on.name, on.pipeline);
    pipeline.in_flight.set(name, on.lane.in_flight());
    let settling = async {
        match name {
            LaneName::Main => pipeline.handle_alone(until.stop, one.0).await,
            LaneName::Slow => slow_delivery::handle(pipeline, until, one.0).await,
        }
    };
    let settled: Option<Tag> = tokio::select! {
        settled = settling => settled?,
        ended = on.lane.end() => return Err(ended),
    };
    let Some(tag) = settled else { return Ok(LaneEnd::Requeued) };
    on.lane.ack_one(tag)?;
    pipeline.in_flight.set(name, on.lane.in_flight());
    Ok(LaneEnd::Stopped)
}
