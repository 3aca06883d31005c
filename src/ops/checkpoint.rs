//! The checkpoint of a command that applies old events again. A heal then reaches back to these
//! events.

use std::convert::Infallible;
use std::time::Duration;

use crate::cache::{Cache, CommandError, LowWatermark};

/// Time between two renewals. A checkpoint that is not renewed expires after an hour.
const RENEW_INTERVAL: Duration = Duration::from_secs(300);

/// The checkpoint of one command.
#[derive(Debug)]
pub struct CommandCheckpoint<'c> {
    cache: &'c Cache,
    command: &'static str,
    low_watermark: Option<LowWatermark>,
}

impl<'c> CommandCheckpoint<'c> {
    /// Creates a checkpoint without a low watermark.
    pub fn new(cache: &'c Cache, command: &'static str) -> Self {
        Self { cache, command, low_watermark: None }
    }

    /// Extends the checkpoint to the events from this low watermark on.
    ///
    /// # Errors
    /// An outage, or a refusal by Redis.
    pub async fn hold(&mut self, low: LowWatermark) -> Result<(), CommandError> {
        let low = self.low_watermark.map_or(low, |held| held.lower(low));
        if self.low_watermark != Some(low) {
            self.cache.hold_checkpoint(self.command, low).await?;
            self.low_watermark = Some(low);
        }
        Ok(())
    }

    /// Renews the checkpoint for as long as the future is polled.
    pub async fn keep(&self) -> Infallible {
        loop {
            tokio::time::sleep(RENEW_INTERVAL).await;
            if let Some(low) = self.low_watermark {
                // If this fails, there is time for several more renewals.
                let _ = self.cache.hold_checkpoint(self.command, low).await;
            }
        }
    }

    /// Removes the checkpoint, once Redis has confirmed all effects.
    ///
    /// # Errors
    /// An outage, or a refusal by Redis. The checkpoint then expires in an hour.
    pub async fn release(self) -> Result<(), CommandError> {
        self.cache.release_checkpoint(self.command).await
    }
}
