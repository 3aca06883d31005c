//! The part of a loader's URL that an event fills in: path and query, never the host.

use super::code::Code;
use super::path::{KnownNames, Path, TextProblem};
use super::template::{Piece, Template};

/// A compiled path and query, which follow a loader's base URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlTemplate {
    pub(super) template: Template,
}

impl UrlTemplate {
    /// Compiles the text after the loader's name or the host: `/path?query`.
    ///
    /// # Errors
    /// A problem of the template, a missing `/`, a character that URLs do not allow, a fragment, or
    /// a segment `.` or `..`.
    pub fn parse(text: &str, names: &KnownNames<'_>) -> Result<Self, TextProblem> {
        if !text.starts_with('/') {
            return Err(TextProblem::new(Code::UrlSyntax, 0, "the path must begin with `/`")
                .help("such as catalogue:/products/{id}"));
        }
        let template = Template::parse(text, names)?;
        for piece in &template.pieces {
            let Piece::Literal(literal) = piece else { continue };
            if let Some(c) = literal.chars().find(|&c| !is_url_char(c)) {
                let help = "percent-encode it; placeholders are encoded automatically";
                return Err(TextProblem::new(
                    Code::UrlSyntax,
                    text.find(c).unwrap_or(0),
                    format!("`{}` is not allowed in a path or query", c.escape_debug()),
                )
                .help(help));
            }
            if !percent_signs_are_escapes(literal) {
                return Err(TextProblem::new(
                    Code::UrlSyntax,
                    text.find('%').unwrap_or(0),
                    "`%` must begin an escape of two hex digits",
                )
                .help("a literal % is %25"));
            }
        }
        // Segments without placeholders are checked here. Those with placeholders are checked when
        // they have values.
        let with_substitutes: String = template
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(literal) => &**literal,
                Piece::Path(_) => "x",
            })
            .collect();
        if has_dot_segment(&with_substitutes) {
            return Err(TextProblem::new(
                Code::UrlSyntax,
                0,
                "a path cannot have the segments `.` and `..`",
            )
            .help("write the path without them"));
        }
        Ok(Self { template })
    }

    /// Returns the paths that it reads, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.template.paths()
    }

    /// Returns the variables that it names.
    pub fn vars(&self) -> impl Iterator<Item = &str> {
        self.template.vars()
    }

    /// Returns the variables that have no value.
    pub fn unset_vars(&self) -> impl Iterator<Item = &str> {
        self.template.unset_vars()
    }

    /// Returns whether it reads a value of the event.
    pub fn has_placeholder(&self) -> bool {
        self.template.has_placeholder()
    }
}

/// Returns whether a path or query may hold the character as it is (RFC 3986, appendix A), or `%`
/// of an escape.
fn is_url_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~:/?@!$&'()*+,;=%[]".contains(c)
}

fn percent_signs_are_escapes(text: &str) -> bool {
    let bytes = text.as_bytes();
    (0..bytes.len()).filter(|&at| bytes[at] == b'%').all(|at| {
        bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Returns whether a server might read a segment of the path as `.` or `..`.
///
/// Detects up to three levels of encoding, encoded slashes and backslashes, and parameters after
/// `;`, which some servers remove.
pub(super) fn has_dot_segment(path_and_query: &str) -> bool {
    let path = path_and_query.split('?').next().unwrap_or_default();
    if !path.contains(['.', '%']) {
        return false;
    }
    let mut decoded = path.as_bytes().to_vec();
    for _ in 0..4 {
        let is_dot = |segment: &[u8]| {
            let name = segment.split(|&b| b == b';').next().unwrap_or_default();
            matches!(name, b"." | b"..")
        };
        if decoded.split(|&b| b == b'/' || b == b'\\').any(is_dot) {
            return true;
        }
        let again: Vec<u8> = percent_encoding::percent_decode(&decoded).collect();
        if again == decoded {
            break;
        }
        decoded = again;
    }
    false
}
