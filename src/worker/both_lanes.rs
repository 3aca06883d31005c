//! Runs the main lane and the slow lane of a session beside each other. Both wind down where one
//! finds a suspected poison message, and start again once it is handled.

use std::convert::Infallible;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::lane_end::{LaneEnd, Until};
use super::pipeline::Pipeline;
use super::prefetch_ramp::PrefetchRamp;
use super::shared::Shared;
use super::suspected_poison::{self, SuspectedPoison, WoundDown};
use super::yielding::Yielding;
use super::{main_lane, slow_lane};
use crate::broker::{Lane, LaneName, SessionEnded};
use crate::http::Readiness;

/// Time the slow lane waits in a new session after an undeliverable message ended the last one. The
/// new session may end the same way, and each end counts against the delivery limit of everything
/// in flight.
const CAREFUL: Duration = Duration::from_secs(5);

/// Time between two reports that the loop runs.
const BEATS: Duration = Duration::from_secs(1);

/// Runs both lanes until a stop is requested or Redis was away too long. Starts them again each
/// time they wound down for suspected poison messages.
pub(super) async fn run(
    shared: &Shared,
    (main, main_pipeline): (&mut Lane, Pipeline<'_>),
    (slow, slow_pipeline): (&mut Lane, Pipeline<'_>),
    careful: bool,
    stop: &CancellationToken,
) -> Result<LaneEnd, SessionEnded> {
    let mut window = PrefetchRamp::new(&shared.config.amqp, careful);
    let mut slow_after = if careful { CAREFUL } else { Duration::ZERO };
    loop {
        let (wind_down, yielding) = (stop.child_token(), Yielding::default());
        let mut in_main = SuspectedPoison::new(&wind_down);
        let end = both(
            &shared.readiness,
            main_lane::run(shared, main, main_pipeline, window, &yielding, stop, &mut in_main),
            slow_side(
                slow,
                slow_pipeline,
                (shared.slow_prefetch(), slow_after),
                &yielding,
                Until { no_more: &wind_down, stop },
            ),
        )
        .await?;
        if end == LaneEnd::Requeued || !in_main.any() {
            return Ok(end);
        }
        let lanes = [
            WoundDown {
                name: LaneName::Main,
                lane: &mut *main,
                pipeline: main_pipeline,
                suspects: in_main.into_found(),
            },
            WoundDown {
                name: LaneName::Slow,
                lane: &mut *slow,
                pipeline: slow_pipeline,
                suspects: Vec::new(),
            },
        ];
        let until = Until { no_more: stop, stop };
        let end = tokio::select! {
            end = suspected_poison::handle(lanes, until) => end?,
            never = beat(&shared.readiness) => match never {},
        };
        if end == LaneEnd::Requeued || stop.is_cancelled() {
            return Ok(end);
        }
        (window, slow_after) = (PrefetchRamp::new(&shared.config.amqp, true), Duration::ZERO);
    }
}

/// Runs the slow lane until it must wind down. Handles each suspected poison message that it finds
/// alone in this lane.
async fn slow_side(
    lane: &mut Lane,
    pipeline: Pipeline<'_>,
    (prefetch, mut after): (u16, Duration),
    yielding: &Yielding,
    until: Until<'_>,
) -> Result<LaneEnd, SessionEnded> {
    loop {
        let wind_down = until.no_more.child_token();
        let mut found = SuspectedPoison::new(&wind_down);
        let end = slow_lane::run(lane, pipeline, (prefetch, after), until, &mut found).await?;
        if end == LaneEnd::Requeued || !found.any() {
            return Ok(end);
        }
        // The main lane winds down too, or keeps little in flight.
        let _little = until.no_more.run_until_cancelled(yielding.ask()).await;
        let lanes = [WoundDown {
            name: LaneName::Slow,
            lane: &mut *lane,
            pipeline,
            suspects: found.into_found(),
        }];
        let end = suspected_poison::handle(lanes, until).await?;
        if end == LaneEnd::Requeued || until.no_more.is_cancelled() {
            return Ok(end);
        }
        after = Duration::ZERO;
    }
}

/// Reports once a second that the loop runs; never returns.
async fn beat(readiness: &Readiness) -> Infallible {
    loop {
        readiness.beat();
        tokio::time::sleep(BEATS).await;
    }
}

/// Waits for both lanes. Returns at once the end of the first lane that did not end cleanly,
/// otherwise the end of the slower lane.
async fn both(
    readiness: &Readiness,
    main: impl Future<Output = Result<LaneEnd, SessionEnded>>,
    slow: impl Future<Output = Result<LaneEnd, SessionEnded>>,
) -> Result<LaneEnd, SessionEnded> {
    tokio::pin!(main, slow);
    let (first, main_is_first) = tokio::select! {
        end = &mut main => (end?, true),
        end = &mut slow => (end?, false),
    };
    match (first, main_is_first) {
        (LaneEnd::Requeued, _) => Ok(first),
        (LaneEnd::Stopped, true) => tokio::select! {
            end = slow => end,
            never = beat(readiness) => match never {},
        },
        (LaneEnd::Stopped, false) => main.await,
    }
}
