//! Seals in a cluster: behind what each primary did of a batch stands a mark that lies there, or it
//! is not known to last.
//!
//! Whoever seals holds the turn, so at any time one seal at most of each mark is on its way: where
//! a slot has moved, its mark was not touched for certain, and another of the same primary's takes
//! its place. A mark that follows its slot is compared where it is: so a primary that takes over
//! what another had, with less than it had confirmed, is found out by the first batch that is sent
//! on to it.

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

/// Servers that did something that nothing stands behind yet.
#[derive(Debug, Default)]
pub(in crate::cache) struct Unsealed {
    nodes: Vec<Arc<Node>>,
    /// Marks whose slots are served by others, as seals were told.
    moved: Vec<(usize, Address)>,
}

impl Unsealed {
    pub(super) fn add(&mut self, node: &Arc<Node>) {
        if !self.nodes.iter().any(|known| Arc::ptr_eq(known, node)) {
            self.nodes.push(Arc::clone(node));
        }
    }
}

/// Puts a seal behind the last commands of each server, and on those that did something before.
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

/// A mark that lies on that server, as far as is known.
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
    /// Sends commands by themselves, and seals what they did.
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

    /// Moves every mark on by a seal.
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

    /// Asks marks; the commands are made once no other seal is on its way. Also who serves each of
    /// so many hashes.
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

    /// Returns what each server that is connected to says of itself, those that serve no slot any
    /// more among them. One that does not answer says nothing.
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

    /// What the seal behind a server's commands came to.
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

    /// Seals what servers did whose seals were sent elsewhere, or that were not expected to do
    /// anything. Where all marks of a server turn out to have left it, another may have taken its
    /// place, with less than it did: that part of the batch is to be applied again.
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

    /// Notes who serves marks now.
    async fn move_marks(&self, nodes: &Nodes, unsealed: &mut Unsealed) -> Result<(), Outage> {
        for (mark, to) in std::mem::take(&mut unsealed.moved) {
            nodes.move_slot(marks::slot_of(mark), &self.node(nodes, &to).await?);
        }
        Ok(())
    }
}
