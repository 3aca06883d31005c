//! How everything stands: what both servers and the workers say, and what of it needs a person.

mod facts;
mod gather;
mod judge;
#[cfg(test)]
pub(crate) mod tests;

pub use facts::{
    BrokerFacts, HealFacts, HistoryFacts, OldestLetter, OwedFacts, ProgressFacts, QueueFacts,
    QueueKind, RedisFacts, Status, WorkerFacts,
};
pub use gather::gather;
pub use judge::{Finding, Findings, SILENT_S, judge, seconds as span, short as short_digest};
