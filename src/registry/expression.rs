//! CEL expressions (`when`, `let`, `each`): compiled when the registry loads, evaluated for each
//! event.
//!
//! Files: `compile` checks CEL's syntax tree and compiles it to the nodes of `node`, with the
//! `names` that it knows. `syntax` words its syntax errors. `evaluate` computes a `value`, with the
//! operators of `operate`, `equality` and the regular expressions of `pattern`.

mod compile;
mod equality;
mod evaluate;
mod names;
mod node;
mod operate;
mod pattern;
mod syntax;
mod value;

use std::sync::{Arc, LazyLock};

use cel::Env;

use super::code::Code;
use super::fault::Fault;
use super::functions;
use super::path::{KnownNames, Path, TextProblem};
use super::scope::{Found, Scope};
use crate::event::Json;
use crate::event::json::JsonKind;
use compile::{Check, json_argument};
use evaluate::Evaluator;
use node::Node;
use syntax::syntax_problem;

#[cfg(test)]
pub(super) use names::METHODS;
pub(super) use pattern::TextPatterns;
pub(super) use value::Value;

/// Maximum length of an expression, in bytes. It bounds the depth of the tree before parsing.
const MAX_BYTES: usize = 4096;

/// CEL's environment: its standard functions and ours.
pub(super) static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    functions::declare(&mut env);
    Arc::new(env)
});

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    node: Node,
    /// The path that the whole expression is. It is read without CEL, so numbers keep their text.
    pub(super) whole: Option<Path>,
    /// The expression is `json(path)`: a text at the path is read as JSON.
    pub(super) is_json_text: bool,
    paths: Vec<Path>,
    lets: Vec<usize>,
    vars: Vec<String>,
    unset: Vec<String>,
    text: String,
}

impl Expression {
    /// Compiles a text.
    ///
    /// `vars.X` is replaced by its value from `names`. A variable without a value fails when it is
    /// evaluated, and is listed by [`Expression::unset_vars`].
    ///
    /// # Errors
    /// The first syntax error, or an unknown name or function.
    pub fn compile(text: &str, names: &KnownNames<'_>) -> Result<Self, TextProblem> {
        Self::compile_sharing(text, names, &mut TextPatterns::default())
    }

    /// Compiles a text as [`Expression::compile`] does, and shares equal patterns with other
    /// expressions.
    pub(super) fn compile_sharing(
        text: &str,
        names: &KnownNames<'_>,
        patterns: &mut TextPatterns,
    ) -> Result<Self, TextProblem> {
        if text.trim().is_empty() {
            return Err(TextProblem::new(Code::ExpressionSyntax, 0, "the expression is empty"));
        }
        if text.len() > MAX_BYTES {
            return Err(TextProblem::new(
                Code::ExpressionSize,
                MAX_BYTES,
                format!("an expression has at most {MAX_BYTES} bytes"),
            )
            .help("split it with `let`"));
        }
        let (ast, places) = ENV
            .parser()
            .parse_with_source_info(text)
            .map_err(|errors| syntax_problem(text, &errors))?;
        let mut check = Check {
            text,
            names,
            places: &places,
            bound: Vec::new(),
            lets: Vec::new(),
            paths: Vec::new(),
            vars: Vec::new(),
            unset: Vec::new(),
            patterns,
        };
        let json_of = json_argument(&ast);
        let read = json_of.unwrap_or(&ast);
        let whole = check.chain(read).filter(|path| !path.is_optional());
        if json_of.is_some() && whole.is_none() {
            return Err(check.no_json(ast.id));
        }
        let node = check.node(read, 0)?;
        let Check { lets, paths, vars, unset, .. } = check;
        Ok(Self {
            node,
            whole,
            is_json_text: json_of.is_some(),
            paths,
            lets,
            vars,
            unset,
            text: text.to_owned(),
        })
    }

    /// Computes the value for one event.
    pub(super) fn evaluate<'v>(&'v self, scope: &'v Scope<'_, '_>) -> Result<Value<'v>, Fault> {
        Evaluator { scope, budget: scope.event.budget, variables: Vec::new() }.node(&self.node)
    }

    /// Evaluates a `when`.
    pub(super) fn condition(&self, scope: &Scope<'_, '_>) -> Result<bool, Fault> {
        if self.is_json_text {
            let text = self.json(scope)?;
            return Json::trusted(&text)
                .as_bool()
                .ok_or_else(|| Fault::new("the result is neither true nor false"));
        }
        if let Some(path) = &self.whole {
            return match scope.read(path, &[])? {
                Some(Found::Json(json)) if !json.is_null() => json
                    .as_bool()
                    .ok_or_else(|| Fault::new(format!("`{path}` is neither true nor false"))),
                _ => Err(Fault::absence(format!("`{path}` is absent or null"))),
            };
        }
        match self.evaluate(scope)? {
            Value::Bool(answer) => Ok(answer),
            Value::Null | Value::AbsentPrevious => Err(Fault::absence("the result is null")),
            _ => Err(Fault::new("the result is neither true nor false")),
        }
    }

    /// Evaluates a `let` or an `each`, as JSON.
    pub(super) fn json(&self, scope: &Scope<'_, '_>) -> Result<String, Fault> {
        if let Some(path) = &self.whole {
            return match scope.read(path, &[])? {
                Some(Found::Json(json)) if self.is_json_text && json.kind() == JsonKind::String => {
                    json_in_text(scope, path, json)
                }
                Some(Found::Json(json)) => {
                    scope.event.budget.bytes(json.text().len())?;
                    Ok(json.text().to_owned())
                }
                _ => Err(Fault::absence(format!("`{path}` is absent"))),
            };
        }
        let text = self.evaluate(scope)?.to_json(scope.event.budget)?;
        scope.event.budget.work(text.len() as u64 / 8)?;
        match Json::parse(&text) {
            Ok(_) => Ok(text),
            Err(error) => Err(Fault::new(format!("the value is {error}"))),
        }
    }

    /// Returns the text of the expression, as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the paths that it reads from `data`, `previous` and `item`, if they are known in
    /// advance.
    ///
    /// Paths within `has(…)` and `changed(…)` are optional.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// Returns the variables that it names.
    pub fn vars(&self) -> impl Iterator<Item = &str> {
        self.vars.iter().map(String::as_str)
    }

    /// Returns the variables that have no value.
    pub fn unset_vars(&self) -> impl Iterator<Item = &str> {
        self.unset.iter().map(String::as_str)
    }

    /// Returns the indices of the `let`s that it reads.
    pub fn lets(&self) -> &[usize] {
        &self.lets
    }
}

/// Returns the JSON that a text holds.
fn json_in_text(scope: &Scope<'_, '_>, path: &Path, json: Json<'_>) -> Result<String, Fault> {
    scope.event.budget.bytes(json.text().len())?;
    scope.event.budget.work(json.text().len() as u64 / 4)?;
    let text = json.as_str().unwrap_or_default();
    match Json::parse(&text) {
        Ok(inner) => Ok(inner.text().to_owned()),
        Err(error) => Err(Fault::new(format!("the text at `{path}` is {error}"))),
    }
}
