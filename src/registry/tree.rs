//! YAML text → a tree in which every node knows its place. JSON is read the same way: it is YAML 1.2 but for two details.
//!
//! Anchors are resolved, within a budget; merge keys, tags and duplicate keys are problems.

mod number;
mod trap;

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

use super::diagnostic::{Pos, Report, SourceFile};
use crate::event::json::write_string;
use number::{core_kind, json_number};
use trap::syntax_hint;

/// The deepest nesting that is read.
const MAX_DEPTH: usize = 100;

/// How many nodes the aliases of one file may add: ten nested anchors could otherwise ask for billions.
const MAX_ALIASED_NODES: usize = 100_000;

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: Pos,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Scalar(Scalar),
    Array(Vec<Node>),
    Object(Vec<Member>),
}

/// One `key: value`.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) key: String,
    pub(crate) key_at: Pos,
    pub(crate) value: Node,
}

#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    pub(crate) kind: ScalarKind,
    /// As written, unescaped and folded.
    pub(crate) text: String,
    /// Where the text's first character stands, if the text stands in the file character for character.
    pub(crate) verbatim_from: Option<Pos>,
}

/// What a scalar is by the core schema (YAML 1.2.2, section 10.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScalarKind {
    Null,
    Bool,
    Number,
    Text,
}

impl Node {
    /// What a person calls it.
    pub(crate) fn describe(&self) -> &'static str {
        match &self.content {
            Content::Array(_) => "a list",
            Content::Object(_) => "a mapping",
            Content::Scalar(scalar) => match scalar.kind {
                ScalarKind::Null => "nothing",
                ScalarKind::Bool => "a boolean",
                ScalarKind::Number => "a number",
                ScalarKind::Text => "text",
            },
        }
    }

    pub(crate) fn as_scalar(&self) -> Option<&Scalar> {
        match &self.content {
            Content::Scalar(scalar) => Some(scalar),
            Content::Array(_) | Content::Object(_) => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        self.as_scalar().is_some_and(|scalar| scalar.kind == ScalarKind::Null)
    }

    /// The node at a JSON pointer, or the deepest on the way there.
    pub(crate) fn nearest_to(&self, pointer: &str) -> &Self {
        let mut node = self;
        for token in pointer.split('/').skip(1) {
            let token = token.replace("~1", "/").replace("~0", "~");
            let next = match &node.content {
                Content::Array(items) => token.parse::<usize>().ok().and_then(|at| items.get(at)),
                Content::Object(members) => members.iter().find(|member| member.key == token).map(|member| &member.value),
                Content::Scalar(_) => None,
            };
            let Some(next) = next else { break };
            node = next;
        }
        node
    }

    /// The node as JSON. Numbers that JSON does not have (`.inf`) become null: [`parse`] has reported them.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.content {
            Content::Array(items) => items.iter().map(Self::to_json).collect(),
            Content::Object(members) => members.iter().map(|member| (member.key.clone(), member.value.to_json())).collect(),
            Content::Scalar(scalar) => scalar.to_json(),
        }
    }

    /// Appends the node as compact JSON, the text of numbers as written.
    pub(crate) fn write_json(&self, out: &mut String) {
        match &self.content {
            Content::Scalar(scalar) => match scalar.number_text() {
                Some(number) => out.push_str(&number),
                None => out.push_str(&scalar.to_json().to_string()),
            },
            Content::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    item.write_json(out);
                }
                out.push(']');
            }
            Content::Object(members) => {
                out.push('{');
                for (at, member) in members.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    write_string(&member.key, out);
                    out.push(':');
                    member.value.write_json(out);
                }
                out.push('}');
            }
        }
    }

    fn count(&self) -> usize {
        1 + match &self.content {
            Content::Scalar(_) => 0,
            Content::Array(items) => items.iter().map(Self::count).sum(),
            Content::Object(members) => members.iter().map(|member| member.value.count()).sum(),
        }
    }
}

impl Scalar {
    /// The number's text as JSON writes it.
    pub(crate) fn number_text(&self) -> Option<Cow<'_, str>> {
        (self.kind == ScalarKind::Number).then(|| json_number(&self.text)).flatten()
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        match self.kind {
            ScalarKind::Null => serde_json::Value::Null,
            ScalarKind::Bool => self.text.eq_ignore_ascii_case("true").into(),
            ScalarKind::Number => self.number_text().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
            ScalarKind::Text => self.text.as_str().into(),
        }
    }
}

