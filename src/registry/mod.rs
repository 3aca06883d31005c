//! Files → [`Registry`]; [`Event`](crate::event::Event) → effects. Knows no socket, clock or
//! runtime.

mod budget;
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
mod lint;
mod load;
mod model;
mod moments;
mod number;
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
pub use data_schema::DataSchema;
pub use diagnostic::{Problem, Problems, Severity};
pub use effect::{
    Action, Effect, Expiry, Failure, LoaderId, Matched, Only, Resolution, RuleId, Stale, Verb,
    Version, Warm, Write,
};
pub use example::{Example, run_examples};
pub use explain::{Explanation, Note};
pub use expression::Expression;
pub use key_shape::KeyShape;
pub use load::{FileList, LoadOptions, Loaded, MissingVars, digest_of, list_files};
pub use model::{
    Encoding, Entry, ExpiryRule, Family, Loader, LoaderHeaders, Pattern, Registry, Rule, RuleBody,
    RuleName, Validate, VersionRule,
};
pub use path::{EventField, Names, Path, Root, Step, TextProblem};
pub(crate) use reserved::MAX_NAME_BYTES;
pub use schema::file_schema;
pub use template::{Template, unbound_array};
pub use url_template::UrlTemplate;
pub use value_template::ValueTemplate;

/// The stack of a thread that loads a registry or resolves events: as much as the main thread has.
pub const STACK_BYTES: usize = 8 * 1024 * 1024;

#[cfg(test)]
mod tests;
