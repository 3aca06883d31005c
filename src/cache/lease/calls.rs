//! The calls with which a holder asks for a lease, uses it and releases it.

use std::time::Duration;

use redis::Value;

use super::super::Cache;
use super::super::failure::CommandError;
use super::super::lifetime::{self, LONGEST_LEASE};
use super::{FillOutcome, Grant, NewValue, release};
use crate::registry::Expiry;

impl Cache {
    /// Asks for the right to fill a key, before its value is loaded.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn grant_lease(
        &self,
        key: &str,
        token: &str,
        ttl: Duration,
    ) -> Result<Grant, CommandError> {
        let ttl_ms = lifetime::millis(ttl.min(LONGEST_LEASE));
        self.backend.grant_lease(key, token, ttl_ms).await
    }

    /// Stores a loaded value, adds its key to the sets of `tags`, and releases the lease.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn fill(
        &self,
        key: &str,
        token: &str,
        since: u64,
        value: &[u8],
        expiry: Expiry,
        tags: &[String],
    ) -> Result<FillOutcome, CommandError> {
        self.backend.fill(&self.context, token, since, NewValue { key, value, expiry, tags }).await
    }

    /// Releases an unused lease, so that the next reader may load at once. Returns whether `token`
    /// still held it.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn release_lease(&self, key: &str, token: &str) -> Result<bool, CommandError> {
        Ok(self.call("lease", release(key, token)).await? == Value::Int(1))
    }
}
