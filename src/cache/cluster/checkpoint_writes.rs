//! Checkpoint writes in a cluster. After the commands of a batch on each primary, the worker writes
//! a checkpoint of that primary. Without it, the worker cannot know that the effects of the
//! commands last.
//!
//! The writer has the turn, so at most one write of each checkpoint is in flight. If a slot has
//! moved, its checkpoint was certainly not touched, and another one of the same primary replaces
//! it.
//!
//! A checkpoint that follows its slot is compared in its new place. So the first batch that is
//! redirected to a primary with fewer writes than its predecessor confirmed finds that loss.

use std::sync::{Arc, LazyLock};

use futures_util::future::join_all;
use redis::{Cmd, Pipeline, Value};

use super::super::address::Address;
use super::super::checkpoints::CheckpointWrite;
use super::super::context::Context;
use super::super::failure::{self, CommandError, Outage};
use super::super::script::{self, Sent};
use super::super::side_keys;
use super::super::slot::{self, SLOTS};
use super::Cluster;
use super::node_batch::NodeBatch;
use super::nodes::{Node, Nodes};
use super::redirection::{Redirection, redirection};

/// Distance in slots between two hashes of checkpoints. A primary with this many consecutive slots
/// has one.
const SLOTS_PER_CHECKPOINT: u16 = 128;

/// Slot of the first hash. It is no multiple of usual step sizes for moving slots.
const FIRST_SLOT: u16 = 97;

/// Hash tags of a cluster's checkpoints. No worker may choose them: all must find the same ones.
static CLUSTER_TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    slot::tags_of(
        (0..SLOTS / SLOTS_PER_CHECKPOINT).map(|checkpoint| slot_of(usize::from(checkpoint))),
    )
});

/// Nodes that ran commands with no checkpoint write after them yet.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    nodes: Vec<Arc<Node>>,
    /// Checkpoints whose slots are served by other nodes, as redirections of their writes showed.
    moved: Vec<(usize, Address)>,
}

impl Unconfirmed {
    pub(super) fn add(&mut self, node: &Arc<Node>) {
        if !self.nodes.iter().any(|known| Arc::ptr_eq(known, node)) {
            self.nodes.push(Arc::clone(node));
        }
    }
}

/// Adds a checkpoint write after the last commands of each node, and on the nodes of `before`.
pub(super) fn add_to_batches(
    context: &Context,
    nodes: &Nodes,
    batches: &mut Vec<NodeBatch>,
    before: &Unconfirmed,
) {
    if !context.own_checkpoints.are_written() {
        return;
    }
    let idle = before
        .nodes
        .iter()
        .filter(|node| !batches.iter().any(|batch| Arc::ptr_eq(&batch.node, node)));
    let idle: Vec<_> = idle.map(|node| NodeBatch::empty(Arc::clone(node))).collect();
    batches.extend(idle);
    let mut behind: Vec<Arc<Node>> = Vec::with_capacity(batches.len());
    for batch in batches.iter_mut().rev() {
        if behind.iter().any(|node| Arc::ptr_eq(node, &batch.node)) {
            continue;
        }
        behind.push(Arc::clone(&batch.node));
        let checkpoint = checkpoint_at(context, nodes, &batch.node, &[]);
        if let Some((write, command)) =
            checkpoint.and_then(|checkpoint| context.checkpoint_write(checkpoint, &mut Sent::all()))
        {
            batch.pipeline.add_command(command);
            batch.write = Some(write);
        }
    }
    batches.retain(|batch| !batch.pipeline.is_empty());
}

/// Returns a checkpoint that is on that node, as far as is known.
fn checkpoint_at(
    context: &Context,
    nodes: &Nodes,
    node: &Arc<Node>,
    but: &[usize],
) -> Option<usize> {
    nodes.read(|all, owners| {
        let is_here = |checkpoint: usize| {
            let owner = owners[usize::from(slot_of(checkpoint))];
            all.get(usize::from(owner)).is_some_and(|owner| Arc::ptr_eq(owner, node))
        };
        (0..context.checkpoint_hashes.len())
            .find(|checkpoint| !but.contains(checkpoint) && is_here(*checkpoint))
    })
}

