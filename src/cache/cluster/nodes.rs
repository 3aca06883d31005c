//! The primaries of a cluster, a connection to each, and who serves which slot. They stand and fall
//! together.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::super::address::Address;
use super::super::failure::Outage;
use super::super::slot::SLOTS;
use super::super::socket::Socket;
use super::super::standing::Live;

/// One server.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: Address,
    pub(super) socket: Socket,
    /// What a probe writes there; `None` where it had no slot when it was connected to.
    pub(super) probe_key: Option<String>,
}

/// What is known of a cluster.
#[derive(Debug)]
pub(in crate::cache) struct Nodes {
    map: RwLock<Map>,
    given_up: OnceLock<Outage>,
}

#[derive(Debug)]
struct Map {
    nodes: Vec<Arc<Node>>,
    /// Each slot's node, as a place in `nodes`.
    owners: Vec<u16>,
}

impl Nodes {
    /// `owners` are places in `nodes`, one a slot.
    pub(super) fn new(nodes: Vec<Arc<Node>>, owners: Vec<u16>) -> Self {
        debug_assert_eq!(owners.len(), usize::from(SLOTS));
        Self { map: RwLock::new(Map { nodes, owners }), given_up: OnceLock::new() }
    }

    /// All nodes, and each slot's as a place among them.
    pub(super) fn read<T>(&self, look: impl FnOnce(&[Arc<Node>], &[u16]) -> T) -> T {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        look(&map.nodes, &map.owners)
    }

    /// The node that serves a slot, as far as is known.
    pub(super) fn owner(&self, slot: u16) -> Arc<Node> {
        self.read(|nodes, owners| Arc::clone(&nodes[usize::from(owners[usize::from(slot)])]))
    }

    /// The node at an address, if it is connected to.
    pub(super) fn at(&self, address: &Address) -> Option<Arc<Node>> {
        self.read(|nodes, _| nodes.iter().find(|node| node.address == *address).cloned())
    }

    /// Adds a node that was met on the way; the one that stands there already, if one does.
    pub(super) fn add(&self, node: Node) -> Arc<Node> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(standing) = map.nodes.iter().find(|standing| standing.address == node.address) {
            return Arc::clone(standing);
        }
        if let Some(outage) = self.given_up.get() {
            node.socket.give_up(outage);
        }
        let node = Arc::new(node);
        map.nodes.push(Arc::clone(&node));
        node
    }

    /// A slot is served by another node from now on.
    pub(super) fn move_slot(&self, slot: u16, to: &Arc<Node>) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = map
            .nodes
            .iter()
            .position(|node| Arc::ptr_eq(node, to))
            .and_then(|place| u16::try_from(place).ok())
        {
            map.owners[usize::from(slot)] = place;
        }
    }
}

impl Live for Nodes {
    fn give_up(&self, outage: &Outage) {
        let _earlier = self.given_up.set(outage.for_others());
        self.read(|nodes, _| nodes.iter().for_each(|node| node.socket.give_up(outage)));
    }

    fn given_up(&self) -> Option<&Outage> {
        self.given_up.get()
    }
}
