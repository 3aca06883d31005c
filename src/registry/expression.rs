//! CEL expressions (`when`, `let`, `each`): checked and prepared when the registry loads.

mod evaluate;
mod node;
mod operate;
mod pattern;
mod syntax;
mod value;

use std::sync::{Arc, LazyLock};

use cel::Env;
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, SourceInfo,
    operators,
};
use cel::common::types::CelType;

use super::diagnostic::nearest;
use super::fault::Fault;
use super::functions;
use super::path::{self, EventField, Names, Path, Root, Start, Step, TextProblem};
use super::scope::Scope;
use evaluate::Evaluator;
use node::{Call, Literal, Loop, LoopKind, Node, OPERANDS, Operation};
use pattern::PatternRefused;
use syntax::syntax_problem;

pub(super) use pattern::TextPatterns;
pub(super) use value::Value;

/// The longest expression: with it the depth of its tree is bounded before it is parsed.
const MAX_BYTES: usize = 4096;

/// The deepest tree: the interpreter recurses over it.
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

/// CEL's names of types, for `type(x) == int`.
const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

/// The functions that expressions may call, ours included.
pub(super) static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    functions::declare(&mut env);
    Arc::new(env)
});

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    node: Node,
    /// The path that the whole expression is: it is read without CEL, and the text of its numbers
    /// stays as published.
    pub(super) whole: Option<Path>,
    /// The whole is `json(path)`: a text there is read as JSON.
    pub(super) is_json_text: bool,
    paths: Vec<Path>,
    lets: Vec<usize>,
    vars: Vec<String>,
    unset: Vec<String>,
    text: String,
}

impl Expression {
    /// Compiles a text. `vars.X` is filled in from `names`; one without a value fails when it is
    /// asked, and is named by [`Expression::unset_vars`].
    ///
    /// # Errors
    /// The first problem of its syntax, or an unknown root or function.
    pub fn compile(text: &str, names: &Names<'_>) -> Result<Self, TextProblem> {
        Self::compile_sharing(text, names, &mut TextPatterns::default())
    }

    /// As [`Expression::compile`], and shares equal patterns with the other expressions of a
    /// registry.
    pub(super) fn compile_sharing(
        text: &str,
        names: &Names<'_>,
        patterns: &mut TextPatterns,
    ) -> Result<Self, TextProblem> {
        if text.trim().is_empty() {
            return Err(TextProblem::new(0, "the expression is empty"));
        }
        if text.len() > MAX_BYTES {
            return Err(TextProblem::new(
                MAX_BYTES,
                format!("an expression has at most {MAX_BYTES} bytes"),
            )
            .hint("split it with `let`"));
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

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The paths it reads from `data`, `previous` and `item`, as far as they are known beforehand;
    /// those asked for by `has(…)` or `changed(…)` are optional.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// The variables it names.
    pub fn vars(&self) -> impl Iterator<Item = &str> {
        self.vars.iter().map(String::as_str)
    }

    /// The variables that have no value.
    pub fn unset_vars(&self) -> impl Iterator<Item = &str> {
        self.unset.iter().map(String::as_str)
    }

    /// The places of the `let`s that it reads.
    pub fn lets(&self) -> &[usize] {
        &self.lets
    }
}

/// Returns the argument of an expression that is `json(x)`.
fn json_argument(ast: &IdedExpr) -> Option<&IdedExpr> {
    match &ast.expr {
        Expr::Call(CallExpr { func_name, target: None, args }) if func_name == "json" => {
            match &**args {
                [argument] => Some(argument),
                _ => None,
            }
        }
        _ => None,
    }
}

struct Check<'c> {
    text: &'c str,
    names: &'c Names<'c>,
    places: &'c SourceInfo,
    /// The variables of the macros around.
    bound: Vec<String>,
    /// Places among the entry's `let`s.
    lets: Vec<usize>,
    paths: Vec<Path>,
    vars: Vec<String>,
    unset: Vec<String>,
    patterns: &'c mut TextPatterns,
}

impl Check<'_> {
    fn node(&mut self, node: &IdedExpr, depth: usize) -> Result<Node, TextProblem> {
        if let Some((name, key)) = named_member(node) {
            return self.named(node, name, key);
        }
        let path = self.chain(node);
        let is_path = path.is_some();
        self.paths.extend(path);
        self.parts(node, depth, is_path)
    }

