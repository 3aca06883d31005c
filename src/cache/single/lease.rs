//! Leases on a single server: one script grants a lease, and one fills a key and its tags' sets.

use redis::Value;

use super::super::answer::integers;
use super::super::context::Context;
use super::super::failure::CommandError;
use super::super::lease::{self, FillOutcome, Grant, NewValue, unexpected};
use super::super::lifetime::{self, Lifetime};
use super::super::script::{FILL, GRANT_LEASE, Sent};
use super::super::side_keys::{Kind, SEQUENCE, side_key};
use super::Single;

impl Single {
    /// Grants a lease and reads the sequence in one step.
    pub(in crate::cache) async fn grant_lease(
        &self,
        key: &str,
        token: &str,
        ttl_ms: i64,
    ) -> Result<Grant, CommandError> {
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

    /// Fills a key and adds it to its tags' sets in one step.
    pub(in crate::cache) async fn fill(
        &self,
        context: &Context,
        token: &str,
        since: u64,
        NewValue { key, value, expiry, tags }: NewValue<'_>,
    ) -> Result<FillOutcome, CommandError> {
        let Some(Lifetime { unit, millis, set_millis }) =
            Lifetime::draw(expiry, lifetime::now_ms())
        else {
            self.call("lease", lease::release(key, token)).await?;
            return Ok(FillOutcome::Over);
        };
        let mut keys = vec![key.as_bytes().to_vec(), side_key(Kind::Lease, key.as_bytes())];
        for tag in tags {
            let set = context.tag_set(tag).into_bytes();
            let generation = side_key(Kind::Generation, &set);
            keys.extend([set, generation]);
        }
        let mut command = FILL.call(&mut Sent::default(), keys.iter().map(Vec::as_slice));
        command.arg(token).arg(since).arg(value).arg(unit.option()).arg(millis).arg(set_millis);
        match self.call_with_checkpoint(context, "fill", command).await? {
            Value::Int(1) => Ok(FillOutcome::Filled),
            Value::Int(0) => Ok(FillOutcome::Refused),
            _ => Err(unexpected()),
        }
    }
}
