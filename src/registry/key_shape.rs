//! Which texts a template can become, as far as can be told without an event: so that only keys
//! that need a version's order pay for it.

use super::template::{Piece, Template};

/// The texts that a template may produce: its literal parts, and between them any text that is not
/// empty. Never too few.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyShape {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// What a placeholder becomes: at least one byte. Neighbours are one.
    Any,
}

impl KeyShape {
    /// The keys of a template behind a prefix.
    pub(super) fn of_key(prefix: &str, template: &Template) -> Self {
        let mut shape = Self { parts: Vec::with_capacity(template.pieces.len() + 1) };
        shape.push_literal(prefix);
        for piece in &template.pieces {
            match piece {
                Piece::Literal(text) => shape.push_literal(text),
                Piece::Path(_) => shape.push_any(),
            }
        }
        shape
    }

    /// Returns the shape that every key has.
    pub(super) fn any() -> Self {
        Self { parts: vec![Part::Any] }
    }

    /// One text.
    pub(super) fn of_literal(text: &str) -> Self {
        let mut shape = Self { parts: Vec::with_capacity(1) };
        shape.push_literal(text);
        shape
    }

    /// Returns the text, where it is the only one.
    pub(super) fn as_literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    fn push_literal(&mut self, text: &str) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Literal(literal)) => literal.push_str(text),
            _ => self.parts.push(Part::Literal(text.to_owned())),
        }
    }

    fn push_any(&mut self) {
        if self.parts.last() != Some(&Part::Any) {
            self.parts.push(Part::Any);
        }
    }

    /// Whether the text is one of these.
    pub(super) fn includes(&self, text: &str) -> bool {
        // The earliest place for each literal leaves the most to those after it; the last one must
        // end the text.
        let mut rest = text.as_bytes();
        let mut open = false;
        let mut parts = self.parts.iter().peekable();
        while let Some(part) = parts.next() {
            match part {
                Part::Any => {
                    let Some((_, after)) = rest.split_first() else { return false };
                    rest = after;
                    open = true;
                }
                Part::Literal(literal) => {
                    let literal = literal.as_bytes();
                    let found = match (open, parts.peek().is_none()) {
                        (false, _) => rest.starts_with(literal).then_some(0),
                        (true, true) => rest.ends_with(literal).then(|| rest.len() - literal.len()),
                        (true, false) => memchr::memmem::find(rest, literal),
                    };
                    let Some(at) = found else { return false };
                    rest = &rest[at + literal.len()..];
                    open = false;
                }
            }
        }
        open || rest.is_empty()
    }

    /// Returns whether some text has both shapes. `None`: more than `steps` are needed to tell. The
    /// steps taken are subtracted.
    pub(super) fn meets(&self, other: &Self, steps: &mut u64) -> Option<bool> {
        let taken = 1 + self.parts.len().min(other.parts.len()) as u64;
        *steps = steps.checked_sub(taken)?;
        if self.begins_otherwise(other) || self.ends_otherwise(other) {
            return Some(false);
        }
        let places = (self.symbol_count() + 1).saturating_mul(other.symbol_count() + 1);
        *steps = steps.checked_sub(places as u64)?;
        Some(self.meets_by_symbol(other))
    }

    fn begins_otherwise(&self, other: &Self) -> bool {
        match (self.parts.first(), other.parts.first()) {
            (Some(Part::Literal(ours)), Some(Part::Literal(theirs))) => {
                ours.bytes().zip(theirs.bytes()).any(|(a, b)| a != b)
            }
            _ => false,
        }
    }

    fn ends_otherwise(&self, other: &Self) -> bool {
        match (self.parts.last(), other.parts.last()) {
            (Some(Part::Literal(ours)), Some(Part::Literal(theirs))) => {
                ours.bytes().rev().zip(theirs.bytes().rev()).any(|(a, b)| a != b)
            }
            _ => false,
        }
    }

    fn meets_by_symbol(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.symbols(), other.symbols());
        // Places in both that one and the same beginning of a text leads to.
        let mut seen = vec![false; (ours.len() + 1) * (theirs.len() + 1)];
        let mut open = vec![(0, 0)];
        while let Some((i, j)) = open.pop() {
            if std::mem::replace(&mut seen[i * (theirs.len() + 1) + j], true) {
                continue;
            }
            let (a, b) = match (ours.get(i), theirs.get(j)) {
                (None, None) => return true,
                (a, b) => {
                    if let Some(Symbol::More) = a {
                        open.push((i + 1, j));
                    }
                    if let Some(Symbol::More) = b {
                        open.push((i, j + 1));
                    }
                    match (a, b) {
                        (Some(a), Some(b)) => (a, b),
                        _ => continue,
                    }
                }
            };
            match (a, b) {
                (Symbol::Byte(a), Symbol::Byte(b)) if a != b => {}
                (Symbol::More, Symbol::More) => {}
                (Symbol::More, _) => open.push((i, j + 1)),
                (_, Symbol::More) => open.push((i + 1, j)),
                _ => open.push((i + 1, j + 1)),
            }
        }
        false
    }

    fn symbol_count(&self) -> usize {
        let count = |part: &Part| match part {
            Part::Literal(text) => text.len(),
            Part::Any => 2,
        };
        self.parts.iter().map(count).sum()
    }

    fn symbols(&self) -> Vec<Symbol> {
        let mut symbols = Vec::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => symbols.extend(text.bytes().map(Symbol::Byte)),
                Part::Any => symbols.extend([Symbol::One, Symbol::More]),
            }
        }
        symbols
    }
}

