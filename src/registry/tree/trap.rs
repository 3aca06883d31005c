//! Explains pitfalls of YAML.

use super::super::diagnostic::{Pos, Report};

/// Returns the likely cause of a syntax error, and its place, from the line of the error.
pub(super) fn syntax_hint(report: &Report<'_>, at: Pos) -> (Pos, Option<String>) {
    let line = report.source.line(at.line).unwrap_or("");
    let indent = line.len() - line.trim_start().len();
    if line[..indent].contains('\t') {
        return (at, Some("YAML indents with spaces, not with tabs".to_owned()));
    }
    // A character that begins a value or key and has a meaning in YAML.
    let bytes = line.as_bytes();
    let mut quote = None;
    for (i, c) in line.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => continue,
            (None, '"' | '\'') => quote = Some(c),
            (None, '#') if i == 0 || bytes[i - 1] == b' ' => break,
            _ => {}
        }
        let begins = i == indent
            || (i >= 2
                && bytes[i - 1] == b' '
                && matches!(bytes[i - 2], b':' | b'-' | b',' | b'['))
            || (i >= 1 && matches!(bytes[i - 1], b'[' | b','));
        let hint = match c {
            '*' if begins => "`*` begins an alias in YAML: quote the text, \"*.deleted\"",
            '!' if begins => "`!` begins a tag in YAML: quote the text, \"!has(data.x)\"",
            '&' if begins => "`&` begins an anchor in YAML: quote the text",
            '%' | '@' | '`' if begins => {
                "a text that begins with this character must be quoted in YAML"
            }
            '{' if begins
                && line[i..]
                    .split_once('}')
                    .is_some_and(|(_, after)| after.starts_with(|c: char| !" ,]}".contains(c))) =>
            {
                "a text that begins with `{` must be quoted in YAML, \"{id}:page\""
            }
            '{' if i > 0 && !begins && !matches!(bytes[i - 1], b' ' | b'{' | b'[') => {
                "a template inside `[…]` or `{…}` must be quoted in YAML, \"user:{id}\""
            }
            _ => continue,
        };
        let column = u32::try_from(line[..i].chars().count()).unwrap_or(0) + 1;
        return (Pos { line: at.line, column }, Some(hint.to_owned()));
    }
    let mapping_in_text =
        line.trim_start().split_once(": ").is_some_and(|(_, value)| value.contains(": "));
    (at, mapping_in_text.then(|| "a text that holds `: ` must be quoted in YAML".to_owned()))
}
