//! Compiles CEL's syntax tree into [`Node`]s, and refuses what rules may not use.

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, SourceInfo,
    operators,
};
use cel::common::types::CelType;

use super::names::{FUNCTIONS, METHODS, TYPES, functions_help};
use super::node::{Call, Literal, Loop, LoopKind, Node, OPERANDS, Operation};
use super::pattern::{PatternRefused, TextPatterns};
use crate::registry::code::Code;
use crate::registry::functions;
use crate::registry::path::{
    self, EventField, KnownNames, Path, PathRoot, PathStep, Start, TextProblem,
};

/// Maximum depth of the tree, over which the interpreter recurses.
const MAX_DEPTH: usize = 100;

/// Returns the argument of an expression that is `json(x)`.
pub(super) fn json_argument(ast: &IdedExpr) -> Option<&IdedExpr> {
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

pub(super) struct Check<'c> {
    pub(super) text: &'c str,
    pub(super) names: &'c KnownNames<'c>,
    pub(super) places: &'c SourceInfo,
    /// Variables of the enclosing macros.
    pub(super) bound: Vec<String>,
    /// Indices of the definition's `let`s.
    pub(super) lets: Vec<usize>,
    pub(super) paths: Vec<Path>,
    pub(super) vars: Vec<String>,
    pub(super) unset: Vec<String>,
    pub(super) patterns: &'c mut TextPatterns,
}

