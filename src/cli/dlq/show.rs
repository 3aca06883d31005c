//! The command `unstale dlq show`.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::Args;

use super::super::check::offline;
use super::super::plan::Planner;
use super::super::signal::stop_on_signal;
use super::super::{CliError, Exit};
use super::browse::{Seen, browse, close, connect, exit_after, signer};
use super::runtime::block_on;
use super::select::Selection;
use crate::config::Config;
use crate::event::line::{OwnedMessage, OwnedValue};
use crate::event::{Event, header};
use crate::ops::dead_letters::{Letter, Spool};
use crate::printable::{printable_json, printable_lines, shown};
use crate::registry::{Explanation, Registry};

/// Show dead letters with their headers, body, and the effects under the current rule files
///
/// No dead letter is removed from the queue. The oldest ones come first. Exits with 1 if no dead
/// letter matches.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    selection: Selection,
    /// Hide bodies, payloads and the values to write, but not keys, tags and the publisher's
    /// headers
    #[arg(long)]
    redact: bool,
    /// Print one JSON object for each dead letter, with the members `dead_letter`, `message` (as
    /// `unstale plan` reads it) and `plan` (as `unstale plan` prints it)
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale dlq show --id 42
  unstale dlq show --reason unresolvable --limit 1
  unstale dlq show --type 'user.*' --redact";

pub(super) fn run(args: &ShowArgs, config: &Config) -> Result<Exit, CliError> {
    let loaded = Registry::load(&offline(&config.registry)).map_err(CliError::rule_files)?;
    for warning in &loaded.warnings {
        writeln!(io::stderr(), "{}", printable_lines(&warning.to_string()))?;
    }
    let planner = Planner {
        rules: loaded.registry.rules(),
        explain: |event: &Event<'_>| loaded.registry.explain(event),
        is_known: &|event_type| loaded.registry.knows_bodiless(event_type),
        unknown: config.unknown,
        reading: config.reading,
        vars: &config.registry.vars,
        json: args.json,
        redact: args.redact,
        unset: RefCell::default(),
    };
    block_on(show(args, config, &planner, loaded.registry.digest()))
}

async fn show<E: Fn(&Event<'_>) -> Explanation>(
    args: &ShowArgs,
    config: &Config,
    planner: &Planner<'_, E>,
    digest: &str,
) -> Result<Exit, CliError> {
    let stop = stop_on_signal()?;
    let mut letters = connect(config, &signer(config).await?).await?;
    let mut spool = Spool::new().map_err(CliError::of(Exit::Usage))?;
    let filter = args.selection.filter();
    let outcome = browse(&mut letters, config, &filter, &stop, |seen| {
        let Seen::Letter(dead, letter) = seen else {
            spool.truncate(0);
            return Ok(());
        };
        let message = dead.delivery.to_owned_message();
        let text = if args.json {
            as_json(args, planner, &letter, message)
        } else {
            as_text(args, planner, &letter, &message, digest)
        };
        Ok(spool.push(letter.time, &text)?)
    });
    let outcome = outcome.await;
    let exit = exit_after(&letters);
    close(letters, outcome).await?;
    if spool.is_empty() {
        writeln!(io::stderr(), "no dead letter matches")?;
        return Ok(Exit::No);
    }
    spool.write_to(args.selection.limit(), &mut BufWriter::new(io::stdout().lock()))?;
    Ok(exit)
}

/// Returns the plan of a letter. `None` if the letter makes the rules panic, which may be why it is
/// a dead letter.
fn plan<E: Fn(&Event<'_>) -> Explanation>(
    planner: &Planner<'_, E>,
    message: &OwnedMessage,
) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| {
        planner.message(&message.message(), "under the current rule files").0
    }))
    .ok()
}

fn as_json<E: Fn(&Event<'_>) -> Explanation>(
    args: &ShowArgs,
    planner: &Planner<'_, E>,
    letter: &Letter,
    mut message: OwnedMessage,
) -> String {
    let plan = plan(planner, &message).unwrap_or_else(|| "null".to_owned());
    if args.redact {
        message.body.clear();
    }
    let letter = letter.to_json().to_string();
    format!(
        "{{\"dead_letter\":{},\"message\":{},\"plan\":{}}}\n",
        printable_json(&letter),
        printable_json(&message.to_line()),
        plan.trim_end()
    )
}

