//! `unstale run`

use clap::Args;

use super::{CommandError, Exit, configure};
use crate::config::Scope;
use crate::registry::{LoadOptions, MissingVars, Registry};

/// Run the worker: events in, cache right
///
/// Consumes events until SIGTERM or SIGINT, applies their effects to Redis, and acknowledges them once they hold. It waits for servers that
/// are not there yet, picks up changed schema files by itself, and on a signal settles what it has in hand within UNSTALE_SHUTDOWN_GRACE.
/// Workers with the same UNSTALE_QUEUE share the work: start more of them to go faster.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct RunArgs {}

const EXAMPLES: &str = "\
Examples:

  UNSTALE_SCHEMAS=./schemas unstale run
  curl -s http://127.0.0.1:9477/readyz";

pub(super) fn run(_args: &RunArgs) -> Result<Exit, CommandError> {
    let config = configure(Scope::All)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), settings = %config.describe(), "starting");
    let loaded = Registry::load(&LoadOptions {
        schemas: config.registry.schemas.clone(),
        key_prefix: config.registry.key_prefix.clone(),
        vars: config.registry.vars.clone(),
        max_keys_per_event: config.registry.max_keys_per_event,
        missing_vars: MissingVars::Refuse,
    })
    .map_err(CommandError::usage)?;
    tracing::info!(digest = loaded.registry.digest, rules = loaded.registry.rules.len(), "registry loaded");
    Err(CommandError::internal("the worker is not built in yet"))
}