impl Cluster {
    /// Returns the names of the hashes, which are spread evenly over the slots.
    pub(in crate::cache) fn checkpoint_hashes(&self, queue: &str) -> Vec<String> {
        hashes(queue)
    }

    /// Runs one command outside any batch, with a checkpoint write after it.
    pub(in crate::cache) async fn call_with_checkpoint(
        &self,
        context: &Context,
        name: &str,
        command: Cmd,
    ) -> Result<Value, CommandError> {
        let answer = self.run_with_checkpoints(context, &[command]).await?.pop();
        let answer = failure::of_answer(name, answer);
        if let Err(CommandError::Outage(outage)) = &answer {
            self.give_up(outage);
        }
        answer
    }

    /// Runs commands outside a plan, with checkpoint writes after them.
    pub(super) async fn run_with_checkpoints(
        &self,
        context: &Context,
        commands: &[Cmd],
    ) -> Result<Vec<Value>, Outage> {
        let (nodes, _turn) = self.in_turn().await?;
        self.run(
            &nodes,
            &commands.iter().collect::<Vec<_>>(),
            Some(context),
            &mut Unconfirmed::default(),
        )
        .await
    }

    /// Advances every checkpoint by one write.
    pub(in crate::cache) async fn write_all_checkpoints(
        &self,
        context: &Context,
    ) -> Result<(), Outage> {
        let (nodes, _turn) = self.in_turn().await?;
        let (writes, commands): (Vec<CheckpointWrite>, Vec<Cmd>) =
            (0..context.checkpoint_hashes.len())
                .filter_map(|checkpoint| context.checkpoint_write(checkpoint, &mut Sent::all()))
                .unzip();
        let answers = self
            .run(&nodes, &commands.iter().collect::<Vec<_>>(), None, &mut Unconfirmed::default())
            .await?;
        let written = writes
            .into_iter()
            .zip(&answers)
            .try_for_each(|(write, answer)| context.note_checkpoint_write(write, answer));
        written.inspect_err(|outage| self.connection.give_up(&nodes, outage))
    }

    /// Asks checkpoints, which waits for the turn first. Also returns the node that serves each of
    /// the hashes.
    pub(in crate::cache) async fn ask_checkpoints(
        &self,
        ask: impl FnOnce() -> Vec<Cmd>,
    ) -> Result<(Vec<Value>, Vec<Address>), CommandError> {
        let (answers, homes) = self.ask_in_turn(ask).await?;
        let answers = answers
            .into_iter()
            .map(|answer| failure::of_answer("checkpoints", Some(answer)))
            .collect::<Result<Vec<_>, _>>();
        if let Err(CommandError::Outage(outage)) = &answers {
            self.give_up(outage);
        }
        Ok((answers?, homes))
    }

    async fn ask_in_turn(
        &self,
        ask: impl FnOnce() -> Vec<Cmd>,
    ) -> Result<(Vec<Value>, Vec<Address>), Outage> {
        let (nodes, _turn) = self.in_turn().await?;
        let commands = ask();
        let answers = self
            .run(&nodes, &commands.iter().collect::<Vec<_>>(), None, &mut Unconfirmed::default())
            .await?;
        let home = |checkpoint| nodes.owner(slot_of(checkpoint)).address.clone();
        Ok((answers, (0..CLUSTER_TAGS.len()).map(home).collect()))
    }

