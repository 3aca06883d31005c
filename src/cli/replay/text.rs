//! The report of a replay, as text and as JSON.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::args::ReplayArgs;
use crate::broker::Place;
use crate::ops::replay::{ReplayReport, Rest};
use crate::printable::printable;
use crate::registry::{Registry, RuleId, RuleName, Verb};

/// The effects of one rule.
struct Row<'r> {
    rule: &'r RuleName,
    effects: u64,
    /// Numbers of the effects into which they were folded, by verb.
    sent: Vec<(Verb, u64)>,
}

/// Returns the rules that had effects, in the order of their verbs.
fn rows<'r>(registry: &'r Registry, report: &ReplayReport) -> Vec<Row<'r>> {
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
    report: &ReplayReport,
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
            "nothing: later events supersede them".to_owned()
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

/// Returns a count with its noun, such as `1 event` or `7 events`.
fn count(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn summary(report: &ReplayReport, dry_run: bool) -> String {
    let verb = if dry_run { "would replay" } else { "replayed" };
    let (events, effects) = (count(report.events, "event"), count(report.effects(), "effect"));
    let mut line = format!("{verb} {events}: {effects} folded into {}", report.sent());
    if report.gave_way > 0 {
        line += &format!(", {} superseded by events that are not applied", report.gave_way);
    }
    if report.retired > 0 {
        line += &format!(", {} retired", count(report.retired, "event"));
    }
    line
}

/// Returns warnings about parts of the span that could not be read.
pub(super) fn warnings(since: Place, report: &ReplayReport) -> Vec<String> {
    let mut warnings = Vec::new();
    match (report.cut, since) {
        (Some(first), Place::Offset(_)) => {
            warnings.push(format!("warning: the history begins at offset:{first}; older events are gone and were not replayed"));
        }
        (Some(first), Place::Time(_)) => warnings.push(format!(
            "warning: the history begins at offset:{first}, which is later than --since; older events are gone \
             (UNSTALE_HISTORY_MAX_AGE, UNSTALE_HISTORY_MAX_BYTES) and were not replayed"
        )),
        (None, _) => {}
    }
    if report.from >= report.to {
        let held = if report.end == 0 {
            "the history is empty".to_owned()
        } else {
            format!("the history ends with offset:{}", report.end - 1)
        };
        warnings.push(format!("warning: no event is in that span: {held}"));
    }
    let unreadable: u64 = report.unreadable.iter().map(|(from, behind)| behind - from).sum();
    if report.missing > unreadable {
        warnings.push(format!(
            "warning: {} expired from the history before they could be read",
            count(report.missing - unreadable, "message")
        ));
    }
    for (from, behind) in &report.unreadable {
        warnings.push(format!(
            "warning: RabbitMQ cannot read offset:{from} to offset:{}, and these were skipped: a client other than the exchange has \
             written to the history",
            behind - 1
        ));
    }
    warnings
}

/// Returns one line for each reason for which events could not be applied.
pub(super) fn problems(report: &ReplayReport) -> impl Iterator<Item = String> {
    report.problems.iter().map(|(reason, problem)| {
        format!(
            "not replayed: {} {reason}; the first at offset:{}: {}",
            problem.count, problem.offset, problem.message
        )
    })
}

/// Returns the command that continues the replay.
pub(super) fn resume(args: &ReplayArgs, report: &ReplayReport, rest: &Rest) -> String {
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

pub(super) fn json(registry: &Registry, report: &ReplayReport, dry_run: bool) -> Value {
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
