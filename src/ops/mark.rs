//! What a command holds among the marks while it applies again what arrived long ago.

use std::convert::Infallible;
use std::time::Duration;

use crate::cache::{Cache, CommandError};

/// Well below the hour after which a mark that nobody keeps goes.
const KEPT_EVERY: Duration = Duration::from_secs(300);

/// One command's mark.
#[derive(Debug)]
pub struct Mark<'c> {
    cache: &'c Cache,
    command: &'static str,
    low_ms: Option<u64>,
}

impl<'c> Mark<'c> {
    /// Nothing is held yet.
    pub fn new(cache: &'c Cache, command: &'static str) -> Self {
        Self { cache, command, low_ms: None }
    }

    /// What is applied from now on arrived at that time or later; what was held before still holds.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn hold(&mut self, low_ms: u64) -> Result<(), CommandError> {
        if self.low_ms.is_none_or(|held| low_ms < held) {
            self.cache.hold_mark(self.command, low_ms).await?;
            self.low_ms = Some(low_ms);
        }
        Ok(())
    }

    /// Keeps it; never returns.
    pub async fn keep(&self) -> Infallible {
        loop {
            tokio::time::sleep(KEPT_EVERY).await;
            if let Some(low_ms) = self.low_ms {
                // Unheard, it is said again in time.
                let _ = self.cache.hold_mark(self.command, low_ms).await;
            }
        }
    }

    /// All of it is applied, and Redis has answered.
    ///
    /// # Errors
    /// An outage, or Redis refuses: it goes by itself in an hour.
    pub async fn release(self) -> Result<(), CommandError> {
        self.cache.release_mark(self.command).await
    }
}
