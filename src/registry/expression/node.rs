//! Nodes of a compiled expression: CEL's syntax tree with its macros as loops.

use std::rc::Rc;
use std::sync::Arc;

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, SelectExpr};
use cel::common::types::CelBytes;
use cel::common::value::Val;

use super::pattern::TextPattern;
use super::value::Value;
use crate::registry::budget::{Budget, Spent};
use crate::registry::path::{EventField, Path};

/// Size of a copied value of CEL, beside its text, in bytes.
const OTHER_BYTES: usize = 64;

/// A node of a compiled expression.
#[derive(Debug)]
pub(super) enum Node {
    Literal(Literal),
    Data,
    Previous,
    Item,
    Event(EventField),
    HasEvent(EventField),
    /// An attribute of the event, or a test for it.
    Attribute {
        name: Box<str>,
        is_test: bool,
    },
    /// Index of the definition's `let`.
    Let(usize),
    /// A variable (`vars`) that has no value.
    Unset,
    Changed(Path),
    /// Variable of a loop: its index among the enclosing loops.
    Variable(usize),
    /// `of.field`, or `has(of.field)`.
    Select {
        of: Box<Node>,
        field: Box<str>,
        /// The whole selection, for messages.
        text: Box<str>,
        is_test: bool,
        call: Call,
    },
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    If(Box<[Node; 3]>),
    Equal {
        sides: Box<[Node; 2]>,
        is_negated: bool,
    },
    List(Box<[Node]>),
    Map(Box<[(Node, Node)]>),
    Loop(Box<Loop>),
    Call {
        does: Operation,
        args: Box<[Node]>,
        call: Call,
    },
}

/// A literal of the expression.
#[derive(Debug)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Double(f64),
    Text(Box<str>),
    /// Bytes, or a type.
    Other(Box<dyn Val>),
}

/// A macro of CEL: `all`, `exists`, `exists_one`, `map`, `filter`.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) over: Node,
    pub(super) kind: LoopKind,
}

#[derive(Debug)]
pub(super) enum LoopKind {
    All(Node),
    Exists(Node),
    ExistsOne(Node),
    /// `map`, or `filter`, which maps each element to itself.
    Map {
        filter: Option<Node>,
        to: Node,
    },
}

/// An operator or function that is computed here for operands of common types. CEL computes all
/// others.
#[derive(Debug)]
pub(super) enum Operation {
    Add,
    Subtract,
    Multiply,
    Remainder,
    Not,
    Less,
    LessEquals,
    Greater,
    GreaterEquals,
    In,
    Index,
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Matches(Arc<TextPattern>),
    /// `dyn(x)`: the value itself.
    Same,
    /// A function that CEL computes, with its units of work for one byte.
    Cel {
        work_per_byte: u64,
    },
}

/// A call for CEL's interpreter. Its operands are the variables `@0`, `@1`, ...
#[derive(Debug)]
pub(super) struct Call {
    pub(super) template: IdedExpr,
    /// The first operand is the target: `x.f(y)`.
    pub(super) is_member: bool,
}

/// Names of a call's operands. No function takes more.
pub(super) const OPERANDS: [&str; 4] = ["@0", "@1", "@2", "@3"];

impl Node {
    /// Returns the selection of a field of this node as text, such as `data.owner.name`. A computed
    /// part is `…`.
    pub(super) fn select_text(&self, field: &str) -> String {
        let of = match self {
            Self::Data => "data".to_owned(),
            Self::Previous => "previous".to_owned(),
            Self::Item => "item".to_owned(),
            Self::Select { text, .. } => text.to_string(),
            _ => "…".to_owned(),
        };
        format!("{of}.{field}")
    }
}

impl Call {
    /// Returns the call of a function or operator. `operands` includes the target.
    pub(super) fn of(function: &str, has_target: bool, operands: usize) -> Self {
        let mut args = OPERANDS
            .iter()
            .take(operands)
            .map(|name| IdedExpr { id: 0, expr: Expr::Ident((*name).to_owned()) });
        let target = has_target.then(|| args.next().map(Box::new)).flatten();
        let call = CallExpr { func_name: function.to_owned(), target, args: args.collect() };
        Self { template: IdedExpr { id: 0, expr: Expr::Call(call) }, is_member: has_target }
    }

    /// Returns the name of the function or operator, if it is one.
    pub(super) fn function(&self) -> Option<&str> {
        if let Expr::Call(call) = &self.template.expr { Some(&call.func_name) } else { None }
    }

    /// Returns the selection of a field.
    pub(super) fn select(field: &str, is_test: bool) -> Self {
        let operand = Box::new(IdedExpr { id: 0, expr: Expr::Ident(OPERANDS[0].to_owned()) });
        let select = SelectExpr { operand, field: field.to_owned(), test: is_test };
        Self { template: IdedExpr { id: 0, expr: Expr::Select(select) }, is_member: false }
    }
}

impl Literal {
    pub(super) fn of(literal: &LiteralValue) -> Self {
        match literal {
            LiteralValue::Null => Self::Null,
            LiteralValue::Boolean(bool) => Self::Bool(*bool.inner()),
            LiteralValue::Int(int) => Self::Int(*int.inner()),
            LiteralValue::UInt(uint) => Self::UInt(*uint.inner()),
            LiteralValue::Double(double) => Self::Double(*double.inner()),
            LiteralValue::String(text) => Self::Text(text.inner().into()),
            LiteralValue::Bytes(bytes) => Self::Other(bytes.clone_as_boxed()),
        }
    }

    /// Returns the value. Charges for a copy of a value that is not shared.
    pub(super) fn value(&self, budget: &Budget) -> Result<Value<'_>, Spent> {
        Ok(match self {
            Self::Null => Value::Null,
            Self::Bool(bool) => Value::Bool(*bool),
            Self::Int(int) => Value::Int(*int),
            Self::UInt(uint) => Value::UInt(*uint),
            Self::Double(double) => Value::Double(*double),
            Self::Text(text) => Value::Borrowed(text),
            Self::Other(value) => {
                let bytes = value.downcast_ref::<CelBytes>().map_or(0, |bytes| bytes.inner().len());
                budget.work(8 + bytes as u64 / 16)?;
                budget.bytes(OTHER_BYTES + bytes)?;
                Value::Other(Rc::from(value.clone_as_boxed()))
            }
        })
    }
}
