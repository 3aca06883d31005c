//! Topic patterns such as `order.*` and `#.deleted`.

use super::model::Pattern;

impl Pattern {
    /// Splits a pattern into its words.
    pub fn parse(text: &str) -> Self {
        Self { words: text.split('.').map(str::to_owned).collect() }
    }

    /// Returns whether a name is a pattern: one of its words is `*` or `#`.
    pub fn is_pattern(name: &str) -> bool {
        name.split('.').any(|word| matches!(word, "*" | "#"))
    }

    /// Returns whether an event type matches.
    pub fn matches(&self, event_type: &str) -> bool {
        matches(&self.words, event_type)
    }
}

/// Matches words. A `#` takes as few words as possible, and one more whenever the rest does not
/// match.
///
/// Only the last `#` needs to take more, so the time is bounded by the product of both lengths.
fn matches(words: &[String], event_type: &str) -> bool {
    // The rest of the type, or `None` after its last word.
    let mut text = Some(event_type);
    let mut at = 0;
    let mut last_hash: Option<(usize, Option<&str>)> = None;
    loop {
        match (words.get(at).map(String::as_str), text) {
            (None, None) => return true,
            (Some("#"), _) => {
                at += 1;
                last_hash = Some((at, text));
                continue;
            }
            (Some(word), Some(left)) if word == "*" || left.split('.').next() == Some(word) => {
                at += 1;
                text = after_word(left);
                continue;
            }
            _ => {}
        }
        let Some((after_hash, Some(left))) = last_hash else { return false };
        at = after_hash;
        text = after_word(left);
        last_hash = Some((after_hash, text));
    }
}

fn after_word(text: &str) -> Option<&str> {
    text.split_once('.').map(|(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_as_topic_exchanges_do() {
        for (pattern, yes, no) in [
            ("order.*", &["order.paid", "order."][..], &["order", "order.a.b", "orders.a"][..]),
            ("order.#", &["order", "order.paid", "order.a.b"], &["orders", "a.order"]),
            ("#", &["a", "a.b", ""], &[]),
            ("#.deleted", &["deleted", "a.deleted", "a.b.deleted"], &["deleted.a", "a.deletedx"]),
            ("*.b.#.d", &["a.b.d", "a.b.c.d", "a.b.d.d"], &["b.d", "a.b.c"]),
            ("a.#.#.b", &["a.b", "a.x.y.b"], &["a", "b"]),
            ("a.b", &["a.b"], &["a.b.c", "a"]),
        ] {
            let pattern_words = Pattern::parse(pattern);
            yes.iter().for_each(|text| assert!(pattern_words.matches(text), "{pattern} {text}"));
            no.iter().for_each(|text| assert!(!pattern_words.matches(text), "{pattern} {text}"));
        }
    }

    /// The definition of matching: `#` takes any number of words, `*` one.
    fn by_definition(words: &[&str], text: &[&str]) -> bool {
        match (words, text) {
            ([], text) => text.is_empty(),
            (["#", rest @ ..], text) => {
                (0..=text.len()).any(|taken| by_definition(rest, &text[taken..]))
            }
            ([word, rest @ ..], [first, text @ ..]) => {
                (*word == "*" || word == first) && by_definition(rest, text)
            }
            (_, []) => false,
        }
    }

    proptest! {
        #[test]
        fn topic_patterns_match_by_the_definition_of_amqp(words in prop::collection::vec("[ab*#]?", 1..7), text in prop::collection::vec("[ab]?", 1..9)) {
            let (words, text): (Vec<&str>, Vec<&str>) = (words.iter().map(String::as_str).collect(), text.iter().map(String::as_str).collect());
            prop_assert_eq!(Pattern::parse(&words.join(".")).matches(&text.join(".")), by_definition(&words, &text));
        }
    }

    #[test]
    fn a_long_event_type_is_matched_quickly() {
        let event_type = "a.".repeat(20_000);
        assert!(!Pattern::parse("#.a.#.a.#.a.#.a.#.b").matches(&event_type));
    }
}
