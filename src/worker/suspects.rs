//! Suspected poison messages: each is begun alone.
//!
//! A worker that dies costs everything in flight a redelivery, and the broker's delivery limit
//! counts those. What was in flight whenever a poison message was begun cannot have a higher
//! redelivery count than the message itself. So a delivery with a count of [`SUSPECT`] is begun
//! only with nothing else in flight in its lane.
//!
//! - A suspected poison message of the main lane stops both lanes first. Plain deletes must not
//!   wait for loads, so loads under way are interrupted soon, and made again later. One of the slow
//!   lane stops the slow lane, and the main lane goes on with little in flight (see
//!   [`yielding`](super::yielding)): a load takes seconds.
//! - One that came again since it was last published goes to the end of its queue first, as a
//!   republished message that says how often it came. So its neighbours are applied before it is
//!   begun again.
//! - Several that arrive together cannot be requeued without one more count each: they go to the
//!   end of their queue likewise.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::taken::Taken;
use super::{LaneEnd, Shared, copies, main_lane, slow_lane};
use crate::broker::{DELIVERIES_AT_MOST, Delivery, Lane, LaneName, SessionEnded, Tag};
use crate::cache::LowWatermark;

/// A message with this redelivery count may be what ends workers. Not a higher one: no neighbour is
/// to be redelivered more than three times, and RabbitMQ, busy, counts what was on its way to a
/// consumer that dies or is cancelled too.
const SUSPECT: u64 = 2;

/// As many that are not suspected, in a row, end the search for more.
const UNSUSPECTED: u32 = 16;

/// So many are set aside with one confirmation.
const SET_ASIDE_TOGETHER: usize = 64;

/// What one lane has found; found, it winds down, and with the main lane the slow one.
#[derive(Debug)]
pub(super) struct Suspects<'w> {
    wind_down: &'w CancellationToken,
    found: Vec<Suspect>,
}

/// One of them. Dropped before it is settled, it goes back to its queue.
#[derive(Debug)]
pub(super) struct Suspect(Taken);

impl Suspect {
    fn new(shared: &Shared, delivery: Delivery) -> Self {
        Self(Taken::new(shared, vec![delivery]))
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.0.deliveries[0]
    }

    /// Returns a bound for the arrival of its event.
    pub(super) fn bound(&self) -> LowWatermark {
        self.0.bound_of(self.delivery())
    }

    /// Its republished message is confirmed and covered.
    pub(super) fn settled(&self) {
        self.0.settled();
    }

    /// Whether its neighbours were applied since it was begun last.
    fn may_begin(&self) -> bool {
        has_been_set_aside(self.delivery())
    }
}

impl<'w> Suspects<'w> {
    pub(super) fn new(wind_down: &'w CancellationToken) -> Self {
        Self { wind_down, found: Vec::new() }
    }

    /// Takes the suspected poison messages out of what arrived.
    pub(super) fn take_from(&mut self, shared: &Shared, arrived: &mut Vec<Delivery>) {
        shared.survivors.forgive(arrived);
        if !arrived.iter().any(is_suspect) {
            return;
        }
        let suspects = arrived.extract_if(.., |delivery| is_suspect(delivery));
        self.found.extend(suspects.map(|delivery| Suspect::new(shared, delivery)));
        self.wind_down.cancel();
    }

    /// Whether there are any: then tags below the newest are not all settled.
    pub(super) fn any(&self) -> bool {
        !self.found.is_empty()
    }

    /// Waits until the lane is to stop, or to wind down for suspected poison messages.
    pub(super) async fn wound_down(&self) {
        self.wind_down.cancelled().await;
    }

    pub(super) fn into_found(self) -> Vec<Suspect> {
        self.found
    }
}

/// What has had its deliveries is no suspect: it is dead-lettered unread, like anything else that
/// is.
fn is_suspect(delivery: &Delivery) -> bool {
    delivery.in_vain().is_some_and(|times| times >= SUSPECT)
        && delivery.redelivery_count().is_some_and(|times| times < DELIVERIES_AT_MOST)
}

/// Whether it was published to the end of its queue since it was last begun.
fn has_been_set_aside(delivery: &Delivery) -> bool {
    !delivery.redelivered()
}

/// A lane that has wound down, with what it found.
pub(super) struct WoundDown<'l> {
    pub(super) name: LaneName,
    pub(super) lane: &'l mut Lane,
    pub(super) publisher: &'l copies::Publisher,
    pub(super) suspects: Vec<Suspect>,
}

/// When it ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until<'u> {
    /// No other delivery and no other load is begun from then on. It is cancelled with `stop`, and
    /// without it when the main lane has met a suspected poison message.
    pub(super) no_more: &'u CancellationToken,
    /// The worker stops.
    pub(super) stop: &'u CancellationToken,
}

/// Time that loads under way have to end before a suspected poison message of the main lane.
const LOADS_END_WITHIN: Duration = Duration::from_millis(500);