    /// Compiles a node. Within a path there are no others.
    fn parts(&mut self, node: &IdedExpr, depth: usize, is_path: bool) -> Result<Node, TextProblem> {
        if depth > MAX_DEPTH {
            return Err(TextProblem::new(0, format!("nested deeper than {MAX_DEPTH} levels"))
                .hint("split it with `let`"));
        }
        let mut inner = |check: &mut Self, node: &IdedExpr| {
            if is_path { check.parts(node, depth + 1, true) } else { check.node(node, depth + 1) }
        };
        match &node.expr {
            Expr::Unspecified => Ok(Node::Literal(Literal::Null)),
            Expr::Literal(literal) => Ok(Node::Literal(Literal::of(literal))),
            Expr::Ident(name) => self.ident(node.id, name),
            Expr::Select(select) => {
                let of = Box::new(inner(self, &select.operand)?);
                let call = Call::select(&select.field, select.test);
                Ok(Node::Select {
                    of,
                    field: select.field.as_str().into(),
                    is_test: select.test,
                    call,
                })
            }
            Expr::Call(call) if call.func_name == "changed" => self.changed(node.id, call),
            Expr::Call(call) if call.func_name == "json" => Err(self.no_json(node.id)),
            Expr::Call(call) => self.call(node.id, call, &mut inner),
            Expr::List(list) => {
                let elements: Result<Vec<_>, _> =
                    list.elements.iter().map(|element| inner(self, element)).collect();
                Ok(Node::List(elements?.into()))
            }
            Expr::Map(map) => {
                let entries: Result<Vec<_>, _> = map
                    .entries
                    .iter()
                    .map(|entry| match &entry.expr {
                        EntryExpr::MapEntry(entry) => {
                            Ok((inner(self, &entry.key)?, inner(self, &entry.value)?))
                        }
                        EntryExpr::StructField(_) => Err(self.no_struct(node.id)),
                    })
                    .collect();
                Ok(Node::Map(entries?.into()))
            }
            Expr::Comprehension(comprehension) => self.comprehension(node.id, comprehension, depth),
            Expr::Struct(_) => Err(self.no_struct(node.id)),
        }
    }

    fn no_json(&self, id: u64) -> TextProblem {
        self.problem(id, "`json` reads one path of the event, and is a whole expression")
            .hint("such as let: { payload: json(data.payload) }, then lets.payload.id")
    }

    fn no_struct(&self, id: u64) -> TextProblem {
        self.problem(id, "messages with named types cannot be built here")
            .hint("a map is {\"a\": 1}")
    }

    /// Compiles what CEL's parser makes of a macro.
    fn comprehension(
        &mut self,
        id: u64,
        comprehension: &ComprehensionExpr,
        depth: usize,
    ) -> Result<Node, TextProblem> {
        let over = self.node(&comprehension.iter_range, depth + 1)?;
        self.bound.push(comprehension.iter_var.clone());
        let kind = self.loop_kind(&comprehension.loop_step, depth + 1);
        self.bound.pop();
        let kind = kind?.ok_or_else(|| self.problem(id, "this macro is not known here"))?;
        Ok(Node::Loop(Box::new(Loop { over, kind })))
    }

    /// Compiles the step of a loop: `@result && x`, `@result || x`, `@result + [x]`, `p ? @result +
    /// [x] : @result`, `p ? @result + 1 : @result`.
    fn loop_kind(
        &mut self,
        step: &IdedExpr,
        depth: usize,
    ) -> Result<Option<LoopKind>, TextProblem> {
        let Expr::Call(call) = &step.expr else { return Ok(None) };
        Ok(match (call.func_name.as_str(), &*call.args) {
            (operators::LOGICAL_AND, [_, body]) => Some(LoopKind::All(self.node(body, depth)?)),
            (operators::LOGICAL_OR, [_, body]) => Some(LoopKind::Exists(self.node(body, depth)?)),
            (operators::ADD, [_, IdedExpr { expr: Expr::List(list), .. }]) => match &*list.elements
            {
                [to] => Some(LoopKind::Map { filter: None, to: self.node(to, depth)? }),
                _ => None,
            },
            (operators::CONDITIONAL, [condition, IdedExpr { expr: Expr::Call(add), .. }, _]) => {
                match &*add.args {
                    [_, IdedExpr { expr: Expr::Literal(_), .. }] => {
                        Some(LoopKind::ExistsOne(self.node(condition, depth)?))
                    }
                    [_, IdedExpr { expr: Expr::List(list), .. }] => match &*list.elements {
                        [to] => Some(LoopKind::Map {
                            filter: Some(self.node(condition, depth)?),
                            to: self.node(to, depth)?,
                        }),
                        _ => None,
                    },
                    _ => None,
                }
            }
            _ => None,
        })
    }

