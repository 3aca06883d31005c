//! The part of a loader's URL that an event fills in: path and query, never the host.

use super::path::{Names, Path, TextProblem};
use super::template::{Piece, Template};

/// A compiled path and query, to stand after a loader's base URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlTemplate {
    pub(super) template: Template,
}

impl UrlTemplate {
    /// Compiles what stands after the loader's name or the absolute URL's host: `/path?query`.
    ///
    /// # Errors
    /// What is wrong with the text, and where: beside a template's problems a text that does not
    /// begin with `/`, a character that no URL has, a fragment, and a `.` or `..` segment.
    pub fn parse(text: &str, names: &Names<'_>) -> Result<Self, TextProblem> {
        if !text.starts_with('/') {
            return Err(TextProblem::new(0, "the path must begin with `/`")
                .hint("such as catalogue:/products/{id}"));
        }
        let template = Template::parse(text, names)?;
        for piece in &template.pieces {
            let Piece::Literal(literal) = piece else { continue };
            if let Some(c) = literal.chars().find(|&c| !is_url_char(c)) {
                let hint = "percent-encode it; placeholders are encoded for you";
                return Err(TextProblem::new(
                    text.find(c).unwrap_or(0),
                    format!("`{}` cannot stand in a path or query", c.escape_debug()),
                )
                .hint(hint));
            }
            if !percent_signs_are_escapes(literal) {
                return Err(TextProblem::new(
                    text.find('%').unwrap_or(0),
                    "`%` must begin an escape of two hex digits",
                )
                .hint("a literal % is %25"));
            }
        }
        // A segment made of literals alone is known now; one with a placeholder is looked at when
        // its value is.
        let with_stand_ins: String = template
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(literal) => &**literal,
                Piece::Path(_) => "x",
            })
            .collect();
        if has_dot_segment(&with_stand_ins) {
            return Err(TextProblem::new(0, "`.` and `..` are no segments of a path here")
                .hint("write the path that is meant"));
        }
        Ok(Self { template })
    }

    /// The paths it reads, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.template.paths()
    }

    /// The variables it names.
    pub fn vars(&self) -> impl Iterator<Item = &str> {
        self.template.vars()
    }

    /// The variables that have no value.
    pub fn unset_vars(&self) -> impl Iterator<Item = &str> {
        self.template.unset_vars()
    }

    /// Whether anything is read from the event.
    pub fn has_placeholder(&self) -> bool {
        self.template.has_placeholder()
    }
}

/// Whether a character may stand in a path or a query as it is: RFC 3986, appendix A, and `%` of an
/// escape.
fn is_url_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~:/?@!$&'()*+,;=%[]".contains(c)
}

fn percent_signs_are_escapes(text: &str) -> bool {
    let bytes = text.as_bytes();
    (0..bytes.len()).filter(|&at| bytes[at] == b'%').all(|at| {
        bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Whether a server might read a segment of the path as `.` or `..`: encoded up to three times
/// over, behind an encoded slash or backslash, or with the parameters that some servers cut off
/// after `;`.
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
