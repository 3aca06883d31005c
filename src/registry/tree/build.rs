//! Builds the tree from the parser's events.
//!
//! Anchors are resolved within the allowance. Tags, merge keys and duplicate keys are reported.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

use super::super::code::Code;
use super::super::diagnostic::{Pos, Report};
use super::allowance::{Allowance, MAX_ALIASED_BYTES, MAX_ALIASED_NODES, MAX_VALUES, Weight};
use super::json_text::{as_yaml, json_error};
use super::node::{Content, Member, Node, Scalar};
use super::number::ScalarKind;
use super::number::{core_kind, json_number};
use super::trap::syntax_hint;

/// Maximum nesting of values.
pub(super) const MAX_DEPTH: usize = 100;

/// Reads a file as one document. Returns `None` if nothing can be read; the report has the reason.
pub(crate) fn parse(report: &mut Report<'_>, allowance: &mut Allowance) -> Option<Node> {
    let source = report.source;
    let text = as_yaml(&source.path, source.text.strip_prefix('\u{feff}').unwrap_or(&source.text));
    if let Some(byte) = text.find('\0') {
        let at = place_of_byte(&text, byte);
        report.error_with_help(
            Code::FileEncoding,
            at,
            "the file holds a NUL character",
            "save it as plain UTF-8 text",
        );
        return None;
    }
    // The parser reads a whole flow collection before it returns its first value.
    if text.bytes().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count()
        > allowance.values_left
    {
        too_many_values(report, Pos::START);
        return None;
    }
    let mut builder =
        Builder { report, allowance, stack: Vec::new(), anchors: HashMap::new(), root: None };
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
        report.error_with_help(
            Code::FileEmpty,
            Pos::START,
            "the file is empty",
            "add `events`, or remove the file",
        );
    }
    root
}

fn pos(marker: &Marker) -> Pos {
    Pos {
        line: u32::try_from(marker.line()).unwrap_or(u32::MAX).max(1),
        column: u32::try_from(marker.col()).unwrap_or(u32::MAX - 1) + 1,
    }
}

struct Builder<'r, 's> {
    report: &'r mut Report<'s>,
    allowance: &'r mut Allowance,
    stack: Vec<Frame>,
    anchors: HashMap<usize, (Node, Weight)>,
    root: Option<Node>,
}

struct Frame {
    at: Pos,
    anchor: usize,
    /// Size of the frame and its children so far.
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
    /// Names of the members, if there are many.
    names: HashSet<String>,
    key: Option<Key>,
}

/// Maximum number of members that are compared pairwise.
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

/// A key whose value follows.
struct Key {
    at: Pos,
    /// `None` if the key was reported; its value is dropped.
    text: Option<String>,
}

impl Builder<'_, '_> {
    fn event(&mut self, event: Event<'_>, at: Pos) -> Option<()> {
        if matches!(event, Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..)) {
            self.allowance.values_left =
                self.allowance.values_left.checked_sub(1).or_else(|| {
                    too_many_values(self.report, at);
                    None
                })?;
        }
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(_) => {
                if self.root.is_some() {
                    self.report.error_with_help(
                        Code::YamlDocuments,
                        at,
                        "a second document begins here",
                        "one file holds one document: remove the `---`",
                    );
                    return None;
                }
            }
            Event::Alias(anchor) => {
                let Some((node, weight)) = self.anchors.get(&anchor) else {
                    self.report.error_with_help(
                        Code::YamlAlias,
                        at,
                        "this alias is inside its own anchor",
                        "a value cannot hold itself",
                    );
                    return None;
                };
                let (node, weight) = (node.clone(), *weight);
                if !self.allowance.spend_copy(weight.nodes, weight.bytes) {
                    let mib = MAX_ALIASED_BYTES / 1024 / 1024;
                    self.report.error_with_help(
                        Code::RegistryTooLarge,
                        at,
                        format!(
                            "aliases add more than {MAX_ALIASED_NODES} values \
                             or {mib} MiB of text to this registry"
                        ),
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
                    // The value counts as text, so that nothing else about it is reported.
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
        self.report.error(Code::YamlDepth, at, format!("nested deeper than {MAX_DEPTH} levels"));
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
        let is_verbatim =
            self.report.source.rest_of_line(inner).is_some_and(|rest| rest.starts_with(&text));
        if kind == ScalarKind::Number && json_number(&text).is_none() {
            self.report.error_with_help(
                Code::YamlNumber,
                at,
                format!("`{text}` is a number that JSON does not have"),
                "quote it to make it text",
            );
        }
        Scalar { kind, verbatim_from: is_verbatim.then_some(inner), text }
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
        let help = if tag.handle == "!" {
            format!("`!` begins a tag in YAML: quote the whole text, \"{written}…\"")
        } else {
            "remove the tag; quote a value to make it text".to_owned()
        };
        self.report.error_with_help(
            Code::YamlTag,
            at,
            format!("`{written}` is a YAML tag, and tags are not supported"),
            help,
        );
        written
    }

    /// Returns the place of a tag. The parser gives that of the value after it.
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
            return self.report.error(Code::JsonSyntax, at, message);
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
        let (at, help) = syntax_hint(self.report, at);
        let message = format!("not YAML: {}", error.info());
        match help {
            Some(help) => self.report.error_with_help(Code::YamlSyntax, at, message, help),
            None => self.report.error(Code::YamlSyntax, at, message),
        }
    }
}

fn too_many_values(report: &mut Report<'_>, at: Pos) {
    let message = format!("the files of this registry hold more than {MAX_VALUES} values and keys");
    report.error_with_help(
        Code::RegistryTooLarge,
        at,
        message,
        "split the registry, with a queue and workers for each part",
    );
}

fn read_key(node: &Node, mapping: &Mapping, report: &mut Report<'_>) -> Key {
    let Some(scalar) = node.as_scalar() else {
        report.error_with_help(
            Code::YamlKey,
            node.at,
            format!("a key cannot be {}", node.describe()),
            "a text that begins with `{` or `[` must be quoted in YAML",
        );
        return Key { at: node.at, text: None };
    };
    let text = &scalar.text;
    if text == "<<" && scalar.kind == ScalarKind::Text && scalar.verbatim_from == Some(node.at) {
        report.error_with_help(
            Code::YamlMerge,
            node.at,
            "`<<` (merge) is not supported",
            "write the keys out, or give an anchor to a whole value",
        );
        return Key { at: node.at, text: None };
    }
    if text.is_empty() && scalar.kind == ScalarKind::Null {
        report.error(Code::YamlKey, node.at, "a key is missing before `:`");
        return Key { at: node.at, text: None };
    }
    if let Some(first) = mapping.find(text) {
        report.error_with_help(
            Code::YamlDuplicate,
            node.at,
            format!("duplicate key `{text}`"),
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
