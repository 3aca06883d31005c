//! Leases: the right to fill a key with a value that takes time to load. Whatever invalidates the
//! key or one of its tags meanwhile voids it.

use std::time::Duration;

use redis::Value;

use super::failure::CommandError;
use super::lifetime::{self, Lifetime};
use super::script::{FILL, GRANT_LEASE, RELEASE_LEASE, Sent};
use super::side_keys::{Kind, SEQUENCE, side_key};
use super::{Cache, Redis, integers};
use crate::registry::Expiry;

/// A longer lease is cut to this: tags remember their invalidations for a multiple of it.
pub const LONGEST_LEASE: Duration = Duration::from_secs(360);

/// Who may load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The asker. `since` is handed back with the value.
    Granted {
        /// What the sequence of invalidations had come to.
        since: u64,
    },
    /// Somebody else is at it.
    Held,
}

/// What became of a loaded value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// It is in the cache.
    Filled,
    /// It is not: the key or one of its tags was invalidated since the grant, or the lease ran out.
    Refused,
    /// It is not, and need not be: its time was over before it was loaded.
    Over,
}

/// A token that no other holder of a lease has.
pub fn new_token() -> String {
    format!("{:032x}", fastrand::u128(..))
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

    /// Puts a loaded value into the cache, its key into the sets of `tags`, and gives the lease
    /// back.
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
    ) -> Result<Fill, CommandError> {
        if let Redis::Cluster(cluster) = &self.redis {
            return self.fill_in_cluster(cluster, (key, token), since, value, expiry, tags).await;
        }
        let Some(Lifetime { unit, millis, set_millis }) =
            Lifetime::draw(expiry, lifetime::now_ms())
        else {
            self.release_lease(key, token).await?;
            return Ok(Fill::Over);
        };
        let mut keys = vec![key.as_bytes().to_vec(), side_key(Kind::Lease, key.as_bytes())];
        for tag in tags {
            let set = self.tag_set(tag).into_bytes();
            let generation = side_key(Kind::Generation, &set);
            keys.extend([set, generation]);
        }
        let mut command = FILL.call(&mut Sent::default(), keys.iter().map(Vec::as_slice));
        command.arg(token).arg(since).arg(value).arg(unit.option()).arg(millis).arg(set_millis);
        match self.call_sealed("fill", command).await? {
            Value::Int(1) => Ok(Fill::Filled),
            Value::Int(0) => Ok(Fill::Refused),
            _ => Err(unexpected()),
        }
    }

    /// Gives a lease back unused, so that the next may load at once. Only its holder's token does;
    /// whether it still was the holder's.
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
    CommandError::Failed("lease: an answer of another shape than expected".into())
}
