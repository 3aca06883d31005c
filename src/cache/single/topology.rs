//! Finds the server that takes writes: at the address of the settings, or by sentinels.

use std::sync::Arc;

use super::super::connection_state::Connect;
use super::super::failure::{self, CacheError, Outage};
use super::super::side_keys;
use super::super::socket::{self, Socket};
use super::sentinel::SentinelPrimary;
use crate::config::{RedisConfig, RedisMode};

/// Settings for finding the server.
#[derive(Debug)]
pub(super) enum Topology {
    Named(NamedServer),
    Watched(SentinelPrimary),
}

/// Server with a fixed address.
#[derive(Debug)]
pub(super) struct NamedServer {
    client: redis::Client,
    probe_key: String,
}

impl Topology {
    pub(super) fn new(config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        let probe_key = side_keys::probe(queue);
        if let RedisMode::Sentinel { master } = &config.mode {
            return SentinelPrimary::new(config, master, probe_key).map(Self::Watched);
        }
        let [url] = config.urls.as_slice() else {
            return Err(CacheError::Url("UNSTALE_REDIS_MODE=single takes one address".into()));
        };
        let client = socket::client(url.expose(), &config.tls)?;
        Ok(Self::Named(NamedServer { client, probe_key }))
    }
}

impl Connect for Topology {
    type Live = Socket;

    async fn connect(&self) -> Result<Arc<Socket>, Outage> {
        match self {
            Self::Named(server) => server.connect().await,
            Self::Watched(primary) => primary.connect().await,
        }
    }

    async fn check(&self, live: &Socket) -> Result<(), Outage> {
        match self {
            Self::Named(server) => live.check(&server.probe_key).await,
            Self::Watched(primary) => primary.check(live).await,
        }
    }
}

impl NamedServer {
    async fn connect(&self) -> Result<Arc<Socket>, Outage> {
        let socket = Socket::connect(&self.client).await?;
        if socket.keeps_slots_apart().await? {
            return Err(failure::is_cluster());
        }
        Ok(Arc::new(socket))
    }
}
