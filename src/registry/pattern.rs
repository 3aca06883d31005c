//! Topic patterns: `order.*`, `#.deleted`.

use super::model::Pattern;

impl Pattern {
    /// Splits a pattern into its words.
    pub fn parse(text: &str) -> Self {
        Self { words: text.split('.').map(str::to_owned).collect() }
    }

    /// Whether a name is a pattern: a word of it is `*` or `#`.
    pub fn is_pattern(name: &str) -> bool {
        name.split('.').any(|word| matches!(word, "*" | "#"))
    }

    /// Whether an event type matches.
    pub fn matches(&self, event_type: &str) -> bool {
        matches(&self.words, Some(event_type))
    }
}

/// `text` is what is left of the type; `None` after its last word.
fn matches(words: &[String], text: Option<&str>) -> bool {
    let Some((first, rest)) = words.split_first() else { return text.is_none() };
    if first == "#" {
        // Two in a row are one: without this a row of them would be tried in every way.
        let rest = &words[words.iter().take_while(|word| *word == "#").count()..];
        let mut left = text;
        loop {
            if matches(rest, left) {
                return true;
            }
            match left {
                Some(text) => left = after_word(text),
                None => return false,
            }
        }
    }
    let Some(text) = text else { return false };
    let word = text.split('.').next().unwrap_or_default();
    (first == "*" || first == word) && matches(rest, after_word(text))
}

fn after_word(text: &str) -> Option<&str> {
    text.split_once('.').map(|(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
