//! How large a regular expression is: a byte of text costs in proportion to that.

/// The size of a pattern that is not understood.
const SIZE_UNKNOWN: u64 = 10_000;

/// Returns the units of work for one byte of text, by the size of the pattern.
pub(super) fn units_per_byte(size: u64) -> u64 {
    size.div_ceil(2)
}

/// Whether a pattern is one class, repeated, from the text's beginning to its end: no more than one state is live then.
pub(super) fn is_counted_class(pattern: &str) -> bool {
    let Some(body) = pattern.strip_prefix('^').and_then(|rest| rest.strip_suffix('$')) else { return false };
    let after = match body.as_bytes() {
        [b'[', rest @ ..] => {
            // The first bracket that no escape precedes ends the class.
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
        [b'{', counts @ .., b'}'] => counts.iter().all(|byte| byte.is_ascii_digit() || *byte == b','),
        _ => false,
    }
}

/// Returns about how many states a pattern has: its characters and classes, counted repetitions written out. A pattern whose
/// parentheses do not match was not understood: it counts as a very large one.
pub(super) fn size(pattern: &str) -> u64 {
    let mut groups = vec![0_u64];
    // The size of what the next repetition would repeat.
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
                let count = counts.split(',').filter_map(|count| count.trim().parse::<u64>().ok()).max().unwrap_or(1);
                // It was added once.
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
    fn counted_repetitions_are_written_out() {
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
    fn one_repeated_class_is_told_from_other_patterns() {
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
