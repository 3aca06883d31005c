//! Deletions while Redis refuses all commands that need memory (`maxmemory` under `noeviction`).
//! Redis takes deletions, which free memory.
//!
//! They use a connection of their own, since the others are given up during the outage. None of
//! them counts as done. The events are applied again as a whole once Redis takes writes, and only
//! then acknowledged.

use std::sync::Arc;

use redis::{Cmd, Pipeline, Value};

use super::cluster::{Nodes, Unconfirmed};
use super::commands::{CHUNK_COMMANDS, unlink};
use super::failure::{self, CommandError, Outage};
use super::side_keys::{Kind, side_key};
use super::socket::Socket;
use super::{Cache, Redis};
use crate::plan::{Command, Plan};

/// A connection for deletions alone.
#[derive(Debug)]
pub(super) enum Deleter {
    Primary(Arc<Socket>),
    Cluster(Arc<Nodes>),
}

impl Cache {
    /// Deletes the keys that a plan deletes, and their leases. It skips the rest of the plan, and
    /// all of the plan is still to be applied.
    ///
    /// # Errors
    /// An outage: some of the keys may be deleted.
    pub async fn delete_now(&self, plan: &Plan<'_>) -> Result<(), Outage> {
        let all = plan.deletions().iter().chain(plan.in_order());
        let deleted = all
            .map(|&id| plan.operation(id))
            .filter(|operation| operation.command == Command::Delete);
        // The lease comes first: a load in progress must not fill the key after its deletion.
        let commands: Vec<Cmd> = deleted
            .flat_map(|operation| {
                let key = operation.target.as_bytes();
                [
                    unlink([side_key(Kind::Lease, key).as_slice()].into_iter(), 1),
                    unlink([key].into_iter(), 1),
                ]
            })
            .collect();
        if commands.is_empty() {
            return Ok(());
        }
        let mut deleter = self.deleter.lock().await;
        let deleted = self.delete_by(&mut deleter, &commands).await;
        if deleted.is_err() {
            *deleter = None;
        }
        deleted
    }

    async fn delete_by(
        &self,
        deleter: &mut Option<Deleter>,
        commands: &[Cmd],
    ) -> Result<(), Outage> {
        let way = match deleter.take() {
            Some(way) => way,
            None => match &self.redis {
                Redis::Primary(link) => Deleter::Primary(link.connect_apart().await?),
                Redis::Cluster(cluster) => Deleter::Cluster(cluster.connect_apart().await?),
            },
        };
        for commands in commands.chunks(CHUNK_COMMANDS) {
            let answers = match (&way, &self.redis) {
                (Deleter::Cluster(nodes), Redis::Cluster(cluster)) => {
                    let commands: Vec<&Cmd> = commands.iter().collect();
                    cluster.run_or_fail(nodes, &commands, None, &mut Unconfirmed::default()).await?
                }
                (Deleter::Primary(socket), _) => {
                    let mut pipeline = Pipeline::with_capacity(commands.len());
                    for command in commands {
                        pipeline.add_command(command.clone());
                    }
                    socket.send(&pipeline).await?
                }
                (Deleter::Cluster(_), Redis::Primary(_)) => return Ok(()),
            };
            // A refusal of one key shows when its event is applied.
            for answer in answers {
                if let Value::ServerError(error) = answer
                    && let CommandError::Outage(outage) = failure::classify("UNLINK", &error)
                {
                    return Err(outage);
                }
            }
        }
        *deleter = Some(way);
        Ok(())
    }
}
