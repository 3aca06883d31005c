//! Six realistic registries, each with events and their expected effects.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use unstale::config::Vars;
use unstale::event::{Decoded, OwnedMessage, Reading, decode};
use unstale::registry::{LoadOptions, LoadedRegistry, Matched, MissingVars, Registry};

#[derive(Deserialize)]
struct Case {
    name: String,
    line: serde_json::Value,
    /// Expected `verb target`, in order.
    effects: Vec<String>,
    /// Expected reason of the dead letter.
    error: Option<String>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/registries").join(name)
}

fn load(name: &str) -> LoadedRegistry {
    let vars = ["ORIGIN_URL", "CALENDAR_URL"]
        .map(|name| (name.to_owned(), "http://127.0.0.1:1".to_owned()));
    let options = LoadOptions {
        schemas: folder(name).join("schemas"),
        key_prefix: String::new(),
        vars: Vars(vars.into_iter().collect()),
        tag_prefix: "cache_tag:".to_owned(),
        max_keys_per_event: 10_000,
        missing_vars: MissingVars::Refuse,
    };
    Registry::load(&options).unwrap_or_else(|problems| panic!("{name} does not load:\n{problems}"))
}

fn assert_resolves_as_expected(registry_name: &str) {
    let loaded = load(registry_name);
    let cases = std::fs::read_to_string(folder(registry_name).join("cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&cases).unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let message = OwnedMessage::from_line(&case.line.to_string())
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let message = message.message();
        let Decoded::Event(event) = decode(&message, Reading::default())
            .unwrap_or_else(|error| panic!("{}: {error}", case.name))
        else {
            panic!("{}: not an event", case.name)
        };
        let resolution = loaded.registry.resolve(&event);
        let effects: Vec<String> = resolution
            .effects
            .iter()
            .map(|effect| format!("{} {}", effect.action.verb(), effect.target))
            .collect();
        assert_eq!(effects, case.effects, "{registry_name}: {}", case.name);
        let error = match (&resolution.failure, resolution.matched) {
            (Some(failure), _) => Some(failure.reason.as_str()),
            (None, Matched::Unknown) => Some("unknown_event"),
            (None, Matched::Definition(_) | Matched::Retired(_)) => None,
        };
        assert_eq!(
            error,
            case.error.as_deref(),
            "{registry_name}: {}: {:?}",
            case.name,
            resolution.failure
        );
    }
}

#[test]
fn a_catalogue_with_debezium_resolves_as_expected() {
    assert_resolves_as_expected("catalogue");
}

#[test]
fn a_multi_tenant_application_resolves_as_expected() {
    assert_resolves_as_expected("saas");
}

#[test]
fn a_news_site_resolves_as_expected() {
    assert_resolves_as_expected("news");
}

#[test]
fn a_social_feed_resolves_as_expected() {
    assert_resolves_as_expected("social");
}

#[test]
fn feature_flags_resolve_as_expected() {
    assert_resolves_as_expected("flags");
}

#[test]
fn a_booking_site_resolves_as_expected() {
    assert_resolves_as_expected("booking");
}
