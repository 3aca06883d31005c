//! Checks the text of each setting, and combinations of settings.
//!
//! Every setting is read even if others are invalid, so that one run reports all problems.

use std::time::Duration;

use super::environment::Environment;
use super::problem::{ConfigProblem, ConfigProblems, Warning};
use super::settings::{RawSettings, Setting, setting};
use super::values::{
    Expected, MAX_SHORT_STRING_BYTES, duration_above_zero, log_directives, name, not_empty,
    not_ours, one_of, or_off, path, pem, quantity, queue, retry_delays, routing_keys,
    size_above_zero, size_in_memory, socket_addr, whole, whole_seconds,
};
use super::{
    AmqpConfig, Config, DeclarePolicy, HistoryConfig, LogFormat, RedisConfig, RedisMode,
    RegistryConfig, SecretUrl, TagMaintenance, TlsConfig, UnknownPolicy, WarmConfig, certificates,
    nodes,
};
use crate::event::{Reading, TypeFrom};
use crate::quantity::{Rate, format_duration};

/// Maximum time that deliveries are held while Redis is away. It counts towards the age of an event
/// when it is applied.
const OUTAGE_HOLD: Duration = Duration::from_secs(60);

impl Environment {
    pub(super) fn check(self) -> Result<(Config, Vec<Warning>), ConfigProblems> {
        let mut checker = Checker { problems: self.problems, warnings: self.warnings };
        let raw = self.settings;
        let tag_prefix = checker.read(setting::tag_prefix, raw.tag_prefix.as_deref(), |text| {
            not_empty(text).and_then(not_ours)
        });
        let registry = RegistryConfig {
            tag_prefix: tag_prefix.clone(),
            schemas: checker.read(setting::schemas, raw.schemas.as_deref(), path),
            key_prefix: checker.read(setting::key_prefix, raw.key_prefix.as_deref(), |text| {
                not_ours(text.to_owned())
            }),
            vars: self.vars,
            max_keys_per_event: checker.read(
                setting::max_keys_per_event,
                raw.max_keys_per_event.as_deref(),
                |text| whole(text, 1, 100_000_000, "10000"),
            ),
        };
        let warm = WarmConfig {
            concurrency: checker.read(
                setting::warm_concurrency,
                raw.warm_concurrency.as_deref(),
                |text| whole(text, 1, 65_535, "16"),
            ),
            timeout: checker.read(
                setting::warm_timeout,
                raw.warm_timeout.as_deref(),
                duration_above_zero,
            ),
            rate: checker.read(setting::warm_rate, raw.warm_rate.as_deref(), |text| {
                or_off(text, |text| quantity(Rate::parse(text)))
            }),
            max_bytes: checker.read(
                setting::warm_max_bytes,
                raw.warm_max_bytes.as_deref(),
                size_in_memory,
            ),
        };
        let mut config = Config {
            registry,
            warm,
            batch: checker.read(setting::batch, raw.batch.as_deref(), |text| whole(text, 1, 65_535, "256")),
            unknown: checker.read(setting::unknown, raw.unknown.as_deref(), |text| {
                one_of(text, &[("retry", UnknownPolicy::Retry), ("dead", UnknownPolicy::Dead), ("drop", UnknownPolicy::Drop)])
            }),
            reading: Reading {
                max_body_bytes: checker.read(setting::max_body_bytes, raw.max_body_bytes.as_deref(), size_in_memory),
                type_from: checker.read(setting::type_from, raw.type_from.as_deref(), |text| {
                    TypeFrom::parse(text).ok_or_else(|| {
                        "expected any, routing_key, header:NAME or body:NAME (of a member within another: body:a.b)".to_owned()
                    })
                }),
            },
            http_addr: checker.read(setting::http_addr, raw.http_addr.as_deref(), |text| or_off(text, socket_addr)),
            log: checker.read(setting::log, raw.log.as_deref(), log_directives),
            log_format: checker.read(setting::log_format, raw.log_format.as_deref(), |text| {
                one_of(text, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
            }),
            shutdown_grace: checker.read(setting::shutdown_grace, raw.shutdown_grace.as_deref(), duration_above_zero),
            refuses_eviction: checker
                .read(setting::redis_eviction, raw.redis_eviction.as_deref(), |text| one_of(text, &[("warn", false), ("refuse", true)])),
            tag_maintenance: checker.read(setting::tag_maintenance, raw.tag_maintenance.as_deref(), |text| {
                one_of(text, &[("auto", TagMaintenance::Auto), ("on", TagMaintenance::On), ("off", TagMaintenance::Off)])
            }),
            heal_window: checker.read(setting::heal_window, raw.heal_window.as_deref(), |text| or_off(text, duration_above_zero)),
            amqp: amqp(&mut checker, &raw),
            redis: redis(&mut checker, &raw, tag_prefix),
        };
        if raw.batch.is_none() {
            config.batch = config.batch.min(config.amqp.prefetch.into());
        }
        cross_check(&mut checker, &config);
        checker.problems.sort_by(|a, b| a.setting.cmp(&b.setting));
        let Checker { problems, warnings } = checker;
        if problems.is_empty() {
            Ok((config, warnings))
        } else {
            Err(ConfigProblems { problems, ignored: warnings })
        }
    }
}

/// Prefetch multiplier while the queue has a backlog.
///
/// At full speed, 1,000 deliveries make the round trip to the broker in 7 ms, and this limits the
/// rate more than the worker does. A factor of six drains a backlog a fifth faster (docs/bench), in
/// no more memory than three. Eight is hardly faster.
const BACKLOG_PREFETCH: u16 = 6;

fn amqp(checker: &mut Checker, raw: &RawSettings) -> AmqpConfig {
    let history = checker.read(setting::history, raw.history.as_deref(), |text| {
        one_of(text, &[("on", true), ("off", false)])
    });
    let kept = HistoryConfig {
        max_age: checker.read(
            setting::history_max_age,
            raw.history_max_age.as_deref(),
            whole_seconds,
        ),
        max_bytes: checker.read(
            setting::history_max_bytes,
            raw.history_max_bytes.as_deref(),
            size_above_zero,
        ),
    };
    let urls = checker.read(setting::amqp_url, raw.amqp_url.as_deref(), nodes::amqp);
    let tls = tls(
        checker,
        (setting::amqp_tls_ca, raw.amqp_tls_ca.as_deref()),
        (setting::amqp_tls_cert, raw.amqp_tls_cert.as_deref()),
        (setting::amqp_tls_key, raw.amqp_tls_key.as_deref()),
    );
    checker.tls_is_used(setting::amqp_url, &urls, &tls, "amqps");
    let prefetch = checker
        .read(setting::prefetch, raw.prefetch.as_deref(), |text| whole(text, 1, 65_535, "1000"));
    AmqpConfig {
        urls,
        tls,
        exchange: checker.read(setting::exchange, raw.exchange.as_deref(), |text| {
            name(text, MAX_SHORT_STRING_BYTES)
        }),
        queue: checker.read(setting::queue, raw.queue.as_deref(), queue),
        bind: checker.read(setting::bind, raw.bind.as_deref(), routing_keys),
        declare: checker.read(setting::declare, raw.declare.as_deref(), |text| {
            one_of(
                text,
                &[
                    ("all", DeclarePolicy::All),
                    ("queues", DeclarePolicy::Queues),
                    ("none", DeclarePolicy::None),
                ],
            )
        }),
        prefetch,
        // An explicit prefetch applies to a backlog too.
        backlog_prefetch: if raw.prefetch.is_some() {
            prefetch
        } else {
            prefetch.saturating_mul(BACKLOG_PREFETCH)
        },
        retry_delays: checker.read(
            setting::retry_delays,
            raw.retry_delays.as_deref(),
            retry_delays,
        ),
        history: history.then_some(kept),
    }
}

fn redis(checker: &mut Checker, raw: &RawSettings, tag_prefix: String) -> RedisConfig {
    let urls = checker.read(setting::redis_url, raw.redis_url.as_deref(), nodes::redis);
    let tls = tls(
        checker,
        (setting::redis_tls_ca, raw.redis_tls_ca.as_deref()),
        (setting::redis_tls_cert, raw.redis_tls_cert.as_deref()),
        (setting::redis_tls_key, raw.redis_tls_key.as_deref()),
    );
    checker.tls_is_used(setting::redis_url, &urls, &tls, "rediss");
    RedisConfig {
        mode: redis_mode(checker, raw, &urls),
        urls,
        tls,
        tag_prefix,
        fence_ttl: checker.read(setting::fence_ttl, raw.fence_ttl.as_deref(), duration_above_zero),
    }
}

fn redis_mode(checker: &mut Checker, raw: &RawSettings, urls: &[SecretUrl]) -> RedisMode {
    let master = checker.optional(
        setting::redis_sentinel_master,
        raw.redis_sentinel_master.as_deref(),
        |text| name(text, usize::MAX),
    );
    // The name is set below.
    let sentinel = RedisMode::Sentinel { master: String::new() };
    let mode = checker.read(setting::redis_mode, raw.redis_mode.as_deref(), |text| {
        one_of(
            text,
            &[
                ("single", RedisMode::Single),
                ("cluster", RedisMode::Cluster),
                ("sentinel", sentinel.clone()),
            ],
        )
    });
    let master_name = setting::redis_sentinel_master.name;
    if !checker.has_problem(setting::redis_mode)
        && !checker.has_problem(setting::redis_sentinel_master)
    {
        match (&mode, &master) {
            (RedisMode::Sentinel { .. }, None) => {
                checker.problem(
                    setting::redis_sentinel_master,
                    "missing: UNSTALE_REDIS_MODE=sentinel needs the name that the sentinels use for the primary",
                );
            }
            (RedisMode::Single | RedisMode::Cluster, Some(_)) => {
                let message = format!(
                    "set, but only UNSTALE_REDIS_MODE=sentinel reads it: set that, or unset {master_name}"
                );
                checker.problem(setting::redis_sentinel_master, &message);
            }
            _ => {}
        }
    }
    if !checker.has_problem(setting::redis_mode) && !checker.has_problem(setting::redis_url) {
        if mode == RedisMode::Single && urls.len() > 1 {
            checker.problem(
                setting::redis_url,
                "several servers, but UNSTALE_REDIS_MODE=single takes one: name one, or set the mode to cluster or sentinel",
            );
        }
        if mode == RedisMode::Cluster
            && urls.iter().any(|url| !matches!(url.expose().path(), "" | "/" | "/0"))
        {
            checker
                .problem(setting::redis_url, "a cluster has database 0 alone: end the URL with /0");
        }
    }
    match mode {
        RedisMode::Sentinel { .. } => RedisMode::Sentinel { master: master.unwrap_or_default() },
        other => other,
    }
}

type Given<'r> = (Setting, Option<&'r str>);