/// Reads a file as one document. `None` where there is nothing to go on with; the report says why.
pub(crate) fn parse(report: &mut Report<'_>) -> Option<Node> {
    let source = report.source;
    let text = as_yaml(&source.path, source.text.strip_prefix('\u{feff}').unwrap_or(&source.text));
    let mut builder = Builder { report, stack: Vec::new(), anchors: HashMap::new(), aliased: 0, root: None };
    for event in Parser::new_from_str(&text) {
        let (event, span) = match event {
            Ok(read) => read,
            Err(error) => {
                builder.syntax_error(&error);
                return None;
            }
        };
        builder.event(event, pos(&span.start))?;
    }
    let root = builder.root;
    if root.is_none() {
        report.error_with_hint(Pos::START, "the file is empty", "give it `events`, or remove it");
    }
    root
}

/// JSON's two details that YAML lacks: tabs between values, and characters written as surrogate pairs.
fn as_yaml<'t>(path: &str, text: &'t str) -> Cow<'t, str> {
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

/// The character of `\ud83d\ude00` at the start of a text.
fn surrogate_pair(text: &str) -> Option<char> {
    let unit = |text: &str| u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok();
    let units = [unit(text)?, unit(text.get(6..)?)?];
    let mut decoded = char::decode_utf16(units);
    decoded.next()?.ok().filter(|_| decoded.next().is_none())
}

fn pos(marker: &Marker) -> Pos {
    Pos { line: u32::try_from(marker.line()).unwrap_or(u32::MAX).max(1), column: u32::try_from(marker.col()).unwrap_or(u32::MAX - 1) + 1 }
}

struct Builder<'r, 's> {
    report: &'r mut Report<'s>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
    root: Option<Node>,
}

struct Frame {
    at: Pos,
    anchor: usize,
    kind: FrameKind,
}

enum FrameKind {
    Array(Vec<Node>),
    Object { members: Vec<Member>, key: Option<Key> },
}

/// A key that waits for its value.
struct Key {
    at: Pos,
    /// `None`: already reported, the value is dropped.
    text: Option<String>,
}

impl Builder<'_, '_> {
    fn event(&mut self, event: Event<'_>, at: Pos) -> Option<()> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(_) => {
                if self.root.is_some() {
                    self.report.error_with_hint(at, "a second document begins here", "one file holds one document: remove the `---`");
                    return None;
                }
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    self.report.error_with_hint(at, "this alias stands inside its own anchor", "a value cannot hold itself");
                    return None;
                };
                self.aliased += node.count();
                if self.aliased > MAX_ALIASED_NODES {
                    self.report.error_with_hint(
                        at,
                        format!("aliases add more than {MAX_ALIASED_NODES} values to this file"),
                        "write the values out, or split the file",
                    );
                    return None;
                }
                let node = node.clone();
                if self.stack.len() + depth(&node) > MAX_DEPTH {
                    return self.too_deep(at);
                }
                self.place(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let mut scalar = self.scalar(text.into_owned(), style, at);
                if let Some(tag) = tag {
                    // Taken for the text that was meant: it is told once.
                    let written = self.tag(&tag, at);
                    scalar = Scalar { kind: ScalarKind::Text, text: format!("{written} {}", scalar.text), verbatim_from: None };
                }
                self.finish(Node { at, content: Content::Scalar(scalar) }, anchor);
            }
            Event::SequenceStart(anchor, tag) => {
                if let Some(tag) = tag {
                    self.tag(&tag, at);
                }
                self.open(at, anchor, FrameKind::Array(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                if let Some(tag) = tag {
                    self.tag(&tag, at);
                }
                self.open(at, anchor, FrameKind::Object { members: Vec::new(), key: None })?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let frame = self.stack.pop()?;
                let content = match frame.kind {
                    FrameKind::Array(items) => Content::Array(items),
                    FrameKind::Object { members, .. } => Content::Object(members),
                };
                self.finish(Node { at: frame.at, content }, frame.anchor);
            }
        }
        Some(())
    }

    fn open(&mut self, at: Pos, anchor: usize, kind: FrameKind) -> Option<()> {
        if self.stack.len() >= MAX_DEPTH {
            return self.too_deep(at);
        }
        self.stack.push(Frame { at, anchor, kind });
        Some(())
    }

    fn too_deep(&mut self, at: Pos) -> Option<()> {
        self.report.error(at, format!("nested deeper than {MAX_DEPTH} levels"));
        None
    }

    fn finish(&mut self, node: Node, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        self.place(node);
    }

