//! Options for loading a registry.

use std::path::PathBuf;

use crate::config::{RegistryConfig, Vars};

/// Directory to load, and the settings that affect rules.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The directory, read recursively.
    pub schemas: PathBuf,
    /// `UNSTALE_KEY_PREFIX`
    pub key_prefix: String,
    /// `UNSTALE_TAG_PREFIX`
    pub tag_prefix: String,
    /// Values of `{vars.NAME}`.
    pub vars: Vars,
    /// `UNSTALE_MAX_KEYS_PER_EVENT`
    pub max_keys_per_event: usize,
    /// Handling of a variable without a value.
    pub missing_vars: MissingVars,
}

impl LoadOptions {
    /// Returns the options of the worker, which refuses a variable without a value.
    pub fn for_run(config: &RegistryConfig) -> Self {
        Self {
            schemas: config.schemas.clone(),
            key_prefix: config.key_prefix.clone(),
            tag_prefix: config.tag_prefix.clone(),
            vars: config.vars.clone(),
            max_keys_per_event: config.max_keys_per_event,
            missing_vars: MissingVars::Refuse,
        }
    }
}

/// Handling of a variable without a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingVars {
    /// An error: the registry does not load (`run`).
    Refuse,
    /// A warning. The placeholder stays as written (`check`, `plan`).
    Warn,
}
