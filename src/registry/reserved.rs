//! Which names rules may reach: no key of unstale itself, no set of a tag, none that is longer than
//! any name that people mean.

use crate::reason::Reason;

/// What the name of every key of unstale itself begins with.
pub(super) const OWN_PREFIX: &str = "unstale:";

/// Longest key, and longest tag.
pub(crate) const MAX_NAME_BYTES: usize = 8 * 1024;

/// Checks a resolved key or tag.
///
/// # Errors
/// Why no rule may use it.
pub(super) fn check_name(name: &str, is_tag: bool, tag_prefix: &str) -> Result<(), Refused> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Refused {
            reason: Reason::BlastRadius,
            what: if is_tag { Problem::LongTag } else { Problem::LongKey },
        });
    }
    let what = match is_tag {
        false if name.starts_with(OWN_PREFIX) => Problem::OwnKey,
        false if !tag_prefix.is_empty() && name.starts_with(tag_prefix) => Problem::KeyOfTag,
        true if begins_with(&[tag_prefix, name], OWN_PREFIX) => Problem::OwnTag,
        _ => return Ok(()),
    };
    Err(Refused { reason: Reason::Unresolvable, what })
}

/// Whether the parts together begin with a text.
fn begins_with(parts: &[&str], prefix: &str) -> bool {
    let mut bytes = parts.iter().flat_map(|part| part.bytes());
    prefix.bytes().all(|byte| bytes.next() == Some(byte))
}

/// A key or tag that has a text but may not be used.
#[derive(Clone, Copy)]
pub(super) struct Refused {
    pub(super) reason: Reason,
    pub(super) what: Problem,
}

/// What is wrong with a resolved key or tag.
#[derive(Clone, Copy)]
pub(super) enum Problem {
    LongKey,
    LongTag,
    OwnKey,
    OwnTag,
    KeyOfTag,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LongKey => "the key has more than 8192 bytes",
            Self::LongTag => "the tag has more than 8192 bytes",
            Self::OwnKey => "the key begins with `unstale:`, which is kept for the keys of unstale itself",
            Self::OwnTag => "the set of the tag would begin with `unstale:`, which is kept for the keys of unstale itself",
            Self::KeyOfTag => "the key begins with UNSTALE_TAG_PREFIX, so it may be the set of a tag: use `invalidate_tags`",
        })
    }
}
