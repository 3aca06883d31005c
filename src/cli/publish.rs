//! The command `unstale publish TYPE [DATA]`.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;

use super::configure::configure;
use super::reach::reach;
use super::signal::stop_on_signal;
use super::{CliError, Exit};
use crate::broker::{Outgoing, PublishError, Publisher};
use crate::config::{AmqpConfig, Scope};
use crate::event::json::{JsonKind, write_string};
use crate::event::line::{OwnedMessage, OwnedProperties};
use crate::event::{Decoded, Json, Reading, decode};
use crate::printable::printable_json;

/// Number of events that are published at once, before progress is shown again.
const CHUNK: usize = 500;

/// Publish an event, and wait for the broker's confirmation
///
/// DATA is a JSON object. If it is missing, it is read from stdin. With --file, every line of a
/// file is published, in the form that `unstale plan` reads. A line that is a whole message goes to
/// its own exchange and routing key. Any other line is an event, and its `type` is the routing key.
/// Exits with 1 if no queue is bound for an event.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PublishArgs {
    /// Type of the event, which is also the routing key
    #[arg(required_unless_present = "file", conflicts_with = "file", value_name = "TYPE")]
    event_type: Option<String>,
    /// Payload of the event, a JSON object [default: read from stdin, as for `-`]
    #[arg(conflicts_with = "file")]
    data: Option<String>,
    /// Publish every line of a file; `-` for stdin
    #[arg(long, value_name = "EVENTS.JSONL", conflicts_with_all = ["id", "source", "subject", "time", "previous"])]
    file: Option<PathBuf>,
    /// Id of the event
    #[arg(long)]
    id: Option<String>,
    /// System that publishes the event
    #[arg(long)]
    source: Option<String>,
    /// Entity that the event is about
    #[arg(long)]
    subject: Option<String>,
    /// Time of the event, in RFC 3339
    #[arg(long)]
    time: Option<String>,
    /// Payload before the event, a JSON object
    #[arg(long, value_name = "DATA")]
    previous: Option<String>,
    /// Print what would be published, in the form that `unstale plan` reads, and publish nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as one JSON object with the members `published`, `of` and `unroutable`
    #[arg(long, conflicts_with = "dry_run")]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale publish user.updated '{\"id\":42}'
  unstale publish user.updated '{\"id\":42,\"name\":\"Ann\"}' --previous '{\"id\":42,\"name\":\"Anna\"}'
  jq -c .user dump.json | unstale publish user.updated
  unstale publish --file events.jsonl";

pub(super) fn run(args: &PublishArgs) -> Result<Exit, CliError> {
    let config = configure(Scope::All)?;
    let messages = match &args.file {
        Some(path) => {
            from_lines(&read(path.to_str().unwrap_or_default(), path)?, &config.amqp.exchange)?
        }
        None => vec![from_args(args, &config.amqp.exchange)?],
    };
    if args.dry_run {
        let mut out = io::stdout().lock();
        for message in &messages {
            writeln!(out, "{}", printable_json(&message.to_line()))?;
        }
        let count = messages.len();
        writeln!(io::stderr(), "would publish {count} event{}", if count == 1 { "" } else { "s" })?;
        return Ok(Exit::Clean);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::of(Exit::Internal))?;
    let ended = runtime.block_on(publish(&config.amqp, &messages, args.json));
    // A name lookup that is still running must not delay the exit.
    runtime.shutdown_background();
    ended
}

