//! The command `unstale plan [FILE…]`: what events would do to the cache.
//!
//! This file reads events and resolves them. `text` prints a plan for people, `json` for programs.

mod json;
mod meaning;
mod text;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal as _, Read as _, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use meaning::Plan;

use super::check::offline;
use super::configure::configure;
use super::{CliError, Exit};
use crate::config::{Scope, UnknownPolicy, Vars};
use crate::event::line::OwnedMessage;
use crate::event::{Decoded, Event, Message, Reading, decode};
use crate::printable::{printable_json, printable_lines};
use crate::reason::Reason;
use crate::registry::{
    Action, Effect, Explanation, Failure, Matched, Registry, Resolution, RuleName,
};

/// Show what events would do to the cache, without any server
///
/// Reads one JSON object from each line. A line is a whole message if it has a `body` or
/// `body_base64`, and no other members than `exchange`, `routing_key`, `headers` and `properties`.
/// Any other line is the body of a message. Exits with 1 if an event would become a dead letter.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PlanArgs {
    /// Files with events; `-` is stdin
    #[arg(default_value = "-")]
    files: Vec<PathBuf>,
    /// Print one JSON object for each event
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  echo '{\"type\":\"user.updated\",\"data\":{\"id\":42}}' | unstale plan
  unstale dlq list --json | unstale plan
  unstale plan --json events.jsonl | jq -r '.effects[].target'";

/// Maximum size of a line, less the body of its message.
const MAX_BESIDE_BODY_BYTES: usize = 1024 * 1024;

/// Text in place of a hidden value.
const HIDDEN: &str = "(hidden)";

/// Resolves events and renders their plans.
pub(super) struct Planner<'r, E> {
    pub(super) rules: &'r [RuleName],
    pub(super) explain: E,
    /// Returns true if a message of that type and without a body is an event.
    pub(super) is_known: &'r dyn Fn(&str) -> bool,
    pub(super) unknown: UnknownPolicy,
    pub(super) reading: Reading,
    /// Variables whose values may be secrets. URLs of loaders are shown without the values.
    pub(super) vars: &'r Vars,
    pub(super) json: bool,
    /// Hides the payload and the values to write.
    pub(super) redact: bool,
    /// Names of variables without a value that effects use.
    pub(super) unset: RefCell<BTreeSet<String>>,
}

