//! Leases: the right to fill a key with a value that takes time to load. Any invalidation of the
//! key or one of its tags during that time voids the lease.

use std::time::Duration;

use redis::Value;

use super::failure::CommandError;
use super::lifetime::{self, LONGEST_LEASE, Lifetime};
use super::script::{FILL, GRANT_LEASE, RELEASE_LEASE, Sent};
use super::side_keys::{Kind, SEQUENCE, side_key};
use super::{Cache, Redis, integers};
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
        if let Redis::Cluster(_) = &self.redis {
            return self.grant_in_cluster(key, token, ttl_ms).await;
        }
        let lease = side_key(Kind::Lease, key.as_bytes());
        let mut command =
            GRANT_LEASE.call(&mut Sent::default(), [lease.as_slice(), SEQUENCE].into_iter());
        command.arg(token).arg(ttl_ms);
        match self.call("lease", command).await? {
            Value::Nil => Ok(Grant::Held),
            since => {
                let [since] = integers(&Value::Array(vec![since])).ok_or_else(unexpected)?;
                Ok(Grant::Granted { since })
            }
        }
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
        if let Redis::Cluster(cluster) = &self.redis {
            return self.fill_in_cluster(cluster, (key, token), since, value, expiry, tags).await;
        }
        let Some(Lifetime { unit, millis, set_millis }) =
            Lifetime::draw(expiry, lifetime::now_ms())
        else {
            self.release_lease(key, token).await?;
            return Ok(FillOutcome::Over);
        };
        let mut keys = vec![key.as_bytes().to_vec(), side_key(Kind::Lease, key.as_bytes())];
        for tag in tags {
            let set = self.tag_set(tag).into_bytes();
            let generation = side_key(Kind::Generation, &set);
            keys.extend([set, generation]);
        }
        let mut command = FILL.call(&mut Sent::default(), keys.iter().map(Vec::as_slice));
        command.arg(token).arg(since).arg(value).arg(unit.option()).arg(millis).arg(set_millis);
        match self.call_with_checkpoint("fill", command).await? {
            Value::Int(1) => Ok(FillOutcome::Filled),
            Value::Int(0) => Ok(FillOutcome::Refused),
            _ => Err(unexpected()),
        }
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

fn unexpected() -> CommandError {
    CommandError::Failed("lease: unexpected answer".into())
}
