//! Reports of workers about themselves, which `unstale status` reads. AMQP has no place for them.
//!
//! Each worker has one field of a hash, which counts for 30 s.

use std::time::Duration;

use redis::Value;
use serde::{Deserialize, Serialize};

use super::answer::{integers, text_of, text_pairs};
use super::failure::CommandError;
use super::script::{REPORT_WORKER, Sent};
use super::{Cache, lifetime};
use crate::causes::Cause;

/// Maximum age of a report that counts.
pub const REPORT_COUNTS_FOR: Duration = Duration::from_secs(30);

/// State of one worker. A field that an older or newer worker lacks reads as its default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerReport {
    /// Name of the machine, if it is known.
    pub host: String,
    /// Process on that machine.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// Digest of the active registry.
    pub digest: String,
    /// Digest of everything that decides which effects an event has, as heals record it. Empty from
    /// an older worker, which uses `digest`.
    pub resolution_digest: String,
    /// Reason why the worker refused the current rule files; `None` if it did not.
    pub refused_registry: Option<String>,
    /// One of the rule files that change all the time; `None` if there is none.
    pub changing_rules: Option<String>,
    /// Delays of its retry schedule, as their queues' names end: `1s`.
    #[serde(rename = "ladder")]
    pub retry_delays: Vec<String>,
    /// Delays of other workers' retry schedules that its own lacks.
    #[serde(rename = "other_rungs")]
    pub other_retry_delays: Vec<String>,
    /// Number of deliveries in flight.
    #[serde(rename = "in_hand")]
    pub in_flight: usize,
    /// Age of the oldest of them, in milliseconds.
    pub oldest_unsettled_ms: Option<u64>,
    /// Reasons why it is not ready; empty if it is.
    pub not_ready: Vec<String>,
    /// Reason why it runs without the history; `None` if it has one.
    pub history_fault: Option<String>,
}

/// A worker's report, and its age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedWorker {
    /// Id of the worker, unique among processes.
    pub worker: String,
    /// Time since the report was made.
    pub age: Duration,
    /// The report itself.
    pub report: WorkerReport,
}

impl Cache {
    /// Stores this worker's report, or removes it (`None`), and returns the other workers' reports.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn report(
        &self,
        worker: &str,
        report: Option<&WorkerReport>,
    ) -> Result<Vec<ReportedWorker>, CommandError> {
        let text = report
            .map(serde_json::to_string)
            .transpose()
            .map_err(|error| CommandError::Failed(Cause::new(error)))?;
        let mut command =
            REPORT_WORKER.call(&mut Sent::default(), [self.workers.as_bytes()].into_iter());
        command.arg(worker).arg(text.unwrap_or_default()).arg(lifetime::millis(REPORT_COUNTS_FOR));
        let Value::Array(fields) = self.call("report", command).await? else {
            return Err(unexpected());
        };
        let texts: Vec<String> = fields.iter().filter_map(text_of).collect();
        let (others, _) = texts.as_chunks::<3>();
        Ok(others
            .iter()
            .filter_map(|[worker, age, text]| reported(worker, age.parse().ok()?, text))
            .collect())
    }

    /// Returns the reports of all workers. Changes nothing.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn reports(&self) -> Result<Vec<ReportedWorker>, CommandError> {
        let now_ms = self.time_ms().await?;
        let mut command = redis::cmd("HGETALL");
        command.arg(&self.workers);
        let fields = text_pairs(&self.call("HGETALL", command).await?).ok_or_else(unexpected)?;
        let counts_ms = u64::try_from(lifetime::millis(REPORT_COUNTS_FOR)).unwrap_or(u64::MAX);
        let all = fields.iter().filter_map(|(worker, said)| {
            let (at, text) = said.split_once(' ')?;
            let at: u64 = at.parse().ok()?;
            if now_ms.abs_diff(at) > counts_ms {
                None
            } else {
                reported(worker, now_ms.saturating_sub(at), text)
            }
        });
        Ok(all.collect())
    }

    /// Returns Redis' clock, in milliseconds since the Unix epoch.
    pub(super) async fn time_ms(&self) -> Result<u64, CommandError> {
        let [seconds, micros] =
            integers(&self.call("TIME", redis::cmd("TIME")).await?).ok_or_else(unexpected)?;
        Ok(seconds * 1_000 + micros / 1_000)
    }
}

fn reported(worker: &str, age_ms: u64, text: &str) -> Option<ReportedWorker> {
    let report = serde_json::from_str(text).ok()?;
    Some(ReportedWorker { worker: worker.to_owned(), age: Duration::from_millis(age_ms), report })
}

fn unexpected() -> CommandError {
    CommandError::Failed("workers: unexpected answer".into())
}
