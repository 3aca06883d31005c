//! Files → [`Registry`]; [`Event`](crate::event::Event) → effects. Knows no socket, clock or runtime.

mod diagnostic;
mod effect;
mod expression;
mod model;
mod template;
mod tree;

pub use diagnostic::{Problem, Problems, Severity};
pub use effect::{Action, Effect, Expiry, Failure, LoaderId, Matched, Resolution, RuleId, Verb, Version, Warm, Write};
pub use model::{Entry, Loader, LoaderHeaders, Registry, RuleName};
