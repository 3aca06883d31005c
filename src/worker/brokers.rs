//! Whether the workers that share our marks in Redis are of our broker. Those of another broker, or
//! virtual host, with the same `UNSTALE_QUEUE` would heal for us, by their own history.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{error, warn};

use super::Shared;
use crate::broker::Inspector;
use crate::cache::{Checkpoints, CommandError, HealFrom, LowWatermark};
use crate::ops::heal::window;

/// Maximum time that a worker of another broker is waited for at the start: one that was killed
/// counts as dead by then, and one whose cluster was renamed has found that out.
const PATIENCE: Duration = Duration::from_secs(12);

/// Time between two looks.
const LOOKS: Duration = Duration::from_millis(300);

/// What this worker knows of brokers.
#[derive(Debug, Default)]
pub(super) struct Brokers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The name of our cluster and our virtual host; `None` where the broker does not tell.
    ours: Option<Arc<str>>,
    /// Workers that named another broker when we last made sure of ours.
    seen: Vec<String>,
}

impl Brokers {
    /// Takes in what a session found.
    pub(super) fn met(&self, broker: Option<&str>) {
        if let Some(broker) = broker {
            self.change(|state| state.ours = Some(broker.into()));
        }
    }

    fn ours(&self) -> Option<Arc<str>> {
        self.change(|state| state.ours.clone())
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Names our broker in the marks, before they are taken up. Returns why this worker may not:
/// workers of another broker live. To be called once a session has begun.
pub(super) async fn settle(
    shared: &Shared,
    is_first: bool,
) -> Result<Result<(), String>, CommandError> {
    let Some(ours) = shared.brokers.ours() else { return Ok(Ok(())) };
    let cache = &shared.cache;
    cache.name_broker(&ours).await?;
    let began = Instant::now();
    loop {
        let marks = cache.read_checkpoints().await?;
        let others = marks.of_other_brokers(cache.id(), &ours);
        let Some((_, theirs)) = others.into_iter().find(|(worker, _)| marks.lives(worker)) else {
            take_marks(shared, &marks, &ours);
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
        shared.readiness.set_healed(Err(format!(
            "workers of another broker share our marks in Redis: `{theirs}`"
        )
        .into()));
        tokio::time::sleep(LOOKS).await;
    }
}

fn words(ours: &str, theirs: &str) -> String {
    format!(
        "workers of another broker use the same UNSTALE_QUEUE in this Redis: theirs is `{theirs}`, ours `{ours}`. They would heal for each \
         other by the wrong history; set another UNSTALE_QUEUE, or name another Redis database in UNSTALE_REDIS_URL"
    )
}

/// Owes a heal where the marks are of another broker, whose workers are gone: what they healed,
/// they healed by another history.
fn take_marks(shared: &Shared, marks: &Checkpoints, ours: &str) {
    let Some(before) = marks.broker().filter(|before| *before != ours) else { return };
    warn!(
        before,
        now = ours,
        "the marks in Redis are of another broker, or of ours under its former name: the history is applied again"
    );
    // An offset is one of the other history.
    let low = marks.lowest().map(|low| HealFrom::low(LowWatermark { offset: None, ..low }));
    let from = low.unwrap_or_default().or_window(window(&shared.config), Timestamp::now());
    shared.owed.owe(from, "the marks in Redis were of another broker");
}

/// Time to ask our broker for its name: a tick must not wait longer.
const ASKS_FOR: Duration = Duration::from_secs(1);

/// Sees to it, at each tick, that the marks name our broker. Where workers name another one, ours
/// may have been renamed: a new connection tells.
pub(super) async fn note(shared: &Shared, marks: &Checkpoints) -> Result<(), CommandError> {
    let Some(ours) = shared.brokers.ours() else { return Ok(()) };
    let cache = &shared.cache;
    let others = marks.of_other_brokers(cache.id(), &ours);
    let seen: Vec<String> =
        others.iter().map(|(worker, named)| format!("{worker} {named}")).collect();
    let is_news = shared.brokers.change(|state| {
        let is_news = seen.iter().any(|seen| !state.seen.contains(seen));
        state.seen = seen;
        is_news
    });
    let asks =
        async || tokio::time::timeout(ASKS_FOR, Inspector::connect(&shared.config.amqp)).await;
    if is_news && let Ok(Ok(inspector)) = asks().await {
        shared.brokers.met(inspector.broker().as_deref());
        inspector.close().await;
    }
    let Some(ours) = shared.brokers.ours() else { return Ok(()) };
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
