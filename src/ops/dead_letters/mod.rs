//! The dead-letter queue as a tool: what a letter says, which are meant, how they are grouped, and
//! how they are replayed.

mod choose;
mod filter;
mod group;
mod letter;
mod replay;
mod spool;

pub use choose::{Candidates, Chosen, keep_oldest};
pub use filter::{Filter, since};
pub use group::{Group, GroupBy, groups};
pub use letter::Letter;
pub use replay::{Replayed, replay_batch};
pub use spool::Spool;
