//! Log lines for work that takes long enough for a person to wonder.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

/// Time after which unfinished work is mentioned in the log.
const SLOW: Duration = Duration::from_millis(800);

/// Awaits the work, and calls `mention` once if it takes long.
pub async fn mentioned_if_slow<F: Future>(work: F, mention: impl FnOnce()) -> F::Output {
    let mut work = pin!(work);
    match timeout(SLOW, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            mention();
            work.await
        }
    }
}
