//! What Ctrl-C does to a one-shot command.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{CommandError, Exit};

/// Cancelled by the first SIGINT or SIGTERM; the second ends the program at once.
pub(super) fn stop_on_signal() -> Result<CancellationToken, CommandError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CommandError::internal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CommandError::internal)?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        for second in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if second {
                #[expect(clippy::disallowed_methods, reason = "the second signal ends it at once")]
                std::process::exit(Exit::Unfinished as i32);
            }
            token.cancel();
        }
    });
    Ok(stop)
}
