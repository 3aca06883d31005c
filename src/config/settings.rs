//! The table of all settings: names and defaults.

use serde::Deserialize;
use strsim::osa_distance;

/// Prefix of all our variables.
pub(super) const PREFIX: &str = "UNSTALE_";

/// Prefix of the variables that are values of `{vars.NAME}`.
pub(super) const VAR_PREFIX: &str = "UNSTALE_VAR_";

/// Suffix of a setting's name for a variable that names a file with the value.
pub(super) const FILE_SUFFIX: &str = "_FILE";

/// One setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Name of its variable.
    pub name: &'static str,
    /// Text of the default. `None` if there is none.
    pub default: Option<&'static str>,
}

/// Declares the settings: `field NAME = default`. The field must be the name in lower case without
/// its prefix, since `envy` matches them so.
macro_rules! settings {
    ($($field:ident $name:literal = $default:expr;)*) => {
        /// The settings as text. `None` where the environment has no value.
        #[derive(Default, Deserialize)]
        pub(super) struct RawSettings {
            $(pub(super) $field: Option<String>,)*
        }

        #[allow(non_upper_case_globals, reason = "named like the fields of RawSettings")]
        pub(super) mod setting {
            $(pub(in crate::config) const $field: super::Setting = super::Setting { name: $name, default: $default };)*
        }

        /// All settings, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[$(setting::$field,)*];

        #[cfg(test)]
        const FIELDS: &[(&str, Setting)] = &[$((stringify!($field), setting::$field),)*];
    };
}

settings! {
    amqp_url "UNSTALE_AMQP_URL" = Some("amqp://guest:guest@127.0.0.1:5672/%2f");
    amqp_tls_ca "UNSTALE_AMQP_TLS_CA" = None;
    amqp_tls_cert "UNSTALE_AMQP_TLS_CERT" = None;
    amqp_tls_key "UNSTALE_AMQP_TLS_KEY" = None;
    redis_url "UNSTALE_REDIS_URL" = Some("redis://127.0.0.1:6379/0");
    redis_mode "UNSTALE_REDIS_MODE" = Some("single");
    redis_sentinel_master "UNSTALE_REDIS_SENTINEL_MASTER" = None;
    redis_eviction "UNSTALE_REDIS_EVICTION" = Some("warn");
    redis_tls_ca "UNSTALE_REDIS_TLS_CA" = None;
    redis_tls_cert "UNSTALE_REDIS_TLS_CERT" = None;
    redis_tls_key "UNSTALE_REDIS_TLS_KEY" = None;
    schemas "UNSTALE_SCHEMAS" = Some("schemas");
    exchange "UNSTALE_EXCHANGE" = Some("events");
    queue "UNSTALE_QUEUE" = Some("unstale");
    bind "UNSTALE_BIND" = Some("");
    declare "UNSTALE_DECLARE" = Some("all");
    unknown "UNSTALE_UNKNOWN" = Some("retry");
    type_from "UNSTALE_TYPE_FROM" = Some("any");
    tag_prefix "UNSTALE_TAG_PREFIX" = Some("cache_tag:");
    tag_maintenance "UNSTALE_TAG_MAINTENANCE" = Some("auto");
    history "UNSTALE_HISTORY" = Some("on");
    history_max_age "UNSTALE_HISTORY_MAX_AGE" = Some("7d");
    history_max_bytes "UNSTALE_HISTORY_MAX_BYTES" = Some("10GiB");
    key_prefix "UNSTALE_KEY_PREFIX" = Some("");
    prefetch "UNSTALE_PREFETCH" = Some("1000");
    batch "UNSTALE_BATCH" = Some("256");
    retry_delays "UNSTALE_RETRY_DELAYS" = Some("1s,10s,1m,10m");
    max_body_bytes "UNSTALE_MAX_BODY_BYTES" = Some("1MiB");
    max_keys_per_event "UNSTALE_MAX_KEYS_PER_EVENT" = Some("10000");
    warm_concurrency "UNSTALE_WARM_CONCURRENCY" = Some("16");
    warm_timeout "UNSTALE_WARM_TIMEOUT" = Some("5s");
    warm_rate "UNSTALE_WARM_RATE" = Some("200/s");
    warm_max_bytes "UNSTALE_WARM_MAX_BYTES" = Some("8MiB");
    fence_ttl "UNSTALE_FENCE_TTL" = Some("24h");
    heal_window "UNSTALE_HEAL_WINDOW" = Some("5m");
    http_addr "UNSTALE_HTTP_ADDR" = Some("127.0.0.1:9477");
    log "UNSTALE_LOG" = Some("info");
    log_format "UNSTALE_LOG_FORMAT" = Some("text");
    shutdown_grace "UNSTALE_SHUTDOWN_GRACE" = Some("25s");
}

/// Returns the setting of exactly that name.
pub(super) fn find(name: &str) -> Option<Setting> {
    SETTINGS.iter().copied().find(|setting| setting.name == name)
}

/// Returns the setting with the most similar name, if it is similar enough for a misspelling.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let bare = name.strip_suffix(FILE_SUFFIX).unwrap_or(name);
    // The prefix is correct in any case. A third of the rest may differ.
    let limit = bare.len().saturating_sub(PREFIX.len()).div_ceil(3);
    let upper = bare.to_ascii_uppercase();
    let (distance, setting) =
        SETTINGS.iter().map(|setting| (osa_distance(&upper, setting.name), setting.name)).min()?;
    // The first half of a name counts too: it is an incomplete name.
    let begins = SETTINGS
        .iter()
        .map(|setting| setting.name)
        .find(|known| bare.len() > PREFIX.len() && known.starts_with(&format!("{upper}_")));
    (distance <= limit).then_some(setting).or(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_names_match_the_fields_that_envy_reads() {
        for (field, setting) in FIELDS {
            assert_eq!(setting.name, format!("{PREFIX}{}", field.to_uppercase()));
            assert!(
                !setting.name.ends_with(FILE_SUFFIX) && !setting.name.starts_with(VAR_PREFIX),
                "{}",
                setting.name
            );
        }
    }

    #[test]
    fn a_misspelt_setting_name_has_a_suggestion() {
        for (given, nearest_name) in [
            ("UNSTALE_PREFECTH", Some("UNSTALE_PREFETCH")),
            ("UNSTALE_REDIS_URI", Some("UNSTALE_REDIS_URL")),
            ("UNSTALE_RETRY_DELAY", Some("UNSTALE_RETRY_DELAYS")),
            ("UNSTALE_AMQP_URI_FILE", Some("UNSTALE_AMQP_URL")),
            ("UNSTALE_log", Some("UNSTALE_LOG")),
            ("UNSTALE_REDIS", Some("UNSTALE_REDIS_URL")),
            ("UNSTALE_amqp", Some("UNSTALE_AMQP_URL")),
            ("UNSTALE_WORKERS_PER_CORE", None),
            ("UNSTALE_", None),
        ] {
            assert_eq!(nearest(given), nearest_name, "{given}");
        }
    }
}
