//! A JSON value as it was published: its text, read one level at a time.
//!
//! Keys, their order and the text of numbers matter to what is written to a cache, and most events
//! need two or three of their members: so the text is kept, checked once, and a level is taken
//! apart when somebody looks into it.

mod compact;
mod scan;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

/// The deepest nesting that is read; beyond it a body is malformed. `serde_json` itself ends at
/// 128.
pub const MAX_DEPTH: usize = 100;

/// One value, as text known to be valid JSON without white space around it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Json<'a>(&'a str);

/// An object's members in order: names, unescaped, and values. Most objects have few.
pub type MemberList<'a> = SmallVec<[(Cow<'a, str>, Json<'a>); 8]>;

/// What kind of value stands there.
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

/// Why a text is no JSON value of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON.
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
    /// Nothing but white space.
    #[error("empty, not JSON")]
    Empty,
    /// A `\\u` escape of half a surrogate pair: no text has that character (RFC 8259, section 8.2).
    #[error("not JSON: a string holds half of a surrogate pair")]
    LoneSurrogate,
    /// Nested beyond [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

impl<'a> Json<'a> {
    /// The empty object.
    pub const EMPTY_OBJECT: Json<'static> = Json("{}");

    /// Checks a text and holds it.
    ///
    /// # Errors
    /// [`JsonError`] when it is not JSON, or nested too deep.
    pub fn parse(text: &'a str) -> Result<Self, JsonError> {
        scan::value(text).map_or_else(|| read_value(text), Ok)
    }

    /// Checks a text and takes its outermost level apart in the same pass. What is no object has no
    /// members.
    ///
    /// # Errors
    /// Those of [`Json::parse`].
    pub fn parse_members(text: &'a str) -> Result<(Self, MemberList<'a>), JsonError> {
        scan::object(text).map_or_else(|| read_members(text), Ok)
    }

    /// Holds a text that [`Json::parse`] has accepted before: no second check in release builds.
    pub fn trusted(text: &'a str) -> Self {
        debug_assert!(Self::parse(text).is_ok(), "text was not checked");
        Self(text.trim_ascii())
    }

    /// Holds a text that [`Json::parse`] has accepted, for a caller that reads it often: debug
    /// builds check it no second time either.
    pub(crate) fn parsed(text: &'a str) -> Self {
        Self(text.trim_ascii())
    }

    /// Holds a part of this value that [`Json::elements`] or [`Json::members`] gave before: it is
    /// not checked again.
    pub(crate) fn part(self, place: std::ops::Range<usize>) -> Self {
        Self(self.0.get(place).filter(|text| !text.is_empty()).unwrap_or("null"))
    }

    /// The text as published, white space inside included.
    pub fn text(self) -> &'a str {
        self.0
    }

    /// What kind of value it is.
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

    /// Whether it is `null`.
    pub fn is_null(self) -> bool {
        self.kind() == JsonKind::Null
    }

    /// The boolean.
    pub fn as_bool(self) -> Option<bool> {
        match self.0 {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// The string, unescaped; borrowed where nothing was escaped.
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

    /// Returns a string, or a number or boolean as it is written.
    pub fn scalar(self) -> Option<Cow<'a, str>> {
        match self.kind() {
            JsonKind::String => self.as_str(),
            JsonKind::Number | JsonKind::Bool => Some(Cow::Borrowed(self.0)),
            JsonKind::Null | JsonKind::Array | JsonKind::Object => None,
        }
    }

    /// The text of the number.
    pub fn as_number(self) -> Option<&'a str> {
        (self.kind() == JsonKind::Number).then_some(self.0)
    }

    /// The number, where it is an unsigned integer written as digits.
    pub fn as_u64(self) -> Option<u64> {
        self.as_number()?.parse().ok()
    }

    /// The members of an object, in order, duplicate names included (the last one counts); empty
    /// for anything else.
    pub fn members(self) -> MemberList<'a> {
        if self.kind() != JsonKind::Object {
            return MemberList::new();
        }
        scan::object(self.0).map(|(_, members)| members).unwrap_or_default()
    }

    /// The elements of an array; empty for anything else.
    pub fn elements(self) -> Vec<Json<'a>> {
        if self.kind() != JsonKind::Array {
            return Vec::new();
        }
        scan::array(self.0).unwrap_or_default()
    }

    /// The member of that name; of several the last.
    pub fn get(self, name: &str) -> Option<Json<'a>> {
        self.members().into_iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The value as `serde_json`'s: numbers beyond 64 bits rounded to a double, those beyond a
    /// double to the largest of their sign.
    pub fn to_value(self) -> serde_json::Value {
        serde_json::from_str(self.0).unwrap_or_else(|_| self.to_clamped_value())
    }

    /// `serde_json` refuses a number beyond a double's range; this way round it is slower.
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

    /// Appends the value as compact UTF-8: no white space, no needless escapes, order and number
    /// text as published, one member a name.
    pub fn write_compact(self, out: &mut String) {
        if !self.write_unique(out) {
            self.write_last(out);
        }
    }

    /// Does what [`Json::write_compact`] does, in one pass. Returns `false`, and appends nothing,
    /// where an object may have two members of one name.
    pub(crate) fn write_unique(self, out: &mut String) -> bool {
        let before = out.len();
        let is_done = compact::write(self.0, out);
        if !is_done {
            out.truncate(before);
        }
        is_done
    }

    /// Does what [`Json::write_compact`] does, whatever the names: each level is read once more
    /// than the one above it.
    pub(crate) fn write_last(self, out: &mut String) {
        match self.kind() {
            JsonKind::Object => {
                let members = self.members();
                let last_of_name: HashMap<&str, Json<'_>> =
                    members.iter().map(|(name, value)| (name.as_ref(), *value)).collect();
                let has_duplicates = last_of_name.len() < members.len();
                let mut written = HashSet::new();
                out.push('{');
                let mut first = true;
                for (name, value) in &members {
                    if has_duplicates && !written.insert(name.as_ref()) {
                        continue;
                    }
                    let value = if has_duplicates {
                        last_of_name.get(name.as_ref()).unwrap_or(value)
                    } else {
                        value
                    };
                    if !std::mem::take(&mut first) {
                        out.push(',');
                    }
                    write_string(name, out);
                    out.push(':');
                    value.write_last(out);
                }
                out.push('}');
            }
            JsonKind::Array => {
                out.push('[');
                for (at, element) in self.elements().into_iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    element.write_last(out);
                }
                out.push(']');
            }
            JsonKind::String => write_string(&self.as_str().unwrap_or_default(), out),
            JsonKind::Null | JsonKind::Bool | JsonKind::Number => out.push_str(self.0),
        }
    }
}

