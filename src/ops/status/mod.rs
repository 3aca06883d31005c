//! The state of a running system, and what is wrong with it.
//!
//! Files, in reading order:
//! - `facts`: what both servers and the workers report, in the form of `--json`.
//! - `gather`: asks both servers, within bounds of time.
//! - `finding`: problems and notes, with their codes.
//! - `judge`: turns facts into findings.
//! - `span`: spans of time as text.
//!
//! Absent on purpose: the text output, which is in `cli::status`, and RabbitMQ's management API.

mod facts;
mod finding;
mod gather;
mod judge;
mod span;
#[cfg(test)]
pub(crate) mod tests;

pub use facts::{
    BrokerFacts, HealFacts, HistoryFacts, LostFacts, OldestLetter, OwedFacts, ProgressFacts,
    QueueFacts, QueueKind, RedisFacts, Status, Unreadable, WorkerFacts,
};
pub use finding::{Finding, FindingCode, Findings};
pub use gather::gather;
pub use judge::{SILENT_S, judge, short_digest};
pub use span::span;
