//! Logs, and the name of every metric, once.

pub mod histogram;
pub mod logs;
pub mod metrics;

pub use metrics::{Metrics, RegistryMetrics};
