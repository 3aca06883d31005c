//! Estimates how much work a regular expression needs for each byte of the text that it matches.

use regex_automata::dfa::{StartKind, dense};
use regex_automata::nfa::thompson;

/// Assumed size of a pattern that this file cannot parse.
const SIZE_UNKNOWN: u64 = 10_000;

/// Work for a byte of text, in sixteenths of a unit, if every byte takes one step between states.
const SIXTEENTHS_OF_ONE_STEP: u64 = 4;

/// Maximum size of a small automaton, in bytes. Such an automaton fits into the cache of states
/// that a match fills.
const MAX_SMALL_BYTES: usize = 64 * 1024;

/// Returns the work for a byte of text, in sixteenths of a unit.
///
/// A byte takes one step if the pattern's automaton is small, as for e-mail addresses, URLs and
/// UUIDs. Otherwise a byte may visit every state of the pattern.
pub(super) fn sixteenths_per_byte(pattern: &str) -> u64 {
    if has_small_automaton(pattern) {
        return SIXTEENTHS_OF_ONE_STEP;
    }
    let size = if is_counted_class(pattern) { 1 } else { size(pattern) };
    16_u64.saturating_mul(size.div_ceil(2))
}

fn has_small_automaton(pattern: &str) -> bool {
    // An automaton of more states is never small, and building it takes time.
    if size(pattern) > 2_000 {
        return false;
    }
    let automaton = dense::Config::new()
        .start_kind(StartKind::Unanchored)
        .accelerate(false)
        .dfa_size_limit(Some(MAX_SMALL_BYTES))
        .determinize_size_limit(Some(4 * MAX_SMALL_BYTES));
    let states = thompson::Config::new().nfa_size_limit(Some(4 * MAX_SMALL_BYTES));
    dense::Builder::new().configure(automaton).thompson(states).build(pattern).is_ok()
}

/// Returns the pattern with the ASCII meaning of `\d` and `\w` that JavaScript and JSON Schema
/// have.
pub(super) fn with_ascii_classes(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('d') => out.push_str("[0-9]"),
            Some('D') => out.push_str("[^0-9]"),
            Some('w') => out.push_str("[0-9A-Za-z_]"),
            Some('W') => out.push_str("[^0-9A-Za-z_]"),
            other => {
                out.push('\\');
                out.extend(other);
            }
        }
    }
    out
}

/// Returns whether a pattern is one repeated class from start to end. Such a pattern has at most
/// one live state.
fn is_counted_class(pattern: &str) -> bool {
    let Some(body) = pattern.strip_prefix('^').and_then(|rest| rest.strip_suffix('$')) else {
        return false;
    };
    let after = match body.as_bytes() {
        [b'[', rest @ ..] => {
            // The first bracket without an escape ends the class.
            let mut escaped = false;
            let end = rest.iter().position(|byte| {
                let ends = *byte == b']' && !escaped;
                escaped = *byte == b'\\' && !escaped;
                ends
            });
            let Some(end) = end else { return false };
            &rest[end + 1..]
        }
        [b'\\', _, rest @ ..] | [b'.', rest @ ..] => rest,
        _ => return false,
    };
    match after {
        b"" | b"*" | b"+" => true,
        [b'{', counts @ .., b'}'] => {
            counts.iter().all(|byte| byte.is_ascii_digit() || *byte == b',')
        }
        _ => false,
    }
}

