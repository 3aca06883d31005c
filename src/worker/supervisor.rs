//! Sessions, one after another: none is repaired, each is built whole.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::suspects::{self, Suspects, WoundDown};
use super::window::Window;
use super::{LaneEnd, Shared, copies, main_lane, slow_lane};
use crate::broker::{Backoff, BrokerError, Lane, LaneName, Looker, Session, SessionEnded, SessionWatch};
use crate::http::Readiness;

/// A session that lasted so long starts the back-off anew: one that ends sooner may do so again at once.
const PROVEN: Duration = Duration::from_secs(30);

/// After a session that a message ended, the slow lane waits for so long: the next session may end the same way, and each end counts against
/// the delivery limit of whatever is in hand.
const CAREFUL: Duration = Duration::from_secs(5);

/// Between two looks at the queues.
const LOOKS: Duration = Duration::from_secs(1);

/// Opens sessions until told to stop.
pub(super) struct Supervisor<'s> {
    shared: &'s Shared,
    readiness: Readiness,
    /// Before the first session a refusal ends the worker, after it a refusal means back-off.
    stood_before: bool,
    /// The last session ended by a message that cannot be read: the next one takes one at a time at first.
    careful: bool,
}

impl<'s> Supervisor<'s> {
    pub(super) fn new(shared: &'s Shared, readiness: Readiness) -> Self {
        Self { shared, readiness, stood_before: false, careful: false }
    }

    /// Returns when told to stop, or refused for good before a session ever stood.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<(), BrokerError> {
        let mut backoff = Backoff::new();
        while !stop.is_cancelled() {
            // The first one waits for Redis: that there were no queues before tells that there is nothing to heal.
            if !self.stood_before && stop.run_until_cancelled(self.shared.gate.open()).await.is_none() {
                break;
            }
            let Some(opened) = stop.run_until_cancelled(self.open()).await else { break };
            let cause = match opened {
                Ok(session) => {
                    self.stood_before = true;
                    let stood_since = Instant::now();
                    let ended = self.serve(session, stop).await;
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
                                // The broker is well; the queue stands still until its delivery limit has taken the message out.
                                backoff.reset();
                            }
                            ended.to_string()
                        }
                    }
                }
                Err(refused) if refused.is_final() && !self.stood_before => return Err(refused),
                Err(failed) => failed.to_string(),
            };
            let wait = backoff.next_delay(fastrand::f64());
            warn!(cause = %cause, retry_in_ms = wait.as_millis(), "no session with RabbitMQ");
            self.readiness.set_consuming(Err(cause.into()));
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn open(&self) -> Result<Session, BrokerError> {
        let routing_keys = self.shared.live.load().registry.routing_keys().to_vec();
        Session::open(&self.shared.config.amqp, &routing_keys).await
    }

    /// Runs both lanes on one session until it ends, and closes it.
    async fn serve(&mut self, session: Session, stop: &CancellationToken) -> Result<LaneEnd, SessionEnded> {
        for warning in session.warnings() {
            warn!("{warning}");
        }
        let ended = self.run_lanes(&session, stop).await;
        if !matches!(ended, Ok(LaneEnd::Stopped)) {
            self.shared.low.session_ended();
        }
        self.shared.metrics.set_paused("broker", false);
        self.readiness.set_consuming(Err("no session with RabbitMQ".into()));
        match &ended {
            Ok(LaneEnd::Stopped) => info!("stopped: everything in hand is settled"),
            Ok(LaneEnd::GaveBack) => warn!("what was in hand is given back to RabbitMQ until Redis answers"),
            Err(_) => {}
        }
        let watch = session.watch();
        session.close().await;
        // By now the first cause is known: a lane may have seen but a consequence of it.
        ended.map_err(|ended| watch.cause().unwrap_or(ended))
    }

    async fn run_lanes(&mut self, session: &Session, stop: &CancellationToken) -> Result<LaneEnd, SessionEnded> {
        let shared = self.shared;
        if !shared.gate.is_open() {
            self.readiness.set_consuming(Err("RabbitMQ answers; nothing is consumed until Redis takes writes".into()));
            if !redis_awaited(shared, session, stop).await? {
                return Ok(LaneEnd::Stopped);
            }
        }
        let mut main = session.lane(LaneName::Main).await?;
        let mut slow = session.lane(LaneName::Slow).await?;
        let main_publisher = copies::Publisher::new(session.publisher().await?, session.names().clone());
        let slow_publisher = copies::Publisher::new(session.publisher().await?, session.names().clone());
        let careful = std::mem::take(&mut self.careful);
        self.readiness.set_consuming(Ok(()));
        info!(queue = session.names().main, "consuming");
        let (mut watch, alarms) = (session.watch(), session.watch());
        let end = tokio::select! {
            end = lanes(shared, (&mut main, &main_publisher), (&mut slow, &slow_publisher), careful, stop) => end?,
            ended = watch.ended() => return Err(ended),
            ended = bind(shared, session) => return Err(ended),
            never = tell_of_alarms(shared, alarms) => match never {},
            never = look(shared, session.looker()) => match never {},
        };
        if end == LaneEnd::GaveBack {
            main.nack_all().await?;
            slow.nack_all().await?;
        }
        Ok(end)
    }
}

