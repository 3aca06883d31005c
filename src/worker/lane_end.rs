//! How a lane ends, and what ends it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Why a lane ended before its session did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LaneEnd {
    /// A stop was requested, and every delivery in flight is settled.
    Stopped,
    /// Redis was away too long, or a stop was requested while it was away. The deliveries in flight
    /// are requeued.
    Requeued,
}

/// The tokens that end the slow lane, and the handling of suspected poison messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until<'u> {
    /// Cancelled when no other delivery and no other load may begin: with `stop`, or when the main
    /// lane finds a suspected poison message.
    pub(super) no_more: &'u CancellationToken,
    /// Cancelled when the worker must stop.
    pub(super) stop: &'u CancellationToken,
}

/// Maximum time running loads may take before a suspected poison message of the main lane begins.
const LOADS_END_WITHIN: Duration = Duration::from_millis(500);

impl Until<'_> {
    /// Waits until running loads must be interrupted, since the main lane waits for them. If the
    /// worker stops, they may run to their end.
    pub(super) async fn interrupts(self) {
        self.no_more.cancelled().await;
        tokio::time::sleep(LOADS_END_WITHIN).await;
        if self.stop.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}
