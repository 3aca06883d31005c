//! Bounds the cost of `pattern` and `patternProperties`.
//!
//! A pattern without look-around and back-references takes time in proportion to the text, and to
//! its own size if its automaton is large. Any other pattern backtracks. Our own keyword matches
//! it, charges for the square of the text's length, and limits the backtracking.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::error::ValidationErrorKind;
use jsonschema::{
    Draft, Keyword, PatternCache, PatternOptions, ValidationError, ValidationOptions, Validator,
};
use serde_json::{Value, json};

use super::super::payload_json::{
    Costs, PayloadJson, PayloadNode, WORK_PER_BACKTRACKING_MATCH, backtracking_units,
};
use super::super::regex_size::{sixteenths_per_byte, with_ascii_classes};
use super::walk;

/// Keyword that replaces `pattern` if each match must be charged.
pub(super) const KEYWORD: &str = "unstale-pattern";

/// Maximum cost of a byte, in sixteenths of a unit, for a pattern that the library matches. This
/// cost is charged for every text of the schema.
const MAX_LIGHT_SIXTEENTHS: u64 = 16;

/// First size limit that is tried for a compiled pattern, in bytes.
const MIN_COMPILED_BYTES: usize = 16 * 1024;

/// Last size limit that is tried, in bytes. The library's own limit is lower.
const MAX_COMPILED_BYTES: usize = 16 * 1024 * 1024;

/// Maximum size of all compiled patterns of a registry, in bytes.
const MAX_BYTES_TOGETHER: usize = 64 * 1024 * 1024;

/// First and last limit of backtracking for one match.
const BACKTRACK_LIMITS: [usize; 2] = [500, 20_000];

/// The patterns of a registry. Each is compiled once.
pub(super) struct Patterns {
    cache: PatternCache,
    known: HashMap<String, Kind>,
    /// Approximate size of the compiled patterns, in bytes.
    bytes: usize,
    /// Patterns that [`KEYWORD`] matches.
    costly: Arc<Mutex<HashMap<String, Arc<Costly>>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Linear {
        sixteenths_per_byte: u64,
    },
    Backtracks,
    /// The text is not a pattern.
    Broken,
}

impl Patterns {
    pub(super) fn new(cache: PatternCache) -> Self {
        Self { cache, known: HashMap::new(), bytes: 0, costly: Arc::default() }
    }

    /// Returns whether the text is not a pattern, or is too large.
    pub(super) fn is_broken(&mut self, pattern: &str) -> bool {
        self.kind(pattern) == Kind::Broken
    }

    /// Returns whether a match of the pattern backtracks.
    pub(super) fn backtracks(&mut self, pattern: &str) -> bool {
        self.kind(pattern) == Kind::Backtracks
    }

    fn kind(&mut self, pattern: &str) -> Kind {
        if let Some(kind) = self.known.get(pattern) {
            return *kind;
        }
        let kind = if self.bytes > MAX_BYTES_TOGETHER {
            // The schema is refused anyway.
            Kind::Linear { sixteenths_per_byte: 16 }
        } else if self.compiles(|limit| PatternOptions::regex().size_limit(limit), pattern) {
            Kind::Linear { sixteenths_per_byte: sixteenths_per_byte(&with_ascii_classes(pattern)) }
        } else if self.compiles(|limit| PatternOptions::fancy_regex().size_limit(limit), pattern) {
            Kind::Backtracks
        } else {
            Kind::Broken
        };
        self.known.insert(pattern.to_owned(), kind);
        kind
    }

    /// Returns whether the engine compiles a pattern. Adds its approximate size: the first power of
    /// two that was enough.
    fn compiles<E>(&mut self, engine: impl Fn(usize) -> PatternOptions<E>, pattern: &str) -> bool {
        let mut limit = MIN_COMPILED_BYTES;
        while limit <= MAX_COMPILED_BYTES {
            if self.validator(pattern, engine(limit)).is_some() {
                self.bytes += limit;
                return true;
            }
            limit *= 2;
        }
        false
    }

