//! Work on dead letters.
//!
//! Files, in reading order:
//! - `letter`: the facts about one letter, without its body.
//! - `filter`: which letters a command selects.
//! - `choose`: the oldest letters, for a limit.
//! - `group`: counts of letters that have something in common.
//! - `spool`: text of letters on disk, to be printed in order of time.
//! - `replay`: sends letters back to the queue of events.
//!
//! Absent on purpose: reading the queue, which is in `broker::dead_letters`, and all output, which
//! is in `cli::dlq`.

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
pub use spool::{Spool, SpoolError};
