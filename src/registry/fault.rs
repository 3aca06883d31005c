//! Failures of expressions and paths.

use cel::{ExecutionError, Value};

use super::budget::Spent;

/// Failure of an expression or a path. Its message names paths and rules, never values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) message: String,
    /// A field is missing, a value is null, or an index is out of range. For `when`, that is no
    /// answer rather than a failure.
    pub(super) is_absence: bool,
}

/// Callers check the budget themselves and replace this message.
impl From<Spent> for Fault {
    fn from(spent: Spent) -> Self {
        Self::new(spent.to_string())
    }
}

impl Fault {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_absence: false }
    }

    pub(super) fn absence(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_absence: true }
    }

    /// Returns the failure of a path that leads to nothing. The path is part of the rule.
    pub(super) fn absent(path: &str) -> Self {
        Self::absence(format!("`{path}` is absent"))
    }

    pub(super) fn of_types() -> Self {
        Self::new("the expression has no answer for values of these types")
    }

    /// Returns the failure of a value that JSON lacks.
    pub(super) fn no_json(what: &str) -> Self {
        Self::new(format!("JSON cannot hold the value: {what}"))
    }

    /// Returns the failure of a conversion that would round.
    pub(super) fn inexact(function: &str) -> Self {
        Self::new(format!(
            "`{function}` of a number beyond 2^53 that is no 64-bit integer: it is not exact; a path alone keeps its text"
        ))
    }

    /// Returns the failure of an operator or function that is not defined for these types.
    pub(super) fn no_overload(function: &str, types: &[&str]) -> Self {
        if types.contains(&"null_type") {
            return Self::absence(format!("`{function}` has no answer for null"));
        }
        Self::new(format!("`{function}` has no answer for ({})", types.join(", ")))
    }

    /// Converts an error of CEL, without the values in it.
    pub(super) fn of_cel(error: &ExecutionError) -> Self {
        let is_null = |value: &Value| matches!(value, Value::Null);
        match error {
            ExecutionError::NoSuchKey(_) => Self::absence("a field is absent"),
            ExecutionError::IndexOutOfBounds(_) => Self::absence("an index is out of range"),
            ExecutionError::NoSuchOverload(overload) => {
                let types: Vec<&str> =
                    overload.argument_types().iter().map(String::as_str).collect();
                Self::no_overload(overload.function(), &types)
            }
            ExecutionError::UnsupportedBinaryOperator(operator, a, b)
            | ExecutionError::Overflow(operator, a, b)
                if is_null(a) || is_null(b) =>
            {
                Self::absence(format!("`{operator}` has no answer for null"))
            }
            ExecutionError::UnsupportedBinaryOperator(operator, ..) => {
                Self::new(format!("`{operator}` has no answer for values of these types"))
            }
            ExecutionError::ValuesNotComparable(a, b) if is_null(a) || is_null(b) => {
                Self::absence("null cannot be compared")
            }
            ExecutionError::ValuesNotComparable(..) => {
                Self::new("values of these types cannot be compared")
            }
            ExecutionError::Overflow(operator, ..) => Self::new(format!("`{operator}` overflowed")),
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                Self::new("division by zero")
            }
            ExecutionError::UnexpectedType { got, .. } if got == "null_type" || got == "Null" => {
                Self::absence("a value is null")
            }
            // Messages of our own functions hold no values. Those of CEL do.
            ExecutionError::FunctionError { function, message } if function == "date" => {
                Self::new(format!("`date`: {message}"))
            }
            ExecutionError::FunctionError { function, .. } => {
                Self::new(format!("`{function}` failed"))
            }
            _ => Self::of_types(),
        }
    }
}
