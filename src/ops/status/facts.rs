//! The facts of a status. Their names in JSON are those of `unstale status --json`, which is a
//! public contract.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// All facts of a status.
#[derive(Debug, Clone)]
pub struct Status {
    /// Time of the status, by this machine's clock.
    pub time: Timestamp,
    /// Facts from RabbitMQ, or why there are none.
    pub rabbitmq: Result<BrokerFacts, String>,
    /// Facts from Redis, or why there are none.
    pub redis: Result<RedisFacts, String>,
}

/// Facts from RabbitMQ.
#[derive(Debug, Clone, Serialize)]
pub struct BrokerFacts {
    /// The node that answered.
    pub node: String,
    /// The queues, in the order in which an event passes through them.
    pub queues: Vec<QueueFacts>,
    /// The oldest letter near the head of the dead-letter queue, if one can be read.
    pub oldest_dead_letter: Option<OldestLetter>,
    /// The history, which is a stream of all events.
    pub history: HistoryFacts,
}

/// One queue.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct QueueFacts {
    /// Name of the queue.
    pub name: String,
    /// Purpose of the queue.
    pub kind: QueueKind,
    /// False if there is no such queue.
    pub exists: bool,
    /// Number of messages that wait in it.
    pub ready: u32,
    /// Number of consumers.
    pub consumers: u32,
    /// The broker's error, if it refuses to show the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<Unreadable>,
}

/// The purpose of a queue.
#[derive(Debug, Clone, Copy, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum QueueKind {
    /// The queue in which events arrive.
    Main,
    /// The queue of the slow lane, for loads and long drains.
    Slow,
    /// A retry step of the retry schedule in the settings.
    #[serde(rename = "rung")]
    RetryStep,
    /// A retry step of another schedule, which a worker has or remembers.
    #[serde(rename = "left_rung")]
    OtherRetryStep,
    /// The dead-letter queue.
    Dead,
}

/// A dead letter.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct OldestLetter {
    /// Reason why it is a dead letter.
    pub reason: String,
    /// Type of the event.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Time at which it was dead-lettered.
    #[serde(serialize_with = "as_text")]
    pub time: Option<Timestamp>,
}

/// The reason why the broker does not show an object.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Unreadable {
    /// The broker's error, with its causes.
    pub words: String,
    /// True if the user lacks a permission.
    #[serde(skip)]
    pub is_refused: bool,
}

/// The state of the history.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum HistoryFacts {
    /// The history is off, by `UNSTALE_HISTORY=off`.
    Off,
    /// The history is on, and its stream does not exist.
    Missing,
    /// The state is unknown, for this reason.
    Unknown(Unreadable),
    /// The history exists, and holds no event.
    Empty,
    /// The history exists, and holds events.
    #[serde(rename = "stands")]
    Exists {
        /// The oldest offset.
        first: u64,
        /// The newest offset.
        last: u64,
        /// A time to which the history reaches back at least.
        #[serde(serialize_with = "as_text")]
        since: Option<Timestamp>,
    },
}

/// Facts from Redis.
#[derive(Debug, Clone, Serialize)]
pub struct RedisFacts {
    /// Address of the server, without a password.
    pub address: String,
    /// Name of the server software, such as `Redis` or `Valkey`.
    pub software: &'static str,
    /// Version of the server software, such as `7.0.15`.
    pub version: Option<String>,
    /// Role of the server, `master` or `slave`.
    pub role: Option<String>,
    /// Number of replicas.
    pub replicas: Option<u32>,
    /// True while a heal runs, because Redis lost writes or may have.
    pub healing: bool,
    /// Progress of that heal.
    pub heal_progress: Option<ProgressFacts>,
    /// A heal that is due, and could not be done.
    pub owed_heal: Option<OwedFacts>,
    /// Events that may be lost.
    pub lost_events: Option<LostFacts>,
    /// The last heal.
    pub last_heal: Option<HealFacts>,
    /// The workers of this `UNSTALE_QUEUE` that have reported in the last 30 s.
    pub workers: Vec<WorkerFacts>,
}

/// A heal that is over.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct HealFacts {
    /// Time at which it ended, by Redis' clock.
    #[serde(serialize_with = "as_text")]
    pub time: Option<Timestamp>,
    /// Time from which on it applied the history.
    #[serde(serialize_with = "as_text")]
    pub from: Option<Timestamp>,
    /// Number of heals so far, this one included.
    pub count: u64,
    /// True if it read and applied all of the history that was asked for.
    pub complete: bool,
    /// Digests of the registries whose rules the heals of the last day applied, each with a digest
    /// of settings behind it.
    pub digests: Vec<String>,
    /// Offsets of skipped events, at which heals died, or which could not be resolved in time.
    pub passed_over: Vec<u64>,
}

/// The progress of a heal.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct ProgressFacts {
    /// Number of messages that are applied.
    pub done: u64,
    /// Number of messages in all.
    pub of: u64,
    /// Number of heals that died in the range of messages that is now applied one by one.
    pub deaths: u32,
}

/// A heal that is due.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct OwedFacts {
    /// Time since which it is due.
    #[serde(serialize_with = "as_text")]
    pub since: Option<Timestamp>,
    /// Place from which on the history is to be applied again.
    pub from: String,
    /// Reason why it could not be done.
    pub cause: String,
    /// Number of effects that Redis refused, if only these are due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
}

/// Events that neither a queue nor the history holds any more.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct LostFacts {
    /// All events before it are applied.
    #[serde(serialize_with = "as_text")]
    pub from: Option<Timestamp>,
    /// All events after it are in a queue or in the history.
    #[serde(serialize_with = "as_text")]
    pub until: Option<Timestamp>,
}

/// The report of a worker.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct WorkerFacts {
    /// Name of the worker, `host:pid`.
    pub name: String,
    /// Version of its program.
    pub version: String,
    /// Digest of its registry.
    pub digest: String,
    /// Digest by which heals record whose rules and settings they applied.
    #[serde(skip)]
    pub resolution_digest: String,
    /// Reason why it did not load the current rule files; null if it did.
    pub refused_registry: Option<String>,
    /// One of the rule files that change all the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changing_rules: Option<String>,
    /// The steps of its retry schedule.
    #[serde(rename = "ladder")]
    pub retry_steps: Vec<String>,
    /// Age of the report in seconds.
    pub reported_s_ago: f64,
    /// Number of deliveries in flight.
    #[serde(rename = "in_hand")]
    pub in_flight: usize,
    /// Age of the oldest delivery in flight, in seconds.
    pub oldest_unsettled_s: Option<f64>,
    /// Reasons why it is not ready; empty if it is.
    pub not_ready: Vec<String>,
    /// Reason why it runs without the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history_fault: Option<String>,
}

/// Serializes a time as RFC 3339, or as null.
fn as_text<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_string()).serialize(serializer)
}
