//! The examples of schema files: tests of their entry's rules.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::budget::{Budget, WORK_PER_EVENT};
use super::compile::Context;
use super::diagnostic::{Problem, Report};
use super::document::{ExampleDocument, Text};
use super::effect::{Effect, Verb};
use super::load::Loaded;
use super::model::Pattern;
use super::tree::Node;
use crate::event::{Event, Json};
use crate::reason::Reason;

/// One example, ready to run.
#[derive(Debug, Clone)]
pub struct Example {
    /// The entry that it tests: its place in `Registry::entries`.
    pub entry: u32,
    /// What happens in it.
    pub event: Event<'static>,
    /// `verb target` for every key and tag, without `UNSTALE_KEY_PREFIX`; `None`: it must merely
    /// resolve.
    pub expect: Option<Vec<String>>,
    /// The reason for which the event must be dead-lettered.
    pub expect_error: Option<Reason>,
    /// Where it stands.
    place: Problem,
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
                report.error_with_hint(
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
            report.error(node.at, format!("this is no payload: {error}"));
            return None;
        }
    }
    let text = |text: &Option<Text>| text.as_ref().map(|text| Cow::Owned(text.text.clone()));
    Some(Example {
        entry: context.place,
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
        place: Problem::at(report.source, document.at, ""),
    })
}

/// The event's type: what the example says, else the entry's name, a pattern being taken as it
/// stands.
fn event_type(entry: &Text, document: &ExampleDocument, report: &mut Report<'_>) -> Option<String> {
    match &document.event_type {
        None => Some(entry.text.clone()),
        Some(given) if Pattern::parse(&entry.text).matches(&given.text) => Some(given.text.clone()),
        Some(given) => {
            report.error(given.at, format!("`{}` does not match `{}`", given.text, entry.text));
            None
        }
    }
}

/// The node as compact JSON, the text of numbers as written.
fn json_text(node: &Node) -> String {
    let mut out = String::new();
    node.write_json(&mut out);
    out
}

/// What the examples of a registry may cost together: workers run them at each start and reload. It
/// is ten times what one event may cost.
const WORK_OF_ALL: u64 = 10 * WORK_PER_EVENT;

/// Runs the examples and returns those that fail, up to the one with which they cost too much
/// together.
pub fn run_examples(loaded: &Loaded) -> Vec<Problem> {
    run_within(loaded, WORK_OF_ALL)
}

pub(super) fn run_within(loaded: &Loaded, work: u64) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut work_left = work;
    for example in &loaded.examples {
        let budget = Budget::for_bytes(example.event.bytes());
        problems.extend(run(loaded, example, &budget));
        let Some(left) = work_left.checked_sub(budget.spent_work()) else {
            let message = format!(
                "up to here the examples need more than {work} units of work, which all of them may: let this and earlier ones have \
                 smaller payloads"
            );
            problems.push(Problem { message, ..example.place.clone() });
            break;
        };
        work_left = left;
    }
    problems
}

fn run(loaded: &Loaded, example: &Example, budget: &Budget) -> Option<Problem> {
    let resolution = loaded.registry.resolve_entry(example.entry, &example.event, budget);
    let failure = resolution.failure.as_ref();
    let message = match (failure, example.expect_error) {
        (Some(failure), Some(expected)) if failure.reason == expected => None,
        (None, None) => None,
        (Some(failure), None) => {
            Some(format!("this example fails: {}: {}", failure.reason, failure.message))
        }
        (Some(failure), Some(expected)) => Some(format!(
            "this example should fail with {expected}, and fails with {}: {}",
            failure.reason, failure.message
        )),
        (None, Some(expected)) => {
            Some(format!("this example should fail with {expected}, and resolves"))
        }
    };
    let message = message.or_else(|| {
        let actual: Vec<String> =
            resolution.effects.iter().map(|effect| line(effect, &loaded.key_prefix)).collect();
        differences(example.expect.as_deref()?, actual)
    })?;
    Some(Problem { message, ..example.place.clone() })
}

/// `verb target`, as `expect` has it.
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
        (false, true) => Some(format!("this example misses {}", quoted(&missing))),
        (true, false) => {
            Some(format!("this example has, beyond `expect`, {}", quoted(&unexpected)))
        }
        (false, false) => Some(format!(
            "this example misses {}, and has instead {}",
            quoted(&missing),
            quoted(&unexpected)
        )),
    }
}