fn tls(checker: &mut Checker, ca: Given<'_>, cert: Given<'_>, key: Given<'_>) -> TlsConfig {
    let tls = TlsConfig {
        ca_pem: checker
            .optional(ca.0, ca.1, |text| pem(text, "CERTIFICATE-----", certificates::check_roots)),
        cert_pem: checker.optional(cert.0, cert.1, |text| {
            pem(text, "CERTIFICATE-----", certificates::check_certificate)
        }),
        key_pem: checker
            .optional(key.0, key.1, |text| pem(text, "PRIVATE KEY-----", certificates::check_key)),
    };
    if let (Some(cert_pem), Some(key_pem)) = (&tls.cert_pem, &tls.key_pem)
        && !certificates::belong_together(cert_pem, key_pem)
    {
        let message = format!(
            "not the private key of the certificate in {}: set the key that belongs to that certificate",
            cert.0.name
        );
        checker.problem(key.0, &message);
    }
    match (cert.1, key.1) {
        (Some(_), None) if !checker.has_problem(key.0) => {
            checker.problem(key.0, &format!("missing: {} needs its private key", cert.0.name))
        }
        (None, Some(_)) if !checker.has_problem(cert.0) => {
            checker.problem(cert.0, &format!("missing: {} needs its certificate", key.0.name))
        }
        _ => {}
    }
    tls
}

