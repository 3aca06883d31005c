//! What a command holds among the marks while it applies again what arrived long ago.

use std::convert::Infallible;
use std::time::Duration;

use crate::cache::{Cache, CommandError, LowWatermark};

/// Well below the hour after which a mark that nobody keeps goes.
const KEPT_EVERY: Duration = Duration::from_secs(300);

/// One command's mark.
#[derive(Debug)]
pub struct Mark<'c> {
    cache: &'c Cache,
    command: &'static str,
    low: Option<LowWatermark>,
}

impl<'c> Mark<'c> {
    /// Nothing is held yet.
    pub fn new(cache: &'c Cache, command: &'static str) -> Self {
        Self { cache, command, low: None }
    }

    /// Covers the events that are applied from now on, beside those that it covered before.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn hold(&mut self, low: LowWatermark) -> Result<(), CommandError> {
        let low = self.low.map_or(low, |held| held.lower(low));
        if self.low != Some(low) {
            self.cache.hold_checkpoint(self.command, low).await?;
            self.low = Some(low);
        }
        Ok(())
    }

    /// Keeps it; never returns.
    pub async fn keep(&self) -> Infallible {
        loop {
            tokio::time::sleep(KEPT_EVERY).await;
            if let Some(low) = self.low {
                // Unheard, it is said again in time.
                let _ = self.cache.hold_checkpoint(self.command, low).await;
            }
        }
    }

    /// All of it is applied, and Redis has answered.
    ///
    /// # Errors
    /// An outage, or Redis refuses: it goes by itself in an hour.
    pub async fn release(self) -> Result<(), CommandError> {
        self.cache.release_checkpoint(self.command).await
    }
}
