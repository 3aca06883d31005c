//! The parser's events → the tree: anchors are resolved within an allowance, tags, merge keys and
//! duplicate keys are problems.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

use super::super::diagnostic::{Pos, Report, SourceFile};
use super::number::{core_kind, json_number};
use super::trap::syntax_hint;
use super::{Content, Member, Node, Scalar, ScalarKind};

/// The deepest nesting that is read.
pub(super) const MAX_DEPTH: usize = 100;

/// Reads a file as one document. `None` where there is nothing to go on with; the report says why.
pub(crate) fn parse(report: &mut Report<'_>, aliases: &mut Aliases) -> Option<Node> {
    let source = report.source;
    let text = as_yaml(&source.path, source.text.strip_prefix('\u{feff}').unwrap_or(&source.text));
    if let Some(byte) = text.find('\0') {
        let at = place_of_byte(&text, byte);
        report.error_with_hint(at, "the file holds a NUL character", "save it as plain UTF-8 text");
        return None;
    }
    // The parser keeps all of a line in brackets before it gives the first value of it.
    if text.bytes().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count() > aliases.values_left
    {
        too_many_values(report, Pos::START);
        return None;
    }
    let mut builder =
        Builder { report, aliases, stack: Vec::new(), anchors: HashMap::new(), root: None };
    for event in Parser::new_from_str(&text) {
        let (event, span) = match event {
            Ok(read) => read,
            Err(error) => {
                builder.syntax_error(&error);
                return None;
            }
        };
        builder.event(event, pos(&span.start))?;
        if builder.report.is_full() {
            return None;
        }
    }
    let root = builder.root;
    if root.is_none() {
        report.error_with_hint(Pos::START, "the file is empty", "give it `events`, or remove it");
    }
    root
}

/// JSON's two details that YAML lacks: tabs between values, and characters written as surrogate
/// pairs.
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
    Pos {
        line: u32::try_from(marker.line()).unwrap_or(u32::MAX).max(1),
        column: u32::try_from(marker.col()).unwrap_or(u32::MAX - 1) + 1,
    }
}

struct Builder<'r, 's> {
    report: &'r mut Report<'s>,
    aliases: &'r mut Aliases,
    stack: Vec<Frame>,
    anchors: HashMap<usize, (Node, Weight)>,
    root: Option<Node>,
}

struct Frame {
    at: Pos,
    anchor: usize,
    /// Its own and its children's, so far.
    weight: Weight,
    kind: FrameKind,
}

enum FrameKind {
    Array(Vec<Node>),
    Object(Mapping),
}

#[derive(Default)]
struct Mapping {
    members: Vec<Member>,
    /// The names of a mapping with many members.
    names: HashSet<String>,
    key: Option<Key>,
}

/// Up to so many members are compared each with each.
const FEW_MEMBERS: usize = 16;

impl Mapping {
    fn push(&mut self, member: Member) {
        self.members.push(member);
        match self.members.len() {
            0..FEW_MEMBERS => {}
            FEW_MEMBERS => self.names.extend(self.members.iter().map(|member| member.key.clone())),
            _ => self.names.extend(self.members.last().map(|member| member.key.clone())),
        }
    }

    fn find(&self, name: &str) -> Option<&Member> {
        if self.members.len() >= FEW_MEMBERS && !self.names.contains(name) {
            return None;
        }
        self.members.iter().find(|member| member.key == name)
    }
}

/// What a node takes, written out.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    nodes: usize,
    bytes: usize,
    depth: usize,
}

impl Weight {
    const EMPTY_COLLECTION: Self = Self { nodes: 1, bytes: 0, depth: 1 };

    const fn of_scalar(text: &str) -> Self {
        Self { nodes: 1, bytes: text.len(), depth: 0 }
    }

    fn add_child(&mut self, child: Self) {
        self.nodes = self.nodes.saturating_add(child.nodes);
        self.bytes = self.bytes.saturating_add(child.bytes);
        self.depth = self.depth.max(child.depth + 1);
    }
}

/// Most values that aliases may add to a registry: ten nested anchors could otherwise ask for
/// billions.
const MAX_ALIASED_NODES: usize = 1_000_000;

/// Most values that the files of a registry write out, keys included: each takes some hundred bytes
/// once it is read.
const MAX_VALUES: usize = 300_000;

/// Most bytes of text that aliases may add to a registry.
const MAX_ALIASED_BYTES: usize = 64 * 1024 * 1024;

