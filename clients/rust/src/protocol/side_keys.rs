//! Names of the keys that readers and workers keep beside the application's.

use memchr::memchr;

/// Beginning of the name of every side key, so that one pattern of a Redis ACL covers them.
pub const PREFIX: &str = "unstale:";

/// Counter that orders invalidations of tags and grants of leases.
pub const SEQUENCE: &[u8] = b"unstale:seq";

/// Purpose of a side key: holder of the right to fill the key.
pub const LEASE: &str = "lease";

/// Purpose of a side key: number of the tag's latest invalidation.
pub const GENERATION: &str = "gen";

/// Returns the side key of a key, in the same slot of a Redis Cluster wherever possible. The key's
/// own hash tag decides the slot; without one, the key itself becomes the hash tag.
///
/// A key with a `}` and no hash tag has no such name: its side key is good for a single server
/// only.
#[inline]
pub fn side_key(kind: &str, key: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(key.len() + 18);
    write_side_key(kind, key, &mut name);
    name
}

/// Appends [`side_key`] to a buffer.
#[inline]
pub fn write_side_key(kind: &str, key: &[u8], name: &mut Vec<u8>) {
    let (before, after): (&[u8], &[u8]) =
        if memchr(b'}', key).is_some() { (b":", b"") } else { (b"/{", b"}") };
    for part in [PREFIX.as_bytes(), kind.as_bytes(), before, key, after] {
        name.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::super::slot::hash_tag;
    use super::*;

    #[test]
    fn a_side_key_shares_the_slot_of_its_key() {
        for (key, expected) in [
            ("a", "unstale:lease/{a}"),
            ("{a}", "unstale:lease:{a}"),
            ("{a", "unstale:lease/{{a}"),
            ("x:{user:{42}:p}", "unstale:lease:x:{user:{42}:p}"),
            ("a}b{c}", "unstale:lease:a}b{c}"),
            ("", "unstale:lease/{}"),
        ] {
            let side = side_key(LEASE, key.as_bytes());
            assert_eq!(side, expected.as_bytes(), "{key}");
            if !key.is_empty() {
                assert_eq!(hash_tag(&side), hash_tag(key.as_bytes()), "{key}");
            }
        }
    }

    #[test]
    fn no_two_keys_share_a_side_key() {
        let keys = ["a", "{a}", "a}", "{a", "{}", "{}a", "/{a}", ":a", "a}b", "{}{x}", "{{a}}"];
        let mut sides: Vec<_> = keys.iter().map(|key| side_key(LEASE, key.as_bytes())).collect();
        sides.sort();
        sides.dedup();
        assert_eq!(sides.len(), keys.len());
    }
}
