//! CEL expressions (`when`, `let`, `each`): checked and prepared when the registry loads.

use std::sync::{Arc, LazyLock};

use cel::Env;
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, SourceInfo, operators};
use cel::common::types::{CelBool, CelString};

use super::functions::{self, METER, SCAN, STEP};
use super::path::{self, EventField, Names, Path, Root, Start, Step, TextProblem};

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
const FUNCTIONS: [&str; 12] =
    ["bool", "bytes", "double", "duration", "dyn", "int", "matches", "size", "string", "timestamp", "type", "uint"];

/// CEL's names of types, for `type(x) == int`.
const TYPES: [&str; 10] = ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

/// The functions that expressions may call, ours included.
pub(super) static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    functions::declare(&mut env);
    Arc::new(env)
});

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    pub(super) ast: IdedExpr,
    /// What it reads, so that nothing else is prepared for it.
    pub(super) uses: Uses,
    /// The paths of its `changed("…")`: the tree reads them as `@changed0`, `@changed1`, …
    pub(super) changed: Vec<Path>,
    /// The path that the whole expression is: it is read without CEL, and the text of its numbers stays as published.
    pub(super) whole: Option<Path>,
    paths: Vec<Path>,
    vars: Vec<String>,
    unset: Vec<String>,
    text: String,
}

/// What an expression reads.
#[derive(Debug, Default)]
pub(super) struct Uses {
    pub(super) data: bool,
    pub(super) previous: bool,
    pub(super) event: bool,
    pub(super) item: bool,
    /// Places among the entry's `let`s: the tree reads them as `@let0`, `@let1`, …
    pub(super) lets: Vec<usize>,
    /// A map written in the expression: CEL's own maps are compared with no others.
    pub(super) map_literals: bool,
    /// What takes longer the larger the event is, within what is done many times: it is counted.
    pub(super) steps: bool,
}

impl Expression {
    /// Compiles a text. `vars.X` is filled in from `names`; one without a value fails when it is asked, and is named by
    /// [`Expression::unset_vars`].
    ///
    /// # Errors
    /// The first problem of its syntax, or an unknown root or function.
    pub fn compile(text: &str, names: &Names<'_>) -> Result<Self, TextProblem> {
        if text.trim().is_empty() {
            return Err(TextProblem::new(0, "the expression is empty"));
        }
        if text.len() > MAX_BYTES {
            return Err(TextProblem::new(MAX_BYTES, format!("an expression has at most {MAX_BYTES} bytes")).hint("split it with `let`"));
        }
        let (mut ast, places) = ENV.parser().parse_with_source_info(text).map_err(|errors| syntax_problem(text, &errors))?;
        let mut check = Check {
            text,
            names,
            places: &places,
            bound: Vec::new(),
            uses: Uses::default(),
            changed: Vec::new(),
            paths: Vec::new(),
            vars: Vec::new(),
            unset: Vec::new(),
        };
        let whole = check.chain(&ast).filter(|path| !path.is_optional());
        check.node(&mut ast, 0)?;
        let Check { uses, changed, paths, vars, unset, .. } = check;
        Ok(Self { ast, uses, changed, whole, paths, vars, unset, text: text.to_owned() })
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The paths it reads from `data`, `previous` and `item`, as far as they are known beforehand; those asked for by `has(…)` or
    /// `changed(…)` are optional.
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
        &self.uses.lets
    }
}

