use proptest::prelude::*;

use super::*;

fn load(
    pairs: &[(&str, &str)],
    files: &[(&str, &str)],
) -> Result<(Config, Vec<Warning>), ConfigProblems> {
    Config::from_pairs(
        pairs.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))),
        |path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| text.as_bytes().to_vec())
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        },
        Scope::All,
    )
}

fn config(pairs: &[(&str, &str)]) -> Config {
    load(pairs, &[]).unwrap().0
}

fn problems(pairs: &[(&str, &str)]) -> Vec<String> {
    load(pairs, &[]).unwrap_err().problems.iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_environment_gives_all_defaults() {
    let (config, warnings) = load(&[("PATH", "/bin")], &[]).unwrap();
    assert_eq!(warnings, []);
    let ms = Duration::from_millis;
    assert_eq!(config.amqp.urls[0].expose().as_str(), "amqp://guest:guest@127.0.0.1:5672/%2f");
    assert_eq!(config.redis.urls[0].expose().as_str(), "redis://127.0.0.1:6379/0");
    assert_eq!(config.redis.mode, RedisMode::Single);
    assert_eq!(config.registry.schemas, Path::new("schemas"));
    assert_eq!((config.amqp.exchange.as_str(), config.amqp.queue.as_str()), ("events", "unstale"));
    assert_eq!(config.amqp.bind, Vec::<String>::new());
    assert_eq!((config.amqp.declare, config.unknown), (DeclarePolicy::All, UnknownPolicy::Retry));
    assert_eq!(config.reading.type_from, crate::event::TypeFrom::Any);
    assert_eq!(
        (config.redis.tag_prefix.as_str(), config.registry.key_prefix.as_str()),
        ("cache_tag:", "")
    );
    assert_eq!(
        config.amqp.history,
        Some(HistoryConfig { max_age: ms(604_800_000), max_bytes: 10 << 30 })
    );
    assert_eq!(
        (config.amqp.prefetch, config.amqp.backlog_prefetch, config.batch),
        (1_000, 6_000, 256)
    );
    let set = load(&[("UNSTALE_PREFETCH", "1000")], &[]).unwrap().0.amqp;
    assert_eq!(
        (set.prefetch, set.backlog_prefetch),
        (1_000, 1_000),
        "an explicit prefetch applies to a backlog too"
    );
    assert_eq!(
        load(&[("UNSTALE_PREFETCH", "20")], &[]).unwrap().0.batch,
        20,
        "a batch nobody set fits into the prefetch"
    );
    assert_eq!(config.amqp.retry_delays, [ms(1_000), ms(10_000), ms(60_000), ms(600_000)]);
    assert_eq!(
        (config.reading.max_body_bytes, config.registry.max_keys_per_event),
        (1 << 20, 10_000)
    );
    let rate = Some(Rate { count: 200, per: ms(1_000) });
    assert_eq!(
        config.warm,
        WarmConfig { concurrency: 16, timeout: ms(5_000), rate, max_bytes: 8 << 20 }
    );
    assert_eq!((config.redis.fence_ttl, config.heal_window), (ms(86_400_000), Some(ms(300_000))));
    assert_eq!(config.http_addr, Some(SocketAddr::from(([127, 0, 0, 1], 9477))));
    assert_eq!((config.log.as_str(), config.log_format), ("info", LogFormat::Text));
    assert_eq!(config.shutdown_grace, ms(25_000));
    for tls in [&config.amqp.tls, &config.redis.tls] {
        assert!(tls.ca_pem.is_none() && tls.cert_pem.is_none() && tls.key_pem.is_none());
    }
}

#[test]
fn tags_under_a_foreign_prefix_are_maintained_only_if_set() {
    for (prefix, maintenance, expected) in [
        ("cache_tag:", "auto", true),
        ("cache_tag:", "off", false),
        ("tagged:", "auto", false),
        ("cache_tag", "auto", false),
        ("tagged:", "on", true),
    ] {
        let config =
            config(&[("UNSTALE_TAG_PREFIX", prefix), ("UNSTALE_TAG_MAINTENANCE", maintenance)]);
        assert_eq!(config.maintains_tags(), expected, "{prefix} {maintenance}");
    }
    assert!(config(&[]).maintains_tags());
}

/// A self-signed certificate with its key, and another key. They are used in these tests only.
const CERT: &str = include_str!("tests/certificate.pem");
const KEY: &str = include_str!("tests/key.pem");
const OTHER_KEY: &str = include_str!("tests/other-key.pem");

/// Each row has a setting, a valid value with the settings it needs, its text in the line at start,
/// and invalid values.
#[test]
fn every_setting_accepts_valid_values_and_refuses_others() {
    type Row = (
        &'static str,
        &'static str,
        &'static [(&'static str, &'static str)],
        (&'static str, &'static str),
        &'static [&'static str],
    );
    let rows: [Row; 39] = [
        (
            "AMQP_URL",
            "amqps://a,b/v",
            &[],
            ("amqp_url", "amqps://a/v,amqps://b/v"),
            &["", "host:5672", "http://h", "amqp://h/"],
        ),
        (
            "AMQP_TLS_CA",
            CERT,
            &[("UNSTALE_AMQP_URL", "amqps://h")],
            ("amqp_tls", "own-roots"),
            &["", "/etc/ca.pem"],
        ),
        (
            "AMQP_TLS_CERT",
            CERT,
            &[("UNSTALE_AMQP_URL", "amqps://h"), ("UNSTALE_AMQP_TLS_KEY", KEY)],
            ("amqp_tls", "system-roots,client-certificate"),
            &[CERT],
        ),
        (
            "AMQP_TLS_KEY",
            KEY,
            &[("UNSTALE_AMQP_URL", "amqps://h"), ("UNSTALE_AMQP_TLS_CERT", CERT)],
            ("amqp_tls", "system-roots,client-certificate"),
            &[KEY],
        ),
        (
            "REDIS_URL",
            "rediss://u:pw@h:6380/2",
            &[],
            ("redis_url", "rediss://u:***@h:6380/2"),
            &["", "redis://h/x", "redis://a,b"],
        ),
        ("REDIS_MODE", "cluster", &[], ("redis_mode", "cluster"), &["", "Single", "sentinel"]),
        (
            "REDIS_SENTINEL_MASTER",
            "m",
            &[("UNSTALE_REDIS_MODE", "sentinel")],
            ("redis_mode", "sentinel:m"),
            &["", "m"],
        ),
        ("REDIS_EVICTION", "refuse", &[], ("redis_eviction", "refuse"), &["", "yes"]),
        (
            "REDIS_TLS_CA",
            CERT,
            &[("UNSTALE_REDIS_URL", "rediss://h")],
            ("redis_tls", "own-roots"),
            &["", "x"],
        ),
        (
            "REDIS_TLS_CERT",
            CERT,
            &[("UNSTALE_REDIS_URL", "rediss://h"), ("UNSTALE_REDIS_TLS_KEY", KEY)],
            ("redis_tls", "system-roots,client-certificate"),
            &[CERT],
        ),
        (
            "REDIS_TLS_KEY",
            KEY,
            &[("UNSTALE_REDIS_URL", "rediss://h"), ("UNSTALE_REDIS_TLS_CERT", CERT)],
            ("redis_tls", "system-roots,client-certificate"),
            &[KEY],
        ),
        ("SCHEMAS", "/etc/rules", &[], ("schemas", "/etc/rules"), &[""]),
        ("EXCHANGE", "domain", &[], ("exchange", "domain"), &["", "a\nb"]),
        ("QUEUE", "team-a", &[], ("queue", "team-a"), &["", "amq.x"]),
        ("BIND", "a.*, b.#,a.*", &[], ("bind", "a.*,b.#"), &["a,,b", ","]),
        ("DECLARE", "none", &[], ("declare", "none"), &["", "some"]),
        ("UNKNOWN", "drop", &[], ("unknown", "drop"), &["", "ignore"]),
        (
            "TYPE_FROM",
            "header:rbs2-msg-type",
            &[],
            ("type_from", "header:rbs2-msg-type"),
            &["", "body", "header:", "body:a..b", "property:type"],
        ),
        (
            "TAG_PREFIX",
            "app:\u{1}tags\u{1}",
            &[],
            ("tag_prefix", "app:\u{1}tags\u{1}"),
            &["", "unstale:"],
        ),
        ("TAG_MAINTENANCE", "off", &[], ("tag_maintenance", "off"), &["", "no"]),
        ("HISTORY", "off", &[], ("history", "off"), &["", "false"]),
        ("HISTORY_MAX_AGE", "48h", &[], ("history_max_age", "2d"), &["", "7D", "0s", "1500ms"]),
        ("HISTORY_MAX_BYTES", "1024MiB", &[], ("history_max_bytes", "1GiB"), &["", "10GB", "0B"]),
        ("KEY_PREFIX", "eu\u{1}", &[], ("key_prefix", "eu\u{1}"), &["unstale:x"]),
        ("PREFETCH", "65535", &[], ("prefetch", "65535"), &["", "0", "65536", "+5", "1e3"]),
        ("BATCH", "1000", &[], ("batch", "1000"), &["", "0", "1001", "-1"]),
        (
            "RETRY_DELAYS",
            "500ms, 60s",
            &[],
            ("retry_delays", "500ms,1m"),
            &["", "1s,1s", "60s,1m", "10s,1s", "0s,1s", "1s,50d", "1s,"],
        ),
        ("MAX_BODY_BYTES", "64KiB", &[], ("max_body_bytes", "64KiB"), &["", "1", "0B"]),
        ("MAX_KEYS_PER_EVENT", "1", &[], ("max_keys_per_event", "1"), &["", "0", "x"]),
        ("WARM_CONCURRENCY", "4", &[], ("warm_concurrency", "4"), &["", "0"]),
        ("WARM_TIMEOUT", "250ms", &[], ("warm_timeout", "250ms"), &["", "0s", "5"]),
        ("WARM_RATE", "off", &[], ("warm_rate", "off"), &["", "200", "0/s"]),
        ("WARM_MAX_BYTES", "1MiB", &[], ("warm_max_bytes", "1MiB"), &["", "0B"]),
        // The minimum is twice 11 min 11 s, and a minute.
        ("FENCE_TTL", "1402s", &[], ("fence_ttl", "1402s"), &["", "1401s", "1d1h"]),
        ("HEAL_WINDOW", "off", &[], ("heal_window", "off"), &["", "0s", "no"]),
        (
            "HTTP_ADDR",
            "[::]:80",
            &[],
            ("http_addr", "[::]:80"),
            &["", "localhost:80", ":80", "9477"],
        ),
        (
            "LOG",
            "warn,unstale::broker=debug",
            &[],
            ("log", "warn,unstale::broker=debug"),
            &["", "verbose", "unstale=loud"],
        ),
        ("LOG_FORMAT", "json", &[], ("log_format", "json"), &["", "pretty"]),
        ("SHUTDOWN_GRACE", "1m", &[], ("shutdown_grace", "1m"), &["", "0s"]),
    ];
    assert_eq!(rows.len(), SETTINGS.len());
    for ((name, good, beside, shown, bad), setting) in rows.iter().zip(SETTINGS) {
        let name = format!("UNSTALE_{name}");
        assert_eq!(name, setting.name);
        let mut pairs = beside.to_vec();
        pairs.push((&name, good));
        let description = config(&pairs).describe();
        assert!(description.0.contains(&(shown.0, shown.1.to_owned())), "{name}: {description}");
        for bad in *bad {
            let found = problems(&[(&name, bad)]);
            // The error for a certificate without its key names the key's setting.
            assert!(
                found.iter().any(|problem| problem.starts_with(&name)
                    || problem.contains(&format!("{name} needs"))
                    || problem.starts_with("UNSTALE_REDIS_SENTINEL_MASTER: missing")),
                "{name}={bad:?}: {found:?}"
            );
            assert_eq!(found.len(), 1, "{name}={bad:?}: {found:?}");
        }
    }
}

