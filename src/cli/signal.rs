//! Signals to commands that end by themselves.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{CliError, Exit};

/// Returns a token that the first SIGINT or SIGTERM cancels. The second signal ends the program at
/// once.
pub(super) fn stop_on_signal() -> Result<CancellationToken, CliError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::of(Exit::Internal))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::of(Exit::Internal))?;
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
