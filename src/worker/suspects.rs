//! Deliveries that may be what kills workers: each is begun alone.
//!
//! A worker that dies costs everything in its hands a redelivery, and the broker's delivery limit counts those. What was in hand whenever
//! the culprit was begun cannot have come in vain more often than the culprit itself. So a delivery that came in vain [`SUSPECT`] times is
//! begun only with nothing else in hand, in either lane: no more workers than that die with a neighbour of a culprit in hand, and one more where
//! the culprit was begun while the neighbour waited for its turn.
//! Suspects that are in hand together cannot be given back without one more count each: all but one go to the end of their queue as copies
//! that say how often they came.

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::in_hand::Held;
use super::{LaneEnd, Shared, copies, main_lane, slow_lane};
use crate::broker::{Delivery, Lane, LaneName, SessionEnded, Tag};

/// Delivered in vain so often, a message may be what kills workers. Not more: no neighbour is to be redelivered more than three times, and
/// RabbitMQ, busy, counts what was on its way to a consumer that dies or is cancelled too.
const SUSPECT: u64 = 2;

/// As many that are no suspects, in a row, end the search for more.
const UNSUSPECTED: u32 = 16;

/// What one lane has found; found, both lanes wind down.
#[derive(Debug)]
pub(super) struct Suspects<'w> {
    wind_down: &'w CancellationToken,
    found: Vec<Suspect>,
}

/// One of them, in hand until it is dropped.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) delivery: Delivery,
    _held: Held,
}

impl Suspect {
    /// For who takes it in hand anew.
    fn into_delivery(self) -> Delivery {
        self.delivery
    }
}

impl<'w> Suspects<'w> {
    pub(super) fn new(wind_down: &'w CancellationToken) -> Self {
        Self { wind_down, found: Vec::new() }
    }

    /// Takes the suspects out of what arrived.
    pub(super) fn take_from(&mut self, shared: &Shared, arrived: &mut Vec<Delivery>) {
        if !arrived.iter().any(is_suspect) {
            return;
        }
        let suspects = arrived.extract_if(.., |delivery| is_suspect(delivery));
        self.found.extend(suspects.map(|delivery| Suspect { delivery, _held: shared.in_hand.take(1) }));
        self.wind_down.cancel();
    }

    /// Whether there are any: then tags below the newest are not all settled.
    pub(super) fn any(&self) -> bool {
        !self.found.is_empty()
    }

    /// Told to stop, or to make way for suspects.
    pub(super) async fn wound_down(&self) {
        self.wind_down.cancelled().await;
    }

    pub(super) fn into_found(self) -> Vec<Suspect> {
        self.found
    }
}

fn is_suspect(delivery: &Delivery) -> bool {
    delivery.in_vain().is_some_and(|times| times >= SUSPECT)
}

/// A lane that has wound down, with what it found.
pub(super) struct WoundDown<'l> {
    pub(super) name: LaneName,
    pub(super) lane: &'l mut Lane,
    pub(super) publisher: &'l copies::Publisher,
    pub(super) suspects: Vec<Suspect>,
}

/// Handles one of the suspects alone, the others from their queues' ends as they come. Told to stop, it begins none.
pub(super) async fn handle(shared: &Shared, mut lanes: [WoundDown<'_>; 2], stop: &CancellationToken) -> Result<LaneEnd, SessionEnded> {
    let concerned = lanes.each_ref().map(|lane| !lane.suspects.is_empty());
    let mut first = None;
    if !stop.is_cancelled() {
        first = lanes.iter_mut().enumerate().find_map(|(at, lane)| Some((at, lane.suspects.pop()?)));
    }
    for lane in &mut lanes {
        let aside = std::mem::take(&mut lane.suspects);
        lane.publisher.set_aside(shared, lane.name, &aside).await?;
        for suspect in &aside {
            lane.lane.ack_one(suspect.delivery.tag())?;
        }
    }
    let Some((at, one)) = first else { return Ok(LaneEnd::Stopped) };
    for lane in &lanes {
        lane.lane.acks_take_hold().await;
    }
    if begin(shared, &mut lanes[at], one.into_delivery(), stop).await? == LaneEnd::GaveBack {
        return Ok(LaneEnd::GaveBack);
    }
    for (lane, concerned) in lanes.iter_mut().zip(concerned) {
        if concerned && search(shared, lane, stop).await? == LaneEnd::GaveBack {
            return Ok(LaneEnd::GaveBack);
        }
    }
    Ok(LaneEnd::Stopped)
}

/// Takes one at a time from a lane, while the other stands still, until there seem to be no more suspects. No consumer stands meanwhile: should we
/// die of one, a busy broker would give that the next one, in vain.
async fn search(shared: &Shared, on: &mut WoundDown<'_>, stop: &CancellationToken) -> Result<LaneEnd, SessionEnded> {
    let enough = match on.name {
        LaneName::Main => UNSUSPECTED,
        // One may be a load of many seconds.
        LaneName::Slow => 1,
    };
    let mut unsuspected = 0;
    while unsuspected < enough && !stop.is_cancelled() {
        // What comes later is met with little in hand all the same.
        let Some(delivery) = on.lane.get().await? else { break };
        unsuspected = if is_suspect(&delivery) { 0 } else { unsuspected + 1 };
        if begin(shared, on, delivery, stop).await? == LaneEnd::GaveBack {
            return Ok(LaneEnd::GaveBack);
        }
    }
    Ok(LaneEnd::Stopped)
}

/// Handles one delivery with nothing else in hand.
async fn begin(shared: &Shared, on: &mut WoundDown<'_>, delivery: Delivery, stop: &CancellationToken) -> Result<LaneEnd, SessionEnded> {
    if is_suspect(&delivery) {
        // What was settled before it would count, if the broker forgot that when we die.
        on.lane.acks_take_hold().await;
        let in_vain = delivery.in_vain().unwrap_or_default();
        warn!(in_vain, routing_key = delivery.routing_key(), "handled alone: delivered in vain before, it may be what ends workers");
    }
    let (name, publisher) = (on.name, on.publisher);
    let settling = async {
        match name {
            LaneName::Main => main_lane::handle(shared, publisher, stop, delivery).await,
            LaneName::Slow => slow_lane::handle(shared, publisher, stop, delivery).await,
        }
    };
    let settled: Option<Tag> = tokio::select! {
        settled = settling => settled?,
        ended = on.lane.end() => return Err(ended),
    };
    let Some(tag) = settled else { return Ok(LaneEnd::GaveBack) };
    on.lane.ack_one(tag)?;
    Ok(LaneEnd::Stopped)
}
