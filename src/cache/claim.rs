//! Claims: the right to load a key, which one worker holds at a time. At most one other worker
//! waits for it.
//!
//! A lease alone is not enough: an invalidation voids it while the load goes on. Claims are short
//! and renewed, so that a killed worker's claim ends soon.

use std::time::Duration;

use redis::Value;

use super::failure::{CommandError, Outage};
use super::script::{CLAIM_LOAD, END_LOAD, KEEP_LOAD, Sent};
use super::side_keys::{Kind, side_key};
use super::{Cache, lifetime};

/// Answer to a request for a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Load, and end it with [`Cache::end_load`].
    Load,
    /// Do nothing: the load of another event suffices.
    Covered,
    /// Ask again in a moment.
    Wait,
}

/// Identity of a load: what is loaded, for which event, by which worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadToken(String);

impl LoadToken {
    /// Returns a token. `what` and `event` are hashes, written as 16 hexadecimal digits.
    pub fn new(what: u64, event: u64, who: &str) -> Self {
        Self(format!("{what:016x}.{event:016x}.{who}"))
    }

    /// Returns the token of the load's lease.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Cache {
    /// Asks to load a key, after the load's invalidation took effect. `first` is whether this token
    /// asks for the first time.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn claim_load(
        &self,
        key: &str,
        token: &LoadToken,
        ttl: Duration,
        first: bool,
    ) -> Result<Claim, CommandError> {
        let keys =
            [Kind::Load, Kind::NextLoad, Kind::Lease].map(|kind| side_key(kind, key.as_bytes()));
        let mut command = CLAIM_LOAD.call(&mut Sent::default(), keys.iter().map(Vec::as_slice));
        command.arg(&token.0).arg(lifetime::millis(ttl)).arg(u8::from(first));
        match self.call("load", command).await? {
            Value::BulkString(answer) if answer == b"load" => Ok(Claim::Load),
            Value::BulkString(answer) if answer == b"covered" => Ok(Claim::Covered),
            Value::BulkString(answer) if answer == b"wait" => Ok(Claim::Wait),
            _ => Err(CommandError::Failed("load: unexpected answer".into())),
        }
    }

    /// Keeps the claim, and the lease if it is still valid, for `ttl`. Call it once a lease is
    /// granted, and while it is needed.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn keep_load(
        &self,
        key: &str,
        token: &LoadToken,
        ttl: Duration,
    ) -> Result<(), CommandError> {
        let keys =
            [Kind::Load, Kind::NextLoad, Kind::Lease].map(|kind| side_key(kind, key.as_bytes()));
        let mut command = KEEP_LOAD.call(&mut Sent::default(), keys.iter().map(Vec::as_slice));
        command.arg(&token.0).arg(lifetime::millis(ttl));
        self.call("load", command).await.map(drop)
    }

    /// Releases the claim, the waiting place and the lease, as far as the token holds them.
    ///
    /// `filled` means that the key has a value loaded after its deletion. For that time, a waiter
    /// for the same load gets [`Claim::Covered`] if its own deletion also precedes that value.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn end_load(
        &self,
        key: &str,
        token: &LoadToken,
        filled: Option<Duration>,
    ) -> Result<(), CommandError> {
        let [load, next, lease] =
            [Kind::Load, Kind::NextLoad, Kind::Lease].map(|kind| side_key(kind, key.as_bytes()));
        let mut command = END_LOAD.call(
            &mut Sent::default(),
            [load.as_slice(), &next, &lease, key.as_bytes()].into_iter(),
        );
        command.arg(&token.0).arg(filled.map_or(0, lifetime::millis));
        self.call("load", command).await.map(drop)
    }

    /// Deletes the key's value, and voids any load that is to replace it.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn delete_value(&self, key: &str) -> Result<(), CommandError> {
        let mut command = redis::cmd("UNLINK");
        command.arg(side_key(Kind::Lease, key.as_bytes())).arg(key);
        self.call("UNLINK", command).await.map(drop)
    }

    /// Returns whether a worker or reader holds the key's lease.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn lease_is_held(&self, key: &str) -> Result<bool, CommandError> {
        self.is_there(&side_key(Kind::Lease, key.as_bytes())).await
    }

    /// Returns whether the ACL of our user refuses a key, by a command that changes nothing.
    ///
    /// # Errors
    /// An outage.
    pub async fn refuses_key(&self, key: &str) -> Result<bool, Outage> {
        match self.is_there(key.as_bytes()).await {
            Ok(_) | Err(CommandError::Failed(_)) => Ok(false),
            Err(CommandError::Refused(_) | CommandError::NotPermitted(_)) => Ok(true),
            Err(CommandError::Outage(outage)) => Err(outage),
        }
    }

    /// Returns whether the key has a value.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn has_value(&self, key: &str) -> Result<bool, CommandError> {
        self.is_there(key.as_bytes()).await
    }

    async fn is_there(&self, key: &[u8]) -> Result<bool, CommandError> {
        let mut command = redis::cmd("EXISTS");
        command.arg(key);
        Ok(self.call("EXISTS", command).await? == Value::Int(1))
    }
}
