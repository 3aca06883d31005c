//! Objects with several members of one name, of which the last counts.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::event::Json;
use crate::event::json::MemberList;

/// Maximum number of members that are compared pairwise.
const FEW: usize = 16;

/// Returns whether no name occurs twice.
pub(super) fn has_one_of_each(members: &[(Cow<'_, str>, Json<'_>)]) -> bool {
    if members.len() > FEW {
        let mut names = HashSet::with_capacity(members.len());
        return members.iter().all(|(name, _)| names.insert(&**name));
    }
    members
        .iter()
        .enumerate()
        .all(|(at, (name, _))| members[..at].iter().all(|(other, _)| other != name))
}

/// Removes all but the last member of each name.
pub(super) fn last_of_each(mut members: MemberList<'_>) -> MemberList<'_> {
    if has_one_of_each(&members) {
        return members;
    }
    let mut names = HashSet::new();
    let mut last: MemberList<'_> =
        members.drain(..).rev().filter(|(name, _)| names.insert(name.clone())).collect();
    last.reverse();
    last
}
