//! Digests of everything that decides which effects an event has: the rules, and settings.
//!
//! A heal is done for one such digest. A worker with another one heals again. The registry's own
//! digest does not include settings, since settings do not change the positions of rules.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::config::Config;

/// Number of bytes of a digest, which distinguish two sets of settings.
const BYTES: usize = 8;

/// Returns the digest of the settings that decide which effects an event has. The registry's digest
/// includes `vars`.
pub(super) fn of_settings(config: &Config) -> String {
    let (registry, reading) = (&config.registry, config.reading);
    let numbers = [reading.max_body_bytes, registry.max_keys_per_event];
    let texts = [
        registry.key_prefix.clone(),
        registry.tag_prefix.clone(),
        format!("{:?}", reading.type_from),
        format!("{:?}", config.unknown),
    ];
    let mut all = Sha256::new();
    for part in numbers.iter().map(ToString::to_string).chain(texts) {
        all.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        all.update(part);
    }
    all.finalize().iter().take(BYTES).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the digest of a registry together with that of the settings.
pub(super) fn of_both(registry_digest: &str, settings_digest: &str) -> String {
    format!("{registry_digest}-{settings_digest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Scope;

    fn of(settings: &[(&str, &str)]) -> String {
        let all = [
            ("UNSTALE_AMQP_URL", "amqp://127.0.0.1"),
            ("UNSTALE_REDIS_URL", "redis://127.0.0.1"),
            ("UNSTALE_EXCHANGE", "events"),
        ];
        let all = all.iter().chain(settings);
        let environment = all.map(|&(name, value)| (name.into(), value.into()));
        of_settings(
            &Config::from_pairs(environment, |_| unreachable!("no file is named"), Scope::All)
                .unwrap()
                .0,
        )
    }

    #[test]
    fn each_setting_that_decides_effects_changes_the_digest() {
        let default = of(&[]);
        assert_eq!(default.len(), 2 * BYTES);
        let settings = [
            ("UNSTALE_KEY_PREFIX", "oops:"),
            ("UNSTALE_TAG_PREFIX", "tag:"),
            ("UNSTALE_MAX_BODY_BYTES", "5B"),
            ("UNSTALE_MAX_KEYS_PER_EVENT", "7"),
            ("UNSTALE_TYPE_FROM", "routing_key"),
            ("UNSTALE_TYPE_FROM", "header:x"),
            ("UNSTALE_TYPE_FROM", "header:y"),
            ("UNSTALE_UNKNOWN", "drop"),
        ];
        let mut digests: Vec<String> = settings.iter().map(|setting| of(&[*setting])).collect();
        digests.push(default.clone());
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), settings.len() + 1);
        assert_eq!(of(&[("UNSTALE_BATCH", "7")]), default, "it changes no effect");
    }
}