    fn ident(&mut self, id: u64, name: &str) -> Result<Node, TextProblem> {
        if let Some(place) = self.bound.iter().rposition(|bound| bound == name) {
            return Ok(Node::Variable(place));
        }
        match name {
            "data" => Ok(Node::Data),
            "previous" => Ok(Node::Previous),
            "item" if self.names.in_each => Ok(Node::Item),
            "item" => Err(self.problem(id, "`item` is known only in a rule with `each`")),
            "event" | "lets" | "vars" => {
                Err(self.problem(id, format!("`{name}` is a root: a name follows it")).hint(format!("such as {name}.x")))
            }
            _ if TYPES.contains(&name) => Ok(Node::Literal(Literal::Other(Box::new(CelType::new(name))))),
            _ => Err(self
                .problem(id, format!("unknown root `{name}`"))
                .hint(format!("a field of the payload is data.{name}; the roots are data, previous, event, lets, item, vars"))),
        }
    }

    /// Compiles `event.x`, `lets.x` and `vars.x`.
    fn named(
        &mut self,
        node: &IdedExpr,
        root: &'static str,
        key: String,
    ) -> Result<Node, TextProblem> {
        let asked_for = matches!(&node.expr, Expr::Select(select) if select.test);
        match root {
            "event" => match EventField::from_name(&key) {
                Some(field) if asked_for => Ok(Node::HasEvent(field)),
                Some(field) => Ok(Node::Event(field)),
                None => match EventField::meant_by(&key) {
                    Some(meant) => {
                        let message =
                            format!("an event has no `{key}`: did you mean `{}`?", meant.as_str());
                        Err(self.problem(node.id, message).hint(path::KNOWN_FIELDS))
                    }
                    None => Ok(Node::Attribute { name: key.into(), is_test: asked_for }),
                },
            },
            "lets" => {
                let Some(place) = self.names.lets.iter().position(|known| *known == key) else {
                    let known = path::known(self.names.lets);
                    return Err(self
                        .problem(node.id, format!("no `let` named `{key}` stands before this"))
                        .hint(known));
                };
                if asked_for {
                    return Ok(Node::Literal(Literal::Bool(true)));
                }
                if !self.lets.contains(&place) {
                    self.lets.push(place);
                }
                Ok(Node::Let(place))
            }
            _ => {
                let value = self.names.vars.0.get(&key);
                self.vars.push(key.clone());
                Ok(match value {
                    _ if asked_for => Node::Literal(Literal::Bool(value.is_some())),
                    Some(value) => Node::Literal(Literal::Text(value.as_str().into())),
                    None => {
                        self.unset.push(key);
                        Node::Unset
                    }
                })
            }
        }
    }

    fn changed(&mut self, id: u64, call: &CallExpr) -> Result<Node, TextProblem> {
        let path = match (&call.target, &*call.args) {
            (None, [IdedExpr { expr: Expr::Literal(LiteralValue::String(path)), .. }]) => {
                path.inner()
            }
            _ => {
                return Err(self
                    .problem(id, "`changed` takes one path in quotes")
                    .hint("such as changed(\"category\")"));
            }
        };
        let mut path = Path::parse(path, self.names)
            .map_err(|problem| TextProblem { at: self.place(call.args[0].id), ..problem })?;
        if path.root() != Root::Data {
            return Err(self.problem(
                id,
                format!("`changed` compares the payload with `previous`: `{path}` is not in it"),
            ));
        }
        path.set_optional();
        self.paths.push(path.clone());
        Ok(Node::Changed(path))
    }

