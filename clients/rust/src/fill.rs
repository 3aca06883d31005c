//! After the load: stores the value unless its lease is void, and releases the lease.

use std::time::Duration;

use redis::Value;
use redis::aio::ConnectionLike;

use super::names::{ReadKeys, TagKeys};
use super::redis_call::{Away, FILL_SCRIPT, JOIN_SCRIPT, RELEASE_SCRIPT};
use super::{Outcome, Reader};
use crate::protocol::new_token;

/// A lease that may be ours. If it is dropped, a task releases it where possible.
pub(super) struct Lease<C: ConnectionLike + Clone + Send + Sync + 'static> {
    /// `None` once there is nothing to release.
    reader: Option<Reader<C>>,
    name: Vec<u8>,
    pub(super) token: String,
    /// Number of the sequence of invalidations at the grant.
    pub(super) since: Vec<u8>,
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Lease<C> {
    pub(super) fn new(reader: Reader<C>, name: Vec<u8>) -> Self {
        Self { reader: Some(reader), name, token: new_token(), since: Vec::new() }
    }

    pub(super) fn disarm(&mut self) {
        self.reader = None;
    }

    /// Releases the lease, so that the next reader may load at once.
    pub(super) async fn release(mut self) {
        // Armed until it is done: a caller that is cancelled here still releases it.
        if let Some(reader) = self.reader.clone() {
            let _ = reader.run(&RELEASE_SCRIPT, &[&self.name], &[self.token.as_bytes()]).await;
            self.disarm();
        }
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Drop for Lease<C> {
    fn drop(&mut self) {
        let (Some(reader), Ok(runtime)) =
            (self.reader.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (name, token) = (std::mem::take(&mut self.name), std::mem::take(&mut self.token));
        runtime.spawn(async move {
            let _ = reader.run(&RELEASE_SCRIPT, &[&name], &[token.as_bytes()]).await;
        });
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Reader<C> {
    pub(super) async fn fill(
        &self,
        names: &ReadKeys,
        mut lease: Box<Lease<C>>,
        value: &[u8],
        ttl: Duration,
        tags: &[String],
    ) -> Outcome {
        let outcome = self.try_fill(names, &lease, value, ttl, tags).await;
        match outcome {
            // The script released it.
            Ok(Outcome::Filled) => lease.disarm(),
            _ => lease.release().await,
        }
        outcome.unwrap_or(Outcome::Away)
    }

    async fn try_fill(
        &self,
        names: &ReadKeys,
        lease: &Lease<C>,
        value: &[u8],
        ttl: Duration,
        tags: &[String],
    ) -> Result<Outcome, Away> {
        let longest_ms =
            i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 2).clamp(1, i64::MAX / 2);
        let millis = draw_ttl_ms(longest_ms, self.options.jitter).to_string();
        let set_millis = longest_ms.to_string();
        // The value's time begins after the set's, by the rest of the lease at most.
        let joined_millis = longest_ms
            .saturating_add(i64::try_from(self.options.lease.as_millis()).unwrap_or(0))
            .to_string();
        let mut beside = Vec::new();
        for tag in tags {
            let tag = TagKeys::of(&self.options, tag).ok_or(Away)?;
            if tag.is_beside(&self.options, &names.key) {
                beside.push(tag);
            } else {
                let arguments: [&[u8]; 4] =
                    [&names.key, &lease.since, b"PX", joined_millis.as_bytes()];
                if !is_yes(
                    &self.run(&JOIN_SCRIPT, &[&tag.set, &tag.generation], &arguments).await?,
                )? {
                    return Ok(Outcome::Void);
                }
            }
        }
        // This comes last: from here on every tag reaches the key, and so voids its lease.
        let mut keys: Vec<&[u8]> = vec![&names.key, &names.lease];
        keys.extend(beside.iter().flat_map(|tag| [tag.set.as_slice(), &tag.generation]));
        let arguments: [&[u8]; 6] = [
            lease.token.as_bytes(),
            &lease.since,
            value,
            b"PX",
            millis.as_bytes(),
            set_millis.as_bytes(),
        ];
        let filled = is_yes(&self.run(&FILL_SCRIPT, &keys, &arguments).await?)?;
        Ok(if filled { Outcome::Filled } else { Outcome::Void })
    }
}

fn is_yes(answer: &Value) -> Result<bool, Away> {
    match answer {
        Value::Int(1) => Ok(true),
        Value::Int(0) => Ok(false),
        _ => Err(Away),
    }
}

/// Draws a TTL, so that keys filled together do not all expire together.
fn draw_ttl_ms(longest_ms: i64, jitter: f64) -> i64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "chance needs no more digits"
    )]
    let off = (longest_ms as f64 * jitter.clamp(0.0, 1.0) * fastrand::f64()) as i64;
    (longest_ms - off).max(1)
}
