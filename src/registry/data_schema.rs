//! JSON Schema 2020-12 of a payload (`data`): compiling and validating.
//!
//! Files: `references` resolves `$ref` within a file. `keywords` warns of misspelt keywords.
//! `bounds` refuses schemas that apply too many others to one value. `pattern`, `number` and
//! `format` replace keywords and formats of the library. `violation` finds the place that fails,
//! `mentions` what its message may repeat of the schema, and `walk` the schemas within a schema.
//!
//! Errors below `anyOf` and `oneOf` are never built: their number may grow exponentially with the
//! payload.

mod bounds;
mod format;
mod keywords;
mod mentions;
mod number;
mod pattern;
mod references;
mod violation;
mod walk;

use std::borrow::Cow;
use std::collections::HashSet;

use jsonschema::{Draft, PatternCache, PatternOptions, Validator};
use serde_json::Value;

use super::budget::Budget;
use super::code::Code;
use super::diagnostic::{Report, Severity};
use super::payload_json::{Costs, Meter, NAME_BACKTRACK_LIMIT, PayloadJson, PayloadNode};
use super::tree::{Allowance, Node};
use crate::event::Json;
use pattern::Patterns;

pub(super) use references::{FileRoot, decoded};

/// A compiled schema.
#[derive(Debug)]
pub struct DataSchema {
    validator: Validator<PayloadJson>,
    costs: Costs,
    /// Names of members that the schema mentions. Messages show no others, which may be personal
    /// data.
    names: HashSet<Box<str>>,
    /// The keywords at which the search for a violation ends, as text.
    branching: String,
    /// JSON pointers of schemas copied from the file, by the number in their name in `$defs`.
    borrowed: Vec<String>,
}

/// Result of a validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Valid,
    Invalid,
    /// The event's budget ran out before the result was known.
    Spent,
}

impl DataSchema {
    /// Validates a payload. `members` are those of the payload.
    pub(super) fn verdict<'a>(
        &self,
        data: Json<'a>,
        members: &'a [(Cow<'a, str>, Json<'a>)],
        budget: &Budget,
    ) -> Verdict {
        if budget.work(members.len() as u64).is_err() {
            return Verdict::Spent;
        }
        let meter = Meter::new(budget, self.costs);
        match meter.run(|| self.validator.is_valid(PayloadNode::of(data, members, &meter))) {
            Ok(true) => Verdict::Valid,
            Ok(false) => Verdict::Invalid,
            Err(_) => Verdict::Spent,
        }
    }
}

/// Compiles the schemas of a registry.
pub(super) struct SchemaCompiler<'a> {
    /// Limit of what schemas copied by `$ref` may add.
    copies: &'a mut Allowance,
    cache: PatternCache,
    patterns: Patterns,
}

/// Maximum number of problems that are reported for one schema.
const MAX_SCHEMA_PROBLEMS: usize = 20;

impl<'a> SchemaCompiler<'a> {
    pub(super) fn new(copies: &'a mut Allowance) -> Self {
        let cache = PatternCache::new();
        Self { copies, patterns: Patterns::new(cache.clone()), cache }
    }

    /// Compiles a schema. Returns it, and its JSON with every referenced schema inside.
    pub(super) fn compile(
        &mut self,
        node: &Node,
        file: &FileRoot<'_>,
        report: &mut Report<'_>,
    ) -> Option<(DataSchema, Value)> {
        let problems = report.problems.len();
        let mut json = node.to_json();
        references::check(node, &json, file, report);
        for error in
            jsonschema::draft202012::meta::validator().iter_errors(&json).take(MAX_SCHEMA_PROBLEMS)
        {
            let place = node.nearest_to(error.instance_path().as_str()).at;
            if error.instance_path().as_str().ends_with("/type") {
                let help = "use null, boolean, object, array, number, integer or string, or a list of them";
                report.error_with_help(
                    Code::SchemaInvalid,
                    place,
                    format!("not a JSON Schema: {} is not a type", error.instance()),
                    help,
                );
            } else {
                report.error(Code::SchemaInvalid, place, format!("not a JSON Schema: {error}"));
            }
        }
        keywords::check(node, &mut self.patterns, report);
        if report.problems[problems..].iter().any(|problem| problem.severity == Severity::Error)
            || report.is_full()
        {
            return None;
        }
        let Some(borrowed) = references::take_in(&mut json, file, self.copies) else {
            let help =
                "refer to it from fewer events, or make it smaller: each reference adds a copy";
            report.error_with_help(
                Code::RegistryTooLarge,
                node.at,
                "the schemas that `$ref` copies from their files are too large together",
                help,
            );
            return None;
        };
        match self.build(&json, borrowed) {
            Ok(schema) => Some((schema, json)),
            Err(Refused { pointer, message }) => {
                report.error(
                    Code::SchemaInvalid,
                    node.nearest_to(&pointer).at,
                    format!("not a JSON Schema: {message}"),
                );
                None
            }
        }
    }

    fn build(&mut self, json: &Value, borrowed: Vec<String>) -> Result<DataSchema, Refused> {
        let schemas_per_value = bounds::schemas_per_value(json)
            .map_err(|message| Refused { pointer: String::new(), message })?;
        let mut built = json.clone();
        let costs = self.patterns.replace_costly(&mut built, schemas_per_value);
        if let Some(message) = self.patterns.complaint() {
            return Err(Refused { pointer: String::new(), message: message.to_owned() });
        }
        number::replace(&mut built);
        let mut options = jsonschema::options_for::<PayloadJson>()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true)
            .should_ignore_unknown_formats(false)
            .with_format("idn-hostname", format::is_idn_hostname)
            .with_format("idn-email", format::is_idn_email)
            .with_pattern_cache(self.cache.clone())
            .offline();
        if costs.backtracking_names > 0 {
            options = options.with_pattern_options(
                PatternOptions::fancy_regex().backtrack_limit(NAME_BACKTRACK_LIMIT),
            );
        }
        let built = number::register(self.patterns.register(options)).build(&built);
        match built {
            Ok(validator) => Ok(DataSchema {
                validator,
                costs,
                names: mentions::names(json),
                branching: mentions::branching(json),
                borrowed,
            }),
            Err(error) => {
                let pointer = [error.instance_path().as_str(), error.schema_path().as_str()]
                    .into_iter()
                    .max_by_key(|path| path.len())
                    .unwrap_or("");
                let message = error.to_string();
                // The rest of the message is about the library's settings.
                let message = message.split(". Adjust configuration").next().unwrap_or_default();
                Err(Refused { pointer: number::as_written(pointer), message: message.to_owned() })
            }
        }
    }
}

/// Error of a schema that cannot be compiled.
struct Refused {
    pointer: String,
    message: String,
}

#[cfg(test)]
impl DataSchema {
    pub(super) fn of_json(json: &Value) -> Self {
        let mut copies = Allowance::default();
        SchemaCompiler::new(&mut copies)
            .build(json, Vec::new())
            .map_err(|refused| refused.message)
            .unwrap()
    }

    pub(super) fn is_valid(&self, text: &str) -> bool {
        let data = Json::parse(text).unwrap();
        self.verdict(data, &data.members(), &Budget::for_event()) == Verdict::Valid
    }
}

#[cfg(test)]
mod tests;
