//! The command line: one file per command.

mod check;
mod completions;
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

use clap::{Parser, Subcommand};

pub use exit::{CommandError, Exit};

use crate::config::{Config, Scope};
use crate::printable::printable_lines;
use crate::telemetry::logs;

/// Keeps Redis honest: turns domain events from RabbitMQ into cache invalidations.
///
/// Applications publish events such as `user.updated` to the exchange `events`; schema files say
/// which cache keys and tags each event makes stale; `unstale run` deletes, rewrites or warms them
/// in Redis, at least once.
#[derive(Debug, Parser)]
#[command(name = "unstale", version, max_term_width = 100, disable_help_subcommand = true, after_long_help = SETTINGS_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(alias = "start")]
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Plan(plan::PlanArgs),
    Publish(publish::PublishArgs),
    Dlq(dlq::DlqArgs),
    Status(status::StatusArgs),
    Tags(tags::TagsArgs),
    Replay(replay::ReplayArgs),
    Completions(completions::CompletionsArgs),
}

const SETTINGS_HELP: &str = "\
Settings come from the environment alone; these are the ones to begin with:

  UNSTALE_AMQP_URL     amqp://guest:guest@127.0.0.1:5672/%2f
  UNSTALE_REDIS_URL    redis://127.0.0.1:6379/0
  UNSTALE_SCHEMAS      schemas, the directory of the schema files
  UNSTALE_QUEUE        unstale; workers with the same name share the work
  UNSTALE_KEY_PREFIX   empty; stands before every key
  UNSTALE_LOG          info; also off, error, warn, debug, or by target
  UNSTALE_HTTP_ADDR    127.0.0.1:9477; /livez, /readyz, /metrics; or off

A value may stand in a file: UNSTALE_AMQP_URL_FILE=/run/secrets/amqp.
docs/reference/settings.md has all settings.

Exit codes:

  0   done
  1   the answer is no
  64  bad usage, settings or schema files
  69  a server refused us, or is out of reach
  70  a bug
  75  stopped before all was settled";

/// Runs the command that the arguments name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Where nobody reads the help, there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Clean };
        }
    };
    let ended = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Publish(args) => publish::run(&args),
        Command::Dlq(args) => dlq::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Tags(args) => tags::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Completions(args) => completions::run(&args),
    };
    ended.unwrap_or_else(|error| {
        if !error.message.is_empty() {
            let _ = writeln!(io::stderr(), "unstale: {}", printable_lines(&error.message));
        }
        error.exit
    })
}

/// The settings a command reads, and logs as they say. Odd variables are told of on stderr.
fn configure(scope: Scope) -> Result<Config, CommandError> {
    let (config, warnings) = Config::from_env(scope).map_err(CommandError::usage)?;
    logs::init(&config.log, config.log_format).map_err(CommandError::internal)?;
    for warning in warnings {
        tracing::warn!(setting = warning.setting, "{}", warning.message);
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_is_worth_reading() {
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
