//! How versions of one entity stand to each other, and what they add up to.

use crate::registry::Version;

/// The highest version of one entity that was written to a key, or deleted from it: what a fence
/// remembers.
///
/// Raising one is a join: it does not matter in which order, or how often, marks are joined, and a
/// `write` raises as a deletion does. `cache/lua/fence.lua` has the same rules.
#[derive(Debug, Clone, Copy)]
pub struct Mark<'e> {
    /// Whose version, and which.
    pub version: &'e Version,
    /// Two events had it: which is newer cannot be known.
    pub tied: bool,
}

/// How a mark stands to one that was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A higher version, or a later effect of the same event.
    Newer,
    /// A lower version, or the same event once more.
    Old,
    /// The same version of another event.
    Tied,
}

impl<'e> Mark<'e> {
    /// One event's.
    pub fn of(version: &'e Version) -> Self {
        Self { version, tied: false }
    }

    /// Whether the two can be compared.
    pub fn is_of_family(&self, other: &Self) -> bool {
        self.version.family == other.version.family
    }

    /// How this one stands to another of its family.
    pub fn against(&self, before: &Self) -> Standing {
        let (ours, theirs) = (self.version, before.version);
        let digits = |version: &'e Version| (version.digits.len(), &*version.digits);
        match digits(ours).cmp(&digits(theirs)) {
            std::cmp::Ordering::Greater => Standing::Newer,
            std::cmp::Ordering::Less => Standing::Old,
            std::cmp::Ordering::Equal if self.tied || before.tied || ours.event != theirs.event => {
                Standing::Tied
            }
            std::cmp::Ordering::Equal if ours.place > theirs.place => Standing::Newer,
            std::cmp::Ordering::Equal => Standing::Old,
        }
    }

    /// What both add up to; of one family.
    pub fn join(self, other: Self) -> Self {
        match self.against(&other) {
            Standing::Newer => self,
            Standing::Old => other,
            Standing::Tied => Self { tied: true, ..self },
        }
    }
}
