//! Before the load: the value, or the lease, or the end of one's patience.

use std::time::Duration;

use redis::Value;
use redis::aio::ConnectionLike;
use tokio::time::Instant;

use super::fill::Lease;
use super::names::Names;
use super::redis_call::{Away, READ_SCRIPT};
use super::{Outcome, Reader};
use crate::backoff::{Backoff, Doubling};
use crate::cache::side_keys::SEQUENCE;

/// Between two looks at another reader's lease.
const PAUSES: Doubling =
    Doubling { first: Duration::from_millis(10), longest: Duration::from_millis(200) };

pub(super) enum Found<C: ConnectionLike + Clone + Send + Sync + 'static> {
    Value(Vec<u8>, Outcome),
    /// To load, and to fill. `old` is the value that still is good for a while.
    Lease {
        lease: Box<Lease<C>>,
        old: Option<Vec<u8>>,
    },
    /// To load, and not to fill.
    Nothing(Outcome),
}

enum Look<C: ConnectionLike + Clone + Send + Sync + 'static> {
    Value(Vec<u8>),
    Lease { lease: Box<Lease<C>>, old: Option<Vec<u8>> },
    Held,
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Reader<C> {
    pub(super) async fn find(&self, names: &Names) -> Found<C> {
        // The shortest way for what is there. An early load needs to know how long it lives, which
        // the script tells.
        if self.options.stale.is_zero() {
            match self.ask(redis::cmd("GET").arg(&names.key)).await {
                Ok(Value::BulkString(value)) => return Found::Value(value, Outcome::Hit),
                Ok(_) => {}
                Err(Away) => return Found::Nothing(Outcome::Away),
            }
        }
        let deadline = Instant::now() + self.options.wait;
        let mut stale = self.options.stale;
        let mut backoff = Backoff::new(PAUSES);
        let mut found_as = Outcome::Hit;
        loop {
            match self.look(names, stale).await {
                Err(Away) => return Found::Nothing(Outcome::Away),
                Ok(Look::Value(value)) => return Found::Value(value, found_as),
                Ok(Look::Lease { lease, old }) => return Found::Lease { lease, old },
                Ok(Look::Held) if Instant::now() >= deadline => {
                    return Found::Nothing(Outcome::Crowded);
                }
                Ok(Look::Held) => {
                    let pause = backoff.next_delay(fastrand::f64());
                    // The last look is at the end.
                    tokio::time::sleep_until((Instant::now() + pause).min(deadline)).await;
                    (stale, found_as) = (Duration::ZERO, Outcome::Waited);
                }
            }
        }
    }

    async fn look(&self, names: &Names, stale: Duration) -> Result<Look<C>, Away> {
        // From here on, whatever is in the way: a lease that Redis may have granted is given back.
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
                Ok(Look::Value(words.next().ok_or(Away)?))
            }
            Some(b"held") => {
                lease.disarm();
                Ok(Look::Held)
            }
            Some(b"lease") => {
                lease.since = words.next().ok_or(Away)?;
                if self.options.cluster {
                    // In a slot of its own: asked for after the grant and before the load.
                    lease.since = match self.ask(redis::cmd("GET").arg(SEQUENCE)).await? {
                        Value::BulkString(since) => since,
                        _ => b"0".to_vec(),
                    };
                }
                Ok(Look::Lease { lease, old: words.next() })
            }
            _ => Err(Away),
        }
    }
}
