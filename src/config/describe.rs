//! The effective settings, as one line for the log at start.

use std::fmt;

use super::{
    Config, DeclarePolicy, LogFormat, RedisMode, SecretUrl, TagMaintenance, TlsConfig,
    UnknownPolicy,
};
use crate::quantity::{format_duration, format_size_bytes};

/// Every setting as `name=value`, with secrets masked. Names are those of the variables, in lower
/// case and without prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description(pub Vec<(&'static str, String)>);

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, value)) in self.0.iter().enumerate() {
            let space = if at == 0 { "" } else { " " };
            if value.is_empty()
                || value.contains(|c: char| matches!(c, ' ' | '"') || c.is_control())
            {
                write!(f, "{space}{name}={value:?}")?;
            } else {
                write!(f, "{space}{name}={value}")?;
            }
        }
        Ok(())
    }
}

impl Config {
    /// Returns the effective settings, with secrets masked.
    pub fn describe(&self) -> Description {
        let off = || "off".to_owned();
        let amqp = &self.amqp;
        let redis = &self.redis;
        let mut settings = vec![
            ("amqp_url", urls(&amqp.urls)),
            ("amqp_tls", tls(&amqp.tls)),
            ("redis_url", urls(&redis.urls)),
            ("redis_tls", tls(&redis.tls)),
            ("redis_mode", redis_mode(&redis.mode)),
            ("redis_eviction", if self.refuses_eviction { "refuse" } else { "warn" }.to_owned()),
            ("schemas", self.registry.schemas.display().to_string()),
            ("exchange", amqp.exchange.clone()),
            ("queue", amqp.queue.clone()),
            ("bind", amqp.bind.join(",")),
            ("declare", declare(amqp.declare).to_owned()),
            ("unknown", unknown(self.unknown).to_owned()),
            ("type_from", self.reading.type_from.to_string()),
            ("tag_prefix", redis.tag_prefix.clone()),
            ("tag_maintenance", tag_maintenance(self.tag_maintenance).to_owned()),
            ("key_prefix", self.registry.key_prefix.clone()),
            ("vars", self.registry.vars.0.keys().map(String::as_str).collect::<Vec<_>>().join(",")),
            ("prefetch", amqp.prefetch.to_string()),
            ("batch", self.batch.to_string()),
            (
                "retry_delays",
                amqp.retry_delays
                    .iter()
                    .map(|delay| format_duration(*delay))
                    .collect::<Vec<_>>()
                    .join(","),
            ),
        ];
        match amqp.history {
            Some(kept) => settings.extend([
                ("history", "on".to_owned()),
                ("history_max_age", format_duration(kept.max_age)),
                ("history_max_bytes", format_size_bytes(kept.max_bytes)),
            ]),
            None => settings.push(("history", off())),
        }
        settings.extend([
            ("max_body_bytes", format_size_bytes(self.reading.max_body_bytes as u64)),
            ("max_keys_per_event", self.registry.max_keys_per_event.to_string()),
            ("warm_concurrency", self.warm.concurrency.to_string()),
            ("warm_timeout", format_duration(self.warm.timeout)),
            ("warm_rate", self.warm.rate.map_or_else(off, |rate| rate.to_string())),
            ("warm_max_bytes", format_size_bytes(self.warm.max_bytes as u64)),
            ("fence_ttl", format_duration(redis.fence_ttl)),
            ("heal_window", self.heal_window.map_or_else(off, format_duration)),
            ("http_addr", self.http_addr.map_or_else(off, |addr| addr.to_string())),
            ("log", self.log.clone()),
            ("log_format", log_format(self.log_format).to_owned()),
            ("shutdown_grace", format_duration(self.shutdown_grace)),
        ]);
        Description(settings)
    }
}

fn urls(urls: &[SecretUrl]) -> String {
    urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn tls(tls: &TlsConfig) -> String {
    let roots = if tls.ca_pem.is_some() { "own-roots" } else { "system-roots" };
    let client = if tls.cert_pem.is_some() { ",client-certificate" } else { "" };
    format!("{roots}{client}")
}

fn redis_mode(mode: &RedisMode) -> String {
    match mode {
        RedisMode::Single => "single".to_owned(),
        RedisMode::Cluster => "cluster".to_owned(),
        RedisMode::Sentinel { master } => format!("sentinel:{master}"),
    }
}

const fn declare(policy: DeclarePolicy) -> &'static str {
    match policy {
        DeclarePolicy::All => "all",
        DeclarePolicy::Queues => "queues",
        DeclarePolicy::None => "none",
    }
}

const fn unknown(policy: UnknownPolicy) -> &'static str {
    match policy {
        UnknownPolicy::Retry => "retry",
        UnknownPolicy::Dead => "dead",
        UnknownPolicy::Drop => "drop",
    }
}

const fn tag_maintenance(maintenance: TagMaintenance) -> &'static str {
    match maintenance {
        TagMaintenance::Auto => "auto",
        TagMaintenance::On => "on",
        TagMaintenance::Off => "off",
    }
}

const fn log_format(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }
}
