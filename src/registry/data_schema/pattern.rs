//! `pattern` and `patternProperties`: what a match costs, and matches that the library would not bound.
//!
//! A pattern without look-around and back-references takes time in proportion to the text and to its own size, counted repetitions written out.
//! Any other backtracks: it is matched by a keyword of ours, which charges for the square of the text's length and bounds the backtracking.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, Keyword, PatternCache, PatternOptions, ValidationError, ValidationOptions, Validator};
use serde_json::{Value, json};

use super::super::payload_json::{BACKTRACKING, Costs, PayloadJson, PayloadNode, backtracking_units};
use super::super::regex_size::{is_counted_class, size, units_per_byte};
use super::walk;

/// The keyword that takes the place of `pattern` where a match must be charged for.
pub(super) const KEYWORD: &str = "unstale-pattern";

/// The largest size of a pattern that is charged for with every text of the schema, and left to the library.
const MAX_LIGHT_SIZE: u64 = 16;

/// How often a match may backtrack at first, and at most.
const BACKTRACK_LIMITS: [usize; 2] = [500, 20_000];

/// The patterns of a registry, each compiled once.
pub(super) struct Patterns {
    cache: PatternCache,
    known: HashMap<String, Kind>,
    /// Those that are matched by [`KEYWORD`].
    costly: Arc<Mutex<HashMap<String, Arc<Costly>>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Linear { size: u64 },
    Backtracks,
}

impl Patterns {
    pub(super) fn new(cache: PatternCache) -> Self {
        Self { cache, known: HashMap::new(), costly: Arc::default() }
    }

    /// Whether a match of the pattern backtracks.
    pub(super) fn backtracks(&mut self, pattern: &str) -> bool {
        self.kind(pattern) == Kind::Backtracks
    }

    fn kind(&mut self, pattern: &str) -> Kind {
        if let Some(kind) = self.known.get(pattern) {
            return *kind;
        }
        let kind = if self.validator(pattern, PatternOptions::regex()).is_some() {
            Kind::Linear { size: if is_counted_class(pattern) { 1 } else { size(pattern) } }
        } else if self.validator(pattern, PatternOptions::fancy_regex()).is_some() {
            Kind::Backtracks
        } else {
            // It is none: the library says so when the schema is built.
            Kind::Linear { size: 1 }
        };
        self.known.insert(pattern.to_owned(), kind);
        kind
    }

    fn validator<E>(&self, pattern: &str, engine: PatternOptions<E>) -> Option<Validator<PayloadJson>> {
        let options = jsonschema::options_for::<PayloadJson>().with_draft(Draft::Draft202012).with_pattern_cache(self.cache.clone());
        options.with_pattern_options(engine).build(&json!({ "pattern": pattern })).ok()
    }

    /// Puts [`KEYWORD`] in the place of each `pattern` that the library would match at any cost. Returns what the schema's parts cost.
    pub(super) fn replace_costly(&mut self, schema: &mut Value, schemas_per_value: u64) -> Costs {
        let mut costs = Costs { child: 1 + schemas_per_value / 32, ..Costs::default() };
        walk::each_mut(schema, &mut |schema| {
            if let Some(pattern) = schema.get("pattern").and_then(Value::as_str).map(str::to_owned) {
                match self.kind(&pattern) {
                    Kind::Linear { size } if size <= MAX_LIGHT_SIZE => {
                        costs.sixteenths_per_byte = costs.sixteenths_per_byte.max(16 * units_per_byte(size));
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
            for name in schema.get("patternProperties").and_then(Value::as_object).into_iter().flat_map(|named| named.keys()) {
                match self.kind(name) {
                    Kind::Linear { size } => of_names += 8 * size,
                    Kind::Backtracks => backtracking += 1,
                }
            }
            costs.sixteenths_per_name_byte = costs.sixteenths_per_name_byte.max(1 + of_names);
            costs.backtracking_names = costs.backtracking_names.max(backtracking);
        });
        costs
    }

    /// Whether the pattern can be matched by [`KEYWORD`]; if not, the library says what is wrong with it.
    fn compile_costly(&self, pattern: &str, kind: Kind) -> bool {
        let mut known = self.costly.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains_key(pattern) {
            return true;
        }
        let costly = match kind {
            Kind::Linear { size } => self.validator(pattern, PatternOptions::regex()).map(|validator| Costly::Linear { size, validator }),
            Kind::Backtracks => {
                let [first, last] =
                    BACKTRACK_LIMITS.map(|limit| self.validator(pattern, PatternOptions::fancy_regex().backtrack_limit(limit)));
                first.zip(last).map(|(first, last)| Costly::Backtracks { first, last })
            }
        };
        let Some(costly) = costly else { return false };
        known.insert(pattern.to_owned(), Arc::new(costly));
        true
    }

    /// Makes [`KEYWORD`] known to the library.
    pub(super) fn register<'i, R>(&self, options: ValidationOptions<'i, R, PayloadJson>) -> ValidationOptions<'i, R, PayloadJson> {
        let costly = self.costly.clone();
        options.with_keyword(KEYWORD, move |schema, pattern, _| {
            let known = costly.lock().unwrap_or_else(PoisonError::into_inner);
            let pattern = pattern.as_str().and_then(|pattern| known.get(pattern)).cloned();
            let pattern = pattern.ok_or_else(|| ValidationError::custom("this keyword is unstale's own"))?;
            let max_chars = schema.get("maxLength").and_then(Value::as_u64);
            Ok(Box::new(CostlyPattern { pattern, max_chars }))
        })
    }
}

/// A pattern whose matches are charged for.
#[derive(Debug)]
enum Costly {
    Linear { size: u64, validator: Validator<PayloadJson> },
    Backtracks { first: Validator<PayloadJson>, last: Validator<PayloadJson> },
}

impl Costly {
    /// Whether the text matches. Ends the validation where that takes too long to tell.
    fn matches(&self, node: PayloadNode<'_>, bytes: u64) -> bool {
        match self {
            Self::Linear { size, validator } => {
                node.charge_match(bytes.saturating_mul(units_per_byte(*size)));
                validator.is_valid(node.unmetered())
            }
            Self::Backtracks { first, last } => {
                node.charge_match(backtracking_units(bytes));
                let [first_limit, last_limit] = BACKTRACK_LIMITS.map(|limit| limit as u64);
                finished(first, node)
                    .or_else(|| {
                        node.charge_match(BACKTRACKING * (last_limit / first_limit));
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

/// Returns whether the text matches; `None` where that takes more backtracking than the validator allows.
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
    /// The `maxLength` beside it: a longer text violates that, and is not matched.
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
    fn look_around_and_back_references_backtrack() {
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
