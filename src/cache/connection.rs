//! The connection to the one Redis server that takes writes. Its address is a setting, or comes
//! from sentinels.

use std::sync::Arc;

use redis::{Cmd, Pipeline, Value};

use super::failure::{self, CommandError, Outage};
use super::sentinel::Primary;
use super::socket::{self, Socket};
use super::standing::{Connect, Standing, State};
use crate::config::{RedisConfig, RedisMode};

/// Settings that no connection can be made with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// The URLs are not usable. The text never quotes a URL, which may hold a password.
    #[error("UNSTALE_REDIS_URL: {0}")]
    Url(String),
    /// The PEM texts are not usable.
    #[error("UNSTALE_REDIS_TLS_{{CA,CERT,KEY}}: {0}")]
    Tls(String),
}

/// The connection to the server that takes writes.
#[derive(Debug)]
pub(super) enum Link {
    Named(Standing<Server>),
    Watched(Standing<Primary>),
}

/// Server with a fixed address.
#[derive(Debug)]
pub(super) struct Server {
    client: redis::Client,
    probe_key: String,
}

impl Link {
    pub(super) fn new(config: &RedisConfig, probe_key: String) -> Result<Self, CacheError> {
        if let RedisMode::Sentinel { master } = &config.mode {
            return Ok(Self::Watched(Standing::new(Primary::new(config, master, probe_key)?)));
        }
        let [url] = config.urls.as_slice() else {
            return Err(CacheError::Url(
                "one address is expected with UNSTALE_REDIS_MODE=single".into(),
            ));
        };
        let client = socket::client(url.expose(), &config.tls)?;
        Ok(Self::Named(Standing::new(Server { client, probe_key })))
    }

    pub(super) fn state(&self) -> State {
        match self {
            Self::Named(standing) => standing.state(),
            Self::Watched(standing) => standing.state(),
        }
    }

    pub(super) fn live(&self) -> Result<Arc<Socket>, Outage> {
        match self {
            Self::Named(standing) => standing.live(),
            Self::Watched(standing) => standing.live(),
        }
    }

    /// See [`SharedConnection::give_up`].
    pub(super) fn give_up(&self, live: &Socket, outage: &Outage) {
        match self {
            Self::Named(standing) => standing.give_up(live, outage),
            Self::Watched(standing) => standing.give_up(live, outage),
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
            Self::Named(standing) => standing.connect().connect().await,
            Self::Watched(standing) => standing.connect().connect().await,
        }
    }

    /// See [`SharedConnection::probe`].
    pub(super) async fn probe(&self) -> Result<(), Outage> {
        match self {
            Self::Named(standing) => standing.probe().await,
            Self::Watched(standing) => standing.probe().await,
        }
    }
}

impl Connect for Server {
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
