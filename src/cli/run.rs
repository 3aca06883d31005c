//! `unstale run`

use clap::Args;

use super::{CommandError, Exit};

/// Runs the worker until SIGTERM or SIGINT: consumes events, applies their effects to Redis, and acknowledges them once they hold.
///
/// A worker waits for servers that are not there yet, picks up changed schema files by itself, and on a signal settles what it has in hand
/// within UNSTALE_SHUTDOWN_GRACE. Start more of them to go faster: workers with the same UNSTALE_QUEUE share the work.
///
///   UNSTALE_SCHEMAS=./schemas unstale run
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct RunArgs {}

pub(super) fn run(_args: &RunArgs) -> Result<Exit, CommandError> {
    Err(CommandError::internal("not built in yet"))
}
