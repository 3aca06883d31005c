//! Rule files: the problems of broken ones, the warnings of legal ones, and their resolution.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value;
use unstale::config::Vars;
use unstale::event::{Decoded, Message, Reading, decode};
use unstale::registry::{
    Code, Diagnostic, Diagnostics, LoadOptions, LoadedRegistry, MissingVars, Registry, file_schema,
    run_examples,
};

fn options(schemas: &Path) -> LoadOptions {
    LoadOptions {
        schemas: schemas.to_owned(),
        key_prefix: String::new(),
        vars: Vars::default(),
        tag_prefix: "cache_tag:".to_owned(),
        max_keys_per_event: 10_000,
        missing_vars: MissingVars::Refuse,
    }
}

/// Loads one file alone. Its diagnostics show its name without a directory.
fn load_alone(file: &Path) -> Result<LoadedRegistry, Diagnostics> {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(file, directory.path().join(file.file_name().unwrap())).unwrap();
    let named = |problem: &mut Diagnostic| {
        problem.file = Path::new(&problem.file).file_name().unwrap().to_str().unwrap().to_owned();
    };
    match Registry::load(&options(directory.path())) {
        Ok(mut loaded) => {
            loaded.warnings.iter_mut().for_each(named);
            Ok(loaded)
        }
        Err(Diagnostics(mut problems)) => {
            problems.iter_mut().for_each(named);
            Err(Diagnostics(problems))
        }
    }
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/registry").join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension().is_some_and(|extension| extension == "yaml" || extension == "json")
        })
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// Compares a text with the snapshot beside the file.
fn assert_beside(folder: &str, file: &Path, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(Path::new("../registry").join(folder));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(file.file_stem().unwrap().to_str().unwrap(), text));
}

#[test]
fn every_problem_of_a_broken_file_is_reported_at_once() {
    for file in files("broken") {
        let problems = load_alone(&file).expect_err(&file.display().to_string());
        let text = problems.to_string();
        for secret in ["hunter2", "secret"] {
            assert!(!text.contains(secret), "{}: {secret} is shown", file.display());
        }
        assert_beside("broken", &file, &text);
    }
}

#[test]
fn legal_but_probably_wrong_rules_get_warnings() {
    for file in files("warned") {
        let loaded = load_alone(&file).unwrap_or_else(|problems| panic!("{problems}"));
        assert_beside("warned", &file, &Diagnostics(loaded.warnings).to_string());
    }
}

/// Holds `docs/reference/diagnostics.md` to the codes and their meanings.
#[test]
fn the_reference_page_lists_every_diagnostic_code() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/diagnostics.md");
    let page = fs::read_to_string(page).unwrap();
    let mut listed: Vec<(&str, &str)> = page
        .lines()
        .filter_map(|line| {
            let [code, _severity, meaning] = line
                .strip_prefix("| `")?
                .strip_suffix(" |")?
                .split(" | ")
                .collect::<Vec<_>>()
                .try_into()
                .ok()?;
            Some((code.trim_end_matches('`'), meaning))
        })
        .collect();
    listed.sort_unstable();
    let mut expected: Vec<(&str, &str)> =
        Code::ALL.iter().map(|code| (code.as_str(), code.meaning())).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

/// Holds the severities of `docs/reference/diagnostics.md` to those of the broken files.
#[test]
fn diagnostics_of_broken_files_have_the_severity_of_the_reference_page() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/diagnostics.md");
    let page = fs::read_to_string(page).unwrap();
    let mut checked = 0;
    for file in files("broken").into_iter().chain(files("warned")) {
        let problems = match load_alone(&file) {
            Ok(loaded) => loaded.warnings,
            Err(Diagnostics(problems)) => problems,
        };
        for problem in problems {
            let row =
                page.lines().find(|line| line.starts_with(&format!("| `{}` |", problem.code)));
            let row = row.unwrap_or_else(|| panic!("{} is not listed", problem.code));
            assert!(row.contains(&problem.severity.to_string()), "{row}");
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn problems_of_several_files_are_reported_together() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("team")).unwrap();
    fs::write(directory.path().join("b.yaml"), "events: [").unwrap();
    fs::write(directory.path().join("team/a.yml"), "event: {}").unwrap();
    fs::write(directory.path().join("c.json"), [b'{', 0xff]).unwrap();
    fs::write(directory.path().join("notes.txt"), "events: [").unwrap();
    let Diagnostics(problems) = Registry::load(&options(directory.path())).unwrap_err();
    let mut files: Vec<&str> =
        problems.iter().map(|problem| problem.file.rsplit('/').next().unwrap()).collect();
    files.sort_unstable();
    assert_eq!(files, ["a.yml", "b.yaml", "c.json"], "{problems:?}");
}

