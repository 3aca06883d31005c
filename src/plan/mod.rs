//! Effects of many events → one coalesced batch; effects of a span of the past → the few that still
//! matter; outcomes → a settlement. Knows no socket, clock or runtime.

mod coalesce;
mod fold;
mod mark;
mod operation;
mod outcome;
mod settlement;

pub use coalesce::Batch;
pub use fold::{Fold, FoldLimits, Folded};
pub use mark::{Mark, Standing};
pub use operation::{Command, Load, Operation, OperationId, Plan};
pub use outcome::{EffectOutcome, EventOutcome, Slot};
pub use settlement::{CopyOrder, Destination, Ladder, SettlePolicy, Settlement, settle};
