//! Order of versions of one entity.

use crate::registry::Version;

/// The highest version of one entity that was written to a key or deleted from it. A fence stores
/// it.
///
/// Raising a fence is a join: order and repetition do not matter. A `write` raises it like a
/// deletion.
/// `cache/lua/fence.lua` has the same rules.
#[derive(Debug, Clone, Copy)]
pub struct FenceVersion<'e> {
    /// The version.
    pub version: &'e Version,
    /// Two events had this version, so their order is unknown.
    pub tied: bool,
}

/// Order of a version relative to an earlier one of the same entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionOrder {
    /// A higher version, or a later effect of the same event.
    Newer,
    /// A lower version, or the same event once more.
    Old,
    /// The same version of another event.
    Tied,
}

impl<'e> FenceVersion<'e> {
    /// Returns the version of one event.
    pub fn of(version: &'e Version) -> Self {
        Self { version, tied: false }
    }

    /// Returns whether the two versions belong to one entity and can be compared.
    pub fn is_of_family(&self, other: &Self) -> bool {
        self.version.family == other.version.family
    }

    /// Returns the order of this version relative to another one of its family.
    pub fn against(&self, before: &Self) -> VersionOrder {
        let (ours, theirs) = (self.version, before.version);
        let digits = |version: &'e Version| (version.digits.len(), &*version.digits);
        match digits(ours).cmp(&digits(theirs)) {
            std::cmp::Ordering::Greater => VersionOrder::Newer,
            std::cmp::Ordering::Less => VersionOrder::Old,
            std::cmp::Ordering::Equal if self.tied || before.tied || ours.event != theirs.event => {
                VersionOrder::Tied
            }
            std::cmp::Ordering::Equal if ours.place > theirs.place => VersionOrder::Newer,
            std::cmp::Ordering::Equal => VersionOrder::Old,
        }
    }

    /// Returns the version of a fence that both have raised. Both must belong to one family.
    pub fn join(self, other: Self) -> Self {
        match self.against(&other) {
            VersionOrder::Newer => self,
            VersionOrder::Old => other,
            VersionOrder::Tied => Self { tied: true, ..self },
        }
    }
}