impl Until<'_> {
    /// Waits until loads under way are to be interrupted, since the main lane waits for them. When
    /// the worker stops, they may end.
    pub(super) async fn interrupts(self) {
        self.no_more.cancelled().await;
        tokio::time::sleep(LOADS_END_WITHIN).await;
        if self.stop.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

/// Handles one of the suspected poison messages alone, the others from their queues' ends as they
/// come.
pub(super) async fn handle<const N: usize>(
    shared: &Shared,
    mut lanes: [WoundDown<'_>; N],
    until: Until<'_>,
) -> Result<LaneEnd, SessionEnded> {
    let concerned = lanes.each_ref().map(|lane| !lane.suspects.is_empty());
    let mut first = None;
    if !until.no_more.is_cancelled() {
        first = lanes.iter_mut().enumerate().find_map(|(at, lane)| {
            let place = lane.suspects.iter().rposition(Suspect::may_begin)?;
            Some((at, lane.suspects.remove(place)))
        });
    }
    for lane in &mut lanes {
        let aside = std::mem::take(&mut lane.suspects);
        set_aside(shared, lane, &aside).await?;
    }
    if let Some((at, one)) = first {
        for lane in &lanes {
            lane.lane.acks_take_hold().await;
        }
        if begin(shared, &mut lanes[at], one, until).await? == LaneEnd::GaveBack {
            return Ok(LaneEnd::GaveBack);
        }
    }
    for (lane, concerned) in lanes.iter_mut().zip(concerned) {
        if concerned && search(shared, lane, until).await? == LaneEnd::GaveBack {
            return Ok(LaneEnd::GaveBack);
        }
    }
    Ok(LaneEnd::Stopped)
}

async fn set_aside(
    shared: &Shared,
    lane: &WoundDown<'_>,
    suspects: &[Suspect],
) -> Result<(), SessionEnded> {
    if suspects.is_empty() {
        return Ok(());
    }
    lane.publisher.set_aside(shared, lane.name, suspects).await?;
    suspects.iter().try_for_each(|suspect| lane.lane.ack_one(suspect.delivery().tag()))
}

/// Takes one at a time from a lane until there seem to be no more suspected poison messages. The
/// lane has no consumer meanwhile: should the worker die of one, a busy broker would give that the
/// next one, in vain.
async fn search(
    shared: &Shared,
    on: &mut WoundDown<'_>,
    until: Until<'_>,
) -> Result<LaneEnd, SessionEnded> {
    let enough = match on.name {
        LaneName::Main => UNSUSPECTED,
        // One may be a load of many seconds.
        LaneName::Slow => 1,
    };
    let mut unsuspected = 0;
    let mut aside = Vec::new();
    while unsuspected < enough && !until.no_more.is_cancelled() {
        // What comes later is met with little in flight all the same.
        let Some(delivery) = on.lane.get().await? else { break };
        let mut got = [delivery];
        shared.survivors.forgive(&mut got);
        let [delivery] = got;
        let one = Suspect::new(shared, delivery);
        if is_suspect(one.delivery()) {
            unsuspected = 0;
            if !one.may_begin() {
                aside.push(one);
                if aside.len() >= SET_ASIDE_TOGETHER {
                    set_aside(shared, on, &std::mem::take(&mut aside)).await?;
                }
                continue;
            }
        } else {
            unsuspected += 1;
        }
        // Nothing else is in flight when it is begun.
        set_aside(shared, on, &std::mem::take(&mut aside)).await?;
        if begin(shared, on, one, until).await? == LaneEnd::GaveBack {
            return Ok(LaneEnd::GaveBack);
        }
    }
    set_aside(shared, on, &aside).await?;
    Ok(LaneEnd::Stopped)
}

/// Handles one delivery with nothing else in flight in its lane.
async fn begin(
    shared: &Shared,
    on: &mut WoundDown<'_>,
    one: Suspect,
    until: Until<'_>,
) -> Result<LaneEnd, SessionEnded> {
    let delivery = one.delivery();
    if is_suspect(delivery) {
        // What was settled before it would count, if the broker forgot that when we die.
        on.lane.acks_take_hold().await;
        let in_vain = delivery.in_vain().unwrap_or_default();
        warn!(in_vain, routing_key = ?delivery.routing_key(), "handled alone: delivered in vain before, it may be what ends workers");
    }
    shared.in_flight.set(on.name, on.lane.in_flight());
    let (name, publisher) = (on.name, on.publisher);
    let settling = async {
        match name {
            LaneName::Main => main_lane::handle(shared, publisher, until.stop, one.0).await,
            LaneName::Slow => slow_lane::handle(shared, publisher, until, one.0).await,
        }
    };
    let settled: Option<Tag> = tokio::select! {
        settled = settling => settled?,
        ended = on.lane.end() => return Err(ended),
    };
    let Some(tag) = settled else { return Ok(LaneEnd::GaveBack) };
    on.lane.ack_one(tag)?;
    shared.in_flight.set(on.name, on.lane.in_flight());
    Ok(LaneEnd::Stopped)
}