impl Check<'_> {
    pub(super) fn node(&mut self, node: &IdedExpr, depth: usize) -> Result<Node, TextProblem> {
        if let Some((name, key)) = named_member(node) {
            return self.named(node, name, key);
        }
        let path = self.chain(node);
        let is_path = path.is_some();
        self.paths.extend(path);
        self.parts(node, depth, is_path)
    }

    /// Compiles a node. A path contains no other path.
    fn parts(&mut self, node: &IdedExpr, depth: usize, is_path: bool) -> Result<Node, TextProblem> {
        if depth > MAX_DEPTH {
            return Err(TextProblem::new(
                Code::ExpressionSize,
                0,
                format!("nested deeper than {MAX_DEPTH} levels"),
            )
            .help("split it with `let`"));
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

    pub(super) fn no_json(&self, id: u64) -> TextProblem {
        self.problem(
            Code::ExpressionCall,
            id,
            "`json` takes one path, and must be the whole expression",
        )
        .help("such as let: { payload: json(data.payload) }, then lets.payload.id")
    }

    fn no_struct(&self, id: u64) -> TextProblem {
        self.problem(Code::ExpressionUnsupported, id, "messages with named types are not supported")
            .help("a map is {\"a\": 1}")
    }

    /// Compiles the comprehension that CEL's parser makes of a macro.
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
        let kind = kind?.ok_or_else(|| {
            self.problem(Code::ExpressionUnsupported, id, "this macro is not supported")
        })?;
        Ok(Node::Loop(Box::new(Loop { over, kind })))
    }

    /// Compiles the step of a loop.
    ///
    /// The steps are `@result && x`, `@result || x`, `@result + [x]`, `p ? @result + [x] : @result`
    /// and `p ? @result + 1 : @result`.
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
            "item" => {
                let message = "`item` exists only in a rule with `each`";
                Err(self.problem(Code::ExpressionName, id, message))
            }
            "event" | "lets" | "vars" => {
                let message = format!("`{name}` needs a name after it");
                Err(self
                    .problem(Code::ExpressionName, id, message)
                    .help(format!("such as {name}.x")))
            }
            _ if TYPES.contains(&name) => {
                Ok(Node::Literal(Literal::Other(Box::new(CelType::new(name)))))
            }
            _ => {
                let message = format!("unknown name `{name}`");
                Err(self.problem(Code::ExpressionName, id, message).help(format!(
                    "a field of the payload is data.{name}; \
                     the roots are data, previous, event, lets, item, vars"
                )))
            }
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
                        Err(self
                            .problem(Code::ExpressionName, node.id, message)
                            .help(path::KNOWN_FIELDS))
                    }
                    None => Ok(Node::Attribute { name: key.into(), is_test: asked_for }),
                },
            },
            "lets" => {
                let Some(place) = self.names.lets.iter().position(|known| *known == key) else {
                    let known = path::known(self.names.lets);
                    return Err(self
                        .problem(
                            Code::ExpressionName,
                            node.id,
                            format!("no `let` named `{key}` is defined before this"),
                        )
                        .help(known));
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
                    .problem(Code::ExpressionCall, id, "`changed` takes one path in quotes")
                    .help("such as changed(\"category\")"));
            }
        };
        let mut path = Path::parse(path, self.names)
            .map_err(|problem| TextProblem { at: self.place(call.args[0].id), ..problem })?;
        if path.root() != PathRoot::Data {
            return Err(self.problem(
                Code::ExpressionCall,
                id,
                format!(
                    "`changed` compares the payload with `previous`: `{path}` is not in the payload"
                ),
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
            let problem =
                self.problem(Code::ExpressionFunction, id, format!("unknown method `{name}`"));
            let is_function = FUNCTIONS.contains(&name) || functions::NAMES.contains(&name);
            return Err(if is_function {
                problem.help(format!("call it as a function: {name}(x)"))
            } else {
                problem.help(functions_help(name))
            });
        }
        if call.target.is_none()
            && !is_operator
            && !FUNCTIONS.contains(&name)
            && !functions::NAMES.contains(&name)
        {
            let problem =
                self.problem(Code::ExpressionFunction, id, format!("unknown function `{name}`"));
            let is_method = METHODS.contains(&name);
            return Err(if is_method {
                problem.help(format!("call it on a value: x.{name}(…)"))
            } else {
                problem.help(functions_help(name))
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
            return Err(self.problem(
                Code::ExpressionCall,
                id,
                format!("`{name}` takes fewer arguments"),
            ));
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
            ("matches", 2) => self.matches(id, call)?,
            ("date", _) => Operation::Cel { work_per_byte: 8 },
            ("lower" | "upper" | "md5" | "sha1" | "sha256" | "urlencode", _) => {
                Operation::Cel { work_per_byte: 2 }
            }
            _ => Operation::Cel { work_per_byte: 1 },
        })
    }

    /// Compiles the pattern of `matches`, which must be a literal.
    fn matches(&mut self, id: u64, call: &CallExpr) -> Result<Operation, TextProblem> {
        let Some(IdedExpr { id, expr: Expr::Literal(LiteralValue::String(pattern)) }) =
            call.args.last()
        else {
            let message = "the pattern of `matches` must be written here, in quotes";
            return Err(self.problem(Code::ExpressionPattern, id, message));
        };
        match self.patterns.compile(pattern.inner()) {
            Ok(pattern) => Ok(Operation::Matches(pattern)),
            Err(PatternRefused::Wrong(why)) => {
                let message = format!("not a regular expression: {why}");
                Err(self
                    .problem(Code::ExpressionPattern, *id, message)
                    .help("the syntax is RE2's: no look-around, no back-references"))
            }
            Err(PatternRefused::TooMany) => {
                let message = "the patterns of `matches` in all files are too large together";
                Err(self
                    .problem(Code::RegistryTooLarge, *id, message)
                    .help("use fewer patterns, smaller repetitions, or (?-u) for ASCII only"))
            }
        }
    }

    /// Checks the format and the time zone of `date`, if they are literals.
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
                .problem(
                    Code::ExpressionCall,
                    id,
                    format!("`{format}` is not a format of strftime"),
                )
                .help("such as %Y-%m-%d or %H:%M"));
        }
        if let Some((id, zone)) = literal(call.args.get(2))
            && !functions::is_zone(&zone)
        {
            let problem = self.problem(
                Code::ExpressionCall,
                id,
                format!("`{zone}` is not a time zone in this machine's IANA database"),
            );
            return Err(problem.help("such as UTC or Europe/Berlin"));
        }
        Ok(())
    }

    /// Returns the path that a chain of fields and literal indices on `data`, `previous` or `item`
    /// is.
    pub(super) fn chain(&self, node: &IdedExpr) -> Option<Path> {
        let (mut steps, mut at, mut optional) = (Vec::new(), node, false);
        let root = loop {
            match &at.expr {
                Expr::Ident(name) if self.bound.contains(name) => return None,
                Expr::Ident(name) => match name.as_str() {
                    "data" => break (PathRoot::Data, Start::Data),
                    "previous" => break (PathRoot::Previous, Start::Previous),
                    "item" if self.names.in_each => break (PathRoot::Item, Start::Item),
                    _ => return None,
                },
                Expr::Select(SelectExpr { operand, field, test }) => {
                    optional |= *test;
                    steps.push(PathStep::Member(field.as_str().into()));
                    at = operand;
                }
                Expr::Call(call) if call.func_name == operators::INDEX => {
                    let [of, IdedExpr { expr: Expr::Literal(index), .. }] = &*call.args else {
                        return None;
                    };
                    steps.push(match index {
                        LiteralValue::String(name) => PathStep::Member(name.inner().into()),
                        LiteralValue::Int(index) => {
                            PathStep::Index(usize::try_from(*index.inner()).ok()?)
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

    pub(super) fn problem(&self, code: Code, id: u64, message: impl Into<String>) -> TextProblem {
        TextProblem::new(code, self.place(id), message)
    }
}

/// Returns the root and the name of `event.x`, `event["x"]` and the like.
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
