//! Reads the tree of a file into a [`Document`], and reports every problem of its form.

use super::super::code::Code;
use super::super::diagnostic::{Pos, Report};
use super::super::model::Validate;
use super::super::tree::{Content, Node};
use super::effect::{read_effect, read_version};
use super::fields::{
    Fields, boolean, count, duration, integer, jitter, list, mapping, name, named_texts, rate,
    size_bytes, text, texts, ttl_or_substitute, word,
};
use super::{
    At, Defaults, Document, EventDocument, ExampleDocument, ExampleEvent, FORMAT, LoaderDocument,
    Text,
};
use crate::reason::Reason;

/// Maximum length of a routing key, in bytes (a short string of AMQP 0-9-1).
const MAX_ROUTING_KEY_BYTES: usize = 255;

pub(super) const DOCUMENT_KEYS: [&str; 5] = ["$schema", "format", "defaults", "loaders", "events"];
pub(super) const DEFAULTS_KEYS: [&str; 3] = ["key_prefix", "ttl", "jitter"];
pub(super) const LOADER_KEYS: [&str; 6] =
    ["url", "headers", "timeout", "concurrency", "rate", "max_bytes"];
pub(super) const EVENT_KEYS: [&str; 10] = [
    "description",
    "bind",
    "data",
    "validate",
    "version",
    "let",
    "effects",
    "examples",
    "max_keys",
    "retired",
];
pub(super) const EXAMPLE_KEYS: [&str; 7] =
    ["description", "type", "data", "previous", "event", "expect", "expect_error"];
pub(super) const EXAMPLE_EVENT_KEYS: [&str; 8] =
    ["id", "time", "source", "subject", "position", "exchange", "routing_key", "attributes"];

/// Reads a whole file.
pub(crate) fn read(root: &Node, report: &mut Report<'_>) -> Document {
    if !is_known_format(root, report) {
        return Document::default();
    }
    let Some(fields) = Fields::open(root, "a rule file", &DOCUMENT_KEYS, report) else {
        return Document::default();
    };
    fields.text("$schema", report);
    Document {
        defaults: fields.node("defaults").and_then(|node| read_defaults(node, report)),
        loaders: fields.node("loaders").map(|node| read_loaders(node, report)).unwrap_or_default(),
        events: fields.node("events").map(|node| read_events(node, report)).unwrap_or_default(),
        ..Document::default()
    }
}

/// Returns whether this build reads the file's format. In another format every key would be
/// reported, so only the format is.
fn is_known_format(root: &Node, report: &mut Report<'_>) -> bool {
    let Content::Object(members) = &root.content else { return true };
    let Some(format) = members.iter().find(|member| member.key == "format") else { return true };
    let number = format
        .value
        .as_scalar()
        .and_then(|scalar| scalar.number_text())
        .and_then(|text| text.parse::<u32>().ok());
    match number {
        Some(FORMAT) => true,
        Some(number) => {
            let message = format!(
                "this file has format {number}, and this version of unstale reads {FORMAT}"
            );
            report.error_with_help(
                Code::FileFormat,
                format.value.at,
                message,
                "use a version of unstale that reads it",
            );
            false
        }
        None => {
            report.error(
                Code::FileFormat,
                format.value.at,
                format!("`format` must be a number; this version of unstale reads {FORMAT}"),
            );
            true
        }
    }
}

fn read_defaults(node: &Node, report: &mut Report<'_>) -> Option<Defaults> {
    let fields = Fields::open(node, "`defaults`", &DEFAULTS_KEYS, report)?;
    Some(Defaults {
        key_prefix: fields.text("key_prefix", report),
        ttl: fields.node("ttl").map(|node| ttl_or_substitute(node, report)),
        jitter: fields.node("jitter").and_then(|node| jitter(node, report)),
    })
}