impl<E: Fn(&Event<'_>) -> Explanation> Planner<'_, E> {
    /// Plans every line of the files. Returns true if every event would be applied whole.
    fn files(&self, files: &[PathBuf], out: &mut impl Write) -> Result<bool, CliError> {
        let mut all_good = true;
        let mut events = 0;
        for path in files {
            let (good, count) = if path == Path::new("-") {
                if io::stdin().is_terminal() {
                    writeln!(
                        io::stderr(),
                        "reading events from the terminal, one JSON object on each line; Ctrl-D to end"
                    )?;
                }
                self.lines(io::stdin().lock(), "stdin", out)?
            } else {
                let shown = path.display().to_string();
                let file = File::open(path)
                    .map_err(|error| CliError::usage(shown.clone()).because(&error))?;
                self.lines(BufReader::new(file), &shown, out)?
            };
            all_good &= good;
            events += count;
        }
        if events == 0 {
            return Err(CliError::usage("there is no event: the input is empty"));
        }
        Ok(all_good)
    }

    /// Plans every line. Returns true if every event would be applied whole, and the number of
    /// lines.
    fn lines(
        &self,
        mut input: impl BufRead,
        source: &str,
        out: &mut impl Write,
    ) -> Result<(bool, u64), CliError> {
        let mut all_good = true;
        let mut count = 0;
        let mut line = Vec::new();
        // A whole message is longer than its body, because of base64, escapes and headers.
        let limit =
            self.reading.max_body_bytes.saturating_mul(6).saturating_add(MAX_BESIDE_BODY_BYTES);
        for number in 1_u64.. {
            line.clear();
            let read = input.by_ref().take(limit as u64).read_until(b'\n', &mut line);
            if read.map_err(|error| CliError::usage(source.to_owned()).because(&error))? == 0 {
                break;
            }
            if line.len() >= limit {
                return Err(CliError::usage(format!(
                    "{source}:{number}: the line has {limit} bytes or more, and no message is that long"
                )));
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            count += 1;
            all_good &= self.line(&line, &format!("{source}:{number}"), out)?;
            // A program that reads the output sees each event at once.
            out.flush()?;
        }
        Ok((all_good, count))
    }

    fn line(&self, line: &[u8], place: &str, out: &mut impl Write) -> Result<bool, CliError> {
        let read = std::str::from_utf8(line)
            .map_err(|_| "the line is not UTF-8".to_owned())
            .and_then(|line| OwnedMessage::from_line(line).map_err(|error| error.to_string()));
        let (text, good) = match read {
            Ok(owned) if is_part_of_a_document(&owned) => {
                let message = "the line is a part of a JSON document: write each event on one line, as `jq -c .` does".to_owned();
                self.render(&malformed(message), place)
            }
            Ok(owned) => self.message(&owned.message(), place),
            Err(message) => self.render(&malformed(message), place),
        };
        out.write_all(text.as_bytes())?;
        Ok(good)
    }

    /// Returns the plan of one message as text, and true if it would be applied whole.
    pub(super) fn message(&self, message: &Message<'_>, place: &str) -> (String, bool) {
        match decode(message, self.reading).map(|decoded| decoded.if_known(self.is_known)) {
            Ok(Decoded::Event(event)) => {
                let mut plan = self.plan(&event);
                let hidden;
                if self.redact {
                    hidden = Event { data_text: "{}".into(), previous_text: None, ..event.clone() };
                    plan.event = Some(&hidden);
                    plan.effects.iter_mut().for_each(redact);
                }
                self.render(&plan, place)
            }
            Ok(Decoded::Tombstone | Decoded::Bodiless(_)) => self.render(
                &Plan {
                    event: None,
                    matched: Matched::Unknown,
                    effects: vec![],
                    error: None,
                    notes: vec![],
                },
                place,
            ),
            Err(problem) => self.render(&malformed(problem.to_string()), place),
        }
    }

    fn plan<'e>(&self, event: &'e Event<'e>) -> Plan<'e> {
        let Explanation { resolution, notes } = (self.explain)(event);
        let Resolution { matched, mut effects, failure, .. } = resolution;
        for effect in &mut effects {
            self.unset.borrow_mut().extend(unset_vars(&effect.target).map(str::to_owned));
            if let Action::Warm(warm) = &mut effect.action {
                self.unset.borrow_mut().extend(unset_vars(&warm.url).map(str::to_owned));
                warm.url = self.vars.mask(&warm.url);
            }
        }
        let error = match failure {
            Some(Failure { reason, message, .. }) => Some((reason, message)),
            None if matched == Matched::Unknown && self.unknown != UnknownPolicy::Drop => Some((
                Reason::UnknownEvent,
                "no event definition has this name or a pattern that matches it".to_owned(),
            )),
            None => None,
        };
        Plan { event: Some(event), matched, effects, error, notes }
    }

    fn render(&self, plan: &Plan<'_>, place: &str) -> (String, bool) {
        let text = if self.json {
            printable_json(&json::line(plan, self.rules)).into_owned()
        } else {
            text::block(plan, self.rules, place)
        };
        (text, plan.error.is_none())
    }
}

/// Returns the variables that a text still contains. Only variables without a value are left in it.
fn unset_vars(text: &str) -> impl Iterator<Item = &str> {
    text.split("{vars.").skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name))
}

/// Returns true if a line is a part of a JSON document with line breaks.
fn is_part_of_a_document(message: &OwnedMessage) -> bool {
    let text = message.body.trim_ascii();
    matches!(text, b"{" | b"[" | b"}" | b"]" | b"}," | b"],")
        || (text.starts_with(b"\"") && text.ends_with(b"{") && message.headers.is_empty())
}

fn malformed(message: String) -> Plan<'static> {
    Plan {
        event: None,
        matched: Matched::Unknown,
        effects: vec![],
        error: Some((Reason::Malformed, message)),
        notes: vec![],
    }
}

fn redact(effect: &mut Effect) {
    if let Action::Write(write) = &mut effect.action {
        HIDDEN.clone_into(&mut write.value);
    }
}

pub(super) fn run(args: &PlanArgs) -> Result<Exit, CliError> {
    let config = configure(Scope::Offline)?;
    let loaded = Registry::load(&offline(&config.registry)).map_err(CliError::rule_files)?;
    // A missing variable is reported only if an event uses it.
    let (of_vars, others): (Vec<_>, Vec<_>) =
        loaded.warnings.iter().partition(|warning| warning.missing_var().is_some());
    for warning in others {
        writeln!(io::stderr(), "{}", printable_lines(&warning.to_string()))?;
    }
    let planner = Planner {
        rules: &loaded.registry.rules,
        explain: |event: &Event<'_>| loaded.registry.explain(event),
        is_known: &|event_type| loaded.registry.knows_bodiless(event_type),
        unknown: config.unknown,
        reading: config.reading,
        vars: &config.registry.vars,
        json: args.json,
        redact: false,
        unset: RefCell::default(),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let all_good = planner.files(&args.files, &mut out)?;
    let used = planner.unset.borrow();
    for warning in of_vars {
        if warning.missing_var().is_some_and(|name| used.contains(name)) {
            writeln!(io::stderr(), "{}", printable_lines(&warning.to_string()))?;
        }
    }
    Ok(if all_good { Exit::Clean } else { Exit::No })
}

#[cfg(test)]
mod tests;