fn as_text<E: Fn(&Event<'_>) -> Explanation>(
    args: &ShowArgs,
    planner: &Planner<'_, E>,
    letter: &Letter,
    message: &OwnedMessage,
    digest: &str,
) -> String {
    let mut out = format!(
        "{}  {}  {}\n",
        letter.time_text(),
        shown(&letter.reason),
        shown(&letter.event_type)
    );
    let mut field = |name: &str, value: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "  {name:<14} {}", shown(value));
    };
    for (name, value) in
        [("error", &letter.error), ("id", &letter.id), ("first handled", &letter.first_time)]
    {
        if let Some(value) = value {
            field(name, value);
        }
    }
    field("attempts", &letter.attempts.to_string());
    let exchange = if letter.exchange.is_empty() {
        "the default exchange".to_owned()
    } else {
        format!("exchange {}", letter.exchange)
    };
    field("published to", &format!("{exchange}, routing key {}", letter.routing_key));
    if letter.unsigned {
        field("unsigned", "no worker signed these headers: a replay does all effects");
    }
    if !letter.earlier.is_empty() {
        field("dead before", &letter.earlier.join(", "));
    }
    if let Some((positions, counted_by)) = &letter.effects {
        let list = positions.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let ignored = if counted_by == digest {
            ""
        } else {
            " (under other rule files: a replay does all effects)"
        };
        field("still to do", &format!("effects {list}{ignored}"));
    }
    for (name, value) in properties(message) {
        field(name, &value);
    }
    for (name, value) in message
        .headers
        .iter()
        .filter(|(name, _)| !header::ALL.contains(&name.as_str()) || name == header::REGISTRY)
    {
        field("header", &format!("{name}: {}", header_text(value)));
    }
    body(args, message, &mut out);
    match plan(planner, message) {
        Some(plan) => plan.trim_end().lines().for_each(|line| out.extend(["  ", line, "\n"])),
        None => {
            out.push_str("  reading this dead letter panics: this is a bug, please report it\n")
        }
    }
    out.push('\n');
    out
}

fn properties(message: &OwnedMessage) -> impl Iterator<Item = (&'static str, String)> {
    let from = &message.properties;
    [
        ("content type", from.content_type.clone()),
        ("encoding", from.content_encoding.clone()),
        ("message id", from.message_id.clone()),
        ("correlation id", from.correlation_id.clone()),
        ("reply to", from.reply_to.clone()),
        ("timestamp", from.timestamp_s.map(|seconds| seconds.to_string())),
        ("type", from.event_type.clone()),
        ("app id", from.app_id.clone()),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
}

fn header_text(value: &OwnedValue) -> String {
    match value {
        OwnedValue::Text(text) | OwnedValue::Json(text) => text.clone(),
        OwnedValue::Integer(integer) => integer.to_string(),
        OwnedValue::Double(double) => double.to_string(),
        OwnedValue::Bool(value) => value.to_string(),
        OwnedValue::Timestamp(seconds) => seconds.to_string(),
        OwnedValue::Null => "null".to_owned(),
        OwnedValue::Bytes(bytes) => format!("{} bytes that are not text", bytes.len()),
    }
}

/// Adds the body, if it is text and not hidden.
fn body(args: &ShowArgs, message: &OwnedMessage, out: &mut String) {
    let bytes = message.body.len();
    match std::str::from_utf8(&message.body) {
        _ if args.redact => out.push_str(&format!("  body, {bytes} bytes: hidden\n")),
        Err(_) => {
            out.push_str(&format!("  body, {bytes} bytes that are not text; --json prints them\n"))
        }
        Ok(text) => {
            out.push_str(&format!("  body, {bytes} bytes:\n"));
            text.lines().for_each(|line| out.push_str(&format!("    {}\n", shown(line))));
        }
    }
}
