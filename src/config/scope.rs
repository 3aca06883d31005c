//! Which settings a command reads.

use super::settings::{Setting, setting};

/// The settings to read. A setting that a command does not need cannot fail it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All settings.
    All,
    /// The settings for resolving events: the registry, its limits, and the logs. The others have
    /// their defaults.
    Offline,
}

impl Scope {
    pub(super) fn reads(self, name: &str) -> bool {
        const OFFLINE: [Setting; 9] = [
            setting::schemas,
            setting::key_prefix,
            setting::tag_prefix,
            setting::unknown,
            setting::type_from,
            setting::max_keys_per_event,
            setting::max_body_bytes,
            setting::log,
            setting::log_format,
        ];
        self == Self::All || OFFLINE.iter().any(|setting| setting.name == name)
    }
}
