//! Reduces effects to operations for Redis, and outcomes to a settlement.
//!
//! - `operation`: a plan, which is the list of operations for one batch.
//! - `coalesce`: effects of many events → one plan.
//! - `fold`: effects of a span of the history → the few that still matter.
//! - `fence_version`: the order of versions.
//! - `outcome`: outcomes of effects and events.
//! - `settlement`, `retry_schedule`: outcomes → messages to republish.
//!
//! There is no socket, no clock and no runtime here. `cache` executes plans, and `worker`
//! settlements.

mod coalesce;
mod fence_version;
mod fold;
mod operation;
mod outcome;
mod retry_schedule;
mod settlement;

pub use coalesce::Batch;
pub use fence_version::{FenceVersion, VersionOrder};
pub use fold::{Fold, FoldLimits, Folded};
pub use operation::{Command, Load, Operation, OperationId, Plan};
pub use outcome::{EffectOutcome, EffectRef, EventOutcome};
pub use retry_schedule::RetrySchedule;
pub use settlement::{Destination, RepublishOrder, SettlePolicy, Settlement, settle};
