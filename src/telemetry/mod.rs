//! Logs, and the name of every metric, once.

pub mod event_log;
pub mod histogram;
pub mod logs;
pub mod metrics;
pub mod repeats;
mod slow;

pub use event_log::{EffectLog, EventLog, Republished};
pub use metrics::{Metrics, RegistryMetrics};
pub use slow::mentioned_if_slow;