#[test]
fn a_directory_without_rule_files_is_an_error_with_help() {
    let directory = tempfile::tempdir().unwrap();
    let empty = Registry::load(&options(directory.path())).unwrap_err().to_string();
    assert!(empty.contains("is empty") && empty.contains("UNSTALE_SCHEMAS"), "{empty}");
    let missing = Registry::load(&options(&directory.path().join("none"))).unwrap_err().to_string();
    assert!(missing.contains("does not exist") && missing.contains("UNSTALE_SCHEMAS"), "{missing}");
    let file = directory.path().join("file.txt");
    fs::write(&file, "").unwrap();
    let no_directory = Registry::load(&options(&file)).unwrap_err().to_string();
    assert!(
        no_directory.contains("not a directory")
            && no_directory.contains("the directory that it is in"),
        "{no_directory}"
    );
}

/// A mounted ConfigMap: `user.yaml` → `..data/user.yaml`, `..data` → `..2026_01_31`.
#[cfg(unix)]
#[test]
fn a_config_map_is_read_once() {
    use std::os::unix::fs::symlink;

    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    fs::create_dir(at("..2026_01_31")).unwrap();
    fs::write(
        at("..2026_01_31/user.yaml"),
        "events: { user.updated: { effects: [{ delete: 'user:{id}' }] } }",
    )
    .unwrap();
    symlink("..2026_01_31", at("..data")).unwrap();
    symlink("..data/user.yaml", at("user.yaml")).unwrap();
    let loaded = Registry::load(&options(directory.path())).unwrap();
    let rules: Vec<&str> = loaded.registry.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(rules, ["user.yaml#user.updated/0"]);
}

#[cfg(unix)]
#[test]
fn symbolic_links_to_parents_do_not_loop() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), "events: { a: { effects: [{ delete: a }] } }")
        .unwrap();
    for name in ["b", "c", "d"] {
        std::os::unix::fs::symlink(directory.path(), directory.path().join(name)).unwrap();
    }
    assert_eq!(Registry::load(&options(directory.path())).unwrap().registry.rules.len(), 1);
}

#[test]
fn the_registry_digest_depends_on_names_and_bytes() {
    let digest_of = |files: &[(&str, &str)]| {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        Registry::load(&options(directory.path())).unwrap().registry.digest
    };
    let (a, b) = (("a.yaml", "events: {}"), ("b.yaml", "events: {} # b"));
    let digest = digest_of(&[a, b]);
    assert_eq!(digest.len(), 64);
    assert_eq!(digest, digest_of(&[b, a]));
    assert_ne!(digest, digest_of(&[a]));
    assert_ne!(digest, digest_of(&[a, ("c.yaml", b.1)]));
    assert_ne!(digest, digest_of(&[("a.yaml", b.1), ("b.yaml", a.1)]));
}

#[test]
fn the_json_schema_of_rule_files_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/registry.schema.json");
    let current = format!("{:#}\n", file_schema());
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == current,
        "docs/registry.schema.json is not what the types say: unstale check --print-schema > docs/registry.schema.json"
    );
}

fn is_valid(yaml_or_json: &Value) -> Vec<String> {
    let validator = jsonschema::validator_for(&file_schema()).unwrap();
    validator
        .iter_errors(yaml_or_json)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

#[test]
fn the_json_schema_accepts_what_loads_and_refuses_what_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let loads = |file: &Value| {
        fs::write(directory.path().join("a.json"), file.to_string()).unwrap();
        Registry::load(&options(directory.path())).is_ok()
    };
    let sample: Value = serde_json::from_str(include_str!("../registry/sample.json")).unwrap();
    assert_eq!(is_valid(&sample), [""; 0]);
    assert!(loads(&sample));
    for (pointer, broken) in [
        ("/format", serde_json::json!(2)),
        ("/defaults/ttl", serde_json::json!("1 hour")),
        ("/defaults/jitter", serde_json::json!(1.5)),
        ("/defaults/key_prefix", serde_json::json!(null)),
        ("/loaders/api/url", serde_json::json!(["https://a.example.com"])),
        ("/loaders/api/rate", serde_json::json!("50")),
        ("/loaders/api", serde_json::json!({"timeout": "2s"})),
        ("/events/user.updated/data", serde_json::json!({"type": "objekt"})),
        ("/events/user.updated/validate", serde_json::json!("strict")),
        ("/events/user.updated/max_keys", serde_json::json!(0)),
        ("/events/user.updated/effects/0", serde_json::json!({"delete": "a", "expire": "a"})),
        ("/events/user.updated/effects/0", serde_json::json!({"when": "true"})),
        ("/events/user.updated/effects/0", serde_json::json!({"delete": []})),
        ("/events/user.updated/effects/0", serde_json::json!({"delete": "a", "wehn": "true"})),
        ("/events/user.updated/effects/0/delete", serde_json::json!({"id": null})),
        ("/events/user.updated/version", serde_json::json!({"entity": "user:{id}"})),
        ("/events/user.updated/examples/0/expect_error", serde_json::json!("nonsense")),
        ("/events/user.updated/retired", serde_json::json!("yes")),
    ] {
        let mut file = sample.clone();
        *file.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is not in the sample")) =
            broken;
        assert!(!is_valid(&file).is_empty(), "{pointer}: the schema accepts {file}");
        assert!(!loads(&file), "{pointer}: the registry loads {file}");
    }
}

