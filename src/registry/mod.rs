//! Files → [`Registry`]; [`Event`](crate::event::Event) → effects. Knows no socket, clock or runtime.

mod diagnostic;
mod effect;
mod expression;
mod functions;
mod model;
mod path;
mod template;
mod tree;
mod url_template;
mod value_template;

pub use diagnostic::{Problem, Problems, Severity};
pub use effect::{Action, Effect, Expiry, Failure, LoaderId, Matched, Resolution, RuleId, Verb, Version, Warm, Write};
pub use expression::Expression;
pub use model::{
    Encoding, Entry, ExpiryRule, Family, Loader, LoaderHeaders, Pattern, Registry, Rule, RuleBody, RuleName, Validate, VersionRule,
};
pub use path::{EventField, Names, Path, Root, Step, TextProblem};
pub use template::Template;
pub use url_template::UrlTemplate;
pub use value_template::ValueTemplate;
