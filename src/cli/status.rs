//! The command `unstale status`: prints what `ops::status` finds.

use std::io::{self, BufWriter, Write};

use clap::Args;
use serde_json::json;

use super::configure::configure;
use super::paint::Paint;
use super::{CliError, Exit};
use crate::config::Scope;
use crate::ops::status::{
    Findings, HistoryFacts, QueueFacts, QueueKind, SILENT_S, Status, WorkerFacts, gather, judge,
    short_digest, span,
};
use crate::printable::{printable_json, printable_lines};

/// Show the state of the queues, dead letters, history, Redis and workers
///
/// Prints problems first, each with what to do about it, and exits with 1 if there is a problem. It
/// asks RabbitMQ over AMQP, and Redis for the reports of the workers in the last 30 seconds. It
/// answers within 10 seconds, even if a server is away.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct StatusArgs {
    /// Print one JSON object, in which every problem and note has a stable `code`
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale status
  unstale status --json | jq -r '.problems[].code'
  unstale status --json | jq -e 'any(.problems[]; .code == \"queue.unconsumed\")'
  watch -n 5 unstale status";

pub(super) fn run(args: &StatusArgs) -> Result<Exit, CliError> {
    let config = configure(Scope::All)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(CliError::of(Exit::Internal))?;
    let gathered = runtime.block_on(gather(&config));
    runtime.shutdown_background();
    let status = gathered.map_err(CliError::of(Exit::Usage))?;
    let findings = judge(&status);
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        writeln!(out, "{}", printable_json(&object(&status, &findings).to_string()))?;
    } else {
        let mut text = Vec::new();
        write_text(&status, &findings, &mut text)?;
        out.write_all(
            painted(&printable_lines(&String::from_utf8_lossy(&text)), Paint::of_stdout())
                .as_bytes(),
        )?;
    }
    out.flush()?;
    Ok(if findings.problems.is_empty() { Exit::Clean } else { Exit::No })
}

fn object(status: &Status, findings: &Findings) -> serde_json::Value {
    let side = |facts: Result<serde_json::Value, &String>| {
        facts.unwrap_or_else(|cause| json!({ "error": cause }))
    };
    json!({
        "ok": findings.problems.is_empty(),
        "time": status.time.to_string(),
        "problems": findings.problems,
        "notes": findings.notes,
        "rabbitmq": side(status.rabbitmq.as_ref().map(|facts| json!(facts))),
        "redis": side(status.redis.as_ref().map(|facts| json!(facts))),
    })
}

/// First line of the text where there is no problem.
const HEALTHY: &str = "healthy";

fn write_text(status: &Status, findings: &Findings, out: &mut impl Write) -> io::Result<()> {
    match findings.problems.len() {
        0 => writeln!(out, "{HEALTHY}")?,
        1 => writeln!(out, "1 problem:")?,
        count => writeln!(out, "{count} problems:")?,
    }
    for (mark, list) in [("!", &findings.problems), ("-", &findings.notes)] {
        if !list.is_empty() {
            writeln!(out)?;
        }
        for finding in list {
            writeln!(
                out,
                "  {mark} {} [{}]\n      help: {}",
                finding.what,
                finding.code.as_text(),
                finding.advice
            )?;
        }
    }
    if let Ok(broker) = &status.rabbitmq {
        writeln!(out, "\nRabbitMQ  {}", broker.node)?;
        write_queues(&broker.queues, out)?;
        writeln!(out, "  history: {}", history(&broker.history, status))?;
    }
    if let Ok(redis) = &status.redis {
        let version = redis.version.as_ref().map_or_else(
            || "version unknown".to_owned(),
            |version| format!("{} {version}", redis.software),
        );
        let role = match redis.role.as_deref() {
            Some("master") => "primary",
            Some("slave") => "replica",
            _ => "role unknown",
        };
        let replicas =
            redis.replicas.map_or_else(String::new, |count| format!(", replicas: {count}"));
        writeln!(out, "\nRedis  {}  {version}, {role}{replicas}", redis.address)?;
        if redis.workers.is_empty() {
            writeln!(
                out,
                "\nno worker runs: none has reported within 30 s, or all have stopped since"
            )?;
        } else {
            write_workers(status, out)?;
        }
    }
    Ok(())
}

