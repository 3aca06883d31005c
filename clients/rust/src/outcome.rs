//! The result of a read, for metrics.

use std::fmt;

/// Outcome of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The value was cached.
    Hit,
    /// Another reader loaded the value in the meantime.
    Waited,
    /// The value was loaded and cached.
    Filled,
    /// The value was loaded and not cached: it was invalidated in the meantime, or the load
    /// outlasted its lease.
    Void,
    /// The loader found no value.
    Absent,
    /// The value was loaded and not cached: another reader's load did not end in time.
    Crowded,
    /// The value was loaded and not cached: Redis is away or refuses.
    Away,
    /// The value was loaded and not cached: the key holds something else.
    Unreadable,
    /// An early load failed, and the cached value is still valid.
    Kept,
}

impl Outcome {
    /// Returns the name of the outcome in metrics and in the documentation, such as `filled`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Waited => "waited",
            Self::Filled => "filled",
            Self::Void => "void",
            Self::Absent => "absent",
            Self::Crowded => "crowded",
            Self::Away => "away",
            Self::Unreadable => "unreadable",
            Self::Kept => "kept",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
