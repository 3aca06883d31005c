//! The patterns of `matches`: compiled when the registry loads.

use std::collections::HashMap;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use crate::registry::regex_size::sixteenths_per_byte;

/// Most bytes that a compiled pattern takes.
const MAX_COMPILED_BYTES: usize = 4 * 1024 * 1024;

/// The first limit that is tried.
const MIN_COMPILED_BYTES: usize = 16 * 1024;

/// Most bytes that the compiled patterns of a registry take together.
const MAX_BYTES_TOGETHER: usize = 64 * 1024 * 1024;

/// A pattern, and what a match costs.
#[derive(Debug)]
pub(super) struct TextPattern {
    regex: Regex,
    sixteenths_per_byte: u64,
}

/// The patterns of a registry, each compiled once.
#[derive(Debug, Default)]
pub(in crate::registry) struct TextPatterns {
    known: HashMap<String, Arc<TextPattern>>,
    bytes: usize,
}

/// Why a pattern is refused.
pub(super) enum PatternRefused {
    /// What is wrong with it, in one line.
    Wrong(String),
    /// The patterns of the registry are too large together.
    TooMany,
}

impl TextPatterns {
    /// Compiles a pattern, or returns the equal one that is known.
    pub(super) fn compile(&mut self, pattern: &str) -> Result<Arc<TextPattern>, PatternRefused> {
        if let Some(known) = self.known.get(pattern) {
            return Ok(Arc::clone(known));
        }
        if self.bytes >= MAX_BYTES_TOGETHER {
            return Err(PatternRefused::TooMany);
        }
        let (compiled, bytes) = TextPattern::compile(pattern);
        // Refused patterns count too: each attempt takes time in proportion.
        self.bytes += bytes;
        let compiled = compiled.map_err(PatternRefused::Wrong)?;
        if self.bytes > MAX_BYTES_TOGETHER {
            return Err(PatternRefused::TooMany);
        }
        let compiled = Arc::new(compiled);
        self.known.insert(pattern.to_owned(), Arc::clone(&compiled));
        Ok(compiled)
    }
}

impl TextPattern {
    /// Compiles a pattern. Returns it with about the bytes that it takes: the first power of two
    /// that was enough, or the limit where none was.
    fn compile(pattern: &str) -> (Result<Self, String>, usize) {
        let mut bytes = MIN_COMPILED_BYTES;
        let compiled = loop {
            match RegexBuilder::new(pattern).size_limit(bytes).build() {
                Ok(regex) => {
                    let sixteenths_per_byte = sixteenths_per_byte(pattern);
                    break Ok(Self { regex, sixteenths_per_byte });
                }
                Err(regex::Error::CompiledTooBig(_)) if bytes < MAX_COMPILED_BYTES => bytes *= 2,
                Err(regex::Error::CompiledTooBig(_)) => {
                    break Err("it becomes too large: fewer or smaller repetitions, or (?-u) for \
                               ASCII alone"
                        .to_owned());
                }
                Err(other) => {
                    let text = other.to_string();
                    let line = text.lines().last().unwrap_or_default();
                    break Err(line.trim_start_matches("error: ").to_owned());
                }
            }
        };
        (compiled, bytes)
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// Returns the units of work for a text of that many bytes.
    pub(super) fn work(&self, bytes: usize) -> u64 {
        8 + (bytes as u64).saturating_mul(self.sixteenths_per_byte) / 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_are_refused_count_towards_the_common_size() {
        let mut patterns = TextPatterns::default();
        let outcomes: Vec<bool> = (0..40)
            .map(|at| patterns.compile(&["^\\p{L}{1,200}", &at.to_string(), "$"].concat()))
            .map(|compiled| matches!(compiled, Err(PatternRefused::TooMany)))
            .collect();
        assert!(!outcomes[0], "the first says what is wrong with it");
        assert_eq!(outcomes.iter().filter(|too_many| !**too_many).count(), 16);
    }
}