/// What the files of a registry may still add to it: the values that they write out, and those that
/// aliases and a `$ref` from the root of a file add. What those refer to is compiled once more at
/// each of them.
#[derive(Debug)]
pub(crate) struct Aliases {
    nodes_left: usize,
    bytes_left: usize,
    /// Values that files may still write out.
    values_left: usize,
}

impl Default for Aliases {
    fn default() -> Self {
        Self {
            nodes_left: MAX_ALIASED_NODES,
            bytes_left: MAX_ALIASED_BYTES,
            values_left: MAX_VALUES,
        }
    }
}

impl Aliases {
    /// Takes off what a copy adds; `false` where too little is left.
    pub(crate) fn spend_copy(&mut self, nodes: usize, bytes: usize) -> bool {
        let left = self.nodes_left.checked_sub(nodes).zip(self.bytes_left.checked_sub(bytes));
        if let Some((nodes, bytes)) = left {
            (self.nodes_left, self.bytes_left) = (nodes, bytes);
        }
        left.is_some()
    }
}

/// A key that waits for its value.
struct Key {
    at: Pos,
    /// `None`: already reported, the value is dropped.
    text: Option<String>,
}

impl Builder<'_, '_> {
    fn event(&mut self, event: Event<'_>, at: Pos) -> Option<()> {
        if matches!(event, Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..)) {
            self.aliases.values_left = self.aliases.values_left.checked_sub(1).or_else(|| {
                too_many_values(self.report, at);
                None
            })?;
        }
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(_) => {
                if self.root.is_some() {
                    self.report.error_with_hint(
                        at,
                        "a second document begins here",
                        "one file holds one document: remove the `---`",
                    );
                    return None;
                }
            }
            Event::Alias(anchor) => {
                let Some((node, weight)) = self.anchors.get(&anchor) else {
                    self.report.error_with_hint(
                        at,
                        "this alias stands inside its own anchor",
                        "a value cannot hold itself",
                    );
                    return None;
                };
                let (node, weight) = (node.clone(), *weight);
                if !self.aliases.spend_copy(weight.nodes, weight.bytes) {
                    let mib = MAX_ALIASED_BYTES / 1024 / 1024;
                    self.report.error_with_hint(
                        at,
                        format!("aliases add more than {MAX_ALIASED_NODES} values or {mib} MiB of text to this registry"),
                        "write the values out, or split the registry",
                    );
                    return None;
                }
                if self.stack.len() + weight.depth > MAX_DEPTH {
                    return self.too_deep(at);
                }
                self.place(node, weight);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let mut scalar = self.scalar(text.into_owned(), style, at);
                if let Some(tag) = tag {
                    // Taken for the text that was meant: it is told once.
                    let written = self.tag(&tag, at);
                    scalar = Scalar {
                        kind: ScalarKind::Text,
                        text: format!("{written} {}", scalar.text),
                        verbatim_from: None,
                    };
                }
                let weight = Weight::of_scalar(&scalar.text);
                self.finish(
                    Node { at, content: Content::Scalar(Arc::new(scalar)) },
                    weight,
                    anchor,
                );
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
                self.open(at, anchor, FrameKind::Object(Mapping::default()))?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let frame = self.stack.pop()?;
                let content = match frame.kind {
                    FrameKind::Array(mut items) => {
                        items.shrink_to_fit();
                        Content::Array(Arc::new(items))
                    }
                    FrameKind::Object(Mapping { mut members, .. }) => {
                        members.shrink_to_fit();
                        Content::Object(Arc::new(members))
                    }
                };
                self.finish(Node { at: frame.at, content }, frame.weight, frame.anchor);
            }
        }
        Some(())
    }

    fn open(&mut self, at: Pos, anchor: usize, kind: FrameKind) -> Option<()> {
        if self.stack.len() >= MAX_DEPTH {
            return self.too_deep(at);
        }
        self.stack.push(Frame { at, anchor, weight: Weight::EMPTY_COLLECTION, kind });
        Some(())
    }

    fn too_deep(&mut self, at: Pos) -> Option<()> {
        self.report.error(at, format!("nested deeper than {MAX_DEPTH} levels"));
        None
    }

    fn finish(&mut self, node: Node, weight: Weight, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), weight));
        }
        self.place(node, weight);
    }

    fn place(&mut self, node: Node, weight: Weight) {
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return;
        };
        frame.weight.add_child(weight);
        match &mut frame.kind {
            FrameKind::Array(items) => items.push(node),
            FrameKind::Object(mapping) => match mapping.key.take() {
                Some(Key { at, text: Some(text) }) => {
                    mapping.push(Member { key: text, key_at: at, value: node })
                }
                Some(Key { text: None, .. }) => {}
                None => mapping.key = Some(read_key(&node, mapping, self.report)),
            },
        }
    }

    fn scalar(&mut self, text: String, style: ScalarStyle, at: Pos) -> Scalar {
        let kind = if style == ScalarStyle::Plain { core_kind(&text) } else { ScalarKind::Text };
        let quoted = matches!(style, ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted);
        let inner = Pos { line: at.line, column: at.column + u32::from(quoted) };
        let stands_there =
            self.report.source.rest_of_line(inner).is_some_and(|rest| rest.starts_with(&text));
        if kind == ScalarKind::Number && json_number(&text).is_none() {
            self.report.error_with_hint(
                at,
                format!("`{text}` is a number that JSON does not have"),
                "quote it to make it text",
            );
        }
        Scalar { kind, verbatim_from: stands_there.then_some(inner), text }
    }

    /// Reports a tag and returns it as written.
    fn tag(&mut self, tag: &Tag, at: Pos) -> String {
        let at = self.place_of_tag(at);
        let written: String = self
            .report
            .source
            .rest_of_line(at)
            .unwrap_or("")
            .split(char::is_whitespace)
            .next()
            .unwrap_or("")
            .to_owned();
        let hint = if tag.handle == "!" {
            format!("`!` begins a tag in YAML: quote the whole text, \"{written}…\"")
        } else {
            "remove the tag; quote a value to make it text".to_owned()
        };
        self.report.error_with_hint(
            at,
            format!("`{written}` is a YAML tag, and tags are not supported"),
            hint,
        );
        written
    }

    /// The parser gives the place of the value behind the tag.
    fn place_of_tag(&self, at: Pos) -> Pos {
        let Some((line, byte)) = self.report.source.line_and_byte(at) else { return at };
        if line[byte..].starts_with('!') {
            return at;
        }
        let between = |start: usize| u32::try_from(line[start..byte].chars().count()).unwrap_or(0);
        line[..byte].rfind('!').map_or(at, |start| Pos {
            line: at.line,
            column: at.column.saturating_sub(between(start)).max(1),
        })
    }

    fn syntax_error(&mut self, error: &ScanError) {
        if let Some((at, message)) = json_error(self.report.source) {
            return self.report.error(at, message);
        }
        let mut at = pos(error.marker());
        let last_line = u32::try_from(self.report.source.line_count()).unwrap_or(u32::MAX).max(1);
        if at.line > last_line {
            at = Pos {
                line: last_line,
                column: u32::try_from(
                    self.report.source.line(last_line).unwrap_or("").chars().count(),
                )
                .unwrap_or(0)
                    + 1,
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

/// What is wrong with a JSON file, in JSON's terms and at JSON's place; `None` where it is none, or
/// good JSON.
fn json_error(source: &SourceFile) -> Option<(Pos, String)> {
    let error = source
        .path
        .ends_with(".json")
        .then(|| serde_json::from_str::<serde::de::IgnoredAny>(&source.text).err())??;
    let place = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).max(1);
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    Some((
        Pos { line: place(error.line()), column: place(error.column()) },
        format!("not JSON: {what}"),
    ))
}

fn too_many_values(report: &mut Report<'_>, at: Pos) {
    let message =
        format!("the files of this registry hold more than {MAX_VALUES} values, keys included");
    report.error_with_hint(
        at,
        message,
        "split the registry: a queue and a group of workers for each part",
    );
}

fn read_key(node: &Node, mapping: &Mapping, report: &mut Report<'_>) -> Key {
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
        report.error_with_hint(
            node.at,
            "`<<` (merge) is not supported",
            "write the keys out, or give an anchor to a whole value",
        );
        return Key { at: node.at, text: None };
    }
    if text.is_empty() && scalar.kind == ScalarKind::Null {
        report.error(node.at, "a key is missing before `:`");
        return Key { at: node.at, text: None };
    }
    if let Some(first) = mapping.find(text) {
        report.error_with_hint(
            node.at,
            format!("`{text}` stands here a second time"),
            format!("the first is at line {}: keep one of them", first.key_at.line),
        );
        return Key { at: node.at, text: None };
    }
    Key { at: node.at, text: Some(text.clone()) }
}

fn place_of_byte(text: &str, byte: usize) -> Pos {
    let before = &text[..byte];
    let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Pos {
        line: u32::try_from(line).unwrap_or(u32::MAX),
        column: u32::try_from(column).unwrap_or(u32::MAX),
    }
}
