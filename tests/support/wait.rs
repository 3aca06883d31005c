//! Bounded waits on a condition, instead of sleeps.

use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Waits until `condition` holds. Panics after `deadline`, with `what` in the message.
pub(crate) async fn wait_until(
    deadline: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> bool,
) {
    wait_for(deadline, what, async || condition().await.then_some(())).await;
}

/// Waits until `probe` returns a value, and returns it. Panics after `deadline`, with `what` in the
/// message.
pub(crate) async fn wait_for<T>(
    deadline: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        // The probe is bounded too: a probe that hangs would hide the failure.
        if let Ok(Some(value)) = tokio::time::timeout(left.max(LONGEST_PAUSE), probe()).await {
            return value;
        }
        assert!(start.elapsed() < deadline, "after {deadline:?} still not so: {what}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