#[test]
fn all_setting_errors_are_reported_at_once_without_values() {
    let pairs = [
        ("UNSTALE_AMQP_URL", "amqp://user:hunter2#@host"),
        ("UNSTALE_PREFETCH", "hunter2"),
        ("UNSTALE_BATCH", "hunter2"),
        ("UNSTALE_RETRY_DELAYS", "1s,hunter2"),
        ("UNSTALE_REDIS_MODE", "hunter2"),
        ("UNSTALE_HTTP_ADDR", "hunter2"),
        ("UNSTALE_LOG", "hunter2"),
        ("UNSTALE_QUEUE", "a"),
        ("UNSTALE_QUEUE_FILE", "/hunter2"),
        ("UNSTALE_REDIS_URL_FILE", "/hunter2"),
        ("UNSTALE_REDIS_TLS_CERT", "hunter2"),
        ("UNSTALE_WARM_RATE", "hunter2"),
    ];
    let problems = load(&pairs, &[]).unwrap_err().to_string();
    assert!(!problems.contains("hunter2"), "{problems}");
    insta::assert_snapshot!(problems);
}

#[test]
fn a_setting_may_come_from_a_file() {
    let pairs = [
        ("UNSTALE_AMQP_URL_FILE", "/run/secrets/amqp"),
        ("UNSTALE_VAR_TOKEN_FILE", "/run/secrets/token"),
        ("UNSTALE_VAR_CATALOGUE_URL", "http://c"),
        ("UNSTALE_VAR_FILE", "a variable named FILE"),
    ];
    let files = [("/run/secrets/amqp", "amqp://h/%2f\r\n"), ("/run/secrets/token", "s3cret\n\n")];
    let (config, warnings) = load(&pairs, &files).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.amqp.urls[0].expose().as_str(), "amqp://h/%2f");
    let vars = &config.registry.vars.0;
    assert_eq!(vars["TOKEN"], "s3cret\n", "one newline is cut, not two");
    assert_eq!(
        (vars["CATALOGUE_URL"].as_str(), vars["FILE"].as_str()),
        ("http://c", "a variable named FILE")
    );
    assert!(
        !config.describe().to_string().contains("s3cret")
            && !format!("{config:?}").contains("s3cret")
    );
}

