//! The registry: rule files are compiled to a [`Registry`], which resolves an
//! [`Event`](crate::event::Event) to effects.
//!
//! Loading, in reading order:
//!
//! - `load` finds and reads the files, with `options`, and returns a `loaded` registry
//! - `tree` reads YAML and JSON with places; `source` and `diagnostic` report problems, each with a
//!   `code`
//! - `document` gives the tree its types, `compile` makes the `model` of it, `lint` warns
//! - `path`, `template`, `url_template`, `value_template` and `expression` compile texts
//! - `data_schema` compiles the schemas of payloads, `example` runs the tests of rule files
//!
//! Resolving, in reading order:
//!
//! - `resolve` applies the rules to one event, and `effect` holds the result
//! - `scope` reads the event, `lets` its named expressions, `render` fills templates, `moments`
//!   computes versions and expiries
//! - `budget` bounds the cost of an event, `reserved` the keys that rules may reach
//! - `explain` notes for `plan` why a rule had no effect
//!
//! Absent on purpose: sockets, the clock and the async runtime. Only `load` reads files.

mod budget;
mod code;
mod compile;
mod data_schema;
mod decimal;
mod diagnostic;
mod differs;
mod document;
mod effect;
mod example;
mod explain;
mod expression;
mod fault;
mod functions;
mod key_shape;
mod lets;
mod lint;
mod load;
mod loaded;
mod model;
mod moments;
mod number;
mod options;
mod path;
mod pattern;
mod payload_json;
mod places;
mod regex_size;
mod render;
mod reserved;
mod resolve;
mod sample_keys;
mod schema;
mod scope;
mod source;
mod template;
mod tree;
mod url_template;
mod value_template;

pub use budget::{BYTES_PER_EVENT, Budget, Spent, WORK_PER_EVENT};
pub use code::Code;
pub use data_schema::DataSchema;
pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub(crate) use document::MAX_SECOND_DELETE_DELAY;
pub use effect::{
    Action, Effect, Expiry, Failure, LoaderId, Matched, Only, Resolution, RuleId, Stale, Verb,
    Version, Warm, Write,
};
pub use example::Example;
pub use explain::{Explanation, Note};
pub use expression::Expression;
pub use key_shape::KeyShape;
pub use load::{FileList, digest_of, list_files};
pub use loaded::{LoadedRegistry, run_examples};
pub use model::{
    Encoding, EventDefinition, ExpiryRule, Family, Loader, LoaderHeaders, Pattern, Registry, Rule,
    RuleBody, RuleName, Validate, VersionRule,
};
pub use options::{LoadOptions, MissingVars};
pub use path::{EventField, KnownNames, Path, PathRoot, PathStep, TextProblem};
pub(crate) use reserved::MAX_NAME_BYTES;
pub use schema::file_schema;
pub use template::{Template, unbound_array};
pub use url_template::UrlTemplate;
pub use value_template::ValueTemplate;

/// Stack size of a thread that loads a registry or resolves events, in bytes. The main thread has
/// as much.
pub const STACK_BYTES: usize = 8 * 1024 * 1024;

#[cfg(test)]
mod tests;
