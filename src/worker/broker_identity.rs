//! Checks that the workers that share the checkpoints in Redis use the same broker. Workers of
//! another broker, or virtual host, with the same `UNSTALE_QUEUE` would heal for this worker by
//! their own history.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{error, warn};

use super::owed_heals::OwedHeals;
use crate::broker::Inspector;
use crate::cache::{Cache, Checkpoints, CommandError, HealFrom, LowWatermark};
use crate::config::{AmqpConfig, Config};
use crate::http::Readiness;
use crate::ops::heal::window;

/// Maximum time a starting worker waits for a worker of another broker. By then a killed one counts
/// as dead, and one with a renamed cluster has noticed that.
const PATIENCE: Duration = Duration::from_secs(12);

/// Time between two looks.
const LOOKS: Duration = Duration::from_millis(300);

/// The brokers of this worker and of the others.
#[derive(Debug, Default)]
pub(super) struct BrokerIdentity(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The name of this worker's cluster and virtual host. `None` if the broker does not report it.
    ours: Option<Arc<str>>,
    /// Workers that named another broker when this worker last checked its own.
    seen: Vec<String>,
}

impl BrokerIdentity {
    /// Notes the broker that a session found.
    pub(super) fn met(&self, broker: Option<&str>) {
        if let Some(broker) = broker {
            self.change(|state| state.ours = Some(broker.into()));
        }
    }

    /// Names this worker's broker in the checkpoints, before they are used. Returns a cause if it
    /// must not, since workers of another broker live. Callers must have begun a session.
    pub(super) async fn settle(
        &self,
        cache: &Cache,
        readiness: &Readiness,
        (config, owed): (&Config, &OwedHeals),
        is_first: bool,
    ) -> Result<Result<(), String>, CommandError> {
        let Some(ours) = self.ours() else { return Ok(Ok(())) };
        cache.name_broker(&ours).await?;
        let began = Instant::now();
        loop {
            let marks = cache.read_checkpoints().await?;
            let others = marks.of_other_brokers(cache.id(), &ours);
            let Some((_, theirs)) = others.into_iter().find(|(worker, _)| marks.lives(worker))
            else {
                take_marks((config, owed), &marks, &ours);
                cache.claim_checkpoints_for(&ours).await?;
                return Ok(Ok(()));
            };
            if began.elapsed() >= PATIENCE {
                let cause = words(&ours, theirs);
                if is_first {
                    cache.forget_broker().await?;
                    return Ok(Err(cause));
                }
                error!("{cause}");
                return Ok(Ok(()));
            }
            readiness.set_healed(Err(format!(
                "workers of another broker share our checkpoints in Redis: `{theirs}`"
            )
            .into()));
            tokio::time::sleep(LOOKS).await;
        }
    }

    /// Checks at each tick that the checkpoints name this worker's broker. If workers name another
    /// one, the broker may have been renamed, and a new connection reports that.
    pub(super) async fn note(
        &self,
        cache: &Cache,
        amqp: &AmqpConfig,
        marks: &Checkpoints,
    ) -> Result<(), CommandError> {
        let Some(ours) = self.ours() else { return Ok(()) };
        let others = marks.of_other_brokers(cache.id(), &ours);
        let seen: Vec<String> =
            others.iter().map(|(worker, named)| format!("{worker} {named}")).collect();
        let is_news = self.change(|state| {
            let is_news = seen.iter().any(|seen| !state.seen.contains(seen));
            state.seen = seen;
            is_news
        });
        let asks = async || tokio::time::timeout(ASKS_FOR, Inspector::connect(amqp)).await;
        if is_news && let Ok(Ok(inspector)) = asks().await {
            self.met(inspector.broker().as_deref());
            inspector.close().await;
        }
        let Some(ours) = self.ours() else { return Ok(()) };
        if is_news
            && let Some((_, theirs)) = marks
                .of_other_brokers(cache.id(), &ours)
                .into_iter()
                .find(|(worker, _)| marks.lives(worker))
        {
            error!("{}", words(&ours, theirs));
        }
        if marks.names_broker(cache.id(), &ours) {
            return Ok(());
        }
        cache.name_broker(&ours).await?;
        cache.claim_checkpoints_for(&ours).await
    }

    fn ours(&self) -> Option<Arc<str>> {
        self.change(|state| state.ours.clone())
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn words(ours: &str, theirs: &str) -> String {
    format!(
        "workers of another broker use the same UNSTALE_QUEUE in this Redis: theirs is `{theirs}`, ours `{ours}`. They would heal for each \
         other by the wrong history; set another UNSTALE_QUEUE, or name another Redis database in UNSTALE_REDIS_URL"
    )
}

/// Owes a heal if the checkpoints are from another broker whose workers are gone. Those workers
/// healed by another history.
fn take_marks((config, owed): (&Config, &OwedHeals), marks: &Checkpoints, ours: &str) {
    let Some(before) = marks.broker().filter(|before| *before != ours) else { return };
    warn!(
        before,
        now = ours,
        "the checkpoints in Redis are of another broker, or of ours under its former name: the history is applied again"
    );
    // The offset belongs to the other history.
    let watermark =
        marks.lowest().map(|watermark| HealFrom::low(LowWatermark { offset: None, ..watermark }));
    let from = watermark.unwrap_or_default().or_window(window(config), Timestamp::now());
    owed.owe(from, "the checkpoints in Redis were of another broker");
}

/// Maximum time to ask the broker for its name: a tick must not wait longer.
const ASKS_FOR: Duration = Duration::from_secs(1);
