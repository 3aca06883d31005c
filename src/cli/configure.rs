//! The start of every command: settings and logging.

use super::{CliError, Exit};
use crate::config::{Config, Scope};
use crate::telemetry::logs;

/// Reads the settings of a command, and starts logging accordingly. Suspicious variables are logged
/// as warnings.
pub(super) fn configure(scope: Scope) -> Result<Config, CliError> {
    let (config, warnings) = Config::from_env(scope).map_err(CliError::of(Exit::Usage))?;
    logs::init(&config.log, config.log_format).map_err(CliError::of(Exit::Internal))?;
    for warning in warnings {
        tracing::warn!(setting = warning.setting, "{}", warning.message);
    }
    Ok(config)
}