    /// Returns an error text if the patterns of the registry are too large together.
    pub(super) fn complaint(&self) -> Option<&'static str> {
        (self.bytes > MAX_BYTES_TOGETHER).then_some(
            "the patterns of the registry take more than 64 MiB: use fewer, or smaller repetitions",
        )
    }

    fn validator<E>(
        &self,
        pattern: &str,
        engine: PatternOptions<E>,
    ) -> Option<Validator<PayloadJson>> {
        let options = jsonschema::options_for::<PayloadJson>()
            .with_draft(Draft::Draft202012)
            .with_pattern_cache(self.cache.clone());
        options.with_pattern_options(engine).build(&json!({ "pattern": pattern })).ok()
    }

    /// Replaces each `pattern` whose matches must be charged by [`KEYWORD`]. Returns the costs of
    /// the schema's parts.
    pub(super) fn replace_costly(&mut self, schema: &mut Value, schemas_per_value: u64) -> Costs {
        let mut costs = Costs { child: 1 + schemas_per_value / 32, ..Costs::default() };
        walk::each_mut(schema, &mut |schema| {
            if let Some(pattern) = schema.get("pattern").and_then(Value::as_str).map(str::to_owned)
            {
                match self.kind(&pattern) {
                    Kind::Linear { sixteenths_per_byte }
                        if sixteenths_per_byte <= MAX_LIGHT_SIXTEENTHS =>
                    {
                        costs.sixteenths_per_byte =
                            costs.sixteenths_per_byte.max(sixteenths_per_byte);
                    }
                    kind => {
                        if self.compile_costly(&pattern, kind) {
                            schema.remove("pattern");
                            schema.insert(KEYWORD.to_owned(), pattern.into());
                        }
                    }
                }
            }
            let mut of_names = 0;
            let mut backtracking = 0;
            for name in schema
                .get("patternProperties")
                .and_then(Value::as_object)
                .into_iter()
                .flat_map(|named| named.keys())
            {
                match self.kind(name) {
                    Kind::Linear { sixteenths_per_byte } => of_names += sixteenths_per_byte,
                    Kind::Backtracks => backtracking += 1,
                    Kind::Broken => {}
                }
            }
            costs.sixteenths_per_name_byte = costs.sixteenths_per_name_byte.max(1 + of_names);
            costs.backtracking_names = costs.backtracking_names.max(backtracking);
        });
        costs
    }

    /// Returns whether [`KEYWORD`] can match the pattern. If not, the library reports the problem.
    fn compile_costly(&self, pattern: &str, kind: Kind) -> bool {
        let mut known = self.costly.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains_key(pattern) {
            return true;
        }
        let costly = match kind {
            Kind::Linear { sixteenths_per_byte } => self
                .validator(pattern, PatternOptions::regex())
                .map(|validator| Costly::Linear { sixteenths_per_byte, validator }),
            Kind::Backtracks => {
                let [first, last] = BACKTRACK_LIMITS.map(|limit| {
                    self.validator(pattern, PatternOptions::fancy_regex().backtrack_limit(limit))
                });
                first.zip(last).map(|(first, last)| Costly::Backtracks { first, last })
            }
            // The library reports the problem.
            Kind::Broken => None,
        };
        let Some(costly) = costly else { return false };
        known.insert(pattern.to_owned(), Arc::new(costly));
        true
    }

    /// Registers [`KEYWORD`] with the library.
    pub(super) fn register<'i, R>(
        &self,
        options: ValidationOptions<'i, R, PayloadJson>,
    ) -> ValidationOptions<'i, R, PayloadJson> {
        let costly = self.costly.clone();
        options.with_keyword(KEYWORD, move |schema, pattern, _| {
            let known = costly.lock().unwrap_or_else(PoisonError::into_inner);
            let pattern = pattern.as_str().and_then(|pattern| known.get(pattern)).cloned();
            let pattern =
                pattern.ok_or_else(|| ValidationError::custom("this keyword is unstale's own"))?;
            let max_chars = schema.get("maxLength").and_then(Value::as_u64);
            Ok(Box::new(CostlyPattern { pattern, max_chars }))
        })
    }
}

/// A pattern whose matches are charged.
#[derive(Debug)]
enum Costly {
    Linear { sixteenths_per_byte: u64, validator: Validator<PayloadJson> },
    Backtracks { first: Validator<PayloadJson>, last: Validator<PayloadJson> },
}

impl Costly {
    /// Returns whether the text matches. Ends the validation if that takes too long to find out.
    fn matches(&self, node: PayloadNode<'_>, bytes: u64) -> bool {
        match self {
            Self::Linear { sixteenths_per_byte, validator } => {
                node.charge_keyword(bytes.saturating_mul(*sixteenths_per_byte) / 16);
                validator.is_valid(node.unmetered())
            }
            Self::Backtracks { first, last } => {
                node.charge_keyword(backtracking_units(bytes));
                let [first_limit, last_limit] = BACKTRACK_LIMITS.map(|limit| limit as u64);
                finished(first, node)
                    .or_else(|| {
                        node.charge_keyword(
                            WORK_PER_BACKTRACKING_MATCH * (last_limit / first_limit),
                        );
                        finished(last, node)
                    })
                    .unwrap_or_else(|| {
                        node.give_up();
                        false
                    })
            }
        }
    }
}

/// Returns whether the text matches, or `None` if the validator's limit of backtracking is reached.
fn finished(validator: &Validator<PayloadJson>, node: PayloadNode<'_>) -> Option<bool> {
    match validator.validate(node.unmetered()) {
        Ok(()) => Some(true),
        Err(error) => match error.kind() {
            ValidationErrorKind::BacktrackLimitExceeded { .. } => None,
            _ => Some(false),
        },
    }
}

struct CostlyPattern {
    pattern: Arc<Costly>,
    /// Value of the `maxLength` beside the pattern. A longer text violates that keyword, and is not
    /// matched.
    max_chars: Option<u64>,
}

impl<'i> Keyword<'i, PayloadJson> for CostlyPattern {
    fn validate(&self, node: PayloadNode<'i>) -> Result<(), ValidationError<'i>> {
        if Keyword::is_valid(self, node) {
            return Ok(());
        }
        Err(ValidationError::custom("the text does not match"))
    }

    fn is_valid(&self, node: PayloadNode<'i>) -> bool {
        let Some(bytes) = node.text_bytes() else { return true };
        // A character takes at most twelve bytes: two escapes.
        if self.max_chars.is_some_and(|max| bytes > max.saturating_mul(12).saturating_add(2)) {
            return true;
        }
        self.pattern.matches(node, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_with_look_around_or_back_references_backtrack() {
        let mut patterns = Patterns::new(PatternCache::new());
        for (pattern, expected) in [
            ("(?<!a)b+c", true),
            ("^(?!x-)", true),
            ("(a)\\1", true),
            ("^\\(?=$", false),
            ("^[^()]+$", false),
            ("^\\S+$", false),
            ("(", false),
        ] {
            assert_eq!(patterns.backtracks(pattern), expected, "{pattern}");
        }
    }
}
