//! Parses a JSON text with `serde_json`, and explains what is wrong with it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Json, JsonError, MAX_DEPTH, MemberList};

/// Parses like [`Json::parse`], slower, and explains errors.
pub(super) fn read_value(text: &str) -> Result<Json<'_>, JsonError> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| syntax(text, &error))?;
    if is_too_deep(raw.get()) {
        return Err(JsonError::TooDeep);
    }
    if !surrogates_are_paired(raw.get()) {
        return Err(JsonError::LoneSurrogate);
    }
    Ok(Json(raw.get()))
}

/// Returns the error for a text that is not JSON.
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

/// Parses like [`Json::parse_members`], slower, and explains errors.
pub(super) fn read_members(text: &str) -> Result<(Json<'_>, MemberList<'_>), JsonError> {
    let value = text.trim_matches([' ', '\t', '\n', '\r']);
    if !value.starts_with('{') {
        return Json::parse(text).map(|json| (json, MemberList::new()));
    }
    let mut members = MemberList::new();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read =
        deserializer.deserialize_map(Members(&mut members)).and_then(|()| deserializer.end());
    if let Err(error) = read {
        // An invalid name ends this pass early. The other one reports it.
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

/// Returns whether no `\\u` escape is half of a surrogate pair. The text must be JSON, where
/// backslashes occur only in strings.
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
    // A text with fewer brackets, in any place, cannot be that deep.
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

/// Reads a member's name, borrowed if nothing was escaped. `Cow`'s own `Deserialize` always owns
/// it.
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
