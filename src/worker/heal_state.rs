//! Everything that this worker knows of events that may be unapplied, and everything that a heal
//! uses.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::broker_identity::BrokerIdentity;
use super::gate::Gate;
use super::history_start::HistoryStart;
use super::live::CurrentRegistry;
use super::low_watermark::Watermark;
use super::owed_heals::OwedHeals;
use super::queue_marks::known::QueueMarks;
use crate::cache::{Cache, Checkpoints};
use crate::config::Config;
use crate::http::Readiness;
use crate::telemetry::Metrics;

/// Everything that this worker knows of events that may be unapplied.
#[derive(Debug)]
pub(super) struct HealState {
    pub(super) watermark: Watermark,
    pub(super) history_start: HistoryStart,
    pub(super) broker_identity: BrokerIdentity,
    pub(super) owed: OwedHeals,
    pub(super) queue_marks: QueueMarks,
    /// True if no queues existed before the first session. `None` until that session has begun.
    pub(super) first_ever: watch::Sender<Option<bool>>,
    /// Why the broker does not serve the history.
    pub(super) history_fault: ArcSwapOption<String>,
    /// True if events may wait in the queues of retry steps that this worker does not use.
    pub(super) knows_other_steps: AtomicBool,
}

/// Everything that determines, does or records a heal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heals<'s> {
    pub(super) config: &'s Config,
    pub(super) cache: &'s Cache,
    pub(super) gate: &'s Gate,
    pub(super) registry: &'s CurrentRegistry,
    pub(super) metrics: &'s Metrics,
    pub(super) readiness: &'s Readiness,
    pub(super) state: &'s HealState,
}

impl HealState {
    /// Returns a state that knows nothing.
    pub(super) fn new(config: &Config, watermark: Watermark) -> Self {
        Self {
            owed: OwedHeals::new(config, watermark.clone()),
            watermark,
            history_start: HistoryStart::default(),
            queue_marks: QueueMarks::default(),
            broker_identity: BrokerIdentity::default(),
            first_ever: watch::Sender::new(None),
            history_fault: ArcSwapOption::empty(),
            knows_other_steps: AtomicBool::new(false),
        }
    }

    /// Waits until the first session has begun. Returns true if no queues existed before it.
    pub(super) async fn is_first_ever(&self) -> bool {
        // The sender lives as long as `self`: waiting cannot fail.
        self.first_ever
            .subscribe()
            .wait_for(Option::is_some)
            .await
            .is_ok_and(|known| *known == Some(true))
    }
}

impl Heals<'_> {
    /// Returns the maximum time that a retry message waits, also on another worker's retry
    /// schedule.
    pub(super) fn longest_wait(&self, marks: &Checkpoints) -> Duration {
        let ours = &self.config.amqp.retry_delays;
        ours.iter().copied().chain(marks.steps_but(ours)).max().unwrap_or_default()
    }
}
