//! Logs and metrics.
//!
//! - `logs`: the format of the log, and escaping.
//! - `event_log`: lines about events, on top of `repeats`, which counts repeated lines.
//! - `slow`: a line for work that takes long.
//! - `metrics`: all metrics, with `registry_metrics` for those of one registry and a `histogram` of
//!   our own.
//!
//! Endpoints that serve metrics are in `http`.

mod event_log;
mod histogram;
pub(crate) mod logs;
mod metrics;
mod registry_metrics;
mod repeats;
mod slow;

pub use event_log::{EffectLog, EventLog, Republished};
pub use metrics::Metrics;
pub use registry_metrics::RegistryMetrics;
pub use slow::{mentioned_after, mentioned_if_slow};
