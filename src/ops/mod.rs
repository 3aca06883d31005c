//! Operations on a running system, without their command-line output.
//!
//! - `status`: the state of the system, and what is wrong with it.
//! - `dead_letters`: reading, selecting, grouping and replaying dead letters.
//! - `replay`: applying the history again.
//! - `heal`: a replay that workers start after Redis lost writes.
//! - `acknowledge`: ends findings of `status` that an operator has dealt with.
//! - `checkpoint`: lets workers notice that Redis lost the effects that a command applied.
//! - `pace`: a maximum rate.
//!
//! Absent on purpose: the arguments and the output of commands, which are in `cli`.

pub mod acknowledge;
mod checkpoint;
pub mod dead_letters;
pub mod heal;
mod pace;
pub mod replay;
pub mod status;

pub use checkpoint::CommandCheckpoint;
pub use pace::Pace;
