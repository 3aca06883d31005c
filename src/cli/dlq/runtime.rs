//! The runtime of the commands that read dead letters.

use std::future::Future;

use super::super::{CliError, Exit};

/// Runs a command until its end.
pub(super) fn block_on(
    command: impl Future<Output = Result<Exit, CliError>>,
) -> Result<Exit, CliError> {
    // The connection must be kept alive while one thread reads letters, or waits for an answer.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(CliError::of(Exit::Internal))?;
    let ended = runtime.block_on(command);
    runtime.shutdown_background();
    ended
}