    fn place(&mut self, node: Node) {
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return;
        };
        match &mut frame.kind {
            FrameKind::Array(items) => items.push(node),
            FrameKind::Object { members, key } => match key.take() {
                Some(Key { at, text: Some(text) }) => members.push(Member { key: text, key_at: at, value: node }),
                Some(Key { text: None, .. }) => {}
                None => *key = Some(read_key(&node, members, self.report)),
            },
        }
    }

    fn scalar(&mut self, text: String, style: ScalarStyle, at: Pos) -> Scalar {
        let kind = if style == ScalarStyle::Plain { core_kind(&text) } else { ScalarKind::Text };
        let quoted = matches!(style, ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted);
        let inner = Pos { line: at.line, column: at.column + u32::from(quoted) };
        let stands_there = self.report.source.rest_of_line(inner).is_some_and(|rest| rest.starts_with(&text));
        if kind == ScalarKind::Number && json_number(&text).is_none() {
            self.report.error_with_hint(at, format!("`{text}` is a number that JSON does not have"), "quote it to make it text");
        }
        Scalar { kind, verbatim_from: stands_there.then_some(inner), text }
    }

    /// Reports a tag and returns it as written.
    fn tag(&mut self, tag: &Tag, at: Pos) -> String {
        let at = self.place_of_tag(at);
        let written: String = self.report.source.rest_of_line(at).unwrap_or("").split(char::is_whitespace).next().unwrap_or("").to_owned();
        let hint = if tag.handle == "!" {
            format!("`!` begins a tag in YAML: quote the whole text, \"{written}…\"")
        } else {
            "remove the tag; quote a value to make it text".to_owned()
        };
        self.report.error_with_hint(at, format!("`{written}` is a YAML tag, and tags are not supported"), hint);
        written
    }

    /// The parser gives the place of the value behind the tag.
    fn place_of_tag(&self, at: Pos) -> Pos {
        let before: String = self
            .report
            .source
            .line(at.line)
            .unwrap_or("")
            .chars()
            .take(usize::try_from(at.column).unwrap_or(1).saturating_sub(1))
            .collect();
        if self.report.source.rest_of_line(at).is_some_and(|rest| rest.starts_with('!')) {
            return at;
        }
        before.rfind('!').map_or(at, |byte| Pos { line: at.line, column: u32::try_from(before[..byte].chars().count()).unwrap_or(0) + 1 })
    }

    fn syntax_error(&mut self, error: &ScanError) {
        if let Some((at, message)) = json_error(self.report.source) {
            return self.report.error(at, message);
        }
        let mut at = pos(error.marker());
        let last_line = u32::try_from(self.report.source.text.lines().count()).unwrap_or(u32::MAX).max(1);
        if at.line > last_line {
            at = Pos {
                line: last_line,
                column: u32::try_from(self.report.source.line(last_line).unwrap_or("").chars().count()).unwrap_or(0) + 1,
            };
        }
        let (at, hint) = syntax_hint(self.report, at);
        let message = format!("not YAML: {}", error.info());
        match hint {
            Some(hint) => self.report.error_with_hint(at, message, hint),
            None => self.report.error(at, message),
        }
    }
}

/// What is wrong with a JSON file, in JSON's terms and at JSON's place; `None` where it is none, or good JSON.
fn json_error(source: &SourceFile) -> Option<(Pos, String)> {
    let error = source.path.ends_with(".json").then(|| serde_json::from_str::<serde::de::IgnoredAny>(&source.text).err())??;
    let place = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).max(1);
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    Some((Pos { line: place(error.line()), column: place(error.column()) }, format!("not JSON: {what}")))
}

fn read_key(node: &Node, members: &[Member], report: &mut Report<'_>) -> Key {
    let Some(scalar) = node.as_scalar() else {
        report.error_with_hint(
            node.at,
            format!("a key cannot be {}", node.describe()),
            "a text that begins with `{` or `[` must be quoted in YAML",
        );
        return Key { at: node.at, text: None };
    };
    let text = &scalar.text;
    if text == "<<" && scalar.kind == ScalarKind::Text && scalar.verbatim_from == Some(node.at) {
        report.error_with_hint(node.at, "`<<` (merge) is not supported", "write the keys out, or give an anchor to a whole value");
        return Key { at: node.at, text: None };
    }
    if text.is_empty() && scalar.kind == ScalarKind::Null {
        report.error(node.at, "a key is missing before `:`");
        return Key { at: node.at, text: None };
    }
    if let Some(first) = members.iter().find(|member| member.key == *text) {
        report.error_with_hint(
            node.at,
            format!("`{text}` stands here a second time"),
            format!("the first is at line {}: keep one of them", first.key_at.line),
        );
        return Key { at: node.at, text: None };
    }
    Key { at: node.at, text: Some(text.clone()) }
}

fn depth(node: &Node) -> usize {
    match &node.content {
        Content::Scalar(_) => 0,
        Content::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Content::Object(members) => 1 + members.iter().map(|member| depth(&member.value)).max().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
