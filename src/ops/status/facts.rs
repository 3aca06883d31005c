//! What was found out, in the words of `--json`.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// Everything that was found out.
#[derive(Debug, Clone)]
pub struct Status {
    /// When, by this machine's clock.
    pub time: Timestamp,
    /// RabbitMQ's side, or why there is none.
    pub rabbitmq: Result<BrokerFacts, String>,
    /// Redis' side, or why there is none.
    pub redis: Result<RedisFacts, String>,
}

/// RabbitMQ's side.
#[derive(Debug, Clone, Serialize)]
pub struct BrokerFacts {
    /// The node that answered.
    pub node: String,
    /// The queues, in the order of an event's way.
    pub queues: Vec<QueueFacts>,
    /// The oldest letter at the head of the dead-letter queue, where there is one that can be
    /// looked at.
    pub oldest_dead_letter: Option<OldestLetter>,
    /// The stream of all events.
    pub history: HistoryFacts,
}

/// One queue.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct QueueFacts {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: QueueKind,
    /// Whether there is one.
    pub exists: bool,
    /// Messages that wait.
    pub ready: u32,
    /// How many consume it.
    pub consumers: u32,
    /// Why the broker does not tell, in its words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum QueueKind {
    /// Where events arrive.
    Main,
    /// Loads and long drains.
    Slow,
    /// A rung of the ladder that is set here.
    Rung,
    /// A rung of another ladder, which a worker has or remembers.
    LeftRung,
    /// Dead letters.
    Dead,
}

/// A dead letter.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct OldestLetter {
    /// Why it is there.
    pub reason: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Since when.
    #[serde(serialize_with = "as_text")]
    pub time: Option<Timestamp>,
}

/// The stream of all events.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum HistoryFacts {
    /// `UNSTALE_HISTORY=off`
    Off,
    /// It is to be there, and is not.
    Missing,
    /// Nobody can tell: why.
    Unknown(String),
    /// It is there, and holds nothing.
    Empty,
    /// It is there.
    Stands {
        /// The oldest offset.
        first: u64,
        /// The newest offset.
        last: u64,
        /// It reaches back at least so far.
        #[serde(serialize_with = "as_text")]
        since: Option<Timestamp>,
    },
}

/// Redis' side.
#[derive(Debug, Clone, Serialize)]
pub struct RedisFacts {
    /// Its address, without a password.
    pub address: String,
    /// `Redis`, or what speaks its protocol, such as `Valkey`.
    pub software: &'static str,
    /// The version of that, such as `7.0.15`.
    pub version: Option<String>,
    /// `master` or `slave`
    pub role: Option<String>,
    /// How many replicas follow it.
    pub replicas: Option<u32>,
    /// Whether the history is being applied again, since Redis lost writes, or may have.
    pub healing: bool,
    /// How far that is.
    pub heal_progress: Option<ProgressFacts>,
    /// A heal that could not be done when it was due.
    pub owed_heal: Option<OwedFacts>,
    /// The last time that it was.
    pub last_heal: Option<HealFacts>,
    /// The workers of this `UNSTALE_QUEUE` that have reported within 30 s.
    pub workers: Vec<WorkerFacts>,
}

/// A time that the history was applied again.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct HealFacts {
    /// When it was done, by Redis' clock.
    #[serde(serialize_with = "as_text")]
    pub time: Option<Timestamp>,
    /// From when on.
    #[serde(serialize_with = "as_text")]
    pub from: Option<Timestamp>,
    /// How many there have been.
    pub count: u64,
    /// All of it was read and applied.
    pub complete: bool,
    /// The digests of the registries by whose rules all heals of the last day were done.
    pub digests: Vec<String>,
    /// Offsets that were passed over, since heals died there, or what is there could not be
    /// resolved in time.
    pub passed_over: Vec<u64>,
}

/// How far a heal is.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct ProgressFacts {
    /// Messages that are applied.
    pub done: u64,
    /// Messages that are to be.
    pub of: u64,
    /// How many heals died in the range that is gone through one by one.
    pub deaths: u32,
}

/// A heal that is owed.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct OwedFacts {
    /// Since when.
    #[serde(serialize_with = "as_text")]
    pub since: Option<Timestamp>,
    /// From where on the history is to be applied again.
    pub from: String,
    /// Why it could not be.
    pub cause: String,
}

/// What a worker said of itself.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct WorkerFacts {
    /// `host:pid`
    pub name: String,
    /// Of the program.
    pub version: String,
    /// The digest of its registry.
    pub digest: String,
    /// Why it did not take the registry's files as they are now; null where it did.
    pub refused_registry: Option<String>,
    /// The rungs of its ladder.
    pub ladder: Vec<String>,
    /// How long ago it said this, in seconds.
    pub reported_s_ago: f64,
    /// Deliveries in flight.
    pub in_hand: usize,
    /// The age of the oldest that is not settled, in seconds.
    pub oldest_unsettled_s: Option<f64>,
    /// Why it is not ready; empty where it is.
    pub not_ready: Vec<String>,
    /// Why it does without the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history_fault: Option<String>,
}

/// RFC 3339, or null.
fn as_text<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_string()).serialize(serializer)
}
