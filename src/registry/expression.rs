//! CEL expressions (`when`, `let`, `each`): compiled when the registry loads, evaluated for each
//! event.
//!
//! Files: `compile` checks CEL's syntax tree and compiles it to the nodes of `node`, `syntax` words
//! its syntax errors. `evaluate` computes a `value`, with the operators of `operate`, `equality`
//! and the regular expressions of `pattern`.

mod compile;
mod equality;
mod evaluate;
mod node;
mod operate;
mod pattern;
mod syntax;
mod value;

use std::sync::{Arc, LazyLock};

use cel::Env;

use super::code::Code;
use super::diagnostic::nearest;
use super::fault::Fault;
use super::functions;
use super::path::{KnownNames, Path, TextProblem};
use super::scope::Scope;
use compile::{Check, json_argument};
use evaluate::Evaluator;
use node::Node;
use syntax::syntax_problem;

pub(super) use pattern::TextPatterns;
pub(super) use value::Value;

/// Maximum length of an expression, in bytes. It bounds the depth of the tree before parsing.
const MAX_BYTES: usize = 4096;

/// Maximum depth of the tree, over which the interpreter recurses.
const MAX_DEPTH: usize = 100;

/// CEL's standard functions that are called on a value.
pub(super) const METHODS: [&str; 15] = [
    "contains",
    "endsWith",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "matches",
    "size",
    "startsWith",
];

/// CEL's standard functions that are called by name.
const FUNCTIONS: [&str; 12] = [
    "bool",
    "bytes",
    "double",
    "duration",
    "dyn",
    "int",
    "matches",
    "size",
    "string",
    "timestamp",
    "type",
    "uint",
];

/// CEL's names of types, as in `type(x) == int`.
const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

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

/// CEL's macros over a list.
const MACROS: [&str; 5] = ["all", "exists", "exists_one", "filter", "map"];

fn functions_help(name: &str) -> String {
    if MACROS.contains(&name) {
        return format!(
            "`{name}` takes a variable and what is computed for it, such as data.xs.{name}(x, x.id > 0)"
        );
    }
    let known = functions::NAMES.iter().chain(&FUNCTIONS).chain(&METHODS).chain(&MACROS);
    if let Some(meant) = nearest(name, known.copied()) {
        let is_method = METHODS.contains(&meant) || MACROS.contains(&meant);
        return format!(
            "did you mean {}?",
            if is_method { format!("x.{meant}(…)") } else { format!("{meant}(x)") }
        );
    }
    format!(
        "functions are {}, {}; methods on a value are {}",
        functions::NAMES.join(", "),
        FUNCTIONS.join(", "),
        METHODS.join(", ")
    )
}
