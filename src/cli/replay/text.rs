//! What a replay came to, for people and for programs.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::ReplayArgs;
use crate::broker::Place;
use crate::ops::replay::{Report, Rest};
use crate::printable::printable;
use crate::registry::{Registry, RuleId, RuleName, Verb};

/// One rule's part in it.
struct Row<'r> {
    rule: &'r RuleName,
    effects: u64,
    /// What they folded into, by the verb that it came to.
    sent: Vec<(Verb, u64)>,
}

/// The rules that had a part in it, by verb.
fn rows<'r>(registry: &'r Registry, report: &Report) -> Vec<Row<'r>> {
    let mut rows: Vec<Row<'_>> = (0..)
        .zip(registry.rules().iter().zip(&report.effects))
        .filter(|(_, (_, effects))| **effects > 0)
        .map(|(id, (rule, &effects))| {
            let sent = Verb::ALL
                .into_iter()
                .filter_map(|verb| Some((verb, *report.sent.get(&(RuleId(id), verb))?)));
            Row { rule, effects, sent: sent.collect() }
        })
        .collect();
    rows.sort_by_key(|row| row.rule.verb);
    rows
}

pub(super) fn write_rules(
    registry: &Registry,
    report: &Report,
    out: &mut impl Write,
) -> io::Result<()> {
    let rows = rows(registry, report);
    if rows.is_empty() {
        return Ok(());
    }
    let width =
        rows.iter().map(|row| row.rule.name.chars().count()).max().unwrap_or(0).max("rule".len());
    writeln!(out, "  {:<15}  {:<width$}  {:>12}  to Redis", "verb", "rule", "effects")?;
    for Row { rule, effects, sent } in rows {
        let sent: Vec<String> =
            sent.iter().map(|(verb, count)| format!("{count} {verb}")).collect();
        let sent = if sent.is_empty() {
            "nothing: later events stand for it".to_owned()
        } else {
            sent.join(", ")
        };
        writeln!(
            out,
            "  {:<15}  {:<width$}  {effects:>12}  {sent}",
            rule.verb.as_str(),
            printable(&rule.name)
        )?;
    }
    Ok(())
}

/// `1 event`, `7 events`
fn count(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn summary(report: &Report, dry_run: bool) -> String {
    let verb = if dry_run { "would replay" } else { "replayed" };
    let (events, effects) = (count(report.events, "event"), count(report.effects(), "effect"));
    let mut line = format!("{verb} {events}: {effects} folded into {}", report.sent());
    if report.gave_way > 0 {
        line += &format!(", {} gave way to events that are not applied", report.gave_way);
    }
    if report.retired > 0 {
        line += &format!(", {} retired", count(report.retired, "event"));
    }
    line
}

/// What a person should know of the span.
pub(super) fn warnings(since: Place, report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    match (report.cut, since) {
        (Some(first), Place::Offset(_)) => {
            warnings.push(format!("warning: the history begins at offset:{first}; what came before is gone and was not replayed"));
        }
        (Some(first), Place::Time(_)) => warnings.push(format!(
            "warning: the history begins at offset:{first}, which came after --since: what came between is gone (UNSTALE_HISTORY_MAX_AGE, \
             _MAX_BYTES) and was not replayed"
        )),
        (None, _) => {}
    }
    if report.from >= report.to {
        let held = if report.end == 0 {
            "it holds nothing".to_owned()
        } else {
            format!("it ends with offset:{}", report.end - 1)
        };
        warnings.push(format!("warning: nothing of the history lies in that span: {held}"));
    }
    let unreadable: u64 = report.unreadable.iter().map(|(from, behind)| behind - from).sum();
    if report.missing > unreadable {
        warnings.push(format!(
            "warning: {} were gone before they could be read",
            count(report.missing - unreadable, "message")
        ));
    }
    for (from, behind) in &report.unreadable {
        warnings.push(format!(
            "warning: RabbitMQ cannot read offset:{from} to offset:{}, which were left out: something other than an exchange has written to \
             the history",
            behind - 1
        ));
    }
    warnings
}

/// What could not be applied, a line a reason.
pub(super) fn problems(report: &Report) -> impl Iterator<Item = String> {
    report.problems.iter().map(|(reason, problem)| {
        format!(
            "not replayed: {} {reason}; the first at offset:{}: {}",
            problem.count, problem.offset, problem.message
        )
    })
}

/// The command that does what is left.
pub(super) fn resume(args: &ReplayArgs, report: &Report, rest: &Rest) -> String {
    let mut command = format!("unstale replay --since offset:{}", rest.since);
    if args.until.is_some() {
        command += &format!(" --until offset:{}", report.to);
    }
    for pattern in &args.types {
        command += &format!(" --type '{}'", pattern.replace('\'', r"'\''"));
    }
    if let Some(rate) = args.rate {
        command += &format!(" --rate {rate}");
    }
    for (flag, given) in [(" --dry-run", args.dry_run), (" --json", args.json)] {
        if given {
            command += flag;
        }
    }
    command
}

pub(super) fn json(registry: &Registry, report: &Report, dry_run: bool) -> Value {
    let rules: Vec<Value> = rows(registry, report)
        .into_iter()
        .map(|Row { rule, effects, sent }| {
            let sent: serde_json::Map<String, Value> = sent.into_iter().map(|(verb, count)| (verb.to_string(), count.into())).collect();
            json!({ "rule": rule.name, "verb": rule.verb.as_str(), "effects": effects, "sent": sent })
        })
        .collect();
    let problems = report.problems.iter().map(|(reason, problem)| {
        json!({ "reason": reason.as_str(), "count": problem.count, "offset": problem.offset, "message": problem.message })
    });
    json!({
        "dry_run": dry_run,
        "from": report.from,
        "to": report.to,
        "end": report.end,
        "begins_late_at": report.cut,
        "missing": report.missing,
        "unreadable": report.unreadable,
        "events": report.events,
        "retired": report.retired,
        "effects": report.effects(),
        "sent": report.sent(),
        "gave_way": report.gave_way,
        "rules": rules,
        "problems": problems.collect::<Vec<_>>(),
        "rest": report.rest.as_ref().map(|rest| json!({ "since": rest.since, "cause": rest.cause })),
    })
}
