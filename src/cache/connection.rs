//! The connection to the one Redis server that takes writes. Its address is a setting, or comes
//! from sentinels.

use std::sync::Arc;

use redis::{Cmd, Pipeline, Value};

use super::connection_state::{Connect, ConnectionState, SharedConnection};
use super::failure::{self, CacheError, CommandError, Outage};
use super::sentinel::SentinelPrimary;
use super::socket::{self, Socket};
use crate::config::{RedisConfig, RedisMode};

/// The connection to the server that takes writes.
#[derive(Debug)]
pub(super) enum PrimaryConnection {
    Named(SharedConnection<NamedServer>),
    Watched(SharedConnection<SentinelPrimary>),
}

/// Server with a fixed address.
#[derive(Debug)]
pub(super) struct NamedServer {
    client: redis::Client,
    probe_key: String,
}

impl PrimaryConnection {
    pub(super) fn new(config: &RedisConfig, probe_key: String) -> Result<Self, CacheError> {
        if let RedisMode::Sentinel { master } = &config.mode {
            return Ok(Self::Watched(SharedConnection::new(SentinelPrimary::new(
                config, master, probe_key,
            )?)));
        }
        let [url] = config.urls.as_slice() else {
            return Err(CacheError::Url("UNSTALE_REDIS_MODE=single takes one address".into()));
        };
        let client = socket::client(url.expose(), &config.tls)?;
        Ok(Self::Named(SharedConnection::new(NamedServer { client, probe_key })))
    }

    pub(super) fn state(&self) -> ConnectionState {
        match self {
            Self::Named(connection) => connection.state(),
            Self::Watched(connection) => connection.state(),
        }
    }

    pub(super) fn live(&self) -> Result<Arc<Socket>, Outage> {
        match self {
            Self::Named(connection) => connection.live(),
            Self::Watched(connection) => connection.live(),
        }
    }

    /// See [`SharedConnection::give_up`].
    pub(super) fn give_up(&self, live: &Socket, outage: &Outage) {
        match self {
            Self::Named(connection) => connection.give_up(live, outage),
            Self::Watched(connection) => connection.give_up(live, outage),
        }
    }

    /// Sends commands in one pipeline and awaits their answers, which include errors of single
    /// commands. The first poll sends them.
    pub(super) async fn send(
        &self,
        live: &Socket,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, Outage> {
        let result = live.send(pipeline).await;
        if let Err(outage) = &result {
            self.give_up(live, outage);
        }
        result
    }

    /// Runs one command by itself.
    pub(super) async fn call(&self, name: &str, command: Cmd) -> Result<Value, CommandError> {
        let live = self.live()?;
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        let answer = failure::of_answer(name, self.send(&live, &pipeline).await?.pop());
        if let Err(CommandError::Outage(outage)) = &answer {
            self.give_up(&live, outage);
        }
        answer
    }

    /// Opens another connection, to a server that need not take writes.
    pub(super) async fn connect_apart(&self) -> Result<Arc<Socket>, Outage> {
        match self {
            Self::Named(connection) => connection.connect().connect().await,
            Self::Watched(connection) => connection.connect().connect().await,
        }
    }

    /// See [`SharedConnection::probe`].
    pub(super) async fn probe(&self) -> Result<(), Outage> {
        match self {
            Self::Named(connection) => connection.probe().await,
            Self::Watched(connection) => connection.probe().await,
        }
    }
}

impl Connect for NamedServer {
    type Live = Socket;

    async fn connect(&self) -> Result<Arc<Socket>, Outage> {
        let socket = Socket::connect(&self.client).await?;
        if socket.keeps_slots_apart().await? {
            return Err(failure::is_cluster());
        }
        Ok(Arc::new(socket))
    }

    async fn check(&self, live: &Socket) -> Result<(), Outage> {
        live.check(&self.probe_key).await
    }
}