/// Publishes all messages. Returns [`Exit::No`] if one could not be routed.
async fn publish(
    config: &AmqpConfig,
    messages: &[OwnedMessage],
    json: bool,
) -> Result<Exit, CliError> {
    let stop = stop_on_signal()?;
    let mut publisher = reach(async || Publisher::connect(config).await).await?;
    let progress = if messages.len() > CHUNK {
        ProgressBar::new(messages.len() as u64)
    } else {
        ProgressBar::hidden()
    };
    let mut published = 0;
    let mut unroutable: Vec<&OwnedMessage> = Vec::new();
    let mut failed = None;
    'all: for chunk in messages.chunks(CHUNK) {
        let outgoing = chunk
            .iter()
            .map(Outgoing::of)
            .collect::<Result<Vec<_>, _>>()
            .map_err(CliError::of(Exit::Usage))?;
        let results = tokio::select! {
            biased;
            results = publisher.publish_all(&outgoing) => results,
            () = stop.cancelled() => {
                progress.finish_and_clear();
                let message = format!(
                    "interrupted: the broker confirmed {published} of {} events, and may have up to {} more",
                    messages.len(),
                    chunk.len()
                );
                return Err(CliError::new(Exit::Unfinished, message));
            }
        };
        for (message, result) in chunk.iter().zip(results) {
            match result {
                Ok(()) => published += 1,
                Err(PublishError::Returned(_)) => {
                    let (key, exchange) = (&message.routing_key, &message.exchange);
                    writeln!(
                        io::stderr(),
                        "warning: no queue is bound to exchange {exchange:?} for routing key {key:?}"
                    )?;
                    unroutable.push(message);
                }
                Err(error) => {
                    failed = Some(error);
                    break 'all;
                }
            }
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    publisher.close().await;
    if json {
        let unroutable = unroutable.iter().map(
            |message| json!({ "exchange": message.exchange, "routing_key": message.routing_key }),
        );
        let report = json!({ "published": published, "of": messages.len(), "unroutable": unroutable.collect::<Vec<_>>() });
        writeln!(io::stdout(), "{}", printable_json(&report.to_string()))?;
    }
    writeln!(
        io::stderr(),
        "published {published} of {} event{}",
        messages.len(),
        if messages.len() == 1 { "" } else { "s" }
    )?;
    match failed {
        Some(error @ PublishError::Unsendable(_)) => Err(CliError::of(Exit::Usage)(error)),
        Some(error) => Err(CliError::of(Exit::Unavailable)(error)),
        None if !unroutable.is_empty() => Ok(Exit::No),
        None => Ok(Exit::Clean),
    }
}

fn read(name: &str, path: &PathBuf) -> Result<String, CliError> {
    let read =
        if name == "-" { io::read_to_string(io::stdin()) } else { std::fs::read_to_string(path) };
    read.map_err(|error| CliError::usage(path.display().to_string()).because(&error))
}

/// Returns the message of one event: an envelope with the values of the arguments.
fn from_args(args: &PublishArgs, exchange: &str) -> Result<OwnedMessage, CliError> {
    let event_type = args.event_type.as_deref().unwrap_or_default();
    let data = match args.data.as_deref() {
        Some(data) if data != "-" => data.to_owned(),
        _ => {
            if io::stdin().is_terminal() {
                let _ = writeln!(
                    io::stderr(),
                    "reading the event's data from the terminal; end it with Ctrl-D"
                );
            }
            let mut data = String::new();
            io::stdin()
                .read_to_string(&mut data)
                .map_err(|error| CliError::usage("stdin").because(&error))?;
            data
        }
    };
    let mut body = String::from("{\"type\":");
    write_string(event_type, &mut body);
    for (name, value) in [
        ("id", &args.id),
        ("time", &args.time),
        ("source", &args.source),
        ("subject", &args.subject),
    ] {
        if let Some(value) = value {
            body.push_str(&format!(",\"{name}\":"));
            write_string(value, &mut body);
        }
    }
    for (name, what, text) in [
        ("data", "DATA", Some(data.as_str())),
        ("previous", "--previous", args.previous.as_deref()),
    ] {
        if let Some(text) = text {
            body.push_str(&format!(",\"{name}\":"));
            body.push_str(object(what, text)?);
        }
    }
    body.push('}');
    check_routing_key(event_type)?;
    let message = OwnedMessage {
        exchange: exchange.to_owned(),
        routing_key: event_type.to_owned(),
        properties: OwnedProperties {
            content_type: Some("application/json".to_owned()),
            delivery_mode: Some(2),
            message_id: args.id.clone(),
            ..OwnedProperties::default()
        },
        body: body.into_bytes(),
        ..OwnedMessage::default()
    };
    // Workers would reject or misread a reserved type or a malformed time, so these are refused
    // here.
    match decode(&message.message(), Reading { max_body_bytes: usize::MAX, ..Reading::default() }) {
        Err(problem) => return Err(CliError::usage(problem.0)),
        Ok(Decoded::Event(event)) if args.time.is_some() && event.time.is_none() => {
            return Err(CliError::usage("--time: expected RFC 3339, such as 2026-01-31T12:00:00Z"));
        }
        Ok(_) => {}
    }
    Ok(message)
}

fn object<'t>(what: &str, text: &'t str) -> Result<&'t str, CliError> {
    let json = Json::parse(text)
        .map_err(|error| CliError::usage(format!("{what}: {error}: expected a JSON object")))?;
    match json.kind() {
        JsonKind::Object => Ok(json.text()),
        other => Err(CliError::usage(format!(
            "{what}: {other}: expected a JSON object, such as '{{\"id\":42}}'"
        ))),
    }
}

fn check_routing_key(key: &str) -> Result<(), CliError> {
    if key.is_empty() || key.len() > 255 {
        return Err(CliError::usage(
            "TYPE: expected 1 to 255 bytes, because it is the routing key",
        ));
    }
    Ok(())
}

/// Reads one message for each line. A whole message has its own exchange and routing key; the
/// `type` in the body of any other line is its routing key.
fn from_lines(text: &str, exchange: &str) -> Result<Vec<OwnedMessage>, CliError> {
    let mut messages = Vec::new();
    let mut problems = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match from_line(line, exchange) {
            Ok(message) => messages.push(message),
            Err(problem) => problems.push(format!("line {}: {problem}", at + 1)),
        }
    }
    if !problems.is_empty() {
        let is_spread = text.lines().count() > 1 && Json::parse(text).is_ok();
        let error = CliError::usage(problems.join("\n"));
        return Err(if is_spread {
            error.help("write each event on one line, as `jq -c . FILE` does: the input is one JSON value over several lines")
        } else {
            error
        });
    }
    if messages.is_empty() {
        return Err(CliError::usage("there is no event: the input is empty"));
    }
    Ok(messages)
}

