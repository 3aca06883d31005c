//! Words CEL's syntax errors for users, without the terms of its parser.

use super::super::code::Code;
use crate::registry::path::TextProblem;

/// A syntax error.
enum SyntaxError {
    /// The text ends within an expression.
    TooEarly,
    /// Any other error, in words.
    Other(String),
}

/// Reads an error of the parser, of which `cel` passes on the text only. `rest` is the text from
/// the error on.
fn read(message: &str, rest: &str) -> SyntaxError {
    let message = message.lines().next().unwrap_or_default().trim_start_matches("Syntax error: ");
    // The expected tokens are a list of all tokens of CEL.
    let found = message.split(" expecting ").next().unwrap_or_default();
    let is_at_end =
        rest.trim().is_empty() || found.contains("<EOF>") || message.starts_with("Incomplete ");
    let is_of_tokens = [
        "mismatched input",
        "extraneous input",
        "missing ",
        "no viable alternative",
        "token recognition error",
        "Incomplete ",
    ]
    .iter()
    .any(|beginning| message.starts_with(beginning));
    if !is_of_tokens {
        return SyntaxError::Other(message.to_owned());
    }
    if is_at_end {
        return SyntaxError::TooEarly;
    }
    let quoted = rest.trim_start_matches(['b', 'r']);
    if message.starts_with("token recognition error") && quoted.starts_with(['"', '\'']) {
        let words = "this string has no end, or an escape that CEL does not have";
        return SyntaxError::Other(words.to_owned());
    }
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
    let shown = if word > 0 {
        &rest[..word]
    } else {
        &rest[..rest.chars().next().map_or(0, char::len_utf8)]
    };
    SyntaxError::Other(format!("unexpected `{}`", shown.escape_debug()))
}

/// Returns the first syntax error with its place and a likely fix.
pub(super) fn syntax_problem(text: &str, errors: &cel::ParseErrors) -> TextProblem {
    let Some(first) = errors.errors.first() else {
        return TextProblem::new(Code::ExpressionSyntax, 0, "not an expression");
    };
    let line_from = match usize::try_from(first.pos.0).unwrap_or(0) {
        0 | 1 => 0,
        line => text.split_inclusive('\n').take(line - 1).map(str::len).sum(),
    };
    let column = usize::try_from(first.pos.1.saturating_sub(1)).unwrap_or(0);
    let at =
        text[line_from..].char_indices().nth(column).map_or(text.len(), |(at, _)| line_from + at);
    let (words, at) = match read(&first.msg, &text[at..]) {
        SyntaxError::TooEarly => ("the text ends too early".to_owned(), text.len()),
        SyntaxError::Other(words) => (words, at),
    };
    let problem =
        TextProblem::new(Code::ExpressionSyntax, at, format!("not an expression: {words}"));
    let has_word = |word: &str| {
        text.split(|c: char| !(c == '_' || c.is_ascii_alphanumeric())).any(|known| known == word)
    };
    let is_lone_equals = || {
        let bytes = text.as_bytes();
        let beside = |at: usize| bytes.get(at).is_some_and(|byte| b"=!<>".contains(byte));
        (0..bytes.len())
            .any(|at| bytes[at] == b'=' && !beside(at + 1) && !(at > 0 && beside(at - 1)))
    };
    if text.trim_start().starts_with('{') || text.contains("{{") {
        problem.help("an expression has no braces: a field is data.name")
    } else if text.contains("===") || text.contains("!==") || is_lone_equals() {
        problem.help("CEL compares with == and !=")
    } else if ["and", "or", "not"].into_iter().any(has_word) {
        problem.help("CEL writes and, or and not as &&, || and !")
    } else if text.contains("let.") {
        problem.help("write `lets`: in CEL, `let` is a reserved word")
    } else {
        problem.help("write CEL, such as data.status == \"sold\"; a field with a reserved name is data[\"in\"]")
    }
}