fn syntax_problem(text: &str, errors: &cel::ParseErrors) -> TextProblem {
    let Some(first) = errors.errors.first() else {
        return TextProblem::new(0, "not an expression");
    };
    let line_from = match usize::try_from(first.pos.0).unwrap_or(0) {
        0 | 1 => 0,
        line => text.split_inclusive('\n').take(line - 1).map(str::len).sum(),
    };
    let column = usize::try_from(first.pos.1.saturating_sub(1)).unwrap_or(0);
    let at = text[line_from..].char_indices().nth(column).map_or(text.len(), |(at, _)| line_from + at);
    let message = first.msg.lines().next().unwrap_or_default();
    // What else might stand there is a list of every token that CEL has.
    let message = message
        .split(" expecting {")
        .next()
        .unwrap_or_default()
        .trim_start_matches("Syntax error: ")
        .replace("'<EOF>'", "the end of the text");
    let problem = TextProblem::new(at, format!("not an expression: {message}"));
    let has_word = |word: &str| text.split(|c: char| !(c == '_' || c.is_ascii_alphanumeric())).any(|known| known == word);
    let is_lone_equals = || {
        let bytes = text.as_bytes();
        let beside = |at: usize| bytes.get(at).is_some_and(|byte| b"=!<>".contains(byte));
        (0..bytes.len()).any(|at| bytes[at] == b'=' && !beside(at + 1) && !(at > 0 && beside(at - 1)))
    };
    if text.trim_start().starts_with('{') || text.contains("{{") {
        problem.hint("an expression is no template: a field is data.name, without braces")
    } else if text.contains("===") || text.contains("!==") || is_lone_equals() {
        problem.hint("CEL compares with == and !=")
    } else if ["and", "or", "not"].into_iter().any(has_word) {
        problem.hint("CEL's words for and, or and not are &&, || and !")
    } else if text.contains("let.") {
        problem.hint("`let` is a reserved word of CEL: in expressions that root is `lets`")
    } else {
        problem.hint("CEL, such as data.status == \"sold\"; a field named like a word of CEL is data[\"in\"]")
    }
}

struct Check<'c> {
    text: &'c str,
    names: &'c Names<'c>,
    places: &'c SourceInfo,
    /// The variables of the macros around.
    bound: Vec<String>,
    uses: Uses,
    changed: Vec<Path>,
    paths: Vec<Path>,
    vars: Vec<String>,
    unset: Vec<String>,
}

