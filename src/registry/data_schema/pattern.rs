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
use super::walk;

/// The keyword that takes the place of `pattern` where a match must be charged for.
pub(super) const KEYWORD: &str = "unstale-pattern";

/// The largest size of a pattern that is charged for with every text of the schema, and left to the library.
const MAX_LIGHT_SIZE: u64 = 64;

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
                        costs.sixteenths_per_byte = costs.sixteenths_per_byte.max(16).max(2 * size);
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
                    Kind::Linear { size } => of_names += 2 * size,
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
                node.charge_match(bytes.saturating_mul(*size) / 8);
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

/// Whether a pattern is one class, repeated, from the text's beginning to its end: the library counts characters then.
fn is_counted_class(pattern: &str) -> bool {
    let Some(body) = pattern.strip_prefix('^').and_then(|rest| rest.strip_suffix('$')) else { return false };
    let after = match body.as_bytes() {
        [b'[', rest @ ..] => {
            // The first bracket that no escape precedes ends the class.
            let mut escaped = false;
            let end = rest.iter().position(|byte| {
                let ends = *byte == b']' && !escaped;
                escaped = *byte == b'\\' && !escaped;
                ends
            });
            let Some(end) = end else { return false };
            &rest[end + 1..]
        }
        [b'\\', _, rest @ ..] | [b'.', rest @ ..] => rest,
        _ => return false,
    };
    match after {
        b"" | b"*" | b"+" => true,
        [b'{', counts @ .., b'}'] => counts.iter().all(|byte| byte.is_ascii_digit() || *byte == b','),
        _ => false,
    }
}

/// Returns about how many states a pattern has: its characters and classes, counted repetitions written out.
fn size(pattern: &str) -> u64 {
    let mut groups = vec![0_u64];
    // The size of what the next repetition would repeat.
    let mut last = 0_u64;
    let mut rest = pattern.chars().peekable();
    let add = |groups: &mut Vec<u64>, size: u64| {
        if let Some(group) = groups.last_mut() {
            *group = group.saturating_add(size);
        }
    };
    while let Some(c) = rest.next() {
        match c {
            '\\' => {
                let is_class_name = matches!(rest.next(), Some('p' | 'P' | 'u' | 'k'));
                if is_class_name && rest.peek() == Some(&'{') {
                    rest.by_ref().take_while(|c| *c != '}').for_each(drop);
                }
                last = 1;
            }
            '[' => {
                let mut escaped = false;
                for c in rest.by_ref() {
                    if c == ']' && !escaped {
                        break;
                    }
                    escaped = c == '\\' && !escaped;
                }
                last = 1;
            }
            '(' => {
                groups.push(0);
                continue;
            }
            ')' => {
                last = if groups.len() > 1 { groups.pop().unwrap_or_default() } else { 0 };
            }
            '{' => {
                let counts: String = rest.by_ref().take_while(|c| *c != '}').collect();
                let count = counts.split(',').filter_map(|count| count.trim().parse::<u64>().ok()).max().unwrap_or(1);
                // It was added once.
                add(&mut groups, last.saturating_mul(count.saturating_sub(1)));
                last = last.saturating_mul(count.max(1));
                continue;
            }
            '*' | '+' | '?' | '|' | '^' | '$' => continue,
            _ => last = 1,
        }
        add(&mut groups, last);
    }
    groups.into_iter().fold(0, u64::saturating_add).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_repetitions_are_written_out() {
        for (pattern, expected) in [
            ("", 1),
            ("^abc$", 3),
            ("a{3}", 3),
            ("(ab){2,5}", 10),
            ("((a|b){10}c){100}", 2_100),
            ("[a-z\\]{9}]{4}", 4),
            ("\\p{Lu}{1,30}x", 31),
            ("a\\{3}", 4),
            ("(a{1000}){1000}", 1_000_000),
            ("a{99999999999999999999}", 1),
        ] {
            assert_eq!(size(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn one_repeated_class_is_told_from_other_patterns() {
        for (pattern, expected) in [
            ("^[a-z0-9_-]{1,64}$", true),
            ("^.{0,1000}$", true),
            ("^\\d+$", true),
            ("^[\\]a]*$", true),
            ("[a-z]{1,64}", false),
            ("^[a]b$", false),
            ("^[a-z]{1,64}[0-9]$", false),
            ("^[a]{1}{2}$", false),
            ("^(ab){2}$", false),
        ] {
            assert_eq!(is_counted_class(pattern), expected, "{pattern}");
        }
    }

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
