//! Variables for rule files.

use std::collections::BTreeMap;
use std::fmt;

/// The values of `{vars.NAME}`. They may be secrets, so `Debug` shows names only.
#[derive(Clone, Default)]
pub struct Vars(pub BTreeMap<String, String>);

impl Vars {
    /// Minimum length of a masked value in bytes. Shorter values are no secrets, and occur in too
    /// many words.
    const MIN_MASKED_BYTES: usize = 4;

    /// Replaces each variable's value in a text by `{vars.NAME}`.
    pub fn mask(&self, text: &str) -> String {
        // The longest first, since one value may contain another.
        let mut by_length: Vec<_> =
            self.0.iter().map(|(name, value)| (name, value.trim_end_matches('/'))).collect();
        by_length.retain(|(_, value)| value.len() >= Self::MIN_MASKED_BYTES);
        by_length.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
        by_length.into_iter().fold(text.to_owned(), |text, (name, value)| {
            text.replace(value, &format!("{{vars.{name}}}"))
        })
    }
}

impl fmt::Debug for Vars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
