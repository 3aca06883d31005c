//! Checks a JSON text and splits its outermost level, in one pass.
//!
//! It accepts only a text that [`Json`] may hold. The caller gives any other text to `serde_json`,
//! which also explains errors.

use std::borrow::Cow;

use super::{Json, JsonError, JsonKind, MAX_DEPTH, MemberList, slow};

impl<'a> Json<'a> {
    /// Checks a text and returns it as a value.
    ///
    /// # Errors
    /// [`JsonError`] if it is not JSON, or is nested too deep.
    pub fn parse(text: &'a str) -> Result<Self, JsonError> {
        value(text).map_or_else(|| slow::read_value(text), Ok)
    }

    /// Checks a text and returns it with the members of its outermost level, in one pass. Only
    /// objects have members.
    ///
    /// # Errors
    /// Those of [`Json::parse`].
    pub fn parse_members(text: &'a str) -> Result<(Self, MemberList<'a>), JsonError> {
        object(text).map_or_else(|| slow::read_members(text), Ok)
    }

    /// Returns the members of an object in order, and nothing for any other value. It includes
    /// duplicate names, of which the last one counts.
    pub fn members(self) -> MemberList<'a> {
        if self.kind() != JsonKind::Object {
            return MemberList::new();
        }
        object(self.0).map(|(_, members)| members).unwrap_or_default()
    }

    /// Returns the elements of an array, and nothing for any other value.
    pub fn elements(self) -> Vec<Json<'a>> {
        if self.kind() != JsonKind::Array {
            return Vec::new();
        }
        array(self.0).unwrap_or_default()
    }
}

/// Returns the value and its members if the text is an object that [`Json`] may hold.
fn object(text: &str) -> Option<(Json<'_>, MemberList<'_>)> {
    let mut scanner = Scanner::of(text);
    let mut members = MemberList::new();
    scanner.space();
    let start = scanner.at;
    scanner.members(1, |name, value| {
        members.push((name()?, value));
        Some(())
    })?;
    let value = Json(&text[start..scanner.at]);
    scanner.end()?;
    Some((value, members))
}

/// Returns the elements if the text is an array.
fn array(text: &str) -> Option<Vec<Json<'_>>> {
    let mut scanner = Scanner::of(text);
    let mut elements = Vec::new();
    scanner.space();
    scanner.elements(1, |element| elements.push(element))?;
    scanner.end()?;
    Some(elements)
}

/// Returns the value in a text, of any kind.
fn value(text: &str) -> Option<Json<'_>> {
    let mut scanner = Scanner::of(text);
    scanner.space();
    let start = scanner.at;
    scanner.value(0)?;
    let value = Json(&text[start..scanner.at]);
    scanner.end()?;
    Some(value)
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

/// Each step returns `None` if the text does not match.
impl<'a> Scanner<'a> {
    const fn of(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn end(&mut self) -> Option<()> {
        self.space();
        (self.at == self.text.len()).then_some(())
    }

    /// Reads a value inside `depth` others.
    fn value(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'"' => {
                self.at += 1;
                self.string().map(drop)
            }
            b'{' => self.members(depth + 1, |_, _| Some(())),
            b'[' => self.elements(depth + 1, |_| ()),
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            _ => self.number(),
        }
    }

    fn members(
        &mut self,
        depth: usize,
        mut each: impl FnMut(&dyn Fn() -> Option<Cow<'a, str>>, Json<'a>) -> Option<()>,
    ) -> Option<()> {
        self.expect(b'{')?;
        if depth > MAX_DEPTH {
            return None;
        }
        self.space();
        if self.expect(b'}').is_some() {
            return Some(());
        }
        loop {
            let quote = self.at;
            self.expect(b'"')?;
            let is_escaped = self.string()?;
            let quoted = &self.text[quote..self.at];
            self.space();
            self.expect(b':')?;
            self.space();
            let start = self.at;
            self.value(depth)?;
            let name = || {
                if is_escaped {
                    return serde_json::from_str(quoted).ok().map(Cow::Owned);
                }
                Some(Cow::Borrowed(&quoted[1..quoted.len() - 1]))
            };
            each(&name, Json(&self.text[start..self.at]))?;
            self.space();
            if self.expect(b',').is_none() {
                return self.expect(b'}');
            }
            self.space();
        }
    }

