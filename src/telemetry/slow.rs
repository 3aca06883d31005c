//! Log lines for work that takes long enough for a person to wonder.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

/// Time after which unfinished work is mentioned in the log.
const SLOW: Duration = Duration::from_millis(800);

/// Awaits the work, and calls `mention` once if it takes long.
pub async fn mentioned_if_slow<F: Future>(work: F, mention: impl FnOnce()) -> F::Output {
    mentioned_after(SLOW, work, mention).await
}

/// Awaits the work, and calls `mention` once if it takes longer than that.
pub async fn mentioned_after<F: Future>(
    longest: Duration,
    work: F,
    mention: impl FnOnce(),
) -> F::Output {
    let mut work = pin!(work);
    match timeout(longest, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            mention();
            work.await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn work_that_does_not_end_is_mentioned_once() {
        let (mut mentions, longest) = (0, Duration::from_millis(1));
        let work = mentioned_after(longest, pending::<()>(), || mentions += 1);
        assert!(timeout(50 * longest, work).await.is_err());
        assert_eq!(mentions, 1);
        mentioned_after(longest, async {}, || mentions += 1).await;
        assert_eq!(mentions, 1);
    }
}