#[test]
fn examples_run_against_their_own_event_definition() {
    let directory = tempfile::tempdir().unwrap();
    let file = include_str!("../registry/examples.yaml");
    fs::write(directory.path().join("examples.yaml"), file).unwrap();
    fs::write(
        directory.path().join("other.yaml"),
        "events: { user.updated: { effects: [{ delete: 'other:{id}' }] } }",
    )
    .unwrap();
    let loaded =
        Registry::load(&LoadOptions { key_prefix: "eu:".to_owned(), ..options(directory.path()) })
            .unwrap();
    let failing = run_examples(&loaded);
    let told: Vec<String> =
        failing.iter().map(|problem| format!("{}: {}", problem.line, problem.message)).collect();
    let line_of = |mark: &str| file.lines().position(|line| line.contains(mark)).unwrap() + 1;
    let expected = [
        (
            "# misses",
            "missing: `delete shop:user:8`; not expected: `delete shop:user:7`, `invalidate_tags users`",
        ),
        ("# unmet", "the event resolves instead of failing with unresolvable"),
        ("# fails", "the event fails with unresolvable: "),
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (told, (mark, message)) in told.iter().zip(expected) {
        assert!(told.starts_with(&format!("{}: {message}", line_of(mark))), "{told}");
    }
}

#[test]
fn the_sample_of_the_format_loads_and_its_examples_pass() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("shop.yaml"), include_str!("../registry/shop.yaml")).unwrap();
    let vars = [("CATALOGUE_URL", "https://catalogue.example.com"), ("CATALOGUE_TOKEN", "t0ken")];
    let vars = Vars(vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    let loaded = Registry::load(&LoadOptions {
        vars,
        key_prefix: "eu:".to_owned(),
        ..options(directory.path())
    })
    .unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(loaded.examples.len(), 3);
    let failing = run_examples(&loaded);
    assert!(failing.is_empty(), "{}", Diagnostics(failing));
    assert_eq!(loaded.registry.routing_keys(), ["order.*", "product.updated"]);
    assert_eq!(loaded.registry.loaders().len(), 1);
    assert!(!format!("{:?}", loaded.registry).contains("t0ken"), "a header's value is shown");
}

/// Registries of ten trades, each file with its examples.
#[test]
fn registries_of_ten_trades_load_and_their_examples_pass() {
    let files = files("trades");
    assert_eq!(files.len(), 10);
    for file in files {
        let loaded = load_alone(&file).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(!loaded.examples.is_empty(), "{}", file.display());
        let failing = run_examples(&loaded);
        assert!(failing.is_empty(), "{}", Diagnostics(failing));
    }
}

#[test]
fn shipped_registries_load_without_warnings_and_their_examples_pass() {
    let vars = [("CATALOGUE_URL", "https://catalogue.example.com"), ("CATALOGUE_TOKEN", "t0ken")];
    let vars = Vars(vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    for folder in ["schemas", "examples/registry"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let loaded = Registry::load(&LoadOptions { vars: vars.clone(), ..options(&folder) })
            .unwrap_or_else(|problems| panic!("{problems}"));
        assert!(loaded.warnings.is_empty(), "{}", Diagnostics(loaded.warnings));
        let failing = run_examples(&loaded);
        assert!(failing.is_empty(), "{}", Diagnostics(failing));
    }
}

proptest! {
    /// A registry that uses every feature: no message panics, and `explain` agrees with `resolve`.
    #[test]
    fn no_message_panics_while_it_is_resolved(
        trade in 0..10_usize,
        data in hostile_json(),
        previous in hostile_json(),
        cut in prop::option::of(0..200_usize),
    ) {
        static LOADED: LazyLock<Vec<LoadedRegistry>> = LazyLock::new(|| files("trades").iter().map(|file| load_alone(file).unwrap()).collect());
        let registry = &LOADED[trade].registry;
        for entry in registry.definitions() {
            let event_type = entry.name.replace('*', "x").replace('#', "x.y");
            let body = serde_json::json!({"type": event_type, "data": data, "previous": previous}).to_string();
            let body = &body.as_bytes()[..cut.unwrap_or(usize::MAX).min(body.len())];
            let message = Message { exchange: "events", routing_key: "r", body, ..Message::default() };
            if let Ok(Decoded::Event(event)) = decode(&message, Reading::default()) {
                let explanation = registry.explain(&event);
                prop_assert_eq!(&explanation.resolution, &registry.resolve(&event));
                if let Some(failure) = explanation.resolution.failure {
                    prop_assert!(failure.at as usize <= explanation.resolution.effects.len());
                }
            }
        }
    }
}

/// Generates objects whose members have names that the rules of the trades read, with any values.
fn hostile_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(Value::from("2026-03-01T23:30:00Z")),
        ".{0,5}".prop_map(Value::from),
    ];
    let names = "id|seq|iban|balance|appointment|starts_at|clinic|patient|grades|published|class|pupil_id|vin|lat|lon|ts|slug|sections|languages|show|row|seat|hold|shelf|skus|station|unit|quality|account_id|rev|rules";
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names, inner, 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}