    fn elements(&mut self, depth: usize, mut each: impl FnMut(Json<'a>)) -> Option<()> {
        self.expect(b'[')?;
        if depth > MAX_DEPTH {
            return None;
        }
        self.space();
        if self.expect(b']').is_some() {
            return Some(());
        }
        loop {
            let start = self.at;
            self.value(depth)?;
            each(Json(&self.text[start..self.at]));
            self.space();
            if self.expect(b',').is_none() {
                return self.expect(b']');
            }
            self.space();
        }
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.text.as_bytes()[self.at..].starts_with(word.as_bytes()).then(|| self.at += word.len())
    }

    fn number(&mut self) -> Option<()> {
        let _sign = self.expect(b'-');
        if self.expect(b'0').is_none() {
            self.digits()?;
        }
        if self.expect(b'.').is_some() {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    /// Reads one or more digits.
    fn digits(&mut self) -> Option<()> {
        let from = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        (self.at > from).then_some(())
    }

    /// Reads the rest of a string with its closing quote. Returns whether it contains an escape.
    fn string(&mut self) -> Option<bool> {
        let mut is_escaped = false;
        loop {
            self.plain();
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(is_escaped);
                }
                b'\\' => {
                    is_escaped = true;
                    self.escape()?;
                }
                0..0x20 => return None,
                _ => self.at += 1,
            }
        }
    }

    /// Advances eight bytes at a time, to the next character that is not plain or to the last bytes
    /// of the text.
    fn plain(&mut self) {
        const ONES: u64 = u64::MAX / 255;
        let zeros = |bytes: u64| bytes.wrapping_sub(ONES) & !bytes;
        while let Some(eight) = self.text.as_bytes()[self.at..].first_chunk() {
            let eight = u64::from_le_bytes(*eight);
            let quotes = zeros(eight ^ (ONES * u64::from(b'"')));
            let backslashes = zeros(eight ^ (ONES * u64::from(b'\\')));
            let controls = eight.wrapping_sub(ONES * 0x20) & !eight;
            // Borrows of the subtraction spread to higher bytes only, so the lowest set bit is
            // exact.
            let special = (quotes | backslashes | controls) & (ONES * 0x80);
            if special != 0 {
                self.at += special.trailing_zeros() as usize / 8;
                return;
            }
            self.at += 8;
        }
    }

    fn escape(&mut self) -> Option<()> {
        self.at += 1;
        let escaped = self.peek()?;
        self.at += 1;
        match escaped {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => match self.unit()? {
                0xD800..=0xDBFF => {
                    self.expect(b'\\')?;
                    self.expect(b'u')?;
                    matches!(self.unit()?, 0xDC00..=0xDFFF).then_some(())
                }
                0xDC00..=0xDFFF => None,
                _ => Some(()),
            },
            _ => None,
        }
    }

    fn unit(&mut self) -> Option<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            unit = unit * 16 + char::from(self.peek()?).to_digit(16)?;
            self.at += 1;
        }
        Some(unit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MAX_DEPTH;
    use super::super::slow::{read_members, read_value};
    use super::*;

    /// Returns texts that are JSON, or almost.
    fn texts() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,2})?([eE][+-]?[0-9]{1,3})?",
            "\"([ -!#-\\[\\]-~ä\u{1F600}]|\\\\[\"\\\\/bfnrt]|\\\\u[0-9a-fA-F]{4}|\\\\uD83D\\\\uDE00){0,12}\"",
        ];
        let valid = leaf.prop_recursive(4, 24, 4, |inner| {
            let name = "\"([a-c]|\\\\u0061|\\\\n){0,10}\"";
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|elements| format!("[{}]", elements.join(" ,\n"))),
                prop::collection::vec((name, inner), 0..4).prop_map(|members| {
                    let members: Vec<String> = members
                        .into_iter()
                        .map(|(name, value)| format!("{name}\t: {value} "))
                        .collect();
                    format!("{{{}}}", members.join(","))
                }),
            ]
        });
        // Adds, removes or changes one byte. Most texts are then not JSON, and some are other JSON.
        let edit = prop_oneof![
            Just(None),
            (any::<prop::sample::Index>(), "[\\x00-~]?", any::<bool>()).prop_map(Some)
        ];
        (valid, edit).prop_map(|(mut text, edit)| {
            if let Some((place, put, takes)) = edit {
                let from = place.index(text.len());
                if text.is_char_boundary(from) && text.is_char_boundary(from + 1) {
                    text.replace_range(from..from + usize::from(takes), &put);
                }
            }
            text
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_fast_json_scan_agrees_with_serde_json(text in texts()) {
            prop_assert_eq!(value(&text), read_value(&text).ok());
            let by_serde = read_members(&text).ok().filter(|(json, _)| json.text().starts_with('{'));
            prop_assert_eq!(object(&text), by_serde);
        }
    }

    #[test]
    fn the_fast_json_scan_counts_depth_like_json() {
        for depth in [MAX_DEPTH, MAX_DEPTH + 1] {
            let arrays = "[".repeat(depth) + &"]".repeat(depth);
            let objects = "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth);
            for text in [&arrays, &objects] {
                assert_eq!(value(text).is_some(), depth <= MAX_DEPTH, "{text}");
                assert_eq!(value(text), read_value(text).ok(), "{text}");
            }
            assert_eq!(object(&objects).is_some(), depth <= MAX_DEPTH);
            assert_eq!(array(&arrays).is_some(), depth <= MAX_DEPTH);
        }
    }

    #[test]
    fn the_fast_json_scan_finds_closing_quotes_at_any_offset() {
        for length in 0..40 {
            for last in ["", "\\\"", "\\\\", "\\u0041"] {
                let text = format!("\"{}{last}\"", "x".repeat(length));
                assert!(value(&text).is_some(), "{text}");
                assert!(value(&text[..text.len() - 1]).is_none(), "{text}");
            }
            for control in ['\0', '\n', '\u{1f}'] {
                assert!(
                    value(&format!("\"{}{control}{}\"", "x".repeat(length), "x".repeat(9)))
                        .is_none()
                );
            }
            assert!(value(&format!("\"{}\u{7f}ÿ\u{10ffff}\"", "x".repeat(length))).is_some());
        }
    }
}
