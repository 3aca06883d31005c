//! Reads YAML text into a tree whose nodes know their place. JSON is read as YAML 1.2, apart from
//! two details.
//!
//! Anchors are resolved within an allowance. Merge keys, tags and duplicate keys are errors.
//!
//! Files: `node` has the tree's types. `build` makes the tree from the parser's events, within the
//! limits of `allowance`. `number` reads plain scalars, `trap` explains YAML's pitfalls,
//! `json_text` handles JSON's two details.

mod allowance;
mod build;
mod json_text;
mod node;
mod number;
mod trap;

pub(crate) use allowance::Allowance;
pub(crate) use build::parse;
pub(crate) use node::{Content, Member, Node};
pub(crate) use number::ScalarKind;

#[cfg(test)]
mod tests;
