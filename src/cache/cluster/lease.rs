//! Leases in a cluster. The sequence, the key and its tags are in different slots, so grant and
//! fill take several steps.

use redis::Value;

use super::super::context::Context;
use super::super::failure::{self, CommandError};
use super::super::lease::{self, FillOutcome, Grant, NewValue};
use super::super::lifetime::{self, LONGEST_LEASE, Lifetime};
use super::super::script::{FILL, JOIN_TAG, Sent};
use super::super::side_keys::{Kind, SEQUENCE, side_key};
use super::super::slot;
use super::super::tags::{sequence_number, unexpected};
use super::{Cluster, SIDE_KEYS_APART};

impl Cluster {
    /// Grants a lease, and only then reads the sequence. A later invalidation voids the lease; the
    /// load sees the result of an earlier one.
    pub(in crate::cache) async fn grant_lease(
        &self,
        key: &str,
        token: &str,
        ttl_ms: i64,
    ) -> Result<Grant, CommandError> {
        if !slot::has_side_keys(key.as_bytes()) {
            return Err(side_keys_apart());
        }
        let mut lease = redis::cmd("SET");
        lease.arg(side_key(Kind::Lease, key.as_bytes())).arg(token).arg("NX").arg("PX").arg(ttl_ms);
        if self.call("lease", lease).await? == Value::Nil {
            self.cut_lease(key, ttl_ms).await?;
            return Ok(Grant::Held);
        }
        let mut since = redis::cmd("GET");
        since.arg(SEQUENCE);
        // Readers may write to the sequence. A fill with 0 is refused wherever a tag was
        // invalidated.
        let since = match self.call("lease", since).await {
            Ok(Value::BulkString(number)) => sequence_number(&number).unwrap_or(0),
            Err(CommandError::Outage(outage)) => return Err(outage.into()),
            _ => 0,
        };
        Ok(Grant::Granted { since })
    }

    /// Shortens another holder's lease that exceeds the maximum or has no TTL: the server's clock
    /// was set back, or another program wrote it.
    async fn cut_lease(&self, key: &str, ttl_ms: i64) -> Result<(), CommandError> {
        let lease = side_key(Kind::Lease, key.as_bytes());
        let mut left = redis::cmd("PTTL");
        left.arg(&lease);
        if matches!(self.call("lease", left).await?, Value::Int(left) if left == -1 || left > lifetime::millis(LONGEST_LEASE))
        {
            let mut cut = redis::cmd("PEXPIRE");
            cut.arg(&lease).arg(ttl_ms);
            self.call("lease", cut).await?;
        }
        Ok(())
    }

    /// Fills a key in this order. First the key joins its tags' sets, and is refused if one was
    /// invalidated since the grant. Then the value is set if the lease is still valid.
    ///
    /// An invalidation after the first step finds the key in the set and voids its lease.
    pub(in crate::cache) async fn fill(
        &self,
        context: &Context,
        token: &str,
        since: u64,
        NewValue { key, value, expiry, tags }: NewValue<'_>,
    ) -> Result<FillOutcome, CommandError> {
        if !slot::has_side_keys(key.as_bytes())
            || tags.iter().any(|tag| !slot::has_side_keys(context.tag_set(tag).as_bytes()))
        {
            return Err(side_keys_apart());
        }
        let Some(lifetime @ Lifetime { unit, millis, set_millis }) =
            Lifetime::draw(expiry, lifetime::now_ms())
        else {
            self.call("lease", lease::release(key, token)).await?;
            return Ok(FillOutcome::Over);
        };
        let join = |tag: &String| {
            let set = context.tag_set(tag).into_bytes();
            let mut command = JOIN_TAG.call(
                &mut Sent::all(),
                [set.as_slice(), &side_key(Kind::Generation, &set)].into_iter(),
            );
            command.arg(key).arg(since).arg(unit.option()).arg(lifetime.joined_millis());
            command
        };
        for answer in self.run_alone(&tags.iter().map(join).collect::<Vec<_>>()).await? {
            if answer != Value::Int(1) {
                self.call("lease", lease::release(key, token)).await?;
                return match failure::of_answer("fill", Some(answer))? {
                    Value::Int(0) => Ok(FillOutcome::Refused),
                    _ => Err(unexpected()),
                };
            }
        }
        let keys = [key.as_bytes().to_vec(), side_key(Kind::Lease, key.as_bytes())];
        let mut command = FILL.call(&mut Sent::all(), keys.iter().map(Vec::as_slice));
        command.arg(token).arg(since).arg(value).arg(unit.option()).arg(millis).arg(set_millis);
        match self.call("fill", command).await? {
            Value::Int(1) => Ok(FillOutcome::Filled),
            Value::Int(0) => Ok(FillOutcome::Refused),
            _ => Err(unexpected()),
        }
    }
}

/// Returns the error of a key or tag whose side keys would be in another slot.
fn side_keys_apart() -> CommandError {
    CommandError::Refused(SIDE_KEYS_APART.into())
}
