//! Names of a read's keys, and which of them share a slot of a Redis Cluster.

use super::Options;
use crate::protocol::side_keys::{GENERATION, LEASE, side_key};
use crate::protocol::slot::{has_side_keys, hash_tag};

/// The keys of one read.
#[derive(Debug)]
pub(super) struct ReadKeys {
    pub(super) key: Vec<u8>,
    pub(super) lease: Vec<u8>,
}

/// The keys of one tag.
#[derive(Debug)]
pub(super) struct TagKeys {
    pub(super) set: Vec<u8>,
    pub(super) generation: Vec<u8>,
}

impl ReadKeys {
    /// Returns `None` if the lease cannot be in the key's slot: for a cluster's key with a `}` and
    /// no hash tag.
    pub(super) fn of(options: &Options, key: &str) -> Option<Self> {
        let key = [options.key_prefix.as_bytes(), key.as_bytes()].concat();
        let lease = side_key(LEASE, &key);
        (!options.cluster || has_side_keys(&key)).then_some(Self { key, lease })
    }
}

impl TagKeys {
    /// Returns `None` if the generation cannot be in the set's slot.
    pub(super) fn of(options: &Options, tag: &str) -> Option<Self> {
        let set = [options.tag_prefix.as_bytes(), tag.as_bytes()].concat();
        let generation = side_key(GENERATION, &set);
        (!options.cluster || has_side_keys(&set)).then_some(Self { set, generation })
    }

    /// Returns whether one script may use this tag and that key.
    pub(super) fn is_beside(&self, options: &Options, key: &[u8]) -> bool {
        !options.cluster || hash_tag(&self.set) == hash_tag(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_cluster_a_side_key_must_share_the_slot() {
        let single = Options::default();
        let cluster = Options { cluster: true, ..Options::default() };
        for (key, fits) in [
            ("a", true),
            ("{a", true),
            ("{a}", true),
            ("x:{u:{42}:p}", true),
            ("a}b{c}", true),
            ("a}b", false),
            ("{}", false),
        ] {
            assert!(ReadKeys::of(&single, key).is_some());
            assert_eq!(ReadKeys::of(&cluster, key).is_some(), fits, "{key}");
            assert_eq!(TagKeys::of(&cluster, key).is_some(), fits, "{key}");
        }
    }

    #[test]
    fn a_tag_is_beside_a_key_of_the_same_hash_tag() {
        let cluster = Options { cluster: true, ..Options::default() };
        let tag = TagKeys::of(&cluster, "{shop}:products").unwrap();
        assert!(tag.is_beside(&cluster, b"{shop}:product:7"));
        assert!(!tag.is_beside(&cluster, b"shop:product:7"));
        assert!(tag.is_beside(&Options::default(), b"shop:product:7"));
    }
}
