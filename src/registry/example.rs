//! Examples in rule files: tests of the rules of their event definition.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::budget::{Budget, WORK_PER_EVENT};
use super::code::Code;
use super::compile::Context;
use super::diagnostic::{Diagnostic, Report};
use super::document::{ExampleDocument, Text};
use super::effect::{Effect, Verb};
use super::model::{Pattern, Registry};
use super::tree::Node;
use crate::event::{Event, Json};
use crate::reason::Reason;

/// A compiled example.
#[derive(Debug, Clone)]
pub struct Example {
    /// Index in `Registry::definitions` of the definition that it tests.
    pub definition: u32,
    /// The event of the example.
    pub event: Event<'static>,
    /// Expected `verb target` for every key and tag, without `UNSTALE_KEY_PREFIX`. With `None` the
    /// event must only resolve.
    pub expect: Option<Vec<String>>,
    /// Reason with which the event must be dead-lettered.
    pub expect_error: Option<Reason>,
    /// Place of the example in its file.
    place: Diagnostic,
}

pub(super) fn compile(
    context: &Context<'_>,
    document: &ExampleDocument,
    report: &mut Report<'_>,
) -> Option<Example> {
    let event_type = event_type(context.name, document, report)?;
    let time =
        document.event.time.as_ref().and_then(|time| match time.text.parse::<jiff::Timestamp>() {
            Ok(read) => Some(Cow::Owned(read.to_string())),
            Err(_) => {
                report.error_with_help(
                    Code::ExampleInvalid,
                    time.at,
                    "`time` must be RFC 3339",
                    "such as 2026-01-31T09:30:00Z",
                );
                None
            }
        });
    let data_text = document.data.as_ref().map_or_else(|| "{}".to_owned(), json_text);
    let previous_text = document.previous.as_ref().map(json_text);
    for (text, node) in
        [(Some(&data_text), &document.data), (previous_text.as_ref(), &document.previous)]
    {
        if let (Some(text), Some(node)) = (text, node)
            && let Err(error) = Json::parse(text)
        {
            report.error(Code::ExampleInvalid, node.at, format!("this is not a payload: {error}"));
            return None;
        }
    }
    let text = |text: &Option<Text>| text.as_ref().map(|text| Cow::Owned(text.text.clone()));
    Some(Example {
        definition: context.place,
        event: Event {
            id: text(&document.event.id).unwrap_or(Cow::Borrowed("example")).into(),
            event_type: Cow::Owned(event_type),
            data_text: Cow::Owned(data_text),
            previous_text: previous_text.map(Cow::Owned),
            time,
            source: text(&document.event.source),
            subject: text(&document.event.subject),
            position: document.event.position,
            exchange: text(&document.event.exchange).unwrap_or_default(),
            routing_key: text(&document.event.routing_key).unwrap_or_default(),
            attributes: document
                .event
                .attributes
                .iter()
                .map(|(name, value)| (name.text.clone().into(), value.text.clone().into()))
                .collect(),
            ..Event::default()
        },
        expect: document
            .expect
            .as_ref()
            .map(|expect| expect.value.iter().map(|line| line.text.trim().to_owned()).collect()),
        expect_error: document.expect_error.as_ref().map(|reason| reason.value),
        place: Diagnostic::at(Code::ExampleFailed, report.source, document.at, ""),
    })
}

/// Returns the event's type: that of the example, else the definition's name, even if that is a
/// pattern.
fn event_type(
    definition: &Text,
    document: &ExampleDocument,
    report: &mut Report<'_>,
) -> Option<String> {
    match &document.event_type {
        None => Some(definition.text.clone()),
        Some(given) if Pattern::parse(&definition.text).matches(&given.text) => {
            Some(given.text.clone())
        }
        Some(given) => {
            report.error(
                Code::ExampleInvalid,
                given.at,
                format!("`{}` does not match `{}`", given.text, definition.text),
            );
            None
        }
    }
}

/// Returns the node as compact JSON, with numbers as written.
fn json_text(node: &Node) -> String {
    let mut out = String::new();
    node.write_json(&mut out);
    out
}

/// Maximum work of all examples of a registry: ten times that of one event. Workers run them at
/// each start and reload.
pub(super) const WORK_OF_ALL_EXAMPLES: u64 = 10 * WORK_PER_EVENT;

/// Runs examples, and returns those that fail or exceed the work of all.
pub(super) fn run_within(
    registry: &Registry,
    examples: &[Example],
    key_prefix: &str,
    work: u64,
) -> Vec<Diagnostic> {
    let mut problems = Vec::new();
    let mut work_left = work;
    for example in examples {
        let budget = Budget::for_bytes(example.event.bytes());
        problems.extend(run(registry, example, key_prefix, &budget));
        let Some(left) = work_left.checked_sub(budget.spent_work()) else {
            problems.push(Diagnostic {
                code: Code::ExampleCost,
                message: format!("the examples up to here need more than {work} units of work"),
                help: Some("use smaller payloads in this example and earlier ones".to_owned()),
                ..example.place.clone()
            });
            break;
        };
        work_left = left;
    }
    problems
}

fn run(
    registry: &Registry,
    example: &Example,
    key_prefix: &str,
    budget: &Budget,
) -> Option<Diagnostic> {
    let resolution = registry.resolve_definition(example.definition, &example.event, budget);
    let failure = resolution.failure.as_ref();
    let message = match (failure, example.expect_error) {
        (Some(failure), Some(expected)) if failure.reason == expected => None,
        (None, None) => None,
        (Some(failure), None) => {
            Some(format!("the event fails with {}: {}", failure.reason, failure.message))
        }
        (Some(failure), Some(expected)) => Some(format!(
            "the event fails with {} instead of {expected}: {}",
            failure.reason, failure.message
        )),
        (None, Some(expected)) => {
            Some(format!("the event resolves instead of failing with {expected}"))
        }
    };
    let message = message.or_else(|| {
        let actual: Vec<String> =
            resolution.effects.iter().map(|effect| line(effect, key_prefix)).collect();
        differences(example.expect.as_deref()?, actual)
    })?;
    Some(Diagnostic { message, ..example.place.clone() })
}

/// Formats an effect as `verb target`, as in `expect`.
fn line(effect: &Effect, key_prefix: &str) -> String {
    let verb = effect.action.verb();
    let target = match verb {
        Verb::InvalidateTags => &effect.target,
        _ => effect.target.strip_prefix(key_prefix).unwrap_or(&effect.target),
    };
    format!("{verb} {target}")
}

fn differences(expected: &[String], actual: Vec<String>) -> Option<String> {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for line in &actual {
        *left.entry(line).or_default() += 1;
    }
    let mut missing = Vec::new();
    for line in expected {
        match left.get_mut(line.as_str()).filter(|count| **count > 0) {
            Some(count) => *count -= 1,
            None => missing.push(line.as_str()),
        }
    }
    let unexpected: Vec<&str> =
        left.into_iter().flat_map(|(line, count)| std::iter::repeat_n(line, count)).collect();
    let quoted = |lines: &[&str]| {
        lines.iter().map(|line| format!("`{line}`")).collect::<Vec<_>>().join(", ")
    };
    match (missing.is_empty(), unexpected.is_empty()) {
        (true, true) => None,
        (false, true) => Some(format!("missing: {}", quoted(&missing))),
        (true, false) => Some(format!("not expected: {}", quoted(&unexpected))),
        (false, false) => {
            Some(format!("missing: {}; not expected: {}", quoted(&missing), quoted(&unexpected)))
        }
    }
}
