//! The nodes of a tree, with their places.

use std::borrow::Cow;
use std::sync::Arc;

use super::super::diagnostic::Pos;
use super::number::{ScalarKind, json_number};
use crate::event::json::write_string;

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: Pos,
    pub(crate) content: Content,
}

/// Content of a node. It is shared, so that an alias costs no copy.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Scalar(Arc<Scalar>),
    Array(Arc<Vec<Node>>),
    Object(Arc<Vec<Member>>),
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
    /// The text without quotes, escapes and folding.
    pub(crate) text: String,
    /// Place of the text's first character, if the text is in the file character for character.
    pub(crate) verbatim_from: Option<Pos>,
}

impl Node {
    /// Returns the name of the type for messages.
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

    /// Returns the node at a JSON pointer, or the deepest node on the way to it.
    pub(crate) fn nearest_to(&self, pointer: &str) -> &Self {
        let mut node = self;
        for token in pointer.split('/').skip(1) {
            let token = token.replace("~1", "/").replace("~0", "~");
            let next = match &node.content {
                Content::Array(items) => token.parse::<usize>().ok().and_then(|at| items.get(at)),
                Content::Object(members) => {
                    members.iter().find(|member| member.key == token).map(|member| &member.value)
                }
                Content::Scalar(_) => None,
            };
            let Some(next) = next else { break };
            node = next;
        }
        node
    }

    /// Returns the node as JSON. Numbers that JSON lacks (`.inf`) become null; `build` has
    /// reported them.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.content {
            Content::Array(items) => items.iter().map(Self::to_json).collect(),
            Content::Object(members) => {
                members.iter().map(|member| (member.key.clone(), member.value.to_json())).collect()
            }
            Content::Scalar(scalar) => scalar.to_json(),
        }
    }

    /// Appends the node as compact JSON, with numbers as written.
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
}

impl Scalar {
    /// Returns the number's text in JSON's form.
    pub(crate) fn number_text(&self) -> Option<Cow<'_, str>> {
        (self.kind == ScalarKind::Number).then(|| json_number(&self.text)).flatten()
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        match self.kind {
            ScalarKind::Null => serde_json::Value::Null,
            ScalarKind::Bool => self.text.eq_ignore_ascii_case("true").into(),
            ScalarKind::Number => self
                .number_text()
                .and_then(|text| serde_json::from_str(&text).ok())
                .unwrap_or_default(),
            ScalarKind::Text => self.text.as_str().into(),
        }
    }
}