/// Paints whole lines, by their beginning.
fn painted(text: &str, paint: Paint) -> String {
    let line = |(at, line): (usize, &str)| match line {
        HEALTHY => paint.good(line),
        _ if at == 0 || line.starts_with("  ! ") => paint.bad(line),
        _ if line.starts_with("  - ") => paint.notable(line),
        _ if line.starts_with("  queue ") || line.starts_with("  worker ") => paint.faint(line),
        _ => line.to_owned(),
    };
    text.lines().enumerate().map(line).map(|line| line + "\n").collect()
}

fn write_queues(queues: &[QueueFacts], out: &mut impl Write) -> io::Result<()> {
    let rows = queues.iter().map(|queue| {
        let known = queue.exists && queue.unknown.is_none();
        let number = |count: u32| if known { count.to_string() } else { "-".to_owned() };
        let consumed = matches!(queue.kind, QueueKind::Main | QueueKind::Slow);
        [
            queue.name.clone(),
            number(queue.ready),
            if consumed { number(queue.consumers) } else { String::new() },
        ]
    });
    table(["queue", "waiting", "consumers"], [false, true, true], rows.collect(), out)
}

fn write_workers(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let Ok(redis) = &status.redis else { return Ok(()) };
    writeln!(out)?;
    let rows = redis.workers.iter().map(|worker| {
        [
            worker.name.clone(),
            short_digest(&worker.digest).to_owned(),
            worker.in_flight.to_string(),
            worker.oldest_unsettled_s.map_or_else(|| "-".to_owned(), span),
            format!("{} ago", span(worker.reported_s_ago)),
            state(worker).to_owned(),
        ]
    });
    table(
        ["worker", "registry", "in flight", "oldest", "seen", ""],
        [false, false, true, true, true, false],
        rows.collect(),
        out,
    )
}

fn state(worker: &WorkerFacts) -> &'static str {
    match worker {
        worker if worker.reported_s_ago > SILENT_S => "silent",
        worker if worker.not_ready.is_empty() => "ready",
        _ => "not ready",
    }
}

fn history(facts: &HistoryFacts, status: &Status) -> String {
    match facts {
        HistoryFacts::Off => "off".to_owned(),
        HistoryFacts::Missing => "missing".to_owned(),
        HistoryFacts::Unknown(_) => "unknown".to_owned(),
        HistoryFacts::Empty => "empty".to_owned(),
        HistoryFacts::Exists { first, last, since } => {
            let reaches = since.map_or_else(String::new, |since| {
                format!(
                    ", reaching back at least {}",
                    span(status.time.duration_since(since).as_secs_f64())
                )
            });
            format!("offsets {first} to {last}{reaches}")
        }
    }
}

/// Writes a table whose columns are as wide as their widest cell.
fn table<const N: usize>(
    head: [&str; N],
    right_aligned: [bool; N],
    rows: Vec<[String; N]>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in std::iter::once(&head.map(str::to_owned)).chain(&rows) {
        let mut line = String::new();
        for ((cell, width), right) in row.iter().zip(widths).zip(right_aligned) {
            line += &if right { format!("  {cell:>width$}") } else { format!("  {cell:<width$}") };
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::status::tests::{healthy, troubled, unreachable};

    fn text(status: &Status) -> String {
        let mut out = Vec::new();
        write_text(status, &judge(status), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn status_as_text_has_problems_first() {
        insta::assert_snapshot!(format!(
            "{}\n----\n{}\n----\n{}",
            text(&healthy()),
            text(&troubled()),
            text(&unreachable())
        ));
    }

    #[test]
    fn status_as_json_has_a_code_for_each_finding() {
        let status = troubled();
        insta::assert_snapshot!(format!(
            "{:#}\n{:#}",
            object(&status, &judge(&status)),
            object(&unreachable(), &judge(&unreachable()))
        ));
    }
}
