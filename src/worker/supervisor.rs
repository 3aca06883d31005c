//! Runs sessions with RabbitMQ, one after another. A broken session is never repaired: the
//! supervisor builds a new one.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::heal_state::HealState;
use super::lane_end::{LaneEnd, Until};
use super::live::CurrentRegistry;
use super::low_watermark::Look;
use super::pipeline::Pipeline;
use super::prefetch_ramp::PrefetchRamp;
use super::republish::Publisher;
use super::shared::Shared;
use super::suspected_poison::{self, SuspectedPoison, WoundDown};
use super::yielding::Yielding;
use super::{broker_objects, census, heal_record, main_lane, slow_lane};
use crate::backoff::Backoff;
use crate::broker::{
    BrokerError, DeletionSeen, Lane, LaneName, Looker, RECONNECT_PAUSES, Session, SessionEnded,
    SessionWatch, Start, Waiting,
};
use crate::cache::CommandError;
use crate::causes::{Cause, Explain, chain};
use crate::http::Readiness;
use crate::telemetry::{Metrics, mentioned_if_slow};

/// Minimum time that a session lasts before its end resets the back-off. A shorter session may end
/// again at once.
const PROVEN: Duration = Duration::from_secs(30);

/// Time the slow lane waits in a new session after an unreadable message ended the last one. The
/// new session may end the same way, and each end counts against the delivery limit of everything
/// in flight.
const CAREFUL: Duration = Duration::from_secs(5);

/// Time between two looks at the queues.
const LOOKS: Duration = Duration::from_secs(1);

/// Minimum time that all retry queues must look empty. It exceeds RabbitMQ's election of a quorum
/// queue's leader, in which the queue reports no messages.
const BELIEVED_EMPTY: Duration = Duration::from_secs(30);

/// Time between two attempts to read the signing secret that Redis refuses.
const SECRET_PAUSE: Duration = Duration::from_secs(5);

/// Maximum time a stopping worker takes to save in Redis that a heal is owed.
const LAST_SAVE: Duration = Duration::from_secs(1);

/// Opens sessions until a stop is requested.
pub(super) struct Supervisor<'s> {
    shared: &'s Shared,
    /// True after the first session. Before it a refusal ends the worker, afterwards it leads to
    /// back-off.
    stood_before: bool,
    /// True if an unreadable message ended the last session. The next session then takes one
    /// message at a time at first.
    careful: bool,
    /// True if a queue was missing, or may have been missing, since the last session began.
    saw_deletion: bool,
    /// True once the census was compared with the count that the last worker left.
    compared: bool,
    /// Deletions that sessions noticed, also sessions that failed to open.
    deletion_seen: DeletionSeen,
    /// The last logged cause of a missing session.
    logged_cause: Option<String>,
}

impl<'s> Supervisor<'s> {
    pub(super) fn new(shared: &'s Shared) -> Self {
        Self {
            shared,
            stood_before: false,
            careful: false,
            saw_deletion: false,
            compared: false,
            deletion_seen: DeletionSeen::default(),
            logged_cause: None,
        }
    }

