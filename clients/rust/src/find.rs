//! Before the load: finds the value or takes the lease, or gives up waiting.

use std::time::Duration;

use redis::Value;
use redis::aio::ConnectionLike;
use tokio::time::Instant;

use super::fill::Lease;
use super::names::ReadKeys;
use super::redis_call::{Away, READ_SCRIPT};
use super::{Outcome, Reader};
use crate::backoff::{Backoff, Doubling};
use crate::protocol::side_keys::SEQUENCE;

/// Between two looks at another reader's lease.
const PAUSES: Doubling =
    Doubling { first: Duration::from_millis(10), longest: Duration::from_millis(200) };

pub(super) enum Lookup<C: ConnectionLike + Clone + Send + Sync + 'static> {
    Value(Vec<u8>, Outcome),
    /// The caller is to load and fill. `old` is a value that is still valid for a while.
    Lease {
        lease: Box<Lease<C>>,
        old: Option<Vec<u8>>,
    },
    /// The caller is to load, and not to fill.
    Nothing(Outcome),
}

enum ReadAnswer<C: ConnectionLike + Clone + Send + Sync + 'static> {
    Value(Vec<u8>),
    Lease { lease: Box<Lease<C>>, old: Option<Vec<u8>> },
    Held,
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Reader<C> {
    pub(super) async fn find(&self, names: &ReadKeys) -> Lookup<C> {
        // The shortest way to a cached value. An early load needs the remaining lifetime, which the
        // script returns.
        if self.options.stale.is_zero() {
            match self.ask(redis::cmd("GET").arg(&names.key)).await {
                Ok(Value::BulkString(value)) => return Lookup::Value(value, Outcome::Hit),
                Ok(_) => {}
                Err(Away) => return Lookup::Nothing(Outcome::Away),
            }
        }
        let deadline = Instant::now() + self.options.wait;
        let mut stale = self.options.stale;
        let mut backoff = Backoff::new(PAUSES);
        let mut found_as = Outcome::Hit;
        loop {
            match self.try_read(names, stale).await {
                Err(Away) => return Lookup::Nothing(Outcome::Away),
                Ok(ReadAnswer::Value(value)) => return Lookup::Value(value, found_as),
                Ok(ReadAnswer::Lease { lease, old }) => return Lookup::Lease { lease, old },
                Ok(ReadAnswer::Held) if Instant::now() >= deadline => {
                    return Lookup::Nothing(Outcome::Crowded);
                }
                Ok(ReadAnswer::Held) => {
                    let pause = backoff.next_delay(fastrand::f64());
                    // The last look is at the end.
                    tokio::time::sleep_until((Instant::now() + pause).min(deadline)).await;
                    (stale, found_as) = (Duration::ZERO, Outcome::Waited);
                }
            }
        }
    }

    async fn try_read(&self, names: &ReadKeys, stale: Duration) -> Result<ReadAnswer<C>, Away> {
        // From here on, a lease that Redis may have granted is released in every case.
        let mut lease = Box::new(Lease::new(self.clone(), names.lease.clone()));
        let (lease_ms, stale_ms) =
            (self.options.lease.as_millis().max(1).to_string(), stale.as_millis().to_string());
        let keys: [&[u8]; 3] = [&names.key, &names.lease, SEQUENCE];
        let keys = if self.options.cluster { &keys[..2] } else { &keys[..] };
        let arguments = [lease.token.as_bytes(), lease_ms.as_bytes(), stale_ms.as_bytes()];
        let Value::Array(answer) = self.run(&READ_SCRIPT, keys, &arguments).await? else {
            return Err(Away);
        };
        let mut words = answer
            .into_iter()
            .map(|word| if let Value::BulkString(bytes) = word { bytes } else { Vec::new() });
        match words.next().as_deref() {
            Some(b"value") => {
                lease.disarm();
                Ok(ReadAnswer::Value(words.next().ok_or(Away)?))
            }
            Some(b"held") => {
                lease.disarm();
                Ok(ReadAnswer::Held)
            }
            Some(b"lease") => {
                lease.since = words.next().ok_or(Away)?;
                if self.options.cluster {
                    // The sequence is in a slot of its own: read it after the grant and before the
                    // load.
                    lease.since = match self.ask(redis::cmd("GET").arg(SEQUENCE)).await? {
                        Value::BulkString(since) => since,
                        _ => b"0".to_vec(),
                    };
                }
                Ok(ReadAnswer::Lease { lease, old: words.next() })
            }
            _ => Err(Away),
        }
    }
}
