//! Compiles calls: operators, functions and methods, and `changed`.

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators};

use super::super::names::{FUNCTIONS, METHODS, functions_help};
use super::super::node::{Call, Literal, Node, OPERANDS, Operation};
use super::super::pattern::PatternRefused;
use super::Check;
use crate::registry::code::Code;
use crate::registry::functions;
use crate::registry::path::{Path, PathRoot, TextProblem};

impl Check<'_> {
    pub(super) fn changed(&mut self, id: u64, call: &CallExpr) -> Result<Node, TextProblem> {
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

    pub(super) fn call(
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
}
