//! Leases: the right to fill a key with a value that takes time to load. Any invalidation of the
//! key or one of its tags during that time voids the lease.

mod calls;

use redis::Cmd;

use super::failure::CommandError;
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

/// Returns the command that releases a lease if `token` still holds it.
pub(super) fn release(key: &str, token: &str) -> Cmd {
    let lease = side_key(Kind::Lease, key.as_bytes());
    let mut command = RELEASE_LEASE.call(&mut Sent::default(), [lease.as_slice()].into_iter());
    command.arg(token);
    command
}

pub(super) fn unexpected() -> CommandError {
    CommandError::Failed("lease: unexpected answer".into())
}
