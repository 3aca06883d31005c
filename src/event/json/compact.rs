//! Writes a value without white space and needless escapes, in one pass.

use std::hash::BuildHasher as _;

use super::write_string;

/// Appends a JSON text like [`super::Json::write_compact`].
///
/// Returns `false` if an object may have duplicate names. The appended text is then not usable.
pub(super) fn write(text: &str, out: &mut String) -> bool {
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
