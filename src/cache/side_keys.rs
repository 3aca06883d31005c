//! Names of the keys that unstale keeps beside the application's. All begin with `unstale:`, so
//! that one pattern of a Redis ACL covers them.

use std::fmt;

pub(crate) use unstale_reader::protocol::side_keys::SEQUENCE;
use unstale_reader::protocol::side_keys::{self as shared, PREFIX};

/// Purpose of a side key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Holder of the right to fill the key.
    Lease,
    /// Warm that loads the key.
    Load,
    /// Warm that loads the key next.
    NextLoad,
    /// Highest version that was written to the key or deleted from it.
    Fence,
    /// Number of the tag's latest invalidation.
    Generation,
    /// Record of the tag's drains: the numbers of the detached sets ([`detached`]).
    Drain,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Lease => shared::LEASE,
            Self::Load => "load",
            Self::NextLoad => "next",
            Self::Fence => "fence",
            Self::Generation => shared::GENERATION,
            Self::Drain => "drain",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns the side key of a key, in the same slot of a Redis Cluster wherever possible. The
/// rule is in the readers' package, and `lua/side_key.lua` has the same one.
pub(crate) fn side_key(kind: Kind, key: &[u8]) -> Vec<u8> {
    shared::side_key(kind.as_str(), key)
}

/// Appends [`side_key`] to a buffer.
pub(super) fn write_side_key(kind: Kind, key: &[u8], name: &mut Vec<u8>) {
    shared::write_side_key(kind.as_str(), key, name);
}

/// Returns the name of a key's fence for one family. With a `}` in the key, the name ends in the
/// family's length. Otherwise a longer key could have the same fence.
pub(super) fn fence(key: &[u8], family: &str) -> Vec<u8> {
    let mut name = side_key(Kind::Fence, key);
    name.push(b':');
    name.extend(family.as_bytes());
    if key.contains(&b'}') {
        name.extend(format!(":{}", family.len()).as_bytes());
    }
    name
}

/// Returns the name of the members that an invalidation detached from a tag's set under that
/// number. It is in the slot of the set.
///
/// If the set's name has a `}`, nothing marks its end. A prefix of its own then separates it from
/// the records of other tags. `lua/side_key.lua` has the same rule.
pub(super) fn detached(set: &[u8], number: &[u8]) -> Vec<u8> {
    if set.contains(&b'}') {
        return [b"unstale:drained:", set, b":", number].concat();
    }
    [&side_key(Kind::Drain, set), b":".as_slice(), number].concat()
}

/// Returns the names of a tag's four sets of members that maintenance has set aside. They are
/// filled one after another.
pub(super) fn aside(set: &[u8]) -> [Vec<u8>; 4] {
    std::array::from_fn(|place| detached(set, format!("aside{place}").as_bytes()))
}

/// Returns whether a key is one of unstale's own. Rules and tags must never reach such a key;
/// `lua/side_key.lua` has the same rule.
pub(crate) fn is_own(key: &[u8]) -> bool {
    key.starts_with(PREFIX.as_bytes())
}

/// Secret with which workers sign republished messages.
pub(super) const SECRET: &[u8] = b"unstale:secret";

/// List of the tags' sets that drain, so that a starting worker finds them. The rest is in each
/// tag's own record.
pub(super) const DRAINING_TAGS: &[u8] = b"unstale:drains";

/// List of the tags' sets with members set aside, on a single server. A cluster has no such list.
pub(super) const ASIDES: &[u8] = b"unstale:asides";

/// Returns the lock of the worker that maintains the tags' sets under that prefix.
pub(super) fn tag_maintenance_lock(tag_prefix: &str) -> String {
    format!("unstale:upkeep:{tag_prefix}")
}

/// Returns the hash of the reports of a queue's workers.
pub(super) fn workers(queue: &str) -> String {
    format!("unstale:workers:{queue}")
}

/// Returns the hash of the checkpoints of a queue's workers.
pub(super) fn checkpoints(queue: &str) -> String {
    format!("unstale:mark:{queue}")
}

/// Returns one of the hashes of checkpoints in a cluster.
pub(super) fn checkpoints_with_tag(tag: &str, queue: &str) -> String {
    format!("unstale:mark:{{{tag}}}:{queue}")
}

/// Returns the sorted set of a queue's second deletes: targets by due time.
pub(super) fn second_deletes(queue: &str) -> String {
    format!("unstale:again:{queue}")
}

/// Returns the key that a probe writes.
pub(super) fn probe(queue: &str) -> String {
    format!("unstale:probe:{queue}")
}

/// Returns the key that a probe writes to one node of a cluster.
pub(super) fn probe_with_tag(tag: &str, queue: &str) -> String {
    format!("unstale:probe:{{{tag}}}:{queue}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_tag(key: &str) -> &str {
        std::str::from_utf8(super::super::slot::hash_tag(key.as_bytes())).unwrap()
    }

    #[test]
    fn each_purpose_has_a_side_key_of_its_own_in_the_slot_of_the_key() {
        let kinds =
            [Kind::Lease, Kind::Load, Kind::NextLoad, Kind::Fence, Kind::Generation, Kind::Drain];
        for key in ["a", "{a}", "{a", "x:{user:{42}:p}", "a}b{c}"] {
            let mut names: Vec<_> = kinds
                .iter()
                .map(|kind| String::from_utf8(side_key(*kind, key.as_bytes())).unwrap())
                .collect();
            for name in &names {
                assert!(is_own(name.as_bytes()), "{name}");
                assert_eq!(hash_tag(name), hash_tag(key), "{name}");
            }
            names.sort();
            names.dedup();
            assert_eq!(names.len(), kinds.len(), "{key}");
        }
    }

    #[test]
    fn no_two_fences_share_a_name_and_each_is_in_the_slot_of_its_key() {
        let pairs = [
            ("a", "b:c"),
            ("a:b", "c"),
            ("{a}", "b:c"),
            ("{a}:b", "c"),
            ("{a}:b:1", "c"),
            ("{a}", "b:c:1"),
            ("a", "{x}"),
            ("a", ""),
        ];
        let mut names: Vec<_> = pairs
            .iter()
            .map(|(key, family)| String::from_utf8(fence(key.as_bytes(), family)).unwrap())
            .collect();
        for ((key, _), name) in pairs.iter().zip(&names) {
            assert_eq!(hash_tag(name), hash_tag(key), "{name}");
        }
        assert_eq!(names[0], "unstale:fence/{a}:b:c");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), pairs.len());
    }

    #[test]
    fn no_two_tags_share_a_detached_set_or_a_record() {
        let sets =
            ["a", "a:7", "{a}", "{a}:7", "{a}:aside0", "{a}:7:7", "a}", "a}:7", "{a", "d:{a}"];
        let mut names: Vec<Vec<u8>> = Vec::new();
        for set in sets.map(str::as_bytes) {
            let own: Vec<_> =
                [side_key(Kind::Drain, set), detached(set, b"7"), detached(set, b"7a0")]
                    .into_iter()
                    .chain(aside(set))
                    .collect();
            for name in own {
                let text = String::from_utf8(name.clone()).unwrap();
                let set = std::str::from_utf8(set).unwrap();
                assert_eq!(
                    hash_tag(&text) == hash_tag(set),
                    !set.contains('}') || hash_tag(set) != set,
                    "{text}"
                );
                names.push(name);
            }
        }
        assert_eq!(detached(b"a", b"7"), b"unstale:drain/{a}:7");
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