    /// Returns the `INFO` of each connected node, even of those that no longer serve a slot. A node
    /// that does not answer is left out.
    pub(in crate::cache) async fn infos(&self) -> Vec<Value> {
        let Ok(nodes) = self.connection.live() else { return Vec::new() };
        let nodes = nodes.read(|nodes, _| nodes.to_vec());
        let ask = |node: Arc<Node>| async move {
            let mut info = Pipeline::with_capacity(1);
            info.cmd("INFO").arg("server").arg("replication");
            node.socket.ask(&info).await.ok()?.pop()
        };
        join_all(nodes.into_iter().map(ask)).await.into_iter().flatten().collect()
    }

    /// Notes the answer to the checkpoint write after a node's commands.
    pub(super) fn note_write(
        context: &Context,
        unconfirmed: &mut Unconfirmed,
        node: &Arc<Node>,
        write: CheckpointWrite,
        answer: &Value,
    ) -> Result<(), Outage> {
        match redirection(answer) {
            None => {
                context.note_checkpoint_write(write, answer)?;
                unconfirmed.nodes.retain(|known| !Arc::ptr_eq(known, node));
            }
            Some(to) => {
                context.own_checkpoints.not_done(write);
                if let Redirection::Moved(to) = to {
                    unconfirmed.moved.push((write.checkpoint(), to.or_host_of(&node.address)));
                }
            }
        }
        Ok(())
    }

    /// Writes checkpoints for nodes whose write was redirected, or that ran commands unexpectedly.
    ///
    /// If all checkpoints of a node turn out to have left it, another node may have replaced it
    /// with fewer writes. Then that part of the batch is to be applied again.
    pub(super) async fn write_rest(
        &self,
        context: &Context,
        nodes: &Nodes,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<(), Outage> {
        if !context.own_checkpoints.are_written() {
            return Ok(());
        }
        self.move_checkpoints(nodes, unconfirmed).await?;
        for node in std::mem::take(&mut unconfirmed.nodes) {
            let mut left = Vec::new();
            loop {
                let Some(checkpoint) = checkpoint_at(context, nodes, &node, &left) else {
                    if !left.is_empty() {
                        return Err(Outage::new(
                            "all checkpoints of a node of the Redis cluster have moved: its part of the batch is repeated",
                        ));
                    }
                    context.own_checkpoints.note_uncovered(&node.address);
                    break;
                };
                let Some((write, command)) = context.checkpoint_write(checkpoint, &mut Sent::all())
                else {
                    break;
                };
                let mut pipeline = Pipeline::with_capacity(1);
                pipeline.add_command(script::whole(&command).unwrap_or(command));
                let answer = node.socket.send(&pipeline).await?.pop().unwrap_or(Value::Nil);
                let written = redirection(&answer).is_none();
                Self::note_write(context, unconfirmed, &node, write, &answer)?;
                if written {
                    break;
                }
                left.push(checkpoint);
                self.move_checkpoints(nodes, unconfirmed).await?;
            }
        }
        Ok(())
    }

    /// Notes the nodes that serve checkpoints now.
    async fn move_checkpoints(
        &self,
        nodes: &Nodes,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<(), Outage> {
        for (checkpoint, to) in std::mem::take(&mut unconfirmed.moved) {
            nodes.move_slot(slot_of(checkpoint), &self.node(nodes, &to).await?);
        }
        Ok(())
    }
}

/// Returns the name of each hash.
fn hashes(queue: &str) -> Vec<String> {
    CLUSTER_TAGS.iter().map(|tag| side_keys::checkpoints_with_tag(tag, queue)).collect()
}

/// Returns the slot of the hash at that place.
fn slot_of(checkpoint: usize) -> u16 {
    u16::try_from(checkpoint).unwrap_or(0) % (SLOTS / SLOTS_PER_CHECKPOINT) * SLOTS_PER_CHECKPOINT
        + FIRST_SLOT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkpoints_of_a_cluster_are_spread_evenly_over_its_slots() {
        let slots: Vec<u16> =
            hashes("q{x}").iter().map(|name| slot::slot(name.as_bytes())).collect();
        assert_eq!(slots, (0..128).map(|checkpoint| checkpoint * 128 + 97).collect::<Vec<u16>>());
    }
}