impl Check<'_> {
    fn node(&mut self, node: &mut IdedExpr, depth: usize) -> Result<(), TextProblem> {
        if depth > MAX_DEPTH {
            return Err(TextProblem::new(0, format!("nested deeper than {MAX_DEPTH} levels")).hint("split it with `let`"));
        }
        if let Some((name, key)) = named_member(node) {
            let replacement = self.named(node, name, key)?;
            node.expr = replacement;
            if name == "lets" && self.is_repeated() {
                self.meter(node, SCAN);
            }
            return Ok(());
        }
        if let Some(path) = self.chain(node) {
            match path.root() {
                Root::Previous => self.uses.previous = true,
                Root::Item => self.uses.item = true,
                _ => self.uses.data = true,
            }
            if !path.is_optional() && self.is_repeated() && (path.root() != Root::Item || !self.bound.is_empty()) {
                self.meter(node, SCAN);
            }
            self.paths.push(path);
            return Ok(());
        }
        let id = node.id;
        match &mut node.expr {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => {
                let name = name.clone();
                self.ident(id, &name)
            }
            Expr::Select(select) => self.node(&mut select.operand, depth + 1),
            Expr::Call(call) if call.func_name == "changed" => {
                let replacement = self.changed(id, call)?;
                node.expr = replacement;
                Ok(())
            }
            Expr::Call(call) => self.call(id, call, depth),
            Expr::List(list) => list.elements.iter_mut().try_for_each(|element| self.node(element, depth + 1)),
            Expr::Map(map) => {
                self.uses.map_literals = true;
                map.entries.iter_mut().try_for_each(|entry| match &mut entry.expr {
                    EntryExpr::MapEntry(entry) => {
                        self.node(&mut entry.key, depth + 1)?;
                        self.node(&mut entry.value, depth + 1)
                    }
                    EntryExpr::StructField(field) => self.node(&mut field.value, depth + 1),
                })
            }
            Expr::Comprehension(comprehension) => {
                self.node(&mut comprehension.iter_range, depth + 1)?;
                self.node(&mut comprehension.accu_init, depth + 1)?;
                let outer = self.bound.len();
                self.bound.push(comprehension.iter_var.clone());
                self.bound.extend(comprehension.iter_var2.clone());
                self.bound.push(comprehension.accu_var.clone());
                self.node(&mut comprehension.loop_cond, depth + 1)?;
                self.node(&mut comprehension.loop_step, depth + 1)?;
                self.node(&mut comprehension.result, depth + 1)?;
                self.bound.truncate(outer);
                self.meter(&mut comprehension.loop_cond, STEP);
                Ok(())
            }
            Expr::Struct(_) => Err(self.problem(id, "messages with named types cannot be built here").hint("a map is {\"a\": 1}")),
        }
    }

    /// Whether what stands here may be asked once per element of a list.
    fn is_repeated(&self) -> bool {
        self.names.in_each || !self.bound.is_empty()
    }

    /// Puts a function around a node that counts, and answers with the node's value.
    fn meter(&mut self, node: &mut IdedExpr, function: &str) {
        self.uses.steps = true;
        let metered = IdedExpr { id: node.id, expr: std::mem::replace(&mut node.expr, Expr::Unspecified) };
        let meter = IdedExpr { id: node.id, expr: Expr::Ident(METER.to_owned()) };
        node.expr = Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args: vec![meter, metered] });
    }

    fn ident(&mut self, id: u64, name: &str) -> Result<(), TextProblem> {
        if self.bound.iter().any(|bound| bound == name) || TYPES.contains(&name) {
            return Ok(());
        }
        match name {
            "data" => self.uses.data = true,
            "previous" => self.uses.previous = true,
            "item" if self.names.in_each => self.uses.item = true,
            "item" => return Err(self.problem(id, "`item` is known only in a rule with `each`")),
            "event" | "lets" | "vars" => {
                return Err(self.problem(id, format!("`{name}` is a root: a name follows it")).hint(format!("such as {name}.x")));
            }
            _ => {
                return Err(self
                    .problem(id, format!("unknown root `{name}`"))
                    .hint(format!("a field of the payload is data.{name}; the roots are data, previous, event, lets, item, vars")));
            }
        }
        Ok(())
    }

    /// What `event.x`, `lets.x` and `vars.x` are replaced by.
    fn named(&mut self, node: &IdedExpr, root: &'static str, key: String) -> Result<Expr, TextProblem> {
        let asked_for = matches!(&node.expr, Expr::Select(select) if select.test);
        match root {
            "event" => {
                if EventField::from_name(&key).is_none() {
                    let hint = "known: id, type, time, source, subject, position";
                    return Err(self.problem(node.id, format!("an event has no `{key}`")).hint(hint));
                }
                self.uses.event = true;
                Ok(node.expr.clone())
            }
            "lets" => {
                let Some(place) = self.names.lets.iter().position(|known| *known == key) else {
                    let known = path::known(self.names.lets);
                    return Err(self.problem(node.id, format!("no `let` named `{key}` stands before this")).hint(known));
                };
                if asked_for {
                    return Ok(Expr::Literal(LiteralValue::Boolean(CelBool::from(true))));
                }
                if !self.uses.lets.contains(&place) {
                    self.uses.lets.push(place);
                }
                Ok(Expr::Ident(let_variable(place)))
            }
            _ => {
                let value = self.names.vars.0.get(&key);
                self.vars.push(key.clone());
                Ok(match value {
                    _ if asked_for => Expr::Literal(LiteralValue::Boolean(CelBool::from(value.is_some()))),
                    Some(value) => Expr::Literal(LiteralValue::String(CelString::from(value.clone()))),
                    None => {
                        self.unset.push(key);
                        Expr::Ident("@unset".to_owned())
                    }
                })
            }
        }
    }

    fn changed(&mut self, id: u64, call: &CallExpr) -> Result<Expr, TextProblem> {
        let path = match (&call.target, &*call.args) {
            (None, [IdedExpr { expr: Expr::Literal(LiteralValue::String(path)), .. }]) => path.inner(),
            _ => return Err(self.problem(id, "`changed` takes one path in quotes").hint("such as changed(\"category\")")),
        };
        let mut path = Path::parse(path, self.names).map_err(|problem| TextProblem { at: self.place(call.args[0].id), ..problem })?;
        if path.root() != Root::Data {
            return Err(self.problem(id, format!("`changed` compares the payload with `previous`: `{path}` is not in it")));
        }
        path.set_optional();
        self.paths.push(path.clone());
        self.changed.push(path);
        Ok(Expr::Ident(changed_variable(self.changed.len() - 1)))
    }

    fn call(&mut self, id: u64, call: &mut CallExpr, depth: usize) -> Result<(), TextProblem> {
        let name = call.func_name.as_str();
        let is_operator = !name.starts_with(|c: char| c.is_ascii_alphabetic());
        if call.target.is_some() && !METHODS.contains(&name) {
            let problem = self.problem(id, format!("unknown method `{name}`"));
            let is_function = FUNCTIONS.contains(&name) || functions::NAMES.contains(&name);
            return Err(if is_function {
                problem.hint(format!("functions are called as {name}(x)"))
            } else {
                problem.hint(functions_hint())
            });
        }
        if call.target.is_none() && !is_operator && !FUNCTIONS.contains(&name) && !functions::NAMES.contains(&name) {
            let problem = self.problem(id, format!("unknown function `{name}`"));
            let is_method = METHODS.contains(&name);
            return Err(if is_method {
                problem.hint(format!("it is called on a value: x.{name}(…)"))
            } else {
                problem.hint(functions_hint())
            });
        }
        if name == "matches" && !matches!(call.args.last(), Some(IdedExpr { expr: Expr::Literal(_), .. })) {
            return Err(self.problem(id, "the pattern of `matches` must be written here: an event may not choose it"));
        }
        self.literals(name, call)?;
        // CEL's null equals nothing but CEL's null: where `previous` is absent ours must stand on the left.
        if matches!(name, operators::EQUALS | operators::NOT_EQUALS)
            && matches!(call.args.first(), Some(IdedExpr { expr: Expr::Literal(LiteralValue::Null), .. }))
        {
            call.args.swap(0, 1);
        }
        if let Some(target) = &mut call.target {
            self.node(target, depth + 1)?;
        }
        call.args.iter_mut().try_for_each(|argument| self.node(argument, depth + 1))
    }

    /// Patterns, formats and zones that are written here can be tried now.
    fn literals(&self, name: &str, call: &CallExpr) -> Result<(), TextProblem> {
        let literal = |argument: Option<&IdedExpr>| match argument {
            Some(IdedExpr { id, expr: Expr::Literal(LiteralValue::String(text)) }) => Some((*id, text.inner().to_owned())),
            _ => None,
        };
        match name {
            "matches" => {
                if let Some((id, pattern)) = literal(call.args.last())
                    && let Err(why) = functions::try_pattern(&pattern)
                {
                    let problem = self.problem(id, format!("not a regular expression: {why}"));
                    return Err(problem.hint("the syntax is RE2's: no look-around, no back-references"));
                }
            }
            "date" => {
                if let Some((id, format)) = literal(call.args.get(1))
                    && !functions::is_date_format(&format)
                {
                    return Err(self.problem(id, format!("`{format}` is no format of strftime")).hint("such as %Y-%m-%d or %H:%M"));
                }
                if let Some((id, zone)) = literal(call.args.get(2))
                    && !functions::is_zone(&zone)
                {
                    return Err(self
                        .problem(id, format!("`{zone}` is no IANA time zone that this machine knows"))
                        .hint("such as UTC or Europe/Berlin"));
                }
            }
            _ => {}
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
                    let [of, IdedExpr { expr: Expr::Literal(index), .. }] = &*call.args else { return None };
                    steps.push(match index {
                        LiteralValue::String(name) => Step::Member(name.inner().into()),
                        LiteralValue::Int(index) => Step::Index(usize::try_from(*index.inner()).ok()?),
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
            [of, IdedExpr { expr: Expr::Literal(LiteralValue::String(key)), .. }] => (of, key.inner()),
            _ => return None,
        },
        _ => return None,
    };
    let Expr::Ident(root) = &operand.expr else { return None };
    let root = ["event", "lets", "vars"].into_iter().find(|known| known == root)?;
    Some((root, key.to_owned()))
}

pub(super) fn changed_variable(place: usize) -> String {
    format!("@changed{place}")
}

pub(super) fn let_variable(place: usize) -> String {
    format!("@let{place}")
}

fn functions_hint() -> String {
    format!("ours are {}; CEL's are {}, and {} on a value", functions::NAMES.join(", "), FUNCTIONS.join(", "), METHODS.join(", "))
}