/// Runs both lanes, over and over where they wind down for suspects, until told to stop or until Redis was away too long.
async fn lanes(
    shared: &Shared,
    (main, main_publisher): (&mut Lane, &copies::Publisher),
    (slow, slow_publisher): (&mut Lane, &copies::Publisher),
    careful: bool,
    stop: &CancellationToken,
) -> Result<LaneEnd, SessionEnded> {
    let mut window = Window::new(&shared.config.amqp, careful);
    let mut slow_after = if careful { CAREFUL } else { Duration::ZERO };
    loop {
        let wind_down = stop.child_token();
        let (mut in_main, mut in_slow) = (Suspects::new(&wind_down), Suspects::new(&wind_down));
        let end = both(
            main_lane::run(shared, main, main_publisher, window, stop, &mut in_main),
            slow_lane::run(shared, slow, slow_publisher, slow_after, stop, &mut in_slow),
        )
        .await?;
        if end == LaneEnd::GaveBack || !(in_main.any() || in_slow.any()) {
            return Ok(end);
        }
        let lanes = [
            WoundDown { name: LaneName::Main, lane: &mut *main, publisher: main_publisher, suspects: in_main.into_found() },
            WoundDown { name: LaneName::Slow, lane: &mut *slow, publisher: slow_publisher, suspects: in_slow.into_found() },
        ];
        let end = suspects::handle(shared, lanes, stop).await?;
        if end == LaneEnd::GaveBack || stop.is_cancelled() {
            return Ok(end);
        }
        (window, slow_after) = (Window::new(&shared.config.amqp, true), Duration::ZERO);
    }
}

/// Waits for Redis with a session that consumes nothing: the queues are there and bound meanwhile, or events would be lost that come during an
/// outage. False when told to stop.
async fn redis_awaited(shared: &Shared, session: &Session, stop: &CancellationToken) -> Result<bool, SessionEnded> {
    let mut watch = session.watch();
    tokio::select! {
        biased;
        opened = stop.run_until_cancelled(shared.gate.open()) => Ok(opened.is_some()),
        ended = watch.ended() => Err(ended),
        ended = bind(shared, session) => Err(ended),
        ended = missing(session.looker()) => Err(ended),
    }
}

/// Looks at the queues until one of them is not there: without a consumer nothing else tells.
async fn missing(mut looker: Looker<'_>) -> SessionEnded {
    while looker.waiting().await.is_some() {
        tokio::time::sleep(LOOKS).await;
    }
    SessionEnded::new("a queue of ours is gone, or does not answer")
}

/// Binds what each newer registry asks for; returns when that fails.
async fn bind(shared: &Shared, session: &Session) -> SessionEnded {
    loop {
        shared.reloaded.notified().await;
        let routing_keys = shared.live.load().registry.routing_keys().to_vec();
        match session.bind(&routing_keys).await {
            Ok(rebound) if rebound.left_bound.is_empty() => info!(added = ?rebound.added, "bound the registry's routing keys"),
            Ok(rebound) => warn!(
                added = ?rebound.added, left_bound = ?rebound.left_bound,
                "bound the registry's routing keys; what it no longer names stays bound until somebody unbinds it"
            ),
            Err(error) => return SessionEnded::new(error.to_string()),
        }
    }
}

/// Looks at the queues, again and again; never returns.
async fn look(shared: &Shared, mut looker: Looker<'_>) -> Infallible {
    loop {
        let began = SystemTime::now();
        // No answer says nothing of a queue's emptiness.
        if let Some([main, slow]) = looker.waiting().await {
            shared.low.looked(began, main == 0, slow == 0);
            shared.waiting.store(main, Ordering::Relaxed);
        }
        tokio::time::sleep(LOOKS).await;
    }
}

/// Says whenever the broker begins or ceases to take messages; never returns.
async fn tell_of_alarms(shared: &Shared, mut watch: SessionWatch) -> Infallible {
    loop {
        let blocked = watch.blocked_changed().await;
        shared.metrics.set_paused("broker", blocked);
        if blocked {
            warn!("RabbitMQ takes no messages (a memory or disk alarm): copies wait, and what stands behind them");
        } else {
            info!("RabbitMQ takes messages again");
        }
    }
}

/// Both lanes' end: at once that of the first which did not end cleanly, else that of the slower one.
async fn both(
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
        (LaneEnd::Stopped, true) => slow.await,
        (LaneEnd::Stopped, false) => main.await,
    }
}