    /// Runs sessions. Returns when a stop is requested, or when the broker refuses the worker for
    /// good before the first session.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<(), BrokerError> {
        let ended = self.sessions(stop).await;
        // A stopping worker saves a noticed deletion now, unless Redis holds it already.
        self.saw_deletion |= self.deletion_seen.take();
        if (self.saw_deletion || self.shared.heal_state.owed.is_unsaved())
            && self.shared.gate.is_open()
        {
            let _in_time = tokio::time::timeout(
                LAST_SAVE,
                self.shared.heal_state.owed.owe_what_was_deleted(&mut self.saw_deletion),
            )
            .await;
        }
        ended
    }

    async fn sessions(&mut self, stop: &CancellationToken) -> Result<(), BrokerError> {
        let mut backoff = Backoff::new(RECONNECT_PAUSES);
        while !stop.is_cancelled() {
            let Some(opened) = stop.run_until_cancelled(self.open()).await else { break };
            self.saw_deletion |= self.deletion_seen.take();
            let cause = match opened {
                Ok(session) => {
                    self.logged_cause = None;
                    self.saw_deletion |= session.lacks_retry_queue();
                    broker_objects::began(&self.shared.heal_state, &session, !self.stood_before);
                    self.stood_before = true;
                    let stood_since = Instant::now();
                    let ended = self.serve(session, stop).await;
                    // An interrupted look may have declared something.
                    broker_objects::note_new_history(&self.shared.heal_state, &self.deletion_seen);
                    self.saw_deletion |= self.deletion_seen.take()
                        || ended.as_ref().is_err_and(SessionEnded::queue_may_be_gone);
                    if stop.is_cancelled() {
                        break;
                    }
                    if stood_since.elapsed() > PROVEN {
                        backoff.reset();
                    }
                    match ended {
                        Ok(LaneEnd::Stopped) => break,
                        // The next session waits for Redis.
                        Ok(LaneEnd::GaveBack) => continue,
                        Err(ended) => {
                            self.careful = ended.by_unreadable_message();
                            if self.careful {
                                // The broker works. The queue makes no progress until its delivery
                                // limit has removed the message.
                                backoff.reset();
                            }
                            ended.in_full()
                        }
                    }
                }
                Err(refused) if refused.is_final() && !self.stood_before => return Err(refused),
                Err(failed) => {
                    broker_objects::note_new_history(&self.shared.heal_state, &self.deletion_seen);
                    // Another client may declare the missing object before this worker can notice
                    // that it was missing.
                    self.saw_deletion |=
                        self.stood_before && matches!(failed, BrokerError::Topology(_));
                    failed.in_full()
                }
            };
            let wait = backoff.next_delay(fastrand::f64());
            self.log_cause(&cause, wait);
            self.shared.readiness.set_consuming(Err(cause.into()));
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn open(&self) -> Result<Session, BrokerError> {
        let routing_keys = self.shared.registry.load().registry.routing_keys().to_vec();
        let start = if self.stood_before { Start::Again } else { Start::First };
        let opening = Session::open_noting(
            &self.shared.config.amqp,
            &routing_keys,
            &self.shared.signer,
            start,
            &self.deletion_seen,
        );
        if self.stood_before || self.logged_cause.is_some() {
            return opening.await;
        }
        let mention = || {
            let addresses = self
                .shared
                .config
                .amqp
                .urls
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(",");
            warn!(cause = "it has not answered yet", addr = addresses, "waiting for RabbitMQ");
        };
        mentioned_if_slow(opening, mention).await
    }

    /// Logs why there is no session, once for each new cause.
    fn log_cause(&mut self, cause: &str, wait: Duration) {
        if self.logged_cause.as_deref() == Some(cause) {
            return;
        }
        if self.stood_before {
            warn!(cause, retry_in_ms = wait.as_millis(), "no session with RabbitMQ");
        } else {
            warn!(cause, retry_in_ms = wait.as_millis(), "waiting for RabbitMQ");
        }
        self.logged_cause = Some(cause.to_owned());
    }

    /// Runs both lanes on one session until it ends, and closes it.
    async fn serve(
        &mut self,
        session: Session,
        stop: &CancellationToken,
    ) -> Result<LaneEnd, SessionEnded> {
        let ended = self.run_lanes(&session, stop).await;
        if !matches!(ended, Ok(LaneEnd::Stopped)) {
            self.shared.heal_state.watermark.session_ended();
        }
        self.shared.in_flight.session_ended();
        self.shared.readiness.beats_no_more();
        // A lost connection and a requeue by this worker raise redelivery counts. They are no sign
        // of poison.
        self.shared.in_flight.forgive_dropped(match &ended {
            Ok(_) => true,
            Err(ended) => session.watch().cause().as_ref().unwrap_or(ended).is_lost_connection(),
        });
        self.shared.metrics.set_paused("broker", false);
        // The next session determines this anew.
        self.shared.readiness.set_objects(Ok(()));
        self.shared.readiness.set_consuming(Err("no session with RabbitMQ".into()));
        match &ended {
            Ok(LaneEnd::Stopped) => info!("stopped: everything in flight is settled"),
            Ok(LaneEnd::GaveBack) => {
                warn!("deliveries in flight requeued until Redis answers")
            }
            Err(_) => {}
        }
        let watch = session.watch();
        session.close().await;
        // By now the first cause is known. A lane may have noticed only a consequence of it.
        ended.map_err(|ended| watch.cause().unwrap_or(ended))
    }

    async fn run_lanes(
        &mut self,
        session: &Session,
        stop: &CancellationToken,
    ) -> Result<LaneEnd, SessionEnded> {
        let shared = self.shared;
        if !shared.gate.is_open() {
            self.shared.readiness.set_consuming(Err(
                "RabbitMQ answers; nothing is consumed until Redis takes writes".into(),
            ));
        }
        if !redis_awaited(shared, session, stop, &mut self.saw_deletion).await? {
            return Ok(LaneEnd::Stopped);
        }
        if !self.compared {
            let mut watch = session.watch();
            let compared = tokio::select! {
                biased;
                compared = stop.run_until_cancelled(census::compare(shared.heals())) => compared,
                ended = watch.ended() => return Err(ended),
            };
            match compared {
                Some(Ok(())) => self.compared = true,
                // Redis is out. The next session waits for it at its start.
                Some(Err(error)) => {
                    return Err(SessionEnded::new(Cause::new(heal_record::outage(error))));
                }
                None => return Ok(LaneEnd::Stopped),
            }
        }
        let mut main = session.lane(LaneName::Main).await?;
        let mut slow = session.lane(LaneName::Slow).await?;
        let republishing = shared.republishing();
        let publisher =
            |channel| Publisher::new(channel, session.usable_names().clone(), republishing);
        let main_publisher = publisher(session.publisher().await?);
        let slow_publisher = publisher(session.publisher().await?);
        let main_settler = shared.settler(&main_publisher);
        let slow_settler = shared.settler(&slow_publisher);
        let main_pipeline = shared.pipeline(LaneName::Main, &main_settler);
        let slow_pipeline = shared.pipeline(LaneName::Slow, &slow_settler);
        let careful = std::mem::take(&mut self.careful);
        self.shared.readiness.set_consuming(Ok(()));
        info!(queue = session.names().main, "consuming");
        let (mut watch, alarms) = (session.watch(), session.watch());
        let end = tokio::select! {
            end = lanes(shared, (&mut main, main_pipeline), (&mut slow, slow_pipeline), careful, stop) => end,
            ended = watch.ended() => Err(ended),
            ended = bind(&shared.registry, session) => Err(ended),
            never = log_alarms(&shared.metrics, alarms) => match never {},
            never = look(&shared.heal_state, &shared.waiting, session.looker()) => match never {},
            never = broker_objects::keep(shared.heals(), &shared.signer, session) => match never {},
        };
        for lane in [&mut main, &mut slow] {
            // Deliveries that arrived before the end are still in the buffer.
            let _ = lane.take_in();
            shared.in_flight.drop_unread(lane.not_given_out());
        }
        let end = end?;
        if end == LaneEnd::GaveBack {
            main.nack_all().await?;
            slow.nack_all().await?;
        }
        Ok(end)
    }
}

impl Drop for Supervisor<'_> {
    /// Logs an error where a noticed deletion is not saved, also after a cut or a failed start.
    fn drop(&mut self) {
        if self.saw_deletion
            || self.deletion_seen.is_noted()
            || self.shared.heal_state.owed.is_unsaved()
        {
            error!(
                "the worker ends before Redis holds that a heal is owed, after a queue or the exchange was deleted: events may be in the \
                 history alone; apply them with `unstale replay`"
            );
        }
    }
}

