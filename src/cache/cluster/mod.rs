//! Redis Cluster: commands go to the node that serves their slot, and follow a slot that moves.
//!
//! Commands take effect in order. A plan is sent once the previous one is done
//! ([`Cluster::in_turn`]). Within a plan, the commands of a slot are in one pipeline, in order. If
//! a node redirects one of them, it and all later commands of its slot are sent again, one by one.
//! A command that runs twice has the same result as one that runs once. So a redirection delays
//! events and has no other effect on them.
//!
//! `single` has files of the same names for the same subjects. A table in `docs/architecture.md`
//! compares the two. The files of this folder, in reading order:
//!
//! - `topology`: finds the primaries
//! - `nodes`: the primaries, their connections, and the owner of each slot
//! - `run`, `node_batch`, `redirection`: sends commands to their nodes, and follows redirections
//! - `apply`: a plan in four steps
//! - `checkpoint_writes`: writes checkpoints after the commands of each primary
//! - `tags`, `lease`, `tag_maintenance`: operations that are one script on a single server, and
//!   several steps here
//! - `heal`, `without_memory`: the turn to heal, and deletions on connections of their own
//!
//! The cluster client of redis-rs is not used: it keeps no order among commands of a slot, and
//! hides which node ran a command. Checkpoints need both.

mod apply;
mod checkpoint_writes;
mod heal;
mod lease;
mod node_batch;
mod nodes;
mod redirection;
mod run;
mod tag_maintenance;
mod tags;
mod topology;
mod without_memory;

use std::sync::Arc;

use redis::{Cmd, Value};
use tokio::sync::{Mutex, MutexGuard};

use super::connection_state::{ConnectionState, LiveConnection, SharedConnection};
use super::failure::{self, CacheError, CommandError, Outage};
use super::script::Sent;
use super::slot;
use crate::config::RedisConfig;
use nodes::Nodes;
use topology::Topology;

/// Refusal of a key or tag whose side keys would be in another slot.
const SIDE_KEYS_APART: &str = "a } in a key or tag without a {…} before it: in a Redis Cluster, its side keys would be in another slot";

/// A cluster that all callers share.
#[derive(Debug)]
pub(super) struct Cluster {
    connection: SharedConnection<Topology>,
    turn: Mutex<()>,
    /// Connections for deletions alone.
    apart: Mutex<Option<Arc<Nodes>>>,
}

impl Cluster {
    pub(super) fn new(config: &RedisConfig, queue: &str) -> Result<Self, CacheError> {
        Ok(Self {
            connection: SharedConnection::new(Topology::new(config, queue)?),
            turn: Mutex::default(),
            apart: Mutex::default(),
        })
    }

    pub(super) fn state(&self) -> ConnectionState {
        self.connection.state()
    }

    pub(super) async fn probe(&self) -> Result<(), Outage> {
        self.connection.probe().await
    }

    /// Gives the connections up, so that nothing more is sent before the next probe.
    pub(super) fn give_up(&self, outage: &Outage) {
        if let Ok(nodes) = self.connection.live() {
            self.connection.give_up(&nodes, outage);
        }
    }

    /// Returns that every script counts as sent. A node that lacks one answers with an error, and
    /// then receives it.
    pub(super) fn sent(&self) -> Sent {
        Sent::all()
    }

    pub(super) fn moves_slots(&self) -> bool {
        true
    }

    /// Waits for the right to send a plan or other commands with checkpoints. It is granted in the
    /// order of the first polls.
    async fn in_turn(&self) -> Result<(Arc<Nodes>, MutexGuard<'_, ()>), Outage> {
        let nodes = self.connection.live()?;
        // Unconstrained: a task without budget left must still queue, or later plans would overtake
        // this one.
        let turn = tokio::task::unconstrained(self.turn.lock()).await;
        // An outage of the previous plan fails this plan too: this one must not take effect before
        // the previous one is applied again.
        nodes.given_up().map_or(Ok(()), |outage| Err(outage.clone()))?;
        Ok((nodes, turn))
    }

    /// Runs one command by itself.
    pub(super) async fn call(&self, name: &str, command: Cmd) -> Result<Value, CommandError> {
        let nodes = self.connection.live()?;
        let answer = match self.follow(&nodes, slot::of_command(&command), &command).await {
            Ok((answer, _)) => failure::of_answer(name, Some(answer)),
            Err(outage) => Err(outage.into()),
        };
        if let Err(CommandError::Outage(outage)) = &answer {
            self.connection.give_up(&nodes, outage);
        }
        answer
    }
}
