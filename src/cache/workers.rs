//! What workers say of themselves: a field each in one hash, which counts for 30 s. `unstale
//! status` reads it, since AMQP can tell none of it.

use std::time::Duration;

use redis::Value;
use serde::{Deserialize, Serialize};

use super::failure::CommandError;
use super::script::{REPORT_WORKER, Sent};
use super::{Cache, lifetime};

/// A worker that has said nothing for so long is not counted.
pub const REPORT_COUNTS_FOR: Duration = Duration::from_secs(30);

/// What one worker says. What is absent in an older or newer worker's words reads as nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The machine's name, as far as it is known.
    pub host: String,
    /// The process there.
    pub pid: u32,
    /// Of the program.
    pub version: String,
    /// The digest of the registry in force.
    pub digest: String,
    /// Why it did not take the registry's files as they are now; `None` where it did.
    pub refused_registry: Option<String>,
    /// The rungs of its retry ladder, as their queues' names end: `1s`.
    pub ladder: Vec<String>,
    /// Rungs of other workers' ladders that it has seen, and that its own does not have.
    pub other_rungs: Vec<String>,
    /// Deliveries in hand.
    pub in_hand: usize,
    /// How long ago the oldest of them arrived, in milliseconds.
    pub oldest_unsettled_ms: Option<u64>,
    /// Why it is not ready; empty where it is.
    pub not_ready: Vec<String>,
    /// Why it does without the history; `None` where it need not.
    pub history_fault: Option<String>,
}

/// A worker's report, and how old it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// Other than that of any other process.
    pub worker: String,
    /// How long ago it was made.
    pub age: Duration,
    /// What it says.
    pub report: Report,
}

impl Cache {
    /// Says what there is to say of this worker, `None` being its goodbye, and learns what the
    /// others say.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn report(
        &self,
        worker: &str,
        report: Option<&Report>,
    ) -> Result<Vec<Reported>, CommandError> {
        let text = report
            .map(serde_json::to_string)
            .transpose()
            .map_err(|error| CommandError::Failed(error.to_string()))?;
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

    /// What all workers say. Changes nothing.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn reports(&self) -> Result<Vec<Reported>, CommandError> {
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

    /// Redis' clock, in milliseconds since the Unix epoch.
    pub(super) async fn time_ms(&self) -> Result<u64, CommandError> {
        let [seconds, micros] = super::integers(&self.call("TIME", redis::cmd("TIME")).await?)
            .ok_or_else(unexpected)?;
        Ok(seconds * 1_000 + micros / 1_000)
    }
}

fn reported(worker: &str, age_ms: u64, text: &str) -> Option<Reported> {
    let report = serde_json::from_str(text).ok()?;
    Some(Reported { worker: worker.to_owned(), age: Duration::from_millis(age_ms), report })
}

pub(super) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.clone()),
        _ => None,
    }
}

/// A hash: RESP2 gives an array, RESP3 a map.
pub(super) fn text_pairs(value: &Value) -> Option<Vec<(String, String)>> {
    match value {
        Value::Array(items) => {
            let (pairs, _) = items.as_chunks::<2>();
            pairs.iter().map(|[field, value]| Some((text_of(field)?, text_of(value)?))).collect()
        }
        Value::Map(pairs) => {
            pairs.iter().map(|(field, value)| Some((text_of(field)?, text_of(value)?))).collect()
        }
        _ => None,
    }
}

fn unexpected() -> CommandError {
    CommandError::Failed("workers: an answer of another shape than expected".into())
}
