//! Findings of a status: problems and notes, each with a stable code.

use serde::Serialize;

/// The kind of a finding. Its name in JSON is stable, so that programs can select by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum FindingCode {
    /// RabbitMQ cannot be reached, or refuses the connection.
    #[serde(rename = "rabbitmq.unavailable")]
    RabbitmqUnavailable,
    /// Redis cannot be reached, or does not take writes.
    #[serde(rename = "redis.unavailable")]
    RedisUnavailable,
    /// Redis is a replica, and will lose what is written to it.
    #[serde(rename = "redis.replica")]
    RedisReplica,
    /// None of the queues exists.
    #[serde(rename = "queue.none")]
    QueueNone,
    /// Some of the queues do not exist.
    #[serde(rename = "queue.missing")]
    QueueMissing,
    /// A queue cannot be read.
    #[serde(rename = "queue.unreadable")]
    QueueUnreadable,
    /// The dead-letter queue holds letters.
    #[serde(rename = "queue.dead-letters")]
    QueueDeadLetters,
    /// A queue of events has no consumer.
    #[serde(rename = "queue.unconsumed")]
    QueueUnconsumed,
    /// A retry queue belongs to another retry schedule.
    #[serde(rename = "queue.other-retry-step")]
    QueueOtherRetryStep,
    /// The history is turned off.
    #[serde(rename = "history.off")]
    HistoryOff,
    /// The history does not exist.
    #[serde(rename = "history.missing")]
    HistoryMissing,
    /// The user may not read the history.
    #[serde(rename = "history.refused")]
    HistoryRefused,
    /// The broker does not serve the history.
    #[serde(rename = "history.broken")]
    HistoryBroken,
    /// Events may be lost: neither a queue nor the history holds them.
    #[serde(rename = "history.events-lost")]
    HistoryEventsLost,
    /// A heal is running.
    #[serde(rename = "heal.running")]
    HealRunning,
    /// A heal is due, and could not be done.
    #[serde(rename = "heal.owed")]
    HealOwed,
    /// The last heal skipped events.
    #[serde(rename = "heal.skipped-events")]
    HealSkippedEvents,
    /// The history did not reach back far enough for the last heal.
    #[serde(rename = "heal.incomplete")]
    HealIncomplete,
    /// A heal was done in the last day.
    #[serde(rename = "heal.done")]
    HealDone,
    /// No heal has applied the rules of some workers.
    #[serde(rename = "heal.other-rules")]
    HealOtherRules,
    /// A queue has consumers, and no worker reports.
    #[serde(rename = "worker.unreported")]
    WorkerUnreported,
    /// A worker has stopped to report.
    #[serde(rename = "worker.silent")]
    WorkerSilent,
    /// A worker is not ready.
    #[serde(rename = "worker.not-ready")]
    WorkerNotReady,
    /// A worker has had a delivery in flight for too long.
    #[serde(rename = "worker.stuck")]
    WorkerStuck,
    /// A worker runs without the history.
    #[serde(rename = "worker.no-history")]
    WorkerNoHistory,
    /// A worker could not load the current rule files.
    #[serde(rename = "worker.outdated-rules")]
    WorkerOutdatedRules,
    /// Rule files change all the time.
    #[serde(rename = "worker.changing-rules")]
    WorkerChangingRules,
    /// Workers run different rule files.
    #[serde(rename = "worker.different-rules")]
    WorkerDifferentRules,
}

/// A fact about the system, and what to do about it.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Finding {
    /// The kind of the finding.
    pub code: FindingCode,
    /// The fact.
    pub what: String,
    /// The remedy, or why none is needed.
    #[serde(rename = "do")]
    pub advice: String,
}

impl FindingCode {
    /// Returns the code as in JSON.
    pub fn as_text(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default()
    }
}

/// All findings of a status.
#[derive(Debug, Clone, Default, Serialize, PartialEq, Eq)]
pub struct Findings {
    /// Findings that somebody has to act on, the most urgent first.
    pub problems: Vec<Finding>,
    /// Findings that need no action.
    pub notes: Vec<Finding>,
}

impl Findings {
    pub(super) fn problem(
        &mut self,
        code: FindingCode,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.problems.push(Finding { code, what: what.into(), advice: advice.into() });
    }

    pub(super) fn note(
        &mut self,
        code: FindingCode,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.notes.push(Finding { code, what: what.into(), advice: advice.into() });
    }
}
