//! A JSON value in its published text, parsed one level at a time.
//!
//! Values written to a cache must keep the order of keys and the text of numbers. Rules read only
//! two or three members of most payloads. So this module checks the text once, keeps it, and parses
//! a level when a caller reads it.
//!
//! - `scan` has the methods that check and split a text, in one fast pass.
//! - `slow` parses with `serde_json` what `scan` does not accept, and explains errors.
//! - `compact` has the methods that write a value without white space.
//!
//! `serde_json::RawValue` would allocate a map for each level.

mod compact;
mod scan;
mod slow;

use std::borrow::Cow;
use std::fmt;

use smallvec::SmallVec;

/// Maximum nesting depth; a deeper body is malformed. The limit of `serde_json` is 128.
pub const MAX_DEPTH: usize = 100;

/// One value: valid JSON text without white space around it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Json<'a>(&'a str);

/// An object's members in order: unescaped names, and values. Most objects have at most eight.
pub type MemberList<'a> = SmallVec<[(Cow<'a, str>, Json<'a>); 8]>;

/// The kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonKind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number, as text.
    Number,
    /// A string, still escaped.
    String,
    /// `[…]`
    Array,
    /// `{…}`
    Object,
}

impl fmt::Display for JsonKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Number => "a number",
            Self::String => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        })
    }
}

/// Reason why a text cannot be used as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The text is not JSON.
    #[error("not JSON: syntax error at line {line}, column {column}")]
    Syntax {
        /// 1-based.
        line: usize,
        /// 1-based, in bytes.
        column: usize,
    },
    /// The text ends before the value does: a quote or a bracket is not closed.
    #[error(
        "not JSON: it ends within a value, at line {line}, column {column}: a quote or a bracket is not closed"
    )]
    Unfinished {
        /// 1-based.
        line: usize,
        /// 1-based, in bytes.
        column: usize,
    },
    /// The text is empty, or only white space.
    #[error("empty, not JSON")]
    Empty,
    /// A `\\u` escape is half of a surrogate pair, which is no character (RFC 8259, section 8.2).
    #[error("not JSON: a string contains half of a surrogate pair")]
    LoneSurrogate,
    /// The nesting is deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

impl<'a> Json<'a> {
    /// The empty object.
    pub const EMPTY_OBJECT: Json<'static> = Json("{}");

    /// Wraps a text that [`Json::parse`] accepted before. Only debug builds check it again.
    pub fn trusted(text: &'a str) -> Self {
        debug_assert!(Self::parse(text).is_ok(), "text was not checked");
        Self(text.trim_ascii())
    }

    /// Wraps a text that [`Json::parse`] accepted before. Unlike [`trusted`](Self::trusted), it
    /// checks nothing in debug builds, because its callers run often.
    pub(crate) fn parsed(text: &'a str) -> Self {
        Self(text.trim_ascii())
    }

    /// Returns the element or member at this range of bytes. [`Json::elements`] or
    /// [`Json::members`] has checked it.
    pub(crate) fn part(self, place: std::ops::Range<usize>) -> Self {
        Self(self.0.get(place).filter(|text| !text.is_empty()).unwrap_or("null"))
    }

    /// Returns the text as published, with the white space inside.
    pub fn text(self) -> &'a str {
        self.0
    }

    /// Returns the kind of the value.
    pub fn kind(self) -> JsonKind {
        match self.0.as_bytes()[0] {
            b'n' => JsonKind::Null,
            b't' | b'f' => JsonKind::Bool,
            b'"' => JsonKind::String,
            b'[' => JsonKind::Array,
            b'{' => JsonKind::Object,
            _ => JsonKind::Number,
        }
    }

    /// Returns whether the value is `null`.
    pub fn is_null(self) -> bool {
        self.kind() == JsonKind::Null
    }

    /// Returns the boolean.
    pub fn as_bool(self) -> Option<bool> {
        match self.0 {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// Returns the unescaped string. It is borrowed if nothing was escaped.
    pub fn as_str(self) -> Option<Cow<'a, str>> {
        if self.kind() != JsonKind::String {
            return None;
        }
        let inner = &self.0[1..self.0.len() - 1];
        if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
            return Some(Cow::Borrowed(inner));
        }
        serde_json::from_str::<String>(self.0).ok().map(Cow::Owned)
    }

    /// Returns a string, or a number or boolean in its published text.
    pub fn scalar(self) -> Option<Cow<'a, str>> {
        match self.kind() {
            JsonKind::String => self.as_str(),
            JsonKind::Number | JsonKind::Bool => Some(Cow::Borrowed(self.0)),
            JsonKind::Null | JsonKind::Array | JsonKind::Object => None,
        }
    }

    /// Returns the text of the number.
    pub fn as_number(self) -> Option<&'a str> {
        (self.kind() == JsonKind::Number).then_some(self.0)
    }

    /// Returns the number if it is an unsigned integer, written as digits.
    pub fn as_u64(self) -> Option<u64> {
        self.as_number()?.parse().ok()
    }

    /// Returns the member of that name. If several have the name, it returns the last one.
    pub fn get(self, name: &str) -> Option<Json<'a>> {
        self.members().into_iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Converts the value to a value of `serde_json`. A number beyond 64 bits becomes the nearest
    /// double. A number beyond a double becomes the largest double of its sign.
    pub fn to_value(self) -> serde_json::Value {
        serde_json::from_str(self.0).unwrap_or_else(|_| self.to_clamped_value())
    }

    /// Converts a value with a number beyond a double's range, which `serde_json` refuses. This
    /// path is slower.
    fn to_clamped_value(self) -> serde_json::Value {
        match self.kind() {
            JsonKind::Object => self
                .members()
                .into_iter()
                .map(|(name, value)| (name.into_owned(), value.to_clamped_value()))
                .collect(),
            JsonKind::Array => self.elements().into_iter().map(Self::to_clamped_value).collect(),
            JsonKind::Number if self.0.starts_with('-') => {
                serde_json::from_str(self.0).unwrap_or_else(|_| f64::MIN.into())
            }
            JsonKind::Number => serde_json::from_str(self.0).unwrap_or_else(|_| f64::MAX.into()),
            JsonKind::Null | JsonKind::Bool | JsonKind::String => {
                serde_json::from_str(self.0).unwrap_or_default()
            }
        }
    }
}

/// Prints the text itself. Use it only where an event's values may be shown.
impl fmt::Debug for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Appends a string as JSON with quotes and the necessary escapes.
pub fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut plain_from = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[plain_from..at]);
        plain_from = at + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            0x08 => out.push_str("\\b"),
            0x0c => out.push_str("\\f"),
            _ => {
                out.push_str("\\u00");
                out.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
                out.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
            }
        }
    }
    out.push_str(&text[plain_from..]);
    out.push('"');
}

#[cfg(test)]
mod tests;
