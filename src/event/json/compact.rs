//! Writes a value without white space and needless escapes, in one pass.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;

use super::{Json, JsonKind, write_string};

impl Json<'_> {
    /// Appends the value in compact UTF-8, without white space and needless escapes. Order and
    /// number text stay as published, and duplicate names are removed.
    pub fn write_compact(self, out: &mut String) {
        if !self.write_unique(out) {
            self.write_last(out);
        }
    }

    /// Writes like [`Json::write_compact`], in one pass. Returns `false` and appends nothing if an
    /// object may have duplicate names.
    pub(crate) fn write_unique(self, out: &mut String) -> bool {
        let before = out.len();
        let is_done = write(self.0, out);
        if !is_done {
            out.truncate(before);
        }
        is_done
    }

    /// Writes like [`Json::write_compact`], with any names. It reads each level once more than the
    /// one above it.
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

/// Appends a JSON text like [`Json::write_compact`].
///
/// Returns `false` if an object may have duplicate names. The appended text is then not usable.
fn write(text: &str, out: &mut String) -> bool {
    let hasher = foldhash::fast::FixedState::default();
    // One element for each open bracket: where the hashes of an object's names begin, or `None` for
    // an array.
    let mut open_brackets: Vec<Option<usize>> = Vec::new();
    let mut names: Vec<u64> = Vec::new();
    let (mut at, mut is_name) = (0, false);
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => {}
            b'"' => {
                let Some(raw) = string_at(text, at) else { return false };
                let from = out.len();
                if memchr::memchr(b'\\', raw.as_bytes()).is_none() {
                    out.push_str(raw);
                } else {
                    let Ok(text) = serde_json::from_str::<String>(raw) else { return false };
                    write_string(&text, out);
                }
                if std::mem::take(&mut is_name) {
                    names.push(hasher.hash_one(&out[from..]));
                }
                at += raw.len();
                continue;
            }
            b'{' => {
                open_brackets.push(Some(names.len()));
                is_name = true;
                out.push('{');
            }
            b'[' => {
                open_brackets.push(None);
                out.push('[');
            }
            b'}' | b']' => {
                if let Some(Some(from)) = open_brackets.pop() {
                    let own = &mut names[from..];
                    own.sort_unstable();
                    if own.windows(2).any(|pair| pair[0] == pair[1]) {
                        return false;
                    }
                    names.truncate(from);
                }
                is_name = false;
                out.push(char::from(byte));
            }
            b',' => {
                is_name = matches!(open_brackets.last(), Some(Some(_)));
                out.push(',');
            }
            b':' => out.push(':'),
            _ => {
                let rest = &text[at..];
                let end = rest.find([',', ']', '}', ' ', '\n', '\r', '\t']).unwrap_or(rest.len());
                out.push_str(&rest[..end]);
                at += end;
                continue;
            }
        }
        at += 1;
    }
    true
}

/// Returns the string that begins at that quote, with both quotes.
fn string_at(text: &str, from: usize) -> Option<&str> {
    let bytes = text.as_bytes();
    let mut at = from + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(&text[from..=at]);
        }
        at += 2;
    }
}
