//! Tags of deliveries.

/// Identifies a delivery of one lane. The tags of a lane rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    pub(super) epoch: u64,
    pub(super) number: u64,
}