fn cross_check(checker: &mut Checker, config: &Config) {
    if !checker.has_problem(setting::batch)
        && !checker.has_problem(setting::prefetch)
        && config.batch > usize::from(config.amqp.prefetch)
    {
        checker.problem(setting::batch, "above UNSTALE_PREFETCH, so that no batch could ever be full: lower it, or raise UNSTALE_PREFETCH");
    }
    if !checker.has_problem(setting::fence_ttl) && !checker.has_problem(setting::retry_delays) {
        let all_delays: Duration = config.amqp.retry_delays.iter().sum();
        let least = all_delays * 2 + OUTAGE_HOLD;
        if config.redis.fence_ttl < least {
            let message = format!(
                "too short to outlive a retried event: expected at least {}, twice the sum of UNSTALE_RETRY_DELAYS and {} more; raise it, or shorten the delays",
                format_duration(least),
                format_duration(OUTAGE_HOLD)
            );
            checker.problem(setting::fence_ttl, &message);
        }
    }
}

/// Collects problems and continues.
struct Checker {
    problems: Vec<ConfigProblem>,
    warnings: Vec<Warning>,
}

impl Checker {
    /// Returns the setting's value, or its default. An invalid value also gives the default, so
    /// that the other checks can go on.
    fn read<T>(
        &mut self,
        setting: Setting,
        given: Option<&str>,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> T {
        if let Some(text) = given {
            match parse(text) {
                Ok(value) => return value,
                Err(expected) => self.problem(setting, &expected),
            }
        }
        let default = setting.default.unwrap_or_default();
        // Defaults are constants, and a test reads each of them.
        parse(default).expect("the default is valid")
    }

    /// Returns the setting's value if it is set and valid.
    fn optional<T>(
        &mut self,
        setting: Setting,
        given: Option<&str>,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Option<T> {
        match parse(given?) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.problem(setting, &expected);
                None
            }
        }
    }

    fn problem(&mut self, setting: Setting, message: &str) {
        self.problems
            .push(ConfigProblem { setting: setting.name.to_owned(), message: message.to_owned() });
    }

    fn has_problem(&self, setting: Setting) -> bool {
        self.problems.iter().any(|problem| {
            problem.setting.strip_suffix("_FILE").unwrap_or(&problem.setting) == setting.name
        })
    }

    fn tls_is_used(&mut self, url: Setting, urls: &[SecretUrl], tls: &TlsConfig, scheme: &str) {
        let given = tls.ca_pem.is_some() || tls.cert_pem.is_some() || tls.key_pem.is_some();
        if given && !self.has_problem(url) && urls.iter().all(|url| url.expose().scheme() != scheme)
        {
            let message = format!(
                "does not begin with {scheme}://, so the connection is not encrypted and its _TLS_ settings are not used"
            );
            self.warnings.push(Warning { setting: url.name.to_owned(), message });
        }
    }
}
