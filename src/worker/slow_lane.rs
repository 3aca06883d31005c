//! The slow lane: loads and drains of big tags, which one round trip cannot finish, under their own
//! permits. `slow_delivery.rs` settles each delivery by itself.
//!
//! Everything else is applied in `main_lane.rs`.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::lane_end::{LaneEnd, Until};
use super::pipeline::Pipeline;
use super::slow_delivery;
use super::suspected_poison::SuspectedPoison;
use crate::broker::{Lane, LaneName, SessionEnded, Tag};

/// Waits for `after`, then consumes until a stop is requested, the session ends, or Redis was away
/// too long.
pub(super) async fn run(
    lane: &mut Lane,
    pipeline: Pipeline<'_>,
    (prefetch, after): (u16, Duration),
    until: Until<'_>,
    suspects: &mut SuspectedPoison<'_>,
) -> Result<LaneEnd, SessionEnded> {
    tokio::select! {
        () = suspects.wound_down() => return Ok(LaneEnd::Stopped),
        () = tokio::time::sleep(after) => {}
    }
    let in_flight = pipeline.in_flight;
    let mut handled = FuturesUnordered::new();
    let mut stopping = false;
    lane.consume(prefetch).await?;
    loop {
        in_flight.set(LaneName::Slow, lane.in_flight());
        tokio::select! {
            biased;
            Some(done) = handled.next(), if !handled.is_empty() => {
                let done: Result<Option<Tag>, SessionEnded> = done;
                match done? {
                    Some(tag) => lane.ack_one(tag)?,
                    None => return Ok(LaneEnd::Requeued),
                }
            }
            () = suspects.wound_down(), if !stopping => {
                stopping = true;
                lane.cancel().await?;
            }
            // The prefetch bounds the deliveries in flight. Without a consumer this call reports
            // the session's end, which no delivery in flight does during an outage of Redis.
            arrived = lane.next_batch(usize::from(prefetch)), if !stopping || lane.has_left_over() || !handled.is_empty() => {
                let mut arrived = arrived?;
                in_flight.set(LaneName::Slow, lane.in_flight());
                suspects.take_from(in_flight, &mut arrived);
                handled.extend(arrived.into_iter().map(|delivery| {
                    // At once: a future that is never polled must count as in flight too.
                    let taken = in_flight.take(vec![delivery]);
                    slow_delivery::handle(pipeline, until, taken)
                }));
            }
            else => return Ok(LaneEnd::Stopped),
        }
    }
}