/// The text itself: for values of an event only where values may be shown.
impl fmt::Debug for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Appends a string as JSON, quoted and escaped no more than it must be.
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

/// [`Json::parse`], slower, and says what is wrong.
fn read_value(text: &str) -> Result<Json<'_>, JsonError> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| syntax(text, &error))?;
    if is_too_deep(raw.get()) {
        return Err(JsonError::TooDeep);
    }
    if !surrogates_are_paired(raw.get()) {
        return Err(JsonError::LoneSurrogate);
    }
    Ok(Json(raw.get()))
}

/// Returns what is wrong with a text that is no JSON.
fn syntax(text: &str, error: &serde_json::Error) -> JsonError {
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        serde_json::error::Category::Eof
            if text.trim_matches([' ', '\t', '\n', '\r']).is_empty() =>
        {
            JsonError::Empty
        }
        serde_json::error::Category::Eof => JsonError::Unfinished { line, column },
        _ => JsonError::Syntax { line, column },
    }
}

/// [`Json::parse_members`], slower, and says what is wrong.
fn read_members(text: &str) -> Result<(Json<'_>, MemberList<'_>), JsonError> {
    let value = text.trim_matches([' ', '\t', '\n', '\r']);
    if !value.starts_with('{') {
        return Json::parse(text).map(|json| (json, MemberList::new()));
    }
    let mut members = MemberList::new();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read =
        deserializer.deserialize_map(Members(&mut members)).and_then(|()| deserializer.end());
    if let Err(error) = read {
        // A name that is no text ends this pass early, and the other says so.
        Json::parse(text)?;
        return Err(syntax(text, &error));
    }
    if is_too_deep(value) {
        return Err(JsonError::TooDeep);
    }
    if !surrogates_are_paired(value) {
        return Err(JsonError::LoneSurrogate);
    }
    Ok((Json(value), members))
}

/// Whether every `\\u` escape of half a surrogate pair stands beside its other half. The text is
/// JSON: backslashes stand in strings alone.
fn surrogates_are_paired(text: &str) -> bool {
    let bytes = text.as_bytes();
    let unit = |at: usize| -> Option<u16> {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &bytes[at..]) {
        at += found;
        at += match unit(at) {
            Some(0xD800..=0xDBFF) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => 12,
            Some(0xD800..=0xDFFF) => return false,
            Some(_) => 6,
            None => 2,
        };
    }
    true
}

fn is_too_deep(text: &str) -> bool {
    // Too few brackets, wherever they stand, cannot be that deep.
    if memchr::memchr2_iter(b'{', b'[', text.as_bytes()).nth(MAX_DEPTH).is_none() {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    false
}

struct Members<'m, 'a>(&'m mut MemberList<'a>);

impl<'de> Visitor<'de> for Members<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Name)? {
            let value: &'de RawValue = map.next_value()?;
            self.0.push((name, Json(value.get())));
        }
        Ok(())
    }
}

/// A member's name, borrowed where nothing was escaped (`Cow`'s own `Deserialize` always owns).
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

#[cfg(test)]
mod tests;
