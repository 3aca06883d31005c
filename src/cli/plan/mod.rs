//! `unstale plan [FILE…]`

mod json;
mod text;

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;

pub(super) use text::shown;

use super::check::offline;
use super::{CommandError, Exit, configure};
use crate::config::{Scope, UnknownPolicy, Vars};
use crate::event::line::OwnedMessage;
use crate::event::{Decoded, Event, Message, Reading, decode};
use crate::printable::{printable_json, printable_lines};
use crate::reason::Reason;
use crate::registry::{Action, Effect, Explanation, Failure, Matched, Note, Registry, Resolution, RuleName};

/// Show what events would do to the cache; needs no server
///
/// Reads events, one JSON object a line. A line with `body` (or `body_base64`) and otherwise only `exchange`, `routing_key`, `headers` and
/// `properties` is a whole message; any other line is the body of one. Exits with 1 where an event would end in the dead-letter queue.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PlanArgs {
    /// Files of events, `-` for stdin
    #[arg(default_value = "-")]
    files: Vec<PathBuf>,
    /// Print one JSON object for each event
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  echo '{\"type\":\"user.updated\",\"data\":{\"id\":42}}' | unstale plan
  unstale plan --json events.jsonl | jq -r '.effects[].target'";

/// What stands for a value that is not shown.
const HIDDEN: &str = "(hidden)";

/// What one line turned out to be, and what it would do.
struct Plan<'e> {
    /// Absent where the line is no event.
    event: Option<&'e Event<'e>>,
    matched: Matched,
    effects: Vec<Effect>,
    error: Option<(Reason, String)>,
    /// Why rules had no or other effects.
    notes: Vec<Note>,
}

/// What resolves events: the registry, without the files it was loaded from.
pub(super) struct Planner<'r, E> {
    pub(super) rules: &'r [RuleName],
    pub(super) explain: E,
    /// Whether a message of that type and without a body is an event.
    pub(super) is_known: &'r dyn Fn(&str) -> bool,
    pub(super) unknown: UnknownPolicy,
    pub(super) reading: Reading,
    /// Their values may be secrets: URLs of loaders are shown without them.
    pub(super) vars: &'r Vars,
    pub(super) json: bool,
    /// Without the payload and the values to write.
    pub(super) redact: bool,
}

impl<E: Fn(&Event<'_>) -> Explanation> Planner<'_, E> {
    /// Plans every line of the files. Says whether every event would be applied whole.
    fn files(&self, files: &[PathBuf], out: &mut impl Write) -> Result<bool, CommandError> {
        let mut all_good = true;
        for path in files {
            if path == Path::new("-") {
                all_good &= self.lines(io::stdin().lock(), "stdin", out)?;
            } else {
                let shown = path.display().to_string();
                let file = File::open(path).map_err(|error| CommandError::usage(format_args!("{shown}: {error}")))?;
                all_good &= self.lines(BufReader::new(file), &shown, out)?;
            }
        }
        Ok(all_good)
    }

    fn lines(&self, mut input: impl BufRead, source: &str, out: &mut impl Write) -> Result<bool, CommandError> {
        let mut all_good = true;
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            if input.read_until(b'\n', &mut line).map_err(|error| CommandError::usage(format_args!("{source}: {error}")))? == 0 {
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            all_good &= self.line(&line, &format!("{source}:{number}"), out)?;
            // A reader that follows along sees each event at once.
            out.flush()?;
        }
        Ok(all_good)
    }

    fn line(&self, line: &[u8], place: &str, out: &mut impl Write) -> Result<bool, CommandError> {
        let read = std::str::from_utf8(line)
            .map_err(|_| "the line is not UTF-8".to_owned())
            .and_then(|line| OwnedMessage::from_line(line).map_err(|error| error.to_string()));
        let (text, good) = match read {
            Ok(owned) => self.message(&owned.message(), place),
            Err(message) => self.render(&malformed(message), place),
        };
        out.write_all(text.as_bytes())?;
        Ok(good)
    }

    /// The plan of one message as text, and whether it would be applied whole.
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
            Ok(Decoded::Tombstone | Decoded::Bodiless(_)) => {
                self.render(&Plan { event: None, matched: Matched::Unknown, effects: vec![], error: None, notes: vec![] }, place)
            }
            Err(problem) => self.render(&malformed(problem.to_string()), place),
        }
    }

    fn plan<'e>(&self, event: &'e Event<'e>) -> Plan<'e> {
        let Explanation { resolution, notes } = (self.explain)(event);
        let Resolution { matched, mut effects, failure, .. } = resolution;
        for effect in &mut effects {
            if let Action::Warm(warm) = &mut effect.action {
                warm.url = self.vars.mask(&warm.url);
            }
        }
        let error = match failure {
            Some(Failure { reason, message, .. }) => Some((reason, message)),
            None if matched == Matched::Unknown && self.unknown != UnknownPolicy::Drop => {
                Some((Reason::UnknownEvent, "no entry of the registry has this name or a pattern that matches it".to_owned()))
            }
            None => None,
        };
        Plan { event: Some(event), matched, effects, error, notes }
    }

    fn render(&self, plan: &Plan<'_>, place: &str) -> (String, bool) {
        let text =
            if self.json { printable_json(&json::line(plan, self.rules)).into_owned() } else { text::block(plan, self.rules, place) };
        (text, plan.error.is_none())
    }
}

fn malformed(message: String) -> Plan<'static> {
    Plan { event: None, matched: Matched::Unknown, effects: vec![], error: Some((Reason::Malformed, message)), notes: vec![] }
}

fn redact(effect: &mut Effect) {
    if let Action::Write(write) = &mut effect.action {
        HIDDEN.clone_into(&mut write.value);
    }
}

pub(super) fn run(args: &PlanArgs) -> Result<Exit, CommandError> {
    let config = configure(Scope::Offline)?;
    let loaded = Registry::load(&offline(&config.registry)).map_err(CommandError::usage)?;
    for warning in &loaded.warnings {
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
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let all_good = planner.files(&args.files, &mut out)?;
    Ok(if all_good { Exit::Clean } else { Exit::No })
}

#[cfg(test)]
mod tests;
