//! Files → [`Registry`]; [`Event`](crate::event::Event) → effects. Knows no socket, clock or runtime.

mod cel_value;
mod effect;
mod expression;
mod functions;
mod model;
mod number;
mod path;
mod pattern;
mod render;
mod resolve;
mod scope;
mod template;
mod url_template;
mod value_template;

pub use effect::{Action, Effect, Expiry, Failure, LoaderId, Matched, Resolution, RuleId, Verb, Version, Warm, Write};
pub use expression::Expression;
pub use model::{
    Encoding, Entry, ExpiryRule, Family, Loader, LoaderHeaders, Pattern, Registry, Rule, RuleBody, RuleName, Validate, VersionRule,
};
pub use path::{EventField, Names, Path, Root, Step, TextProblem};
pub use resolve::{Explanation, Note};
pub use template::{Template, unbound_array};
pub use url_template::UrlTemplate;
pub use value_template::ValueTemplate;

#[cfg(test)]
mod tests;
