//! The dead-letter queue as a tool: what a letter says, which are meant, how they are grouped, and how they are replayed.

mod filter;
mod group;
mod letter;
mod replay;
mod spool;

pub use filter::{Filter, since};
pub use group::{Group, groups};
pub use letter::Letter;
pub use replay::{Replayed, replay_batch};
pub use spool::Spool;
