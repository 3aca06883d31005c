//! Runs sessions with RabbitMQ, one after another. A broken session is never repaired: the
//! supervisor builds a new one.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::lane_end::LaneEnd;
use super::republish::Publisher;
use super::shared::Shared;
use super::undeliverable::{Passing, Undeliverable};
use super::{both_lanes, broker_objects, census, heal_record, queue_marks, session_tasks};
use crate::backoff::Backoff;
use crate::broker::{
    BrokerError, DeletionSeen, LaneName, RECONNECT_PAUSES, Session, SessionEnded, Start,
};
use crate::cache::CommandError;
use crate::causes::{Cause, Explain, chain};
use crate::telemetry::mentioned_if_slow;

/// Minimum time that a session lasts before its end resets the back-off. A shorter session may end
/// again at once.
const PROVEN: Duration = Duration::from_secs(30);

/// Time between two attempts to read the signing secret that Redis refuses.
const SECRET_PAUSE: Duration = Duration::from_secs(5);

/// Maximum time a stopping worker takes to save in Redis that a heal is owed.
const LAST_SAVE: Duration = Duration::from_secs(1);

/// Opens sessions until a stop is requested.
pub(super) struct Supervisor<'s> {
    shared: &'s Shared,
    /// True after the first session. Before it a refusal ends the worker, afterwards it leads to
    /// back-off.
    had_session: bool,
    /// True if an undeliverable message may have ended the last session. The next session then
    /// takes one message at a time at first.
    careful: bool,
    undeliverable: Undeliverable,
    /// True if a queue was missing, or may have been missing, since the last session began.
    saw_deletion: bool,
    /// Retry queues that the last session could not use.
    lacking: BTreeSet<String>,
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
            had_session: false,
            careful: false,
            undeliverable: Undeliverable::default(),
            saw_deletion: false,
            lacking: BTreeSet::new(),
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
                    let lacking = session.lacking_retry_queues();
                    self.saw_deletion |= !lacking.is_subset(&self.lacking);
                    self.lacking = lacking;
                    broker_objects::began(&self.shared.heal_state, &session, !self.had_session);
                    self.had_session = true;
                    let began = Instant::now();
                    let ended = self.serve(session, stop).await;
                    // An interrupted look may have declared something.
                    broker_objects::note_new_history(&self.shared.heal_state, &self.deletion_seen);
                    self.saw_deletion |= self.deletion_seen.take()
                        || ended.as_ref().is_err_and(SessionEnded::queue_may_be_gone);
                    if stop.is_cancelled() {
                        break;
                    }
                    if began.elapsed() > PROVEN {
                        backoff.reset();
                        self.undeliverable.session_lasted();
                    }
                    match ended {
                        Ok(LaneEnd::Stopped) => break,
                        // The next session waits for Redis.
                        Ok(LaneEnd::Requeued) => continue,
                        Err(ended) => {
                            self.careful = ended.by_undeliverable_message();
                            let passing = match self.careful {
                                true => self.undeliverable.pass(self.shared, stop).await,
                                false => Passing::Nothing,
                            };
                            match passing {
                                Passing::Passed => {
                                    backoff.reset();
                                    continue;
                                }
                                Passing::Stuck(cause) => cause,
                                Passing::Nothing => ended.in_full(),
                            }
                        }
                    }
                }
                Err(refused) if refused.is_final() && !self.had_session => return Err(refused),
                Err(failed) => {
                    broker_objects::note_new_history(&self.shared.heal_state, &self.deletion_seen);
                    // Another client may declare the missing object before this worker can notice
                    // that it was missing.
                    self.saw_deletion |=
                        self.had_session && matches!(failed, BrokerError::Topology(_));
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
        let start = if self.had_session { Start::Again } else { Start::First };
        let opening = Session::open_noting(
            &self.shared.config.amqp,
            &routing_keys,
            &self.shared.signer,
            start,
            &self.deletion_seen,
        );
        if self.had_session || self.logged_cause.is_some() {
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
        if self.had_session {
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
        // A lost connection, an undeliverable message and a requeue by this worker raise redelivery
        // counts. They are no sign of poison.
        self.shared.in_flight.forgive_dropped(match &ended {
            Ok(_) => true,
            Err(ended) => {
                let cause = session.watch().cause();
                let ended = cause.as_ref().unwrap_or(ended);
                ended.is_lost_connection() || ended.by_undeliverable_message()
            }
        });
        self.shared.metrics.set_paused("broker", false);
        // The next session determines this anew.
        self.shared.readiness.set_objects(Ok(()));
        self.shared.readiness.set_consuming(Err("no session with RabbitMQ".into()));
        match &ended {
            Ok(LaneEnd::Stopped) => info!("stopped: everything in flight is settled"),
            Ok(LaneEnd::Requeued) => {
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
            end = both_lanes::run(shared, (&mut main, main_pipeline), (&mut slow, slow_pipeline), careful, stop) => end,
            ended = watch.ended() => Err(ended),
            ended = session_tasks::bind(&shared.registry, session) => Err(ended),
            never = session_tasks::log_alarms(&shared.metrics, alarms) => match never {},
            never = session_tasks::look(&shared.heal_state, &shared.waiting, session.looker()) => match never {},
            ended = broker_objects::keep(shared.heals(), &shared.signer, session) => Err(ended),
        };
        for lane in [&mut main, &mut slow] {
            // Deliveries that arrived before the end are still in the buffer.
            let _ = lane.take_in();
            shared.in_flight.drop_unread(lane.not_given_out());
        }
        let end = end?;
        if end == LaneEnd::Requeued {
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
        usable = stop.run_until_cancelled(redis_usable(shared, session, saw_deletion)) => Ok(usable.is_some()),
        ended = watch.ended() => Err(ended),
        ended = session_tasks::bind(&shared.registry, session) => Err(ended),
        ended = session_tasks::missing(session.looker()) => Err(ended),
        ended = broker_objects::keep(shared.heals(), &shared.signer, session) => Err(ended),
    }
}

/// Waits until Redis takes writes and the signing secret is known. Without the secret, a
/// republished message would count as a first attempt.
async fn redis_usable(shared: &Shared, session: &Session, saw_deletion: &mut bool) {
    loop {
        shared.gate.open().await;
        match broker_objects::learn_secret(&shared.cache, &shared.signer).await {
            Ok(()) => {
                let heals = shared.heals();
                heals.state.queue_marks.session_begins();
                let look = queue_marks::look(heals, session).await;
                *saw_deletion |= look.as_ref().is_some_and(queue_marks::Look::any_replaced);
                heals.state.owed.owe_what_was_deleted(saw_deletion).await;
                return queue_marks::keep(heals, session, look).await;
            }
            Err(CommandError::Outage(outage)) => shared.gate.close(&outage),
            Err(
                CommandError::Refused(cause)
                | CommandError::NotPermitted(cause)
                | CommandError::Failed(cause),
            ) => {
                warn!(cause = %chain(&cause), "the signing secret cannot be had from Redis: nothing is consumed");
                tokio::time::sleep(SECRET_PAUSE).await;
            }
        }
    }
}
