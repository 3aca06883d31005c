//! One Redis server takes all writes. Its address is a setting, or comes from sentinels.
//!
//! The files have the names of those in [`cluster`](super::cluster):
//!
//! - `topology`, `sentinel`: find the server that takes writes
//! - `apply`: a plan in one round trip
//! - `checkpoint_writes`: one checkpoint after each batch
//! - `tags`, `lease`, `tag_maintenance`: one script each
//! - `heal`, `without_memory`: the turn to heal, and deletions on a connection of their own

mod apply;
mod checkpoint_writes;
mod heal;
mod lease;
mod sentinel;
mod tag_maintenance;
mod tags;
mod topology;
mod without_memory;

use std::sync::Arc;

use redis::{Cmd, Pipeline, Value};
use tokio::sync::Mutex;

use super::connection_state::{ConnectionState, SharedConnection};
use super::failure::{self, CacheError, CommandError, Outage};
use super::script::Sent;
use super::socket::Socket;
use crate::config::RedisConfig;
use topology::Topology;

/// The server that takes writes. All callers share one connection.
#[derive(Debug)]
pub(super) struct Single {
    connection: SharedConnection<Topology>,
    /// Connection for deletions alone.
    apart: Mutex<Option<Arc<Socket>>>,
}

impl Single {
    pub(super) fn new(config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        Ok(Self {
            connection: SharedConnection::new(Topology::new(config, queue)?),
            apart: Mutex::default(),
        })
    }

    pub(super) fn state(&self) -> ConnectionState {
        self.connection.state()
    }

    pub(super) async fn probe(&self) -> Result<(), Outage> {
        self.connection.probe().await
    }

    /// Gives the connection up, so that nothing more is sent before the next probe.
    pub(super) fn give_up(&self, outage: &Outage) {
        if let Ok(live) = self.connection.live() {
            self.connection.give_up(&live, outage);
        }
    }

    /// The first call in a pipeline sends a script in full.
    pub(super) fn sent(&self) -> Sent {
        Sent::default()
    }

    pub(super) fn moves_slots(&self) -> bool {
        false
    }

    /// Runs one command by itself.
    pub(super) async fn call(&self, name: &str, command: Cmd) -> Result<Value, CommandError> {
        let live = self.connection.live()?;
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        let answer = failure::of_answer(name, self.send(&live, &pipeline).await?.pop());
        if let Err(CommandError::Outage(outage)) = &answer {
            self.connection.give_up(&live, outage);
        }
        answer
    }

    /// Sends commands in one pipeline and awaits their answers, which include errors of single
    /// commands. The first poll sends them.
    async fn send(&self, live: &Socket, pipeline: &Pipeline) -> Result<Vec<Value>, Outage> {
        let result = live.send(pipeline).await;
        if let Err(outage) = &result {
            self.connection.give_up(live, outage);
        }
        result
    }
}
