//! The patterns of `matches`: compiled when the registry loads.

use regex::{Regex, RegexBuilder};

/// Most bytes that a compiled pattern takes. It bounds what a byte of text may cost.
const MAX_COMPILED_BYTES: usize = 4 * 1024 * 1024;

/// A pattern, and what a match costs.
#[derive(Debug)]
pub(super) struct TextPattern {
    regex: Regex,
}

impl TextPattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub(super) fn compile(pattern: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(pattern).size_limit(MAX_COMPILED_BYTES).build().map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "it becomes too large: fewer or smaller repetitions, or (?-u) for ASCII alone".to_owned(),
            other => other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        })?;
        Ok(Self { regex })
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// Returns the units of work for a text of that many bytes.
    pub(super) fn work(&self, bytes: usize) -> u64 {
        8 + bytes as u64
    }
}
