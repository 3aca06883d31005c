//! The command line.
//!
//! This file parses the arguments and runs one command. Each command has its own file or folder:
//! - `run`: the worker.
//! - `check`, `plan`: rule files and events, without any server.
//! - `publish`, `dlq`, `replay`, `tags`, `status`, `acknowledge`: one-shot commands on running
//!   servers.
//! - `completions`: shell completions.
//!
//! Shared by commands: `configure` (settings and logging), `exit` (exit codes and errors), `reach`
//! (waits for a server), `signal` (Ctrl-C), `paint` (colours).
//!
//! Absent on purpose: the work of the commands, which is in `ops`, `registry` and `worker`.
//! Settings come from the environment, see `config`.

mod acknowledge;
mod check;
mod completions;
mod configure;
mod dlq;
mod exit;
mod paint;
mod plan;
mod publish;
mod reach;
mod replay;
mod run;
mod signal;
mod status;
mod tags;

use std::ffi::OsString;
use std::io::{self, Write as _};

use clap::{CommandFactory as _, Parser, Subcommand};

pub use exit::{CliError, Exit};

use crate::printable::printable_lines;

/// Keeps a Redis cache up to date with the domain events of your applications
///
/// Applications publish events, such as `user.updated`, to a RabbitMQ exchange. Rule files name the
/// cache keys and tags that each event makes stale. The worker, `unstale run`, deletes, rewrites or
/// warms them in Redis, at least once.
#[derive(Debug, Parser)]
#[command(name = "unstale", version, max_term_width = 100, disable_help_subcommand = true, after_long_help = SETTINGS_HELP)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: CliCommand,
}

/// A command and its arguments.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    #[command(alias = "start")]
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Plan(plan::PlanArgs),
    Publish(publish::PublishArgs),
    Dlq(dlq::DlqArgs),
    Status(status::StatusArgs),
    Acknowledge(acknowledge::AcknowledgeArgs),
    Tags(tags::TagsArgs),
    Replay(replay::ReplayArgs),
    Completions(completions::CompletionsArgs),
}

const SETTINGS_HELP: &str = "\
Settings are environment variables. The most common ones, with their defaults:

  UNSTALE_AMQP_URL     amqp://guest:guest@127.0.0.1:5672/%2f
  UNSTALE_REDIS_URL    redis://127.0.0.1:6379/0
  UNSTALE_SCHEMAS      schemas; the directory of the rule files
  UNSTALE_QUEUE        unstale; workers with the same queue share the work
  UNSTALE_KEY_PREFIX   empty; a prefix of every cache key
  UNSTALE_LOG          info; or off, error, warn, debug, or a level for each target
  UNSTALE_HTTP_ADDR    127.0.0.1:9477; serves /livez, /readyz and /metrics; or off

With the suffix _FILE, a value is read from a file: UNSTALE_AMQP_URL_FILE=/run/secrets/amqp.
All settings: docs/reference/settings.md.

Exit codes:

  0   success
  1   the command ran, and its result is negative or incomplete
  64  wrong usage, settings or rule files
  69  a server refused the command, or could not be reached
  70  a bug in unstale
  75  stopped before everything was settled";

/// Runs the command that the arguments name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed output cannot be reported anywhere.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Clean };
        }
    };
    let ended = match cli.command {
        CliCommand::Run(args) => run::run(&args),
        CliCommand::Check(args) => check::run(&args),
        CliCommand::Plan(args) => plan::run(&args),
        CliCommand::Publish(args) => publish::run(&args),
        CliCommand::Dlq(args) => dlq::run(&args),
        CliCommand::Status(args) => status::run(&args),
        CliCommand::Acknowledge(args) => acknowledge::run(&args),
        CliCommand::Tags(args) => tags::run(&args),
        CliCommand::Replay(args) => replay::run(&args),
        CliCommand::Completions(args) => completions::run(&args, &mut Cli::command()),
    };
    ended.unwrap_or_else(|error| {
        if !error.message.is_empty() {
            let _ = writeln!(io::stderr(), "{}", printable_lines(&error.to_string()));
        }
        error.exit
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_accepts_the_definition_of_the_command_line() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command() {
        let mut root = Cli::command();
        root.build();
        let mut all = root.render_long_help().to_string();
        for command in root.get_subcommands_mut() {
            let help = command.render_long_help();
            all += &format!("\n---- {}\n{help}", command.get_name());
            let name = command.get_name().to_owned();
            for sub in command.get_subcommands_mut() {
                let help = sub.render_long_help();
                all += &format!("\n---- {name} {}\n{help}", sub.get_name());
            }
        }
        insta::assert_snapshot!(all);
    }
}