    fn call(
        &mut self,
        id: u64,
        call: &CallExpr,
        inner: &mut impl FnMut(&mut Self, &IdedExpr) -> Result<Node, TextProblem>,
    ) -> Result<Node, TextProblem> {
        let name = call.func_name.as_str();
        let is_operator = !name.starts_with(|c: char| c.is_ascii_alphabetic());
        if call.target.is_some() && !METHODS.contains(&name) {
            let problem = self.problem(id, format!("unknown method `{name}`"));
            let is_function = FUNCTIONS.contains(&name) || functions::NAMES.contains(&name);
            return Err(if is_function {
                problem.hint(format!("functions are called as {name}(x)"))
            } else {
                problem.hint(functions_hint(name))
            });
        }
        if call.target.is_none()
            && !is_operator
            && !FUNCTIONS.contains(&name)
            && !functions::NAMES.contains(&name)
        {
            let problem = self.problem(id, format!("unknown function `{name}`"));
            let is_method = METHODS.contains(&name);
            return Err(if is_method {
                problem.hint(format!("it is called on a value: x.{name}(…)"))
            } else {
                problem.hint(functions_hint(name))
            });
        }
        if name == "date" {
            self.date_literals(call)?;
        }
        let mut args = Vec::with_capacity(call.args.len() + 1);
        for arg in call.target.as_deref().into_iter().chain(&call.args) {
            args.push(inner(self, arg)?);
        }
        if args.len() > OPERANDS.len() {
            return Err(self.problem(id, format!("`{name}` has fewer arguments")));
        }
        let args = match (name, args.len()) {
            (operators::CONDITIONAL, 3) => {
                return Ok(args
                    .try_into()
                    .map_or(Node::Literal(Literal::Null), |parts| Node::If(Box::new(parts))));
            }
            (
                operators::LOGICAL_AND
                | operators::LOGICAL_OR
                | operators::EQUALS
                | operators::NOT_EQUALS,
                2,
            ) => {
                let Ok(sides) = <[Node; 2]>::try_from(args).map(Box::new) else {
                    return Ok(Node::Literal(Literal::Null));
                };
                return Ok(match name {
                    operators::LOGICAL_AND => Node::And(sides),
                    operators::LOGICAL_OR => Node::Or(sides),
                    _ => Node::Equal { sides, is_negated: name == operators::NOT_EQUALS },
                });
            }
            _ => args.into_boxed_slice(),
        };
        let does = self.operation(id, name, call, args.len())?;
        Ok(Node::Call { does, call: Call::of(name, call.target.is_some(), args.len()), args })
    }

    fn operation(
        &mut self,
        id: u64,
        name: &str,
        call: &CallExpr,
        operands: usize,
    ) -> Result<Operation, TextProblem> {
        Ok(match (name, operands) {
            (operators::LOGICAL_NOT, 1) => Operation::Not,
            (operators::ADD, 2) => Operation::Add,
            (operators::SUBSTRACT, 2) => Operation::Subtract,
            (operators::MULTIPLY, 2) => Operation::Multiply,
            (operators::MODULO, 2) => Operation::Remainder,
            (operators::LESS, 2) => Operation::Less,
            (operators::LESS_EQUALS, 2) => Operation::LessEquals,
            (operators::GREATER, 2) => Operation::Greater,
            (operators::GREATER_EQUALS, 2) => Operation::GreaterEquals,
            (operators::IN, 2) => Operation::In,
            (operators::INDEX, 2) => Operation::Index,
            ("size", 1) => Operation::Size,
            ("dyn", 1) => Operation::Same,
            ("contains", 2) => Operation::Contains,
            ("startsWith", 2) => Operation::StartsWith,
            ("endsWith", 2) => Operation::EndsWith,
            ("matches", 2) => match call.args.last() {
                Some(IdedExpr { id, expr: Expr::Literal(LiteralValue::String(pattern)) }) => {
                    Operation::Matches(self.patterns.compile(pattern.inner()).map_err(|refused| match refused {
                        PatternRefused::Wrong(why) => {
                            let problem = self.problem(*id, format!("not a regular expression: {why}"));
                            problem.hint("the syntax is RE2's: no look-around, no back-references")
                        }
                        PatternRefused::TooMany => {
                            let problem = self.problem(*id, "the patterns of `matches` in all files are too large together");
                            problem.hint("use fewer different ones, smaller repetitions, or (?-u) for ASCII alone: equal ones count once")
                        }
                    })?)
                }
                _ => return Err(self.problem(id, "the pattern of `matches` must be written here, in quotes: an event may not choose it")),
            },
            ("date", _) => Operation::Cel { work_per_byte: 8 },
            ("lower" | "upper" | "md5" | "sha1" | "sha256" | "urlencode", _) => Operation::Cel { work_per_byte: 2 },
            _ => Operation::Cel { work_per_byte: 1 },
        })
    }

