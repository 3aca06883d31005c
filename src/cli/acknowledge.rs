//! The command `unstale acknowledge`: ends a problem of `unstale status` that would be shown for a
//! day.

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::configure::configure;
use super::reach::reach_redis;
use super::{CliError, Exit};
use crate::cache::Cache;
use crate::config::Scope;
use crate::ops::acknowledge::acknowledge;
use crate::ops::status::FindingCode;

/// Acknowledge a problem of `unstale status`, after you have done what it asks for
///
/// `unstale status` then shows the problem as a note, and the metric `unstale_events_lost` is 0
/// again. A later problem with the same code is shown as a problem. Exits with 1 if there is no
/// such problem, or if it is acknowledged already.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct AcknowledgeArgs {
    /// The code of the problem, as `unstale status` prints it
    #[arg(value_name = "CODE")]
    problem: Problem,
    /// Print one JSON object with the members `code` and `acknowledged`
    #[arg(long)]
    json: bool,
}

/// A problem that can be acknowledged. The others end by themselves when their cause is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Problem {
    /// Events may be lost
    #[value(name = "history.events-lost")]
    EventsLost,
    /// The history did not reach back far enough for the last heal
    #[value(name = "heal.incomplete")]
    HealIncomplete,
    /// The last heal skipped events
    #[value(name = "heal.skipped-events")]
    HealSkippedEvents,
}

impl Problem {
    fn code(self) -> FindingCode {
        match self {
            Self::EventsLost => FindingCode::HistoryEventsLost,
            Self::HealIncomplete => FindingCode::HealIncomplete,
            Self::HealSkippedEvents => FindingCode::HealSkippedEvents,
        }
    }
}

const EXAMPLES: &str = "\
Examples:

  unstale acknowledge history.events-lost
  unstale acknowledge heal.incomplete --json | jq -e .acknowledged";

pub(super) fn run(args: &AcknowledgeArgs) -> Result<Exit, CliError> {
    let config = configure(Scope::All)?;
    let code = args.problem.code();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::of(Exit::Internal))?;
    let acknowledged = runtime.block_on(async {
        let cache =
            Cache::connect(&config.redis, &config.amqp.queue).map_err(CliError::of(Exit::Usage))?;
        reach_redis(&cache).await?;
        acknowledge(&cache, code).await.map_err(CliError::of(Exit::Unavailable))
    })?;
    let mut out = io::stdout().lock();
    let code = code.as_text();
    if args.json {
        writeln!(out, "{}", json!({ "code": code, "acknowledged": acknowledged }))?;
    } else if acknowledged {
        writeln!(out, "acknowledged: {code}")?;
    } else {
        writeln!(out, "there is no problem {code} to acknowledge")?;
    }
    Ok(if acknowledged { Exit::Clean } else { Exit::No })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_named_by_their_codes() {
        for problem in Problem::value_variants() {
            let name = problem.to_possible_value().unwrap().get_name().to_owned();
            assert_eq!(name, problem.code().as_text());
        }
    }
}