/// Returns the approximate number of states: characters and classes, with counted repetitions
/// written out.
///
/// A pattern whose parentheses seem unbalanced cannot be parsed here. It counts as very large.
fn size(pattern: &str) -> u64 {
    let mut groups = vec![0_u64];
    // Size of the part that a repetition would repeat if it came next.
    let mut last = 0_u64;
    let mut rest = pattern.chars().peekable();
    let add = |groups: &mut Vec<u64>, size: u64| {
        if let Some(group) = groups.last_mut() {
            *group = group.saturating_add(size);
        }
    };
    while let Some(c) = rest.next() {
        match c {
            '\\' => {
                let is_class_name = matches!(rest.next(), Some('p' | 'P' | 'u' | 'k'));
                if is_class_name && rest.peek() == Some(&'{') {
                    rest.by_ref().take_while(|c| *c != '}').for_each(drop);
                }
                last = 1;
            }
            '[' => {
                let mut escaped = false;
                for c in rest.by_ref() {
                    if c == ']' && !escaped {
                        break;
                    }
                    escaped = c == '\\' && !escaped;
                }
                last = 1;
            }
            '(' => {
                groups.push(0);
                continue;
            }
            ')' => {
                if groups.len() == 1 {
                    return SIZE_UNKNOWN;
                }
                last = groups.pop().unwrap_or_default();
            }
            '{' => {
                let counts: String = rest.by_ref().take_while(|c| *c != '}').collect();
                let count = counts
                    .split(',')
                    .filter_map(|count| count.trim().parse::<u64>().ok())
                    .max()
                    .unwrap_or(1);
                // The part was added once already.
                add(&mut groups, last.saturating_mul(count.saturating_sub(1)));
                last = last.saturating_mul(count.max(1));
                continue;
            }
            '*' | '+' | '?' | '|' | '^' | '$' => continue,
            _ => last = 1,
        }
        add(&mut groups, last);
    }
    if let [size] = groups[..] { size.max(1) } else { SIZE_UNKNOWN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_repetitions_multiply_the_size_of_a_pattern() {
        for (pattern, expected) in [
            ("", 1),
            ("^abc$", 3),
            ("a{3}", 3),
            ("(ab){2,5}", 10),
            ("((a|b){10}c){100}", 2_100),
            ("[a-z\\]{9}]{4}", 4),
            ("\\p{Lu}{1,30}x", 31),
            ("a\\{3}", 4),
            ("(a{1000}){1000}", 1_000_000),
            ("a{99999999999999999999}", 1),
            ("(?x)(a{500}#)\n){500}", SIZE_UNKNOWN),
            ("[[a](]", SIZE_UNKNOWN),
        ] {
            assert_eq!(size(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn a_byte_costs_one_step_if_the_automaton_is_small() {
        for pattern in [
            r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$",
            r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$",
            r"^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$",
            r"^https?://[^\s/$.?#].[^\s]*$",
            r"^(https?|ftp)://[\w.-]+(:[0-9]{1,5})?(/[\w./?%&=~#-]*)?$",
            "^[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
            r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$",
            "^[a-z0-9]+(-[a-z0-9]+)*$",
            "^(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})(?:\\.(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})){3}$",
        ] {
            assert_eq!(
                sixteenths_per_byte(&with_ascii_classes(pattern)),
                SIXTEENTHS_OF_ONE_STEP,
                "{pattern}"
            );
        }
        for (pattern, size) in [
            ("[ab]*a[ab]{60}c", 64),
            ("[ab]*a[ab]{1000}c", 1_003),
            (r"^(\p{L}|\d){1,200}$", 400),
            ("(?x)(a{500}#)\n){500}", SIZE_UNKNOWN),
        ] {
            assert!(sixteenths_per_byte(pattern) >= 8 * size, "{pattern}");
        }
        assert_eq!(sixteenths_per_byte("^.{0,1000}$"), 16);
    }

    #[test]
    fn a_single_repeated_class_is_recognized() {
        for (pattern, expected) in [
            ("^[a-z0-9_-]{1,64}$", true),
            ("^.{0,1000}$", true),
            ("^\\d+$", true),
            ("^[\\]a]*$", true),
            ("[a-z]{1,64}", false),
            ("^[a]b$", false),
            ("^[a-z]{1,64}[0-9]$", false),
            ("^[a]{1}{2}$", false),
            ("^(ab){2}$", false),
        ] {
            assert_eq!(is_counted_class(pattern), expected, "{pattern}");
        }
    }
}
