//! CEL expressions: `when`, `let`, `each`.

/// A compiled expression.
#[derive(Debug)]
pub struct Expression;
