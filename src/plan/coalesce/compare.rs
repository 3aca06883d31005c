//! Comparisons of operations on one key: which one hides, raises or expires for another.

use super::super::fence_version::{FenceVersion, VersionOrder};
use crate::registry::{Expiry, Write};

/// Returns whether the later write of a key hides the earlier one completely.
///
/// It must take effect whenever the earlier one does, and fill the same sets. Sets are filled in
/// order, up to the first refused one, so those of the earlier write must come first.
pub(super) fn hides(
    (earlier, before): (&Write, Option<FenceVersion<'_>>),
    (later, fence_version): (&Write, Option<FenceVersion<'_>>),
) -> bool {
    let is_done = match (before, fence_version) {
        (None, None) => true,
        (Some(before), Some(fence_version)) => {
            fence_version.is_of_family(&before)
                && fence_version.against(&before) == VersionOrder::Newer
        }
        _ => false,
    };
    is_done
        && (earlier.tags.is_empty()
            || (outlasts(later.expiry, earlier.expiry) && later.tags.starts_with(&earlier.tags)))
}

/// Returns whether one operation can raise the fence for both.
pub(super) fn is_one_family(
    first: Option<FenceVersion<'_>>,
    second: Option<FenceVersion<'_>>,
) -> bool {
    first.zip(second).is_none_or(|(first, second)| first.is_of_family(&second))
}

/// Returns the version of a fence that both have raised.
pub(super) fn joined<'e>(
    first: Option<FenceVersion<'e>>,
    second: Option<FenceVersion<'e>>,
) -> Option<FenceVersion<'e>> {
    match (first, second) {
        (Some(first), Some(second)) => Some(first.join(second)),
        (first, second) => first.or(second),
    }
}

/// Returns whether the first expiry keeps a tag's set at least as long as the second.
fn outlasts(first: Expiry, second: Expiry) -> bool {
    match (first, second) {
        (Expiry::Never, _) => true,
        (Expiry::After { ttl, .. }, Expiry::After { ttl: other, .. }) => ttl >= other,
        (Expiry::At(at), Expiry::At(other)) => at >= other,
        _ => false,
    }
}

/// Returns the one expiry with the effect of both, if there is one.
pub(super) fn sooner(first: Expiry, second: Expiry) -> Option<Expiry> {
    match (first, second) {
        (Expiry::At(at), Expiry::At(other)) => Some(Expiry::At(at.min(other))),
        (Expiry::After { ttl, jitter }, Expiry::After { ttl: other, jitter: spread })
            if jitter == spread =>
        {
            Some(Expiry::After { ttl: ttl.min(other), jitter })
        }
        _ => None,
    }
}
