//! Redis as the worker uses it: connection, apply, tags and their upkeep, leases. Nothing else but [`reader`](crate::reader) speaks to it.
//!
//! A [`Cache`] has one connection that all share. Only [`Cache::probe`] makes one; an outage ends it, with everything under way on it.

mod address;
mod apply;
mod connection;
mod eviction;
mod failure;
mod fence;
mod lease;
mod lifetime;
mod prune;
pub(crate) mod script;
mod sentinel;
mod server;
pub(crate) mod side_keys;
mod socket;
mod standing;
mod tags;
mod workers;

pub use apply::{Applied, KeyHits};
pub use connection::CacheError;
pub use eviction::Eviction;
pub use failure::{CommandError, Outage};
pub use lease::{Fill, Grant, LONGEST_LEASE, new_token};
pub use prune::{PRUNE_STEP, Pruned, TagSets};
pub use script::READER_SCRIPTS;
pub use server::Server;
pub use standing::State;
pub use tags::{Drained, Invalidated};
pub use workers::{REPORT_COUNTS_FOR, Report, Reported};

use redis::{Cmd, Pipeline, Value};

use crate::config::RedisConfig;
use connection::Link;

/// Redis, as far as this program uses it.
#[derive(Debug)]
pub struct Cache {
    link: Link,
    tag_prefix: String,
    fence_ttl_ms: i64,
    workers: String,
}

impl Cache {
    /// Checks the settings. Nothing is asked of the server before the first [`probe`](Self::probe).
    ///
    /// # Errors
    /// A mode that is not supported, a URL or PEM texts that cannot be used.
    pub fn connect(config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        Ok(Self {
            link: Link::new(config, side_keys::probe(queue))?,
            tag_prefix: config.tag_prefix.clone(),
            fence_ttl_ms: lifetime::millis(config.fence_ttl),
            workers: side_keys::workers(queue),
        })
    }

    /// Finds out whether Redis can be worked with: it answers, has its data loaded, and takes writes. Connects where nothing stands.
    /// Paces itself: after a failure the next call waits before it asks, up to a second, so that callers may simply loop.
    ///
    /// # Errors
    /// What is in the way.
    pub async fn probe(&self) -> Result<(), Outage> {
        self.link.probe().await
    }

    /// Whether Redis can be worked with, as far as is known without asking.
    pub fn state(&self) -> State {
        self.link.state()
    }

    /// What begins the names of tags' sets (`UNSTALE_TAG_PREFIX`).
    pub fn tag_prefix(&self) -> &str {
        &self.tag_prefix
    }

    fn tag_set(&self, tag: &str) -> String {
        [&self.tag_prefix, tag].concat()
    }

    /// One command by itself, outside any batch.
    async fn call(&self, name: &str, command: Cmd) -> Result<Value, CommandError> {
        let live = self.link.live()?;
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        match self.link.send(&live, &pipeline).await?.pop() {
            Some(Value::ServerError(error)) => {
                let error = failure::classify(name, &error);
                if let CommandError::Outage(outage) = &error {
                    self.link.give_up(&live, outage);
                }
                Err(error)
            }
            Some(value) => Ok(value),
            None => Err(CommandError::Failed(format!("{name}: no answer"))),
        }
    }
}

/// Whole numbers of a script's answer.
fn integers<const N: usize>(value: &Value) -> Option<[u64; N]> {
    let Value::Array(items) = value else { return None };
    let mut numbers = [0; N];
    for (number, item) in numbers.iter_mut().zip(items) {
        *number = match item {
            Value::Int(int) => u64::try_from(*int).ok()?,
            Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok()?,
            _ => return None,
        };
    }
    (items.len() == N).then_some(numbers)
}
