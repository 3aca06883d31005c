//! Checkpoint writes in a cluster: behind the commands of a batch on each primary, a checkpoint of
//! that primary is written. Without it, the commands are not known to last.
//!
//! The writer has the turn, so at most one write of each checkpoint is in flight. If a slot has
//! moved, its checkpoint was certainly not touched, and another one of the same primary replaces
//! it.
//!
//! A checkpoint that follows its slot is compared in its new place. So the first batch that is
//! redirected to a primary with fewer writes than its predecessor confirmed finds that loss.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::{Cmd, Pipeline, Value};

use super::super::Cache;
use super::super::address::Address;
use super::super::failure::Outage;
use super::super::marks::{self, Seal};
use super::super::script::{self, Sent};
use super::nodes::{Node, Nodes};
use super::{Cluster, Elsewhere, NodeBatch, elsewhere};

/// Nodes that ran commands with no checkpoint write behind them yet.
#[derive(Debug, Default)]
pub(in crate::cache) struct Unsealed {
    nodes: Vec<Arc<Node>>,
    /// Checkpoints whose slots are served by other nodes, as redirections of their writes showed.
    moved: Vec<(usize, Address)>,
}

impl Unsealed {
    pub(super) fn add(&mut self, node: &Arc<Node>) {
        if !self.nodes.iter().any(|known| Arc::ptr_eq(known, node)) {
            self.nodes.push(Arc::clone(node));
        }
    }
}

/// Adds a checkpoint write behind the last commands of each node, and on the nodes of `before`.
pub(super) fn seal_batches(
    cache: &Cache,
    nodes: &Nodes,
    batches: &mut Vec<NodeBatch>,
    before: &Unsealed,
) {
    if !cache.chain.seals() {
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
        let mark = mark_at(cache, nodes, &batch.node, &[]);
        if let Some((seal, command)) = mark.and_then(|mark| cache.seal_with(mark, &mut Sent::all()))
        {
            batch.pipeline.add_command(command);
            batch.seal = Some(seal);
        }
    }
    batches.retain(|batch| !batch.pipeline.is_empty());
}

/// Returns a checkpoint that is on that node, as far as is known.
fn mark_at(cache: &Cache, nodes: &Nodes, node: &Arc<Node>, but: &[usize]) -> Option<usize> {
    nodes.read(|all, owners| {
        let is_here = |mark: usize| {
            let owner = owners[usize::from(marks::slot_of(mark))];
            all.get(usize::from(owner)).is_some_and(|owner| Arc::ptr_eq(owner, node))
        };
        (0..cache.marks.len()).find(|mark| !but.contains(mark) && is_here(*mark))
    })
}

impl Cluster {
    /// Runs commands outside a plan, with checkpoint writes behind them.
    pub(in crate::cache) async fn run_sealed(
        &self,
        cache: &Cache,
        commands: &[Cmd],
    ) -> Result<Vec<Value>, Outage> {
        let (nodes, _turn) = self.in_turn().await?;
        self.run(
            &nodes,
            &commands.iter().collect::<Vec<_>>(),
            Some(cache),
            &mut Unsealed::default(),
        )
        .await
    }

    /// Advances every checkpoint by one write.
    pub(in crate::cache) async fn seal_all(&self, cache: &Cache) -> Result<(), Outage> {
        let (nodes, _turn) = self.in_turn().await?;
        let (seals, commands): (Vec<Seal>, Vec<Cmd>) = (0..cache.marks.len())
            .filter_map(|mark| cache.seal_with(mark, &mut Sent::all()))
            .unzip();
        let answers = self
            .run(&nodes, &commands.iter().collect::<Vec<_>>(), None, &mut Unsealed::default())
            .await?;
        let sealed = seals
            .into_iter()
            .zip(&answers)
            .try_for_each(|(seal, answer)| cache.sealed(seal, answer));
        sealed.inspect_err(|outage| self.standing.give_up(&nodes, outage))
    }

