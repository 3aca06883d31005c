//! Handles `.json` files, which are read as YAML: two differences in syntax, and JSON's own errors.

use std::borrow::Cow;

use super::super::diagnostic::{Pos, SourceFile};

/// Replaces what YAML lacks: tabs between values, and characters written as surrogate pairs.
pub(super) fn as_yaml<'t>(path: &str, text: &'t str) -> Cow<'t, str> {
    if !path.ends_with(".json") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut in_string = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut width = c.len_utf8();
        match c {
            '"' => in_string = !in_string,
            '\t' if !in_string => {
                out.push(' ');
                rest = &rest[width..];
                continue;
            }
            '\\' if in_string => {
                if let Some(pair) = surrogate_pair(rest) {
                    out.push(pair);
                    rest = &rest[12..];
                    continue;
                }
                width += rest[width..].chars().next().map_or(0, char::len_utf8);
            }
            _ => {}
        }
        out.push_str(&rest[..width]);
        rest = &rest[width..];
    }
    Cow::Owned(out)
}

/// Returns the character of an escape such as `\ud83d\ude00` at the start of a text.
fn surrogate_pair(text: &str) -> Option<char> {
    let unit = |text: &str| u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok();
    let units = [unit(text)?, unit(text.get(6..)?)?];
    let mut decoded = char::decode_utf16(units);
    decoded.next()?.ok().filter(|_| decoded.next().is_none())
}

/// Returns the error of a JSON file in JSON's terms, or `None` for other files and valid JSON.
pub(super) fn json_error(source: &SourceFile) -> Option<(Pos, String)> {
    let error = source
        .path
        .ends_with(".json")
        .then(|| serde_json::from_str::<serde::de::IgnoredAny>(&source.text).err())??;
    let place = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).max(1);
    let text = error.to_string();
    let shown_place = format!(" at line {} column {}", error.line(), error.column());
    let what = text.strip_suffix(&shown_place).unwrap_or(&text);
    Some((
        Pos { line: place(error.line()), column: place(error.column()) },
        format!("not JSON: {what}"),
    ))
}
