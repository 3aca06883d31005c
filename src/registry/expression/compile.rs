//! Compiles CEL's syntax tree into [`Node`]s, and refuses what rules may not use.

mod calls;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, SourceInfo,
    operators,
};
use cel::common::types::CelType;

use super::names::TYPES;
use super::node::{Call, Literal, Loop, LoopKind, Node};
use super::pattern::TextPatterns;
use crate::registry::code::Code;
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
                    text: of.select_text(&select.field).into(),
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