/// What a shape is made of, byte by byte.
#[derive(Clone, Copy)]
enum Symbol {
    Byte(u8),
    /// Any byte.
    One,
    /// Any number of any bytes, none included.
    More,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Vars;
    use crate::registry::Names;

    fn shape(text: &str) -> KeyShape {
        let names = Names { lets: &[], in_each: false, vars: &Vars(BTreeMap::new()) };
        KeyShape::of_key("p:", &Template::parse(text, &names).unwrap())
    }

    fn meet(a: &KeyShape, b: &KeyShape) -> bool {
        a.meets(b, &mut 1_000_000).unwrap()
    }

    #[test]
    fn shapes_are_compared_within_a_number_of_steps() {
        let (a, b) = (shape("{k}aaaa"), shape("{k}aaaa"));
        let mut steps = 50;
        assert_eq!(a.meets(&b, &mut steps), None);
        let mut steps = 100;
        assert_eq!(a.meets(&b, &mut steps), Some(true));
        assert!(steps < 100);
        let mut steps = 5;
        assert_eq!(shape("user:{id}").meets(&shape("post:{id}"), &mut steps), Some(false));
        assert!(KeyShape::any().includes("p:x") && meet(&KeyShape::any(), &a));
    }

    #[test]
    fn templates_meet_where_one_key_can_come_of_both() {
        for (a, b, expected) in [
            ("user:{id}", "user:{id}", true),
            ("user:{id}", "user:{name}", true),
            ("user:7", "user:{id}", true),
            ("user:", "user:{id}", false),
            ("user:{id}", "post:{id}", false),
            ("user:{id}", "user:{id}:page", true),
            ("user:{id}:page", "user:{id}:summary", false),
            ("{kind}:7", "user:{id}", true),
            ("{a}:{b}", "x{c}y", true),
            ("a{x}b", "ab", false),
            ("a{x}b", "a{y}c", false),
            ("a{x}b{y}c", "a{z}c", true),
        ] {
            assert_eq!(meet(&shape(a), &shape(b)), expected, "{a} {b}");
            assert_eq!(meet(&shape(b), &shape(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn a_key_is_one_of_a_shape_or_not() {
        for (text, key, expected) in [
            ("user:{id}", "p:user:7", true),
            ("user:{id}", "p:user:", false),
            ("user:{id}", "user:7", false),
            ("user:{id}:page", "p:user:7:page", true),
            ("user:{id}:page", "p:user::page", false),
            ("user:{id}:page", "p:user:7:page:page", true),
            ("user:{id}:page", "p:user:7", false),
            ("{a}x{b}", "p:xxx", true),
            ("{a}x{b}", "p:axx", true),
            ("{a}x{b}", "p:ax", false),
            ("a", "p:a", true),
            ("a", "p:ab", false),
        ] {
            assert_eq!(shape(text).includes(key), expected, "{text} {key}");
        }
        assert!(
            KeyShape::of_literal("post").includes("post")
                && !KeyShape::of_literal("post").includes("posts")
        );
    }

    fn any_shape() -> impl Strategy<Value = KeyShape> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "{x}"]), 0..5).prop_map(
            |pieces| {
                let mut shape = KeyShape { parts: Vec::new() };
                for piece in pieces {
                    if piece == "{x}" { shape.push_any() } else { shape.push_literal(piece) }
                }
                shape
            },
        )
    }

    /// Every text of `a` and `b` up to that length.
    fn texts(longest: usize) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut last = all.clone();
        for _ in 0..longest {
            last = last.iter().flat_map(|text| ["a", "b"].map(|c| format!("{text}{c}"))).collect();
            all.extend(last.iter().cloned());
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

        /// Two shapes of at most 8 bytes and 4 gaps each have a common text of at most 16 bytes, if
        /// any; mostly a much shorter one.
        #[test]
        fn meeting_is_having_a_key_in_common(a in any_shape(), b in any_shape()) {
            let common = texts(10).into_iter().any(|text| a.includes(&text) && b.includes(&text));
            if common {
                prop_assert!(meet(&a, &b));
            }
            if !meet(&a, &b) {
                prop_assert!(!common);
            }
        }

        #[test]
        fn what_fills_a_shape_is_included(shape in any_shape(), fill in "[ab]{1,3}") {
            let text: String = shape.parts.iter().map(|part| match part {
                Part::Literal(text) => text.as_str(),
                Part::Any => fill.as_str(),
            }).collect();
            prop_assert!(shape.includes(&text));
        }
    }
}