fn from_line(line: &str, exchange: &str) -> Result<OwnedMessage, String> {
    let mut message = OwnedMessage::from_line(line).map_err(|error| error.to_string())?;
    if message.exchange.is_empty() {
        exchange.clone_into(&mut message.exchange);
    }
    if message.routing_key.is_empty() {
        let body = std::str::from_utf8(&message.body).ok().and_then(|body| Json::parse(body).ok());
        let event_type = body
            .and_then(|body| body.get("type"))
            .and_then(|name| name.as_str().map(std::borrow::Cow::into_owned));
        message.routing_key = event_type
            .filter(|name| (1..=255).contains(&name.len()))
            .ok_or_else(|| no_routing_key(&message.body))?;
        message.properties.content_type.get_or_insert_with(|| "application/json".to_owned());
    }
    Ok(message)
}

/// Returns why a body has no routing key.
fn no_routing_key(body: &[u8]) -> &'static str {
    let is_json = std::str::from_utf8(body).is_ok_and(|body| Json::parse(body).is_ok());
    if is_json {
        "no routing key: add a `routing_key` to the message, or a `type` to its body"
    } else {
        "not JSON: expected an event with a `type`, or a message with a `routing_key` and a `body`"
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, CliCommand};

    fn args(line: &[&str]) -> PublishArgs {
        match Cli::try_parse_from([&["unstale", "publish"], line].concat()).unwrap().command {
            CliCommand::Publish(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn publish_makes_an_envelope_of_its_arguments() {
        let args = args(&[
            "user.updated",
            r#" {"id": 1.50} "#,
            "--id",
            "e\"1",
            "--source",
            "crm",
            "--previous",
            "{}",
        ]);
        let message = from_args(&args, "events").unwrap();
        assert_eq!(
            (message.exchange.as_str(), message.routing_key.as_str()),
            ("events", "user.updated")
        );
        let body = String::from_utf8(message.body).unwrap();
        assert_eq!(
            body,
            r#"{"type":"user.updated","id":"e\"1","source":"crm","data":{"id": 1.50},"previous":{}}"#
        );
        assert_eq!(message.properties.message_id.as_deref(), Some("e\"1"));
    }

    #[test]
    fn publish_refuses_data_that_is_not_a_json_object() {
        for (data, part) in [
            ("", "empty, not JSON"),
            (" \n", "empty, not JSON"),
            ("[1]", "an array"),
            ("42", "a number"),
            ("{", "a bracket is not closed"),
            (r#"{"id":42"#, "a bracket is not closed"),
            (r#"{"id":"42}"#, "a quote or a bracket is not closed"),
            ("{id:42}", "syntax error at line 1, column 2"),
        ] {
            let error = from_args(&args(&["user.updated", data]), "events").unwrap_err();
            assert!(
                error.exit == Exit::Usage
                    && error.message.starts_with("DATA: ")
                    && error.message.contains(part),
                "{error}"
            );
        }
        for line in [&["a.b", "{}", "--time", "yesterday"][..], &["unstale.x", "{}"]] {
            assert_eq!(from_args(&args(line), "events").unwrap_err().exit, Exit::Usage, "{line:?}");
        }
        assert!(Cli::try_parse_from(["unstale", "publish"]).is_err(), "neither a type nor a file");
        assert!(Cli::try_parse_from(["unstale", "publish", "a", "--file", "f"]).is_err(), "both");
    }

    #[test]
    fn lines_are_routed_by_themselves_and_every_bad_one_is_reported() {
        let good = "{\"type\":\"a.b\",\"data\":{}}\n\n{\"routing_key\":\"k\",\"exchange\":\"other\",\"body\":\"{}\"}\n";
        let messages = from_lines(good, "events").unwrap();
        let places: Vec<_> = messages
            .iter()
            .map(|message| (message.exchange.as_str(), message.routing_key.as_str()))
            .collect();
        assert_eq!(places, [("events", "a.b"), ("other", "k")]);
        let error = from_lines("{\n  \"type\": \"a.b\",\n  \"data\": {}\n}\n", "events")
            .unwrap_err()
            .to_string();
        assert!(error.contains("jq -c ."), "{error}");
        for empty in ["", "\n \n"] {
            let error = from_lines(empty, "events").unwrap_err();
            assert!(
                error.exit == Exit::Usage && error.message.contains("there is no event"),
                "{error}"
            );
        }
        let error = from_lines("{\"id\":1}\nx\n", "events").unwrap_err().to_string();
        assert!(
            error.contains("line 1: no routing key") && error.contains("line 2: not JSON"),
            "{error}"
        );
    }
}
