//! Leases: the right to fill a key with a value that takes time to load. Any invalidation of the
//! key or one of its tags during that time voids the lease.

use std::time::Duration;

use redis::Value;

use super::Cache;
use super::failure::CommandError;
use super::lifetime::{self, LONGEST_LEASE};
use super::script::{RELEASE_LEASE, Sent};
use super::side_keys::{Kind, side_key};
use crate::registry::Expiry;

/// Answer to a request for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The caller has the lease. It returns `since` with the value.
    Granted {
        /// Number of the sequence of invalidations at the grant.
        since: u64,
    },
    /// Another holder has the lease.
    Held,
}

/// Result of storing a loaded value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillOutcome {
    /// The value is stored.
    Filled,
    /// The value is not stored: the key or one of its tags was invalidated since the grant, or the
    /// lease ran out.
    Refused,
    /// The value is not stored, and need not be: it expired before it was loaded.
    Over,
}

/// A loaded value, its key, and its tags.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewValue<'v> {
    pub(super) key: &'v str,
    pub(super) value: &'v [u8],
    pub(super) expiry: Expiry,
    pub(super) tags: &'v [String],
}

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
        self.backend.fill(self, token, since, NewValue { key, value, expiry, tags }).await
    }

    /// Releases an unused lease, so that the next reader may load at once. Returns whether `token`
    /// still held it.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn release_lease(&self, key: &str, token: &str) -> Result<bool, CommandError> {
        let lease = side_key(Kind::Lease, key.as_bytes());
        let mut command = RELEASE_LEASE.call(&mut Sent::default(), [lease.as_slice()].into_iter());
        command.arg(token);
        Ok(self.call("lease", command).await? == Value::Int(1))
    }
}

pub(super) fn unexpected() -> CommandError {
    CommandError::Failed("lease: unexpected answer".into())
}
