//! The patterns of `matches`: compiled when the registry loads.

use regex::{Regex, RegexBuilder};

use crate::registry::regex_size::{is_counted_class, size, units_per_byte};

/// Most bytes that a compiled pattern takes.
const MAX_COMPILED_BYTES: usize = 4 * 1024 * 1024;

/// A pattern, and what a match costs.
#[derive(Debug)]
pub(super) struct TextPattern {
    regex: Regex,
    units_per_byte: u64,
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
        let size = if is_counted_class(pattern) { 1 } else { size(pattern) };
        Ok(Self { regex, units_per_byte: units_per_byte(size) })
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// Returns the units of work for a text of that many bytes. Each byte may visit every state of the pattern.
    pub(super) fn work(&self, bytes: usize) -> u64 {
        8 + (bytes as u64).saturating_mul(self.units_per_byte)
    }
}