    /// Tries the format and the zone of `date` where they are written in the expression.
    fn date_literals(&self, call: &CallExpr) -> Result<(), TextProblem> {
        let literal = |argument: Option<&IdedExpr>| match argument {
            Some(IdedExpr { id, expr: Expr::Literal(LiteralValue::String(text)) }) => {
                Some((*id, text.inner().to_owned()))
            }
            _ => None,
        };
        if let Some((id, format)) = literal(call.args.get(1))
            && !functions::is_date_format(&format)
        {
            return Err(self
                .problem(id, format!("`{format}` is no format of strftime"))
                .hint("such as %Y-%m-%d or %H:%M"));
        }
        if let Some((id, zone)) = literal(call.args.get(2))
            && !functions::is_zone(&zone)
        {
            let problem =
                self.problem(id, format!("`{zone}` is no IANA time zone that this machine knows"));
            return Err(problem.hint("such as UTC or Europe/Berlin"));
        }
        Ok(())
    }

    /// The path that a chain of fields and literal indices on `data`, `previous` or `item` is.
    fn chain(&self, node: &IdedExpr) -> Option<Path> {
        let (mut steps, mut at, mut optional) = (Vec::new(), node, false);
        let root = loop {
            match &at.expr {
                Expr::Ident(name) if self.bound.contains(name) => return None,
                Expr::Ident(name) => match name.as_str() {
                    "data" => break (Root::Data, Start::Data),
                    "previous" => break (Root::Previous, Start::Previous),
                    "item" if self.names.in_each => break (Root::Item, Start::Item),
                    _ => return None,
                },
                Expr::Select(SelectExpr { operand, field, test }) => {
                    optional |= *test;
                    steps.push(Step::Member(field.as_str().into()));
                    at = operand;
                }
                Expr::Call(call) if call.func_name == operators::INDEX => {
                    let [of, IdedExpr { expr: Expr::Literal(index), .. }] = &*call.args else {
                        return None;
                    };
                    steps.push(match index {
                        LiteralValue::String(name) => Step::Member(name.inner().into()),
                        LiteralValue::Int(index) => {
                            Step::Index(usize::try_from(*index.inner()).ok()?)
                        }
                        _ => return None,
                    });
                    at = of;
                }
                _ => return None,
            }
        };
        steps.reverse();
        Some(Path::from_steps(root.0, root.1, steps, optional))
    }

    fn place(&self, id: u64) -> usize {
        let offset = self.places.offset_for(id).map_or(0, |(from, _)| from as usize);
        self.text.char_indices().nth(offset).map_or(self.text.len(), |(at, _)| at)
    }

    fn problem(&self, id: u64, message: impl Into<String>) -> TextProblem {
        TextProblem::new(self.place(id), message)
    }
}

/// The root and name of `event.x`, `event["x"]` and the like.
fn named_member(node: &IdedExpr) -> Option<(&'static str, String)> {
    let (operand, key) = match &node.expr {
        Expr::Select(select) => (&*select.operand, select.field.as_str()),
        Expr::Call(call) if call.func_name == operators::INDEX => match &*call.args {
            [of, IdedExpr { expr: Expr::Literal(LiteralValue::String(key)), .. }] => {
                (of, key.inner())
            }
            _ => return None,
        },
        _ => return None,
    };
    let Expr::Ident(root) = &operand.expr else { return None };
    let root = ["event", "lets", "vars"].into_iter().find(|known| known == root)?;
    Some((root, key.to_owned()))
}

/// The macros of CEL that go over a list.
const MACROS: [&str; 5] = ["all", "exists", "exists_one", "filter", "map"];

fn functions_hint(name: &str) -> String {
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
        "ours are {}; CEL's are {}, and {} on a value",
        functions::NAMES.join(", "),
        FUNCTIONS.join(", "),
        METHODS.join(", ")
    )
}
