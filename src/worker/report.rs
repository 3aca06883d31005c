//! Reports this worker's status in Redis, for `unstale status`.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::gate::Gate;
use super::in_flight::InFlight;
use super::live::CurrentRegistry;
use crate::cache::{Cache, CommandError, ReportedWorker, WorkerReport};
use crate::causes::chain;
use crate::http::Readiness;
use crate::quantity::format_duration;

/// Time between two reports, well below the 30 s for which a report counts.
const INTERVAL: Duration = Duration::from_secs(5);

/// Maximum time a stopping worker waits for the removal of its report, since Redis may be away.
const RETRACT_TIMEOUT: Duration = Duration::from_millis(500);

/// Maximum number of remembered retry steps of other workers.
const OTHER_STEPS_MAX: usize = 64;

/// Everything that a report is about, and where it goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'s> {
    pub(super) cache: &'s Cache,
    pub(super) gate: &'s Gate,
    pub(super) registry: &'s CurrentRegistry,
    pub(super) in_flight: &'s InFlight,
    pub(super) readiness: &'s Readiness,
    /// Why the broker does not serve the history.
    pub(super) history_fault: &'s ArcSwapOption<String>,
}

/// Keeps one worker's report.
pub(super) struct Reporter<'s> {
    subject: Subject<'s>,
    host: String,
    retry_steps: Vec<String>,
    /// Retry steps of other workers. A queue of an abandoned retry schedule would be forgotten with
    /// its messages. So each worker that saw the schedule passes it on.
    other_steps: BTreeSet<String>,
    refused: bool,
}

impl<'s> Reporter<'s> {
    pub(super) fn new(subject: Subject<'s>, retry_delays: &[Duration]) -> Self {
        let retry_steps = retry_delays.iter().map(|delay| format_duration(*delay)).collect();
        Self { subject, host: host(), retry_steps, other_steps: BTreeSet::new(), refused: false }
    }

    /// Reports while Redis can be used; never returns.
    pub(super) async fn keep(&mut self) -> Infallible {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let Subject { cache, gate, registry, readiness, .. } = self.subject;
        let mut readiness_changed = readiness.changes();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = readiness_changed() => {}
                () = registry.changed.notified() => {}
            }
            gate.open().await;
            match cache.report(cache.id(), Some(&self.report())).await {
                Ok(others) => {
                    self.refused = false;
                    self.remember(&others);
                }
                Err(CommandError::Outage(outage)) => gate.close(&outage),
                Err(CommandError::Refused(cause) | CommandError::Failed(cause)) => {
                    if !std::mem::replace(&mut self.refused, true) {
                        warn!(cause = %chain(&cause), "cannot tell Redis of this worker: `unstale status` does not see it");
                    }
                }
            }
        }
    }

    /// Removes the report, if Redis can be used.
    pub(super) async fn retract(self) {
        // A report that is not removed expires by itself.
        let _ = tokio::time::timeout(
            RETRACT_TIMEOUT,
            self.subject.cache.report(self.subject.cache.id(), None),
        )
        .await;
    }

    fn report(&self) -> WorkerReport {
        let (in_flight, oldest) = self.subject.in_flight.now();
        let age =
            oldest.map(|arrived| SystemTime::now().duration_since(arrived).unwrap_or_default());
        WorkerReport {
            host: self.host.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            digest: self.subject.registry.load().registry.digest().to_owned(),
            resolution_digest: self.subject.registry.load().resolution_digest.clone(),
            refused_registry: self.subject.registry.refused(),
            changing_rules: self.subject.registry.changing(),
            retry_delays: self.retry_steps.clone(),
            other_retry_delays: self.other_steps.iter().cloned().collect(),
            in_flight,
            oldest_unsettled_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            not_ready: self.subject.readiness.causes(),
            history_fault: self.subject.history_fault.load().as_deref().cloned(),
        }
    }

    fn remember(&mut self, others: &[ReportedWorker]) {
        let steps = others.iter().flat_map(|other| {
            other.report.retry_delays.iter().chain(&other.report.other_retry_delays)
        });
        for step in steps.filter(|step| !self.retry_steps.contains(step)) {
            if self.other_steps.len() < OTHER_STEPS_MAX {
                self.other_steps.insert(step.clone());
            }
        }
    }
}

/// Returns the machine's name from Linux. In a container it is the name of its pod.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"));
    name.map(|name| name.trim().to_owned()).unwrap_or_default()
}
