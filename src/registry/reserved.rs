//! Limits the names that rules may reach: no key of unstale itself, no set of a tag, no very long
//! name.

use crate::reason::Reason;

/// Prefix of every key of unstale itself.
pub(super) const OWN_PREFIX: &str = "unstale:";

/// Maximum length of a key and of a tag, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 8 * 1024;

/// Checks a resolved key or tag.
///
/// # Errors
/// The reason why no rule may use it.
pub(super) fn check_name(name: &str, is_tag: bool, tag_prefix: &str) -> Result<(), Refused> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Refused {
            reason: Reason::BlastRadius,
            what: if is_tag { NameProblem::LongTag } else { NameProblem::LongKey },
        });
    }
    let what = match is_tag {
        false if name.starts_with(OWN_PREFIX) => NameProblem::OwnKey,
        false if !tag_prefix.is_empty() && name.starts_with(tag_prefix) => NameProblem::KeyOfTag,
        true if begins_with(&[tag_prefix, name], OWN_PREFIX) => NameProblem::OwnTag,
        _ => return Ok(()),
    };
    Err(Refused { reason: Reason::Unresolvable, what })
}

/// Returns whether the concatenated parts begin with a text.
fn begins_with(parts: &[&str], prefix: &str) -> bool {
    let mut bytes = parts.iter().flat_map(|part| part.bytes());
    prefix.bytes().all(|byte| bytes.next() == Some(byte))
}

/// Refusal of a resolved key or tag.
#[derive(Clone, Copy)]
pub(super) struct Refused {
    pub(super) reason: Reason,
    pub(super) what: NameProblem,
}

/// Problem of a resolved key or tag.
#[derive(Clone, Copy)]
pub(super) enum NameProblem {
    LongKey,
    LongTag,
    OwnKey,
    OwnTag,
    KeyOfTag,
}

impl std::fmt::Display for NameProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LongKey => "the key has more than 8192 bytes",
            Self::LongTag => "the tag has more than 8192 bytes",
            Self::OwnKey => "the key begins with `unstale:`, which is reserved for unstale",
            Self::OwnTag => {
                "the set of the tag would begin with `unstale:`, which is reserved for unstale"
            }
            Self::KeyOfTag => {
                "the key begins with UNSTALE_TAG_PREFIX, so it may be the set of a tag: \
                 use `invalidate_tags`"
            }
        })
    }
}
