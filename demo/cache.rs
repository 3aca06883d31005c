//! The cache, as an application sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use redis::aio::MultiplexedConnection;

use crate::steps::{Seed, Step};

/// Prefix of unstale's own keys, which are not part of the cache.
const BOOKKEEPING: &str = "unstale:";

/// The state of one key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    Absent,
    Text { text: String, ttl: Option<Duration> },
    Set(BTreeSet<String>),
}

/// The keys that a step watches, and the names of all others.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) watched: BTreeMap<&'static str, State>,
    pub(crate) others: BTreeSet<String>,
}

pub(crate) struct Cache {
    connection: MultiplexedConnection,
}

impl Cache {
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let client = redis::Client::open(url).context("UNSTALE_REDIS_URL")?;
        let connection = client
            .get_multiplexed_async_connection()
            .await
            .context("Redis does not take a connection")?;
        Ok(Self { connection })
    }

    /// Sets the keys of a step as an application would have left them.
    pub(crate) async fn seed(&mut self, step: &Step) -> anyhow::Result<()> {
        let mut pipe = redis::pipe();
        for row in &step.rows {
            pipe.del(row.key).ignore();
            match &row.seed {
                Seed::Absent => {}
                Seed::Text(text) => drop(pipe.set(row.key, *text).ignore()),
                Seed::Cached(text, seconds) => drop(pipe.set_ex(row.key, *text, *seconds).ignore()),
                Seed::Tag(members) => drop(pipe.sadd(row.key, *members).ignore()),
            }
        }
        pipe.query_async::<()>(&mut self.connection)
            .await
            .context("Redis does not take the sample keys")
    }

    /// Deletes the keys of a step, so that the next step begins with its own keys only.
    pub(crate) async fn clear(&mut self, step: &Step) -> anyhow::Result<()> {
        let keys: Vec<&str> = step.rows.iter().map(|row| row.key).collect();
        Ok(redis::cmd("DEL").arg(keys).query_async(&mut self.connection).await?)
    }

    pub(crate) async fn look(&mut self, step: &Step) -> anyhow::Result<Snapshot> {
        let mut watched = BTreeMap::new();
        for row in &step.rows {
            watched.insert(row.key, self.state(row.key).await?);
        }
        // The demo's Redis is private and small.
        let names: Vec<String> =
            redis::cmd("KEYS").arg("*").query_async(&mut self.connection).await?;
        let others = names
            .into_iter()
            .filter(|name| !name.starts_with(BOOKKEEPING) && !watched.contains_key(name.as_str()))
            .collect();
        Ok(Snapshot { watched, others })
    }

    async fn state(&mut self, key: &str) -> anyhow::Result<State> {
        // One transaction, so that no key expires between the queries.
        let (kind, pttl): (String, i64) = redis::pipe()
            .atomic()
            .cmd("TYPE")
            .arg(key)
            .cmd("PTTL")
            .arg(key)
            .query_async(&mut self.connection)
            .await?;
        Ok(match kind.as_str() {
            "string" => {
                let text: Option<String> =
                    redis::cmd("GET").arg(key).query_async(&mut self.connection).await?;
                let ttl = u64::try_from(pttl).ok().map(Duration::from_millis);
                text.map_or(State::Absent, |text| State::Text { text, ttl })
            }
            "set" => {
                State::Set(redis::cmd("SMEMBERS").arg(key).query_async(&mut self.connection).await?)
            }
            _ => State::Absent,
        })
    }
}
