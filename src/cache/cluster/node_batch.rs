//! The commands of a batch, by the node that serves their slots.

use std::sync::Arc;

use redis::{Arg, Cmd, Pipeline};

use super::super::checkpoints::CheckpointWrite;
use super::super::commands::{CHUNK_BYTES, CHUNK_COMMANDS};
use super::nodes::{Node, Nodes};

/// Commands for one node in one pipeline.
pub(super) struct NodeBatch {
    pub(super) node: Arc<Node>,
    pub(super) pipeline: Pipeline,
    bytes: usize,
    /// Positions of its commands in the list of all commands.
    pub(super) places: Vec<usize>,
    /// The checkpoint write after the commands, if any.
    pub(super) write: Option<CheckpointWrite>,
}

impl NodeBatch {
    pub(super) fn empty(node: Arc<Node>) -> Self {
        Self { node, pipeline: Pipeline::new(), bytes: 0, places: Vec::new(), write: None }
    }
}

/// Returns the commands by node, in pipelines of limited size. `slots` are those of the commands.
pub(super) fn by_node(nodes: &Nodes, commands: &[&Cmd], slots: &[u16]) -> Vec<NodeBatch> {
    nodes.read(|nodes, owners| {
        let mut batches: Vec<NodeBatch> = Vec::with_capacity(nodes.len());
        let mut open: Vec<Option<usize>> = vec![None; nodes.len()];
        for (place, (command, &slot)) in commands.iter().zip(slots).enumerate() {
            let owner = usize::from(owners[usize::from(slot)]);
            let bytes: usize = command
                .args_iter()
                .map(|argument| if let Arg::Simple(bytes) = argument { bytes.len() } else { 0 })
                .sum();
            let full = |batch: &NodeBatch| {
                batch.places.len() >= CHUNK_COMMANDS || batch.bytes + bytes > CHUNK_BYTES
            };
            let batch = match open[owner] {
                Some(batch) if !full(&batches[batch]) => batch,
                _ => {
                    batches.push(NodeBatch::empty(Arc::clone(&nodes[owner])));
                    batches.len() - 1
                }
            };
            open[owner] = Some(batch);
            let batch = &mut batches[batch];
            batch.pipeline.add_command((*command).clone());
            batch.bytes += bytes;
            batch.places.push(place);
        }
        batches
    })
}
