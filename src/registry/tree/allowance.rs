//! Limits of what the files of a registry may hold, and of what aliases may add.

/// Size of a node with its aliases written out.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weight {
    pub(super) nodes: usize,
    pub(super) bytes: usize,
    pub(super) depth: usize,
}

impl Weight {
    pub(super) const EMPTY_COLLECTION: Self = Self { nodes: 1, bytes: 0, depth: 1 };

    pub(super) const fn of_scalar(text: &str) -> Self {
        Self { nodes: 1, bytes: text.len(), depth: 0 }
    }

    pub(super) fn add_child(&mut self, child: Self) {
        self.nodes = self.nodes.saturating_add(child.nodes);
        self.bytes = self.bytes.saturating_add(child.bytes);
        self.depth = self.depth.max(child.depth + 1);
    }
}

/// Maximum number of values that aliases may add to a registry. Ten nested anchors could ask for
/// billions.
pub(super) const MAX_ALIASED_NODES: usize = 1_000_000;

/// Maximum number of values in the files of a registry, keys included. Each takes some hundred
/// bytes of memory.
pub(super) const MAX_VALUES: usize = 300_000;

/// Maximum size of the texts that aliases may add to a registry, in bytes.
pub(super) const MAX_ALIASED_BYTES: usize = 64 * 1024 * 1024;

/// The rest of what the files of a registry may add: values in files, and copies by aliases and by
/// `$ref`.
///
/// A copy counts, because it is compiled again at each place.
#[derive(Debug)]
pub(crate) struct Allowance {
    nodes_left: usize,
    bytes_left: usize,
    /// Number of values that files may still hold.
    pub(super) values_left: usize,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            nodes_left: MAX_ALIASED_NODES,
            bytes_left: MAX_ALIASED_BYTES,
            values_left: MAX_VALUES,
        }
    }
}

impl Allowance {
    /// Subtracts what a copy adds. Returns `false` if too little is left.
    pub(crate) fn spend_copy(&mut self, nodes: usize, bytes: usize) -> bool {
        let left = self.nodes_left.checked_sub(nodes).zip(self.bytes_left.checked_sub(bytes));
        if let Some((nodes, bytes)) = left {
            (self.nodes_left, self.bytes_left) = (nodes, bytes);
        }
        left.is_some()
    }
}