fn read_loaders(node: &Node, report: &mut Report<'_>) -> Vec<(Text, LoaderDocument)> {
    let Some(members) = mapping(node, "`loaders`", "", report) else { return Vec::new() };
    let mut loaders = Vec::new();
    for member in members {
        let key = &member.key;
        if key.is_empty()
            || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        {
            report.error(
                Code::InvalidName,
                member.key_at,
                format!("a loader cannot be named `{key}`: use letters, digits, `_` and `-`"),
            );
        } else if key == "http" || key == "https" {
            report.error(
                Code::InvalidName,
                member.key_at,
                format!("a loader cannot be named `{key}`: `from: {key}:/…` would look like a URL"),
            );
        }
        let Some(fields) = Fields::open(&member.value, "a loader", &LOADER_KEYS, report) else {
            continue;
        };
        if fields.member("url").is_none() {
            report.error_with_help(
                Code::MissingKey,
                member.key_at,
                format!("the loader `{key}` needs a `url`"),
                "such as https://api.example.com",
            );
        }
        // A broken loader is kept, so that rules with its name are not reported.
        loaders.push((
            name(member),
            LoaderDocument {
                url: fields.text("url", report),
                headers: fields
                    .node("headers")
                    .map(|node| named_texts(node, "`headers`", report))
                    .unwrap_or_default(),
                timeout: fields
                    .node("timeout")
                    .and_then(|node| duration(node, "`timeout`", report)),
                concurrency: fields
                    .node("concurrency")
                    .and_then(|node| count(node, "`concurrency`", report)),
                rate: fields.node("rate").and_then(|node| rate(node, report)),
                max_bytes: fields
                    .node("max_bytes")
                    .and_then(|node| size_bytes(node, "`max_bytes`", report)),
            },
        ));
    }
    loaders
}

fn read_events(node: &Node, report: &mut Report<'_>) -> Vec<(Text, EventDocument)> {
    let Some(members) =
        mapping(node, "`events`", "such as user.updated: { effects: [ … ] }", report)
    else {
        return Vec::new();
    };
    let mut events = Vec::new();
    for member in members {
        check_routing_key(&member.key, member.key_at, "an event", report);
        if member.key.starts_with("unstale.") {
            report.error_with_help(
                Code::InvalidName,
                member.key_at,
                "event types that begin with `unstale.` are refused",
                "give the event another name",
            );
        }
        if let Some(definition) = read_definition(&member.value, report) {
            check_retired(member.key_at, &member.value, &definition, report);
            events.push((name(member), definition));
        }
    }
    events
}

/// Reports names that are not event types, routing keys or topic patterns (AMQP 0-9-1, section
/// 3.1.3.3).
fn check_routing_key(key: &str, at: Pos, what: &str, report: &mut Report<'_>) {
    if key.is_empty() || key.len() > MAX_ROUTING_KEY_BYTES {
        report.error(
            Code::InvalidName,
            at,
            format!("{what}'s name must have 1 to {MAX_ROUTING_KEY_BYTES} bytes"),
        );
    }
    if key.contains(char::is_whitespace) {
        report.error_with_help(
            Code::InvalidName,
            at,
            format!("{what}'s name contains white space"),
            "a type is words between dots, such as user.updated",
        );
    } else if key.split('.').any(str::is_empty) && !key.is_empty() {
        report.error_with_help(
            Code::InvalidName,
            at,
            format!("{what}'s name has an empty word"),
            "separate words by single dots, such as user.updated",
        );
    }
    if let Some(word) = key.split('.').find(|word| word.len() > 1 && word.contains(['*', '#'])) {
        report.error_with_help(
            Code::InvalidName,
            at,
            format!("`{word}` is not a word of a topic pattern"),
            "`*` matches one whole word between dots, `#` any number of words",
        );
    }
}

fn check_retired(at: Pos, node: &Node, definition: &EventDocument, report: &mut Report<'_>) {
    if !definition.retired {
        return;
    }
    let Content::Object(members) = &node.content else { return };
    for key in ["effects", "examples", "bind"] {
        if let Some(member) = members.iter().find(|member| member.key == key) {
            report.error_with_help(
                Code::RetiredKey,
                member.key_at,
                format!("a retired event cannot have `{key}`"),
                format!("remove it, or `retired` at line {}", at.line),
            );
        }
    }
}