#[test]
fn variable_values_are_masked_longest_first() {
    let vars =
        [("URL", "https://h/"), ("KEY", "s3cret"), ("KEY_AND_MORE", "s3cret-more"), ("ONE", "1")];
    let vars = Vars(vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    let shown = vars.mask("https://h/p/1?key=s3cret&also=s3cret-more");
    assert_eq!(shown, "{vars.URL}/p/1?key={vars.KEY}&also={vars.KEY_AND_MORE}");
}

#[test]
fn a_setting_or_var_with_value_and_file_is_an_error() {
    let found = load(
        &[
            ("UNSTALE_QUEUE", "a"),
            ("UNSTALE_QUEUE_FILE", "/f"),
            ("UNSTALE_VAR_X", "a"),
            ("UNSTALE_VAR_X_FILE", "/f"),
        ],
        &[("/f", "a")],
    );
    let found: Vec<_> =
        found.unwrap_err().problems.into_iter().map(|problem| problem.setting).collect();
    assert_eq!(found, ["UNSTALE_QUEUE", "UNSTALE_VAR_X"]);
}

#[test]
fn an_unknown_setting_is_a_warning() {
    let pairs = [
        ("UNSTALE_PREFECTH", "10"),
        ("UNSTALE_AMQP_URI_FILE", "/f"),
        ("UNSTALE_PORT", "tcp://10.0.0.1:9477"),
        ("UNSTALE_PORT_9477_TCP_ADDR", "10.0.0.1"),
        ("UNSTALE_SERVICE_HOST", "10.0.0.1"),
        ("UNSTALE_VAR_", "x"),
        ("UNSTALE_COLOUR_OF_THE_SEA", "blue"),
    ];
    let (_, warnings) = load(&pairs, &[]).unwrap();
    insta::assert_snapshot!(
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn tls_settings_without_a_tls_url_are_a_warning() {
    let (_, warnings) = load(&[("UNSTALE_AMQP_TLS_CA", CERT)], &[]).unwrap();
    assert!(
        warnings[0].to_string().starts_with("UNSTALE_AMQP_URL: does not begin with amqps://"),
        "{warnings:?}"
    );
}

#[test]
fn unusable_certificates_and_keys_are_refused_without_showing_them() {
    let broken =
        |label: &str| format!("-----BEGIN {label}-----\nc2VjcmV0\n-----END {label}-----\n");
    let not_base64 =
        format!("-----BEGIN CERTIFICATE-----\nsecret!\n-----END CERTIFICATE-----\n{KEY}");
    for server in ["AMQP", "REDIS"] {
        let url = if server == "AMQP" { "amqps://h" } else { "rediss://h" };
        let found = |ca: &str, cert: &str, key: &str| {
            let [url_name, ca_name, cert_name, key_name] = ["URL", "TLS_CA", "TLS_CERT", "TLS_KEY"]
                .map(|name| format!("UNSTALE_{server}_{name}"));
            let found = load(
                &[(&url_name, url), (&ca_name, ca), (&cert_name, cert), (&key_name, key)],
                &[],
            );
            found.map_or_else(|problems| problems.to_string(), |_| String::new())
        };
        assert_eq!(found(CERT, CERT, KEY), "", "usable");
        let chain = format!("{CERT}{CERT}");
        assert_eq!(found(&chain, &chain, KEY), "", "usable");
        for (ca, cert, key, named) in [
            (CERT, CERT, OTHER_KEY, "TLS_KEY: not the private key of the certificate in"),
            (&broken("CERTIFICATE"), CERT, KEY, "TLS_CA: contains no readable certificate"),
            (CERT, &broken("CERTIFICATE"), KEY, "TLS_CERT: contains no readable certificate"),
            (CERT, &not_base64, KEY, "TLS_CERT: contains no readable certificate"),
            (CERT, CERT, &broken("PRIVATE KEY"), "TLS_KEY: contains no readable private key"),
            (
                CERT,
                CERT,
                &broken("ENCRYPTED PRIVATE KEY"),
                "TLS_KEY: contains no readable private key",
            ),
            (KEY, CERT, KEY, "TLS_CA: expected PEM text"),
        ] {
            let problems_shown = found(ca, cert, key);
            assert!(
                problems_shown
                    .starts_with(&format!("1 setting cannot be used:\n  UNSTALE_{server}_{named}")),
                "{problems_shown}"
            );
            assert!(
                !problems_shown.contains("c2VjcmV0") && !problems_shown.contains("secret"),
                "{problems_shown}"
            );
        }
    }
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf_8_is_named() {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = OsString::from_vec(vec![b'h', 0xff]);
    let pairs = ["UNSTALE_QUEUE", "UNSTALE_VAR_X", "UNSTALE_ODD", "ELSE"]
        .map(|name| (OsString::from(name), bytes.clone()));
    let found =
        Config::from_pairs(pairs, |_| unreachable!("no file is named"), Scope::All).unwrap_err();
    assert_eq!(
        found.problems.iter().map(|problem| problem.setting.as_str()).collect::<Vec<_>>(),
        ["UNSTALE_QUEUE", "UNSTALE_VAR_X"]
    );
}

#[test]
fn a_misspelt_setting_is_reported_with_the_missing_one() {
    let found = load(&[("UNSTALE_REDIS_UR", "redis://h/"), ("UNSTALE_PREFETCH", "x")], &[])
        .unwrap_err()
        .to_string();
    assert!(
        found.ends_with(
            "\n  UNSTALE_REDIS_UR: ignored: unknown setting; did you mean UNSTALE_REDIS_URL?"
        ),
        "{found}"
    );
}

#[test]
fn an_offline_command_ignores_errors_in_settings_it_does_not_read() {
    let pairs = [
        ("UNSTALE_AMQP_URL_FILE", "/missing"),
        ("UNSTALE_PREFETCH", "x"),
        ("UNSTALE_KEY_PREFIX", "eu:"),
    ];
    let pairs = pairs.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let (config, _) =
        Config::from_pairs(pairs, |_| unreachable!("it is not read"), Scope::Offline).unwrap();
    assert_eq!(config.registry.key_prefix, "eu:");
}

proptest! {
    #[test]
    fn no_environment_panics_or_shows_a_value(
        values in prop::collection::vec((0..SETTINGS.len(), any::<bool>(), ".{0,30}"), 0..12),
        secret in "[a-z0-9]{24}",
    ) {
        // Every value contains the secret. No error may show it.
        let pairs: Vec<_> = values
            .iter()
            .map(|(at, file, text)| {
                let suffix = if *file { "_FILE" } else { "" };
                (format!("{}{suffix}", SETTINGS[*at].name).into(), format!("{text}{secret}").into())
            })
            .collect();
        match Config::from_pairs(pairs, |_| Err(io::Error::other(secret.clone())), Scope::All) {
            Ok((_, warnings)) => prop_assert!(warnings.iter().all(|warning| !warning.to_string().contains(&secret))),
            Err(problems) => prop_assert!(!problems.to_string().contains(&secret)),
        }
    }
}
