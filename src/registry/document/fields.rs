//! Reads typed values from the tree of a file. A value that cannot be read is reported and left
//! out.

use std::time::Duration;

use super::super::code::Code;
use super::super::diagnostic::{Report, nearest};
use super::super::tree::{Content, Member, Node, ScalarKind};
use super::{At, FORMAT, Jitter, Text, Ttl};
use crate::quantity::{Rate, parse_duration, parse_size_bytes};

/// Members of a mapping that has a fixed set of keys.
pub(super) struct Fields<'n> {
    members: &'n [Member],
}

impl<'n> Fields<'n> {
    /// Opens a mapping and reports its unknown keys. Keys that begin with `x-` are ignored.
    pub(super) fn open(
        node: &'n Node,
        what: &str,
        known: &[&str],
        report: &mut Report<'_>,
    ) -> Option<Self> {
        let help = match what {
            "a rule file" => "such as events: { user.updated: { effects: [ … ] } }",
            "an event" => "write its rules under `effects:`; an event without rules is {}",
            _ => "",
        };
        let members = mapping(node, what, help, report)?;
        for member in members {
            if known.contains(&member.key.as_str()) || member.key.starts_with("x-") {
                continue;
            }
            let help = match nearest(&member.key, known.iter().copied()) {
                Some(name) => format!("did you mean `{name}`?"),
                None if what == "a rule file" && member.key.contains('.') => {
                    "put events under `events:`, indented".to_owned()
                }
                None if known.contains(&"attributes") => format!(
                    "an attribute goes under `attributes`: attributes: {{ {}: … }}; \
                     other keys are {}",
                    member.key,
                    known[..known.len() - 1].join(", ")
                ),
                None => {
                    format!(
                        "known keys are {}; keys that begin with x- are ignored",
                        known.join(", ")
                    )
                }
            };
            report.error_with_help(
                Code::UnknownKey,
                member.key_at,
                format!("{what} has no key `{}` in format {FORMAT}", member.key),
                help,
            );
        }
        Some(Self { members })
    }

    /// Opens a mapping whose keys are checked elsewhere.
    pub(super) fn known(members: &'n [Member]) -> Self {
        Self { members }
    }

    pub(super) fn member(&self, key: &str) -> Option<&'n Member> {
        self.members.iter().find(|member| member.key == key)
    }

    pub(super) fn node(&self, key: &str) -> Option<&'n Node> {
        self.member(key).map(|member| &member.value)
    }

    pub(super) fn text(&self, key: &str, report: &mut Report<'_>) -> Option<Text> {
        text(self.node(key)?, &format!("`{key}`"), report)
    }
}

/// Returns the members of a mapping.
pub(super) fn mapping<'n>(
    node: &'n Node,
    what: &str,
    help: &str,
    report: &mut Report<'_>,
) -> Option<&'n [Member]> {
    match &node.content {
        Content::Object(members) => Some(members),
        Content::Array(_) | Content::Scalar(_) => {
            let message =
                format!("{what} must be a mapping of keys to values; this is {}", node.describe());
            if help.is_empty() {
                report.error(Code::WrongType, node.at, message);
            } else {
                report.error_with_help(Code::WrongType, node.at, message, help);
            }
            None
        }
    }
}

/// Returns the elements of a list.
pub(super) fn list<'n>(node: &'n Node, what: &str, report: &mut Report<'_>) -> Option<&'n [Node]> {
    match &node.content {
        Content::Array(items) => Some(items),
        Content::Object(_) | Content::Scalar(_) => {
            let message = format!("{what} must be a list; this is {}", node.describe());
            report.error_with_help(
                Code::WrongType,
                node.at,
                message,
                "begin each of its elements with `- `",
            );
            None
        }
    }
}

/// Reads a text. An unquoted number or boolean counts as a text, exactly as written.
pub(super) fn text(node: &Node, what: &str, report: &mut Report<'_>) -> Option<Text> {
    match &node.content {
        Content::Scalar(scalar) if scalar.kind != ScalarKind::Null => Some(Text {
            at: node.at,
            text: scalar.text.clone(),
            verbatim_from: scalar.verbatim_from,
        }),
        Content::Scalar(_) => {
            report.error_with_help(
                Code::WrongType,
                node.at,
                format!("{what} is empty"),
                "write a text; the empty one is \"\"",
            );
            None
        }
        Content::Object(_) | Content::Array(_) => {
            let message = format!("{what} must be text; this is {}", node.describe());
            match unquoted_placeholder(node) {
                Some(written) => {
                    report.error_with_help(
                        Code::WrongType,
                        node.at,
                        message,
                        format!(
                            "an unquoted {written} is a mapping in YAML: quote it, \"{written}\""
                        ),
                    );
                }
                None => report.error(Code::WrongType, node.at, message),
            }
            None
        }
    }
}

/// Returns the placeholder that an unquoted `{x}` was meant to be.
fn unquoted_placeholder(node: &Node) -> Option<String> {
    let Content::Object(members) = &node.content else { return None };
    let [member] = members.as_slice() else { return None };
    let valueless = member
        .value
        .as_scalar()
        .is_some_and(|scalar| scalar.kind == ScalarKind::Null && scalar.text.is_empty());
    valueless.then(|| format!("{{{}}}", member.key))
}

/// Reads one text or a list of texts.
pub(super) fn texts(node: &Node, what: &str, report: &mut Report<'_>) -> Vec<Text> {
    match &node.content {
        Content::Array(items) => items
            .iter()
            .filter_map(|item| text(item, &format!("an element of {what}"), report))
            .collect(),
        Content::Object(_) | Content::Scalar(_) => text(node, what, report).into_iter().collect(),
    }
}

