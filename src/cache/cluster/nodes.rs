//! The primaries of a cluster, a connection to each, and the owner of each slot. All connections
//! are given up together.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::super::address::Address;
use super::super::connection_state::LiveConnection;
use super::super::failure::Outage;
use super::super::slot::SLOTS;
use super::super::socket::Socket;

/// One server.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: Address,
    pub(super) socket: Socket,
    /// Key that a probe writes; `None` if the node had no slot when it was connected to.
    pub(super) probe_key: Option<String>,
}

/// The known nodes of a cluster.
#[derive(Debug)]
pub(in crate::cache) struct Nodes {
    map: RwLock<Map>,
    given_up: OnceLock<Outage>,
}

#[derive(Debug)]
struct Map {
    nodes: Vec<Arc<Node>>,
    /// Owner of each slot, as a place in `nodes`.
    owners: Vec<u16>,
}

impl Nodes {
    /// Creates the map. `owners` are places in `nodes`, one for each slot.
    pub(super) fn new(nodes: Vec<Arc<Node>>, owners: Vec<u16>) -> Self {
        debug_assert_eq!(owners.len(), usize::from(SLOTS));
        Self { map: RwLock::new(Map { nodes, owners }), given_up: OnceLock::new() }
    }

    /// Calls `look` with all nodes, and the owner of each slot as a place among them.
    pub(super) fn read<T>(&self, look: impl FnOnce(&[Arc<Node>], &[u16]) -> T) -> T {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        look(&map.nodes, &map.owners)
    }

    /// Returns the node that serves a slot, as far as is known.
    pub(super) fn owner(&self, slot: u16) -> Arc<Node> {
        self.read(|nodes, owners| Arc::clone(&nodes[usize::from(owners[usize::from(slot)])]))
    }

    /// Returns the node at an address, if there is a connection to it.
    pub(super) fn at(&self, address: &Address) -> Option<Arc<Node>> {
        self.read(|nodes, _| nodes.iter().find(|node| node.address == *address).cloned())
    }

    /// Adds a node that a redirection named, and returns it. If a node with this address exists
    /// already, returns that one.
    pub(super) fn add(&self, node: Node) -> Arc<Node> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) =
            map.nodes.iter().find(|connection| connection.address == node.address)
        {
            return Arc::clone(connection);
        }
        if let Some(outage) = self.given_up.get() {
            node.socket.give_up(outage);
        }
        let node = Arc::new(node);
        map.nodes.push(Arc::clone(&node));
        node
    }

    /// Notes that another node serves a slot from now on.
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

impl LiveConnection for Nodes {
    fn give_up(&self, outage: &Outage) {
        let _earlier = self.given_up.set(outage.for_others());
        self.read(|nodes, _| nodes.iter().for_each(|node| node.socket.give_up(outage)));
    }

    fn given_up(&self) -> Option<&Outage> {
        self.given_up.get()
    }
}