    /// Asks checkpoints. The commands are made once no checkpoint write is in flight. Also returns
    /// the node that serves each of `count` hashes.
    pub(in crate::cache) async fn ask_marks(
        &self,
        count: usize,
        ask: impl FnOnce() -> Vec<Cmd>,
    ) -> Result<(Vec<Value>, Vec<Address>), Outage> {
        let (nodes, _turn) = self.in_turn().await?;
        let commands = ask();
        let answers = self
            .run(&nodes, &commands.iter().collect::<Vec<_>>(), None, &mut Unsealed::default())
            .await?;
        Ok((
            answers,
            (0..count).map(|mark| nodes.owner(marks::slot_of(mark)).address.clone()).collect(),
        ))
    }

    /// Returns the `INFO` of each connected node, even of those that no longer serve a slot. A node
    /// that does not answer is left out.
    pub(in crate::cache) async fn infos(&self) -> Vec<Value> {
        let Ok(nodes) = self.standing.live() else { return Vec::new() };
        let nodes = nodes.read(|nodes, _| nodes.to_vec());
        let ask = |node: Arc<Node>| async move {
            let mut info = Pipeline::with_capacity(1);
            info.cmd("INFO").arg("server").arg("replication");
            node.socket.ask(&info).await.ok()?.pop()
        };
        join_all(nodes.into_iter().map(ask)).await.into_iter().flatten().collect()
    }

    /// Notes the answer to the checkpoint write behind a node's commands.
    pub(super) fn note_seal(
        cache: &Cache,
        unsealed: &mut Unsealed,
        node: &Arc<Node>,
        seal: Seal,
        answer: &Value,
    ) -> Result<(), Outage> {
        match elsewhere(answer) {
            None => {
                cache.sealed(seal, answer)?;
                unsealed.nodes.retain(|known| !Arc::ptr_eq(known, node));
            }
            Some(to) => {
                cache.chain.not_done(seal);
                if let Elsewhere::Moved(to) = to {
                    unsealed.moved.push((seal.mark(), to.or_host_of(&node.address)));
                }
            }
        }
        Ok(())
    }

    /// Writes checkpoints for nodes whose write was redirected, or that ran commands unexpectedly.
    ///
    /// If all checkpoints of a node turn out to have left it, another node may have replaced it
    /// with fewer writes. Then that part of the batch is to be applied again.
    pub(super) async fn seal_rest(
        &self,
        cache: &Cache,
        nodes: &Nodes,
        unsealed: &mut Unsealed,
    ) -> Result<(), Outage> {
        if !cache.chain.seals() {
            return Ok(());
        }
        self.move_marks(nodes, unsealed).await?;
        for node in std::mem::take(&mut unsealed.nodes) {
            let mut left = Vec::new();
            loop {
                let Some(mark) = mark_at(cache, nodes, &node, &left) else {
                    if !left.is_empty() {
                        return Err(Outage::new(
                            "all marks of a node of the Redis cluster have moved: what it did is done again",
                        ));
                    }
                    cache.chain.leaves_uncovered(&node.address);
                    break;
                };
                let Some((seal, command)) = cache.seal_with(mark, &mut Sent::all()) else { break };
                let mut pipeline = Pipeline::with_capacity(1);
                pipeline.add_command(script::whole(&command).unwrap_or(command));
                let answer = node.socket.send(&pipeline).await?.pop().unwrap_or(Value::Nil);
                let sealed = elsewhere(&answer).is_none();
                Self::note_seal(cache, unsealed, &node, seal, &answer)?;
                if sealed {
                    break;
                }
                left.push(mark);
                self.move_marks(nodes, unsealed).await?;
            }
        }
        Ok(())
    }

    /// Notes the nodes that serve checkpoints now.
    async fn move_marks(&self, nodes: &Nodes, unsealed: &mut Unsealed) -> Result<(), Outage> {
        for (mark, to) in std::mem::take(&mut unsealed.moved) {
            nodes.move_slot(marks::slot_of(mark), &self.node(nodes, &to).await?);
        }
        Ok(())
    }
}
