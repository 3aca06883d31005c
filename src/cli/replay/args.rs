//! The arguments of `unstale replay`.

use clap::Args;
use jiff::Timestamp;

use crate::broker::Place;
use crate::ops::dead_letters::since;
use crate::quantity::Rate;

/// Apply the history of events again, or a part of it
///
/// Reads the stream `unstale.history` from a given time or offset, and resolves its events with the
/// current rule files. Folds the effects on each key and tag into one, and applies it to Redis.
///
/// A replay never makes the cache more stale. It is safe at any time, more than once, and while
/// workers run, but it costs cache misses. A value is written only if a version orders it and the
/// fence of the key still exists. Otherwise the key is deleted, and readers load it. Events
/// excluded by the filters are not applied, but they still supersede older events on the same key.
///
/// If the command is interrupted, it prints how to continue. Exits with 1 if something could not be
/// applied.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ReplayArgs {
    /// Start of the replay: a duration ago, such as 2h, an RFC 3339 time, or an offset of the
    /// stream, such as offset:1200
    #[arg(long, value_name = "PLACE", value_parser = place)]
    pub(super) since: Place,
    /// End of the replay, in the forms of --since; the event at this time or offset is excluded
    #[arg(long, value_name = "PLACE", value_parser = place)]
    pub(super) until: Option<Place>,
    /// Only events whose type matches this topic pattern, such as user.updated or 'user.*';
    /// repeatable
    #[arg(long = "type", value_name = "PATTERN")]
    pub(super) types: Vec<String>,
    /// Maximum rate of effects sent to Redis, such as 500/s or 600/m, which limits the misses that
    /// readers cause
    #[arg(long, value_parser = |text: &str| Rate::parse(text))]
    pub(super) rate: Option<Rate>,
    /// Print what would be done, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale replay --since 2h --dry-run
  unstale replay --since 2026-11-23T10:00:00Z --until 2026-11-23T11:30:00Z
  unstale replay --since 1d --type 'user.*' --type order.paid --rate 500/s
  unstale replay --since offset:120000 --json";

fn place(text: &str) -> Result<Place, String> {
    match text.strip_prefix("offset:") {
        Some(offset) => offset
            .parse()
            .map(Place::Offset)
            .map_err(|_| "expected a whole number after `offset:`".to_owned()),
        None => since(text, Timestamp::now())
            .map(Place::Time)
            .map_err(|error| format!("{error}, or offset:N")),
    }
}
