//! The part of a key that decides its slot in a Redis Cluster.

use memchr::memchr;

/// Returns the part of a key that is hashed: between the first `{` and the first `}` after it,
/// unless empty.
#[inline]
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = memchr(b'{', key) else { return key };
    match memchr(b'}', &key[open + 1..]) {
        Some(length) if length > 0 => &key[open + 1..=open + length],
        _ => key,
    }
}

/// Returns whether the side keys of a key are in its slot: see
/// [`side_key`](super::side_keys::side_key).
#[inline]
pub fn has_side_keys(key: &[u8]) -> bool {
    if memchr(b'}', key).is_some() { hash_tag(key).len() < key.len() } else { !key.is_empty() }
}

#[cfg(test)]
mod tests {
    use super::super::side_keys::{GENERATION, LEASE, side_key};
    use super::*;

    #[test]
    fn a_hash_tag_is_between_the_first_braces_unless_empty() {
        for (key, expected) in [
            ("a", "a"),
            ("{user1000}.following", "user1000"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("x{y", "x{y"),
            ("", ""),
        ] {
            assert_eq!(hash_tag(key.as_bytes()), expected.as_bytes(), "{key}");
        }
    }

    #[test]
    fn has_side_keys_is_true_exactly_if_they_share_the_hash_tag() {
        for key in ["", "a", "{a}", "x:{u:{42}:p}", "{a", "a}b", "a}b{c}", "{}{x}", "{}a", "{}"] {
            let key = key.as_bytes();
            for kind in [LEASE, GENERATION] {
                let shares = hash_tag(&side_key(kind, key)) == hash_tag(key);
                assert_eq!(has_side_keys(key), shares, "{key:?}");
            }
        }
    }
}