fn read_definition(node: &Node, report: &mut Report<'_>) -> Option<EventDocument> {
    let fields = Fields::open(node, "an event", &EVENT_KEYS, report)?;
    fields.text("description", report);
    let bind = fields.node("bind").map(|node| texts(node, "`bind`", report));
    for key in bind.iter().flatten() {
        check_routing_key(&key.text, key.at, "a routing key", report);
    }
    Some(EventDocument {
        _description: (),
        bind,
        data: fields.node("data").cloned(),
        validate: fields.node("validate").and_then(|node| {
            word(
                node,
                "`validate`",
                &[("enforce", Validate::Enforce), ("warn", Validate::Warn)],
                report,
            )
        }),
        version: fields.node("version").and_then(|node| read_version(node, report)),
        lets: fields.node("let").map(|node| read_lets(node, report)).unwrap_or_default(),
        effects: read_list(&fields, "effects", report, read_effect),
        examples: read_list(&fields, "examples", report, read_example),
        max_keys: fields.node("max_keys").and_then(|node| count(node, "`max_keys`", report)),
        retired: fields
            .node("retired")
            .and_then(|node| boolean(node, "`retired`", report))
            .unwrap_or_default(),
    })
}

fn read_list<T>(
    fields: &Fields<'_>,
    key: &str,
    report: &mut Report<'_>,
    read: fn(&Node, &mut Report<'_>) -> Option<T>,
) -> Vec<T> {
    let Some(items) = fields.node(key).and_then(|node| list(node, &format!("`{key}`"), report))
    else {
        return Vec::new();
    };
    // A broken effect has no index: nothing is compiled from a file with an error.
    items.iter().filter_map(|item| read(item, report)).collect()
}

fn read_lets(node: &Node, report: &mut Report<'_>) -> Vec<(Text, Text)> {
    let lets = named_texts(node, "`let`", report);
    for (name, _) in &lets {
        let is_word = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        if !is_word(&name.text) {
            report.error(
                Code::InvalidName,
                name.at,
                format!("a `let` cannot be named `{}`: use letters, digits and `_`", name.text),
            );
        }
    }
    lets
}

fn read_example(node: &Node, report: &mut Report<'_>) -> Option<ExampleDocument> {
    let fields = Fields::open(node, "an example", &EXAMPLE_KEYS, report)?;
    fields.text("description", report);
    let object = |key: &str, report: &mut Report<'_>| {
        let node = fields.node(key)?;
        mapping(node, &format!("`{key}`"), "", report).map(|_| node.clone())
    };
    let reasons = Reason::ALL.map(|reason| (reason.as_str(), reason));
    Some(ExampleDocument {
        at: node.at,
        _description: (),
        event_type: fields.text("type", report),
        data: object("data", report),
        previous: if fields.node("previous").is_some_and(Node::is_null) {
            None
        } else {
            object("previous", report)
        },
        event: fields
            .node("event")
            .and_then(|node| read_example_event(node, report))
            .unwrap_or_default(),
        expect: fields.node("expect").and_then(|node| read_expect(node, report)),
        expect_error: fields
            .node("expect_error")
            .and_then(|node| word(node, "`expect_error`", &reasons, report)),
    })
}

fn read_example_event(node: &Node, report: &mut Report<'_>) -> Option<ExampleEvent> {
    let fields = Fields::open(node, "an example's event", &EXAMPLE_EVENT_KEYS, report)?;
    Some(ExampleEvent {
        id: fields.text("id", report),
        time: fields.text("time", report),
        source: fields.text("source", report),
        subject: fields.text("subject", report),
        position: fields.node("position").and_then(|node| integer(node, "`position`", 0, report)),
        exchange: fields.text("exchange", report),
        routing_key: fields.text("routing_key", report),
        attributes: fields
            .node("attributes")
            .map(|node| named_texts(node, "`attributes`", report))
            .unwrap_or_default(),
    })
}

fn read_expect(node: &Node, report: &mut Report<'_>) -> Option<At<Vec<Text>>> {
    let items = list(node, "`expect`", report)?;
    let value =
        items.iter().filter_map(|item| text(item, "an element of `expect`", report)).collect();
    Some(At { at: node.at, value })
}

/// Returns the kinds of mappings, each with the keys that are read from it.
#[cfg(test)]
pub(crate) fn known_keys() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("RuleFile", DOCUMENT_KEYS.to_vec()),
        ("Defaults", DEFAULTS_KEYS.to_vec()),
        ("Loader", LOADER_KEYS.to_vec()),
        ("EventDefinition", EVENT_KEYS.to_vec()),
        ("Effect", super::effect::known_keys().collect()),
        ("Example", EXAMPLE_KEYS.to_vec()),
        ("ExampleEvent", EXAMPLE_EVENT_KEYS.to_vec()),
    ]
}