/// Reads a mapping of names to texts, in the order written.
pub(super) fn named_texts(node: &Node, what: &str, report: &mut Report<'_>) -> Vec<(Text, Text)> {
    let Some(members) = mapping(node, what, "", report) else { return Vec::new() };
    members
        .iter()
        .filter_map(|member| {
            Some((name(member), text(&member.value, &format!("`{}`", member.key), report)?))
        })
        .collect()
}

/// Returns a member's key as a text.
pub(super) fn name(member: &Member) -> Text {
    Text { at: member.key_at, text: member.key.clone(), verbatim_from: None }
}

/// Reads `true` or `false`.
pub(super) fn boolean(node: &Node, what: &str, report: &mut Report<'_>) -> Option<bool> {
    let read = node
        .as_scalar()
        .filter(|scalar| scalar.kind == ScalarKind::Bool)
        .map(|scalar| scalar.text.eq_ignore_ascii_case("true"));
    if read.is_none() {
        report.error_with_help(
            Code::WrongType,
            node.at,
            format!("{what} must be true or false"),
            "in YAML 1.2, yes, no, on and off are texts",
        );
    }
    read
}

/// Reads a whole number of at least `least`.
pub(super) fn integer(node: &Node, what: &str, least: u64, report: &mut Report<'_>) -> Option<u64> {
    let read = node
        .as_scalar()
        .and_then(|scalar| scalar.number_text())
        .and_then(|text| text.parse().ok())
        .filter(|&n: &u64| n >= least);
    if read.is_none() {
        report.error(
            Code::InvalidValue,
            node.at,
            format!("{what} must be a whole number of at least {least}"),
        );
    }
    read
}

/// Reads a count of at least one.
pub(super) fn count(node: &Node, what: &str, report: &mut Report<'_>) -> Option<usize> {
    integer(node, what, 1, report).and_then(|n| usize::try_from(n).ok())
}

/// Reads a number from 0 to 1.
pub(super) fn jitter(node: &Node, report: &mut Report<'_>) -> Option<At<Jitter>> {
    let read =
        node.as_scalar().and_then(|scalar| scalar.number_text()).and_then(|text| text.parse().ok());
    match read {
        Some(jitter) if (0.0..=1.0).contains(&jitter) => {
            Some(At { at: node.at, value: Jitter(jitter) })
        }
        _ => {
            report.error_with_help(
                Code::InvalidValue,
                node.at,
                "`jitter` must be a number from 0 to 1",
                "0.1 spreads a ttl of 1h over 54m to 1h",
            );
            None
        }
    }
}

/// Reads a duration above zero.
pub(super) fn duration(node: &Node, what: &str, report: &mut Report<'_>) -> Option<Duration> {
    let text = text(node, what, report)?;
    match parse_duration(&text.text) {
        Ok(duration) if !duration.is_zero() => Some(duration),
        Ok(_) => {
            report.error(Code::InvalidValue, node.at, format!("{what} must be longer than 0"));
            None
        }
        Err(error) => {
            report.error(Code::InvalidValue, node.at, format!("{what} is {error}"));
            None
        }
    }
}

/// Reads a duration above zero, or `none`.
pub(super) fn ttl(node: &Node, report: &mut Report<'_>) -> Option<At<Ttl>> {
    let value = match node.as_scalar() {
        Some(scalar) if scalar.text == "none" => Ttl::Never,
        _ => Ttl::For(duration(node, "`ttl`", report)?),
    };
    Some(At { at: node.at, value })
}

/// Reads a time to live. Returns a substitute if it cannot be read, so that no second error reports
/// it as missing.
pub(super) fn ttl_or_substitute(node: &Node, report: &mut Report<'_>) -> At<Ttl> {
    ttl(node, report).unwrap_or(At { at: node.at, value: Ttl::For(Duration::from_secs(1)) })
}

/// Reads a rate above zero.
pub(super) fn rate(node: &Node, report: &mut Report<'_>) -> Option<Rate> {
    let text = text(node, "`rate`", report)?;
    Rate::parse(&text.text)
        .map_err(|error| report.error(Code::InvalidValue, node.at, format!("`rate` is {error}")))
        .ok()
}

/// Reads a size above zero, in bytes.
pub(super) fn size_bytes(node: &Node, what: &str, report: &mut Report<'_>) -> Option<usize> {
    let text = text(node, what, report)?;
    match parse_size_bytes(&text.text) {
        Ok(bytes) if bytes > 0 => usize::try_from(bytes).ok(),
        Ok(_) => {
            report.error(Code::InvalidValue, node.at, format!("{what} must be above zero"));
            None
        }
        Err(error) => {
            report.error(Code::InvalidValue, node.at, format!("{what} is {error}"));
            None
        }
    }
}

/// Reads one of a few words.
pub(super) fn word<T: Copy>(
    node: &Node,
    what: &str,
    words: &[(&str, T)],
    report: &mut Report<'_>,
) -> Option<At<T>> {
    let text = text(node, what, report)?;
    let found = words
        .iter()
        .find(|(name, _)| *name == text.text)
        .map(|(_, value)| At { at: node.at, value: *value });
    if found.is_none() {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let message = format!("{what} must be one of {}", names.join(", "));
        match nearest(&text.text, names.iter().copied()) {
            Some(name) => report.error_with_help(
                Code::InvalidValue,
                node.at,
                message,
                format!("did you mean `{name}`?"),
            ),
            None => report.error(Code::InvalidValue, node.at, message),
        }
    }
    found
}
