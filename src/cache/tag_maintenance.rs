//! Tag maintenance: removes members of tags' sets whose keys expired, were evicted or were deleted
//! by others. Otherwise an index would outgrow the keys that it indexes.
//!
//! Such members are first set aside: see [`aside`](super::aside).

mod calls;

/// Keys that one step of a scan visits, and members in one slice of a set: well below a millisecond
/// of Redis' time.
pub const SCAN_STEP: usize = 500;

/// Bits of a scan position that hold the server's own cursor. The upper bits hold the primary.
pub(super) const CURSOR_BITS: u32 = 52;

/// A part of all tags' sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagSets {
    /// Position of the next part; 0 at the end of the scan.
    pub next: u64,
    /// Names of the sets. A name may come twice.
    pub sets: Vec<Vec<u8>>,
}

/// Result of one slice of a tag's set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagSlice {
    /// Position of the next slice; 0 at the end of the set.
    pub next: u64,
    /// Members visited.
    pub looked: u64,
    /// Members whose keys were gone.
    pub gone: u64,
}