/// Runs both lanes until a stop is requested or Redis was away too long. Starts them again each
/// time they wound down for suspected poison messages.
async fn lanes(
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
        if end == LaneEnd::GaveBack || !in_main.any() {
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
        if end == LaneEnd::GaveBack || stop.is_cancelled() {
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
        if end == LaneEnd::GaveBack || !found.any() {
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
        if end == LaneEnd::GaveBack || until.no_more.is_cancelled() {
            return Ok(end);
        }
        after = Duration::ZERO;
    }
}

/// Reports once a second that the loop runs; never returns.
async fn beat(readiness: &Readiness) -> Infallible {
    loop {
        readiness.beat();
        tokio::time::sleep(LOOKS).await;
    }
}

/// Waits for Redis with a session that consumes nothing. Its queues exist and are bound, so that no
/// event is lost during an outage. Returns false when a stop is requested.
async fn redis_awaited(
    shared: &Shared,
    session: &Session,
    stop: &CancellationToken,
    saw_deletion: &mut bool,
) -> Result<bool, SessionEnded> {
    let mut watch = session.watch();
    tokio::select! {
        biased;
        usable = stop.run_until_cancelled(redis_usable(shared, saw_deletion)) => Ok(usable.is_some()),
        ended = watch.ended() => Err(ended),
        ended = bind(&shared.registry, session) => Err(ended),
        ended = missing(session.looker()) => Err(ended),
        never = broker_objects::keep(shared.heals(), &shared.signer, session) => match never {},
    }
}

/// Waits until Redis takes writes and the signing secret is known. Without the secret, a
/// republished message would count as a first attempt.
async fn redis_usable(shared: &Shared, saw_deletion: &mut bool) {
    loop {
        shared.gate.open().await;
        match broker_objects::learn_secret(&shared.cache, &shared.signer).await {
            Ok(()) => return shared.heal_state.owed.owe_what_was_deleted(saw_deletion).await,
            Err(CommandError::Outage(outage)) => shared.gate.close(&outage),
            Err(CommandError::Refused(cause) | CommandError::Failed(cause)) => {
                warn!(cause = %chain(&cause), "the signing secret cannot be had from Redis: nothing is consumed");
                tokio::time::sleep(SECRET_PAUSE).await;
            }
        }
    }
}

/// Looks at the queues until one of them is missing. Without a consumer nothing else reports that.
async fn missing(mut looker: Looker<'_>) -> SessionEnded {
    while looker.waiting(false).await.is_some() {
        tokio::time::sleep(LOOKS).await;
    }
    SessionEnded::new("a queue of ours is gone, or does not answer")
}

/// Binds the routing keys of each newer registry. Returns when that fails.
async fn bind(registry: &CurrentRegistry, session: &Session) -> SessionEnded {
    loop {
        registry.replaced.notified().await;
        let routing_keys = registry.load().registry.routing_keys().to_vec();
        match session.bind(&routing_keys).await {
            Ok(rebound) if rebound.left_bound.is_empty() => {
                info!(added = ?rebound.added, "bound the registry's routing keys")
            }
            Ok(rebound) => warn!(
                added = ?rebound.added, left_bound = ?rebound.left_bound,
                "bound the registry's routing keys; what it no longer names stays bound until somebody unbinds it"
            ),
            Err(error) => return SessionEnded::new(Cause::new(error)),
        }
    }
}

/// Looks at the queues once a second; never returns.
async fn look(state: &HealState, waiting: &AtomicU32, mut looker: Looker<'_>) -> Infallible {
    // Retry queues have no consumers. During an election a queue with messages looks empty.
    let mut retries_empty_since: Option<std::time::Instant> = None;
    loop {
        let (began, began_at) = (SystemTime::now(), std::time::Instant::now());
        // An unanswered look does not show that a queue is empty.
        if let Some(Waiting { main, slow, retries }) =
            looker.waiting(state.watermark.waits_for_retries()).await
        {
            // This worker does not look at the queues of other workers' retry steps.
            let are_all_empty =
                retries == Some(0) && !state.knows_other_steps.load(Ordering::Relaxed);
            retries_empty_since = are_all_empty.then(|| retries_empty_since.unwrap_or(began_at));
            let believed = retries_empty_since.filter(|since| since.elapsed() >= BELIEVED_EMPTY);
            state.watermark.looked(Look {
                began,
                main_empty: main.is_empty(),
                slow_empty: slow.is_empty(),
                retries_empty_since: believed,
            });
            waiting.store(main.ready, Ordering::Relaxed);
        }
        tokio::time::sleep(LOOKS).await;
    }
}

/// Logs whenever the broker begins or ceases to accept messages; never returns.
async fn log_alarms(metrics: &Metrics, mut watch: SessionWatch) -> Infallible {
    loop {
        let blocked = watch.blocked_changed().await;
        metrics.set_paused("broker", blocked);
        if blocked {
            warn!(
                "RabbitMQ blocked publishing (memory or disk alarm): retries and dead letters wait"
            );
        } else {
            info!("RabbitMQ accepts publishing again");
        }
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
        (LaneEnd::GaveBack, _) => Ok(first),
        (LaneEnd::Stopped, true) => tokio::select! {
            end = slow => end,
            never = beat(readiness) => match never {},
        },
        (LaneEnd::Stopped, false) => main.await,
    }
}
