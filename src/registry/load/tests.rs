use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::super::document;
use super::super::loaded;
use super::super::model::{ExpiryRule, Family, RuleBody};
use super::super::options::MissingVars;
use super::super::value_template::ValueTemplate;
use super::*;
use crate::event::{Event, Form};

fn options() -> LoadOptions {
    LoadOptions {
        schemas: PathBuf::new(),
        key_prefix: "eu:".to_owned(),
        vars: Vars(
            [
                ("API".to_owned(), "https://api.example.com/".to_owned()),
                ("TENANT".to_owned(), "acme".to_owned()),
            ]
            .into(),
        ),
        tag_prefix: "cache_tag:".to_owned(),
        max_keys_per_event: 10,
        missing_vars: MissingVars::Refuse,
    }
}

fn compile_texts(
    files: &[(&str, &str)],
    options: &LoadOptions,
) -> Result<LoadedRegistry, Diagnostics> {
    let sources: Vec<SourceFile> =
        files.iter().map(|(path, text)| SourceFile::new(*path, *path, *text)).collect();
    compile_sources(&sources, options, "digest".to_owned(), Vec::new())
}

fn registry(files: &[(&str, &str)]) -> Registry {
    compile_texts(files, &options()).unwrap_or_else(|problems| panic!("{problems}")).registry
}

fn problems(text: &str) -> String {
    compile_texts(&[("a.yaml", text)], &options()).expect_err("it loads").to_string()
}

#[test]
fn definitions_are_ordered_by_kind_of_name_then_name_then_file() {
    let effects = "effects: [{ delete: x }, { delete: y }]";
    let (a, b) = (
        format!("events: {{ '#': {{ {effects} }}, b.z: {{ {effects} }}, 'b.*': {{ {effects} }} }}"),
        format!("events: {{ b.z: {{ {effects} }}, a.z: {{ {effects} }} }}"),
    );
    let registry = registry(&[("1/a.yaml", &a), ("2.yaml", &b)]);
    let definitions: Vec<_> = registry
        .definitions()
        .iter()
        .map(|definition| (definition.name.as_str(), definition.file.as_str()))
        .collect();
    assert_eq!(
        definitions,
        [
            ("a.z", "2.yaml"),
            ("b.z", "1/a.yaml"),
            ("b.z", "2.yaml"),
            ("#", "1/a.yaml"),
            ("b.*", "1/a.yaml")
        ]
    );
    assert_eq!(registry.by_name["b.z"], [1, 2]);
    assert_eq!(
        registry.patterns.iter().map(|(_, definition)| *definition).collect::<Vec<_>>(),
        [3, 4]
    );
    let rules: Vec<_> = registry.rules().iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(rules[..3], ["2.yaml#a.z/0", "2.yaml#a.z/1", "1/a.yaml#b.z/0"]);
    assert_eq!(registry.definitions()[4].rules[1].id.0, 9);
    assert_eq!(registry.rules()[9].definition, 4);
    assert_eq!(registry.routing_keys(), ["#", "a.z", "b.*", "b.z"]);
}

#[test]
fn key_prefixes_are_concatenated_and_an_effect_may_remove_the_files_prefix() {
    let file = "defaults: { key_prefix: '{vars.TENANT}:' }
events:
  a:
    effects: [{ delete: x }, { delete: x, prefix: '' }, { delete: x, prefix: 'own:' }, { invalidate_tags: x }]
";
    let registry =
        registry(&[("a.yaml", file), ("b.yaml", "events: { a: { effects: [{ delete: x }] } }")]);
    let prefixes: Vec<_> = registry
        .definitions()
        .iter()
        .flat_map(|definition| &definition.rules)
        .map(|rule| rule.key_prefix.as_str())
        .collect();
    assert_eq!(prefixes, ["eu:acme:", "eu:", "eu:own:", "", "eu:"]);
}

#[test]
fn time_to_live_comes_from_the_rule_then_from_the_file() {
    let file = "defaults: { ttl: 1h, jitter: 0.5 }
events:
  a:
    version: '{rev}'
    effects:
      - { write: x, value: 1 }
      - { write: x, value: 1, ttl: none }
      - { write: x, value: 1, ttl: 30s, jitter: 0, version: { of: '{at}', entity: 'x:{id}' } }
      - { write: x, value: 1, at: '{until}' }
      - { expire: x, ttl: 5m }
";
    let registry = registry(&[("a.yaml", file)]);
    let of = |place: usize| match &registry.definitions()[0].rules[place].body {
        RuleBody::Write { expiry, version, .. } => (expiry, version.as_ref()),
        RuleBody::Expire(expiry) => (expiry, None),
        other => panic!("{other:?}"),
    };
    assert!(
        matches!(of(0).0, ExpiryRule::After { ttl, jitter: 0.5 } if *ttl == Duration::from_secs(3_600))
    );
    assert!(matches!(of(0).1.unwrap().family, Family::EventType));
    assert!(matches!(of(1).0, ExpiryRule::Never));
    assert!(
        matches!(of(2).0, ExpiryRule::After { ttl, jitter: 0.0 } if *ttl == Duration::from_secs(30))
    );
    assert!(matches!(of(2).1.unwrap().family, Family::Entity(_)));
    assert!(matches!(of(3).0, ExpiryRule::At(_)));
    assert!(matches!(of(4).0, ExpiryRule::After { ttl, .. } if *ttl == Duration::from_secs(300)));
}

#[test]
fn write_values_keep_order_types_and_the_text_of_numbers() {
    let file = "defaults: { ttl: 1h }
events:
  a: { effects: [{ write: x, value: { z: 1.50, a: ['{id}', true, null, '7'], m: {} } }] }
";
    let registry = registry(&[("a.yaml", file)]);
    let RuleBody::Write { value: ValueTemplate::Object(members), .. } =
        &registry.definitions()[0].rules[0].body
    else {
        panic!("no write")
    };
    assert_eq!(members.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["z", "a", "m"]);
    assert_eq!(members[0].1, ValueTemplate::Number("1.50".to_owned()));
    let ValueTemplate::Array(items) = &members[1].1 else { panic!("{members:?}") };
    assert!(matches!(
        items[..],
        [
            ValueTemplate::Text(_),
            ValueTemplate::Bool(true),
            ValueTemplate::Null,
            ValueTemplate::Text(_)
        ]
    ));
}

#[test]
fn a_from_resolves_to_its_loader() {
    let file = "defaults: { ttl: 1h }
loaders: { api: { url: '{vars.API}', headers: { A: 'b {vars.TENANT}' }, timeout: 2s, concurrency: 3, rate: 50/s, max_bytes: 1KiB } }
events:
  a:
    effects:
      - { warm: a, from: 'api:/x/{id}' }
      - { warm: b, from: 'other:/x' }
      - { warm: c, from: 'https://h.example.com/x/{id}?y={z}' }
      - { warm: d, from: 'https://h.example.com' }
      - { warm: e, from: '{vars.API}/x/{id}' }
";
    let other = "loaders: { other: { url: 'http://10.0.0.1:8080/base' }, api: { url: 'http://elsewhere.example.com' } }";
    let registry = registry(&[("a.yaml", file), ("b.yaml", other)]);
    let urls: Vec<_> = registry.definitions()[0]
        .rules
        .iter()
        .map(|rule| match &rule.body {
            RuleBody::Warm { loader, .. } => {
                registry.loaders()[usize::try_from(loader.0).unwrap()].url.as_str()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let host = "https://h.example.com";
    assert_eq!(
        urls,
        [
            "https://api.example.com",
            "http://10.0.0.1:8080/base",
            host,
            host,
            "https://api.example.com"
        ]
    );
    let api = &registry.loaders()[0];
    assert_eq!(api.headers.0, [("A".to_owned(), "b acme".to_owned())]);
    assert_eq!(
        (api.timeout, api.concurrency, api.max_bytes),
        (Some(Duration::from_secs(2)), Some(3), Some(1_024))
    );
    assert_eq!(registry.loaders().len(), 5, "one for each host that is named");
    let ambiguous = [
        ("a.yaml", other),
        ("b.yaml", other),
        (
            "c.yaml",
            "defaults: { ttl: 1h }\nevents: { a: { effects: [{ warm: x, from: 'api:/x' }] } }",
        ),
    ];
    assert!(
        compile_texts(&ambiguous, &options())
            .unwrap_err()
            .to_string()
            .contains("several other files")
    );
}

#[test]
fn retired_events_bind_nothing() {
    let file = "events: { a.gone: { retired: true }, a.here: { bind: [b.here, a.here] } }";
    let loaded = compile_texts(
        &[("a.yaml", file), ("b.yaml", "events: { a.gone: { effects: [{ delete: x }] } }")],
        &options(),
    )
    .unwrap();
    assert_eq!(loaded.registry.routing_keys(), ["a.here", "b.here"]);
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].message.contains("is retired in another file"));
}

#[test]
fn a_variable_without_a_value_is_an_error_or_stays_as_written() {
    let file = "loaders: { api: { url: '{vars.NONE}' } }\nevents: { a: { effects: [{ delete: 'x:{vars.NONE}' }] } }";
    let refused = problems(file);
    assert_eq!(refused.matches("`vars.NONE` has no value").count(), 2, "{refused}");
    let warned = compile_texts(
        &[("a.yaml", file)],
        &LoadOptions { missing_vars: MissingVars::Warn, ..options() },
    )
    .unwrap();
    assert_eq!(warned.warnings.len(), 2);
    assert_eq!(
        warned.registry.definitions()[0].rules[0].targets[0].as_literal(),
        Some("x:{vars.NONE}")
    );
}

#[test]
fn reserved_keys_are_errors_and_free_text_keys_are_warnings() {
    let unprefixed = LoadOptions { key_prefix: String::new(), ..options() };
    let load = |definition: &str, options: &LoadOptions| {
        let file = format!("defaults: {{ ttl: 1h }}\nevents:\n  a: {definition}\n");
        compile_texts(&[("a.yaml", &file)], options)
            .map(|loaded| loaded.warnings)
            .map_err(|problems| problems.0)
    };
    for definition in [
        "{ effects: [{ delete: 'unstale:seq' }] }",
        "{ effects: [{ delete: 'unstale:mark/{id}' }] }",
        "{ effects: [{ write: 'unstale:{id}', value: 1 }] }",
        "{ effects: [{ delete: 'seq', prefix: 'unstale:' }] }",
        "{ effects: [{ delete: ['x', '{vars.OWN}:seq'] }] }",
    ] {
        let vars =
            Vars(std::collections::BTreeMap::from([("OWN".to_owned(), "unstale".to_owned())]));
        let problems =
            load(definition, &LoadOptions { vars, ..unprefixed.clone() }).expect_err(definition);
        let is_refused = |problem: &&Diagnostic| problem.code == Code::KeyOwn;
        let problem = problems
            .iter()
            .find(is_refused)
            .unwrap_or_else(|| panic!("{definition}: {problems:?}"));
        assert!(
            problem.line == 3 && problem.column > 1 && problem.help.is_some(),
            "{definition}: {problem:?}"
        );
    }
    for (definition, options, says) in [
        ("{ effects: [{ delete: 'cache_tag:{id}' }] }", &unprefixed, "UNSTALE_TAG_PREFIX"),
        ("{ effects: [{ delete: '{id}' }] }", &unprefixed, "the publisher chooses"),
        (
            "{ effects: [{ each: data.keys, delete: '{item}' }] }",
            &unprefixed,
            "the publisher chooses",
        ),
        ("{ effects: [{ delete: '{event.subject}:x' }] }", &unprefixed, "the publisher chooses"),
    ] {
        let warnings = load(definition, options).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert!(
            warnings.iter().any(|warning| warning.message.contains(says)),
            "{definition}: {warnings:?}"
        );
    }
    for (definition, options) in [
        ("{ effects: [{ delete: '{id|raw}' }] }", &options()),
        (
            "{ effects: [{ delete: 'unstaled:{id|raw}' }, { delete: 'user:{id|raw}' }] }",
            &unprefixed,
        ),
        (
            "{ effects: [{ invalidate_tags: 'unstale:{id}' }, { invalidate_tags: '{id}' }] }",
            &unprefixed,
        ),
        ("{ let: { h: sha1(data.id) }, effects: [{ delete: '{let.h}' }] }", &unprefixed),
        (
            "{ data: { required: [id], properties: { id: { type: integer } } }, effects: [{ delete: '{id}' }] }",
            &unprefixed,
        ),
    ] {
        let warnings = load(definition, options).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert!(warnings.is_empty(), "{definition}: {warnings:?}");
    }
}

fn targets_of(
    registry: &Registry,
    event_type: &str,
    data: &serde_json::Value,
) -> (Vec<String>, bool) {
    let event = Event {
        id: "e".into(),
        event_type: event_type.to_owned().into(),
        data_text: data.to_string().into(),
        form: Form::Bare,
        ..Event::default()
    };
    let resolution = registry.resolve(&event);
    (
        resolution.effects.into_iter().map(|effect| effect.target).collect(),
        resolution.failure.is_some(),
    )
}

#[test]
fn a_value_with_its_delimiter_is_unresolvable_unless_the_schema_limits_it() {
    let file = r#"
events:
  free: { effects: [{ delete: "{a}:{b}" }] }
  item: { effects: [{ each: data.xs, delete: "{item}:{b}" }] }
  last: { effects: [{ delete: "k:{a}:x" }] }
  raw: { effects: [{ delete: "{a|raw}:{b}" }] }
  maybe: { effects: [{ delete: "{a?|raw}:{b}" }] }
  warned: { validate: warn, data: { properties: { a: { pattern: "^[0-9:]+$" } } }, effects: [{ delete: "{a}:{b}" }] }
  bounded: { data: { properties: { a: { pattern: "^[0-9:]+$" } } }, effects: [{ delete: "{a}:{b}" }] }
  listed: { data: { properties: { a: { enum: ["1:2", "3"] } } }, effects: [{ delete: "{a}:{b}" }] }
  mail: { data: { properties: { a: { format: uri } } }, effects: [{ delete: "{a}:{b}" }] }
  tags: { effects: [{ invalidate_tags: "{a}:{b}" }] }
  long: { effects: [{ delete: "{a}::{b}" }] }
  number: { effects: [{ delete: "{n}-{b}" }] }
"#;
    let registry = registry(&[("a.yaml", file)]);
    let data = serde_json::json!({ "a": "1:2", "b": "3", "n": -5, "xs": ["1:2"] });
    for (event_type, target) in [
        ("free", None),
        ("item", None),
        ("last", Some("eu:k:1:2:x")),
        ("raw", Some("eu:1:2:3")),
        ("maybe", Some("eu:1:2:3")),
        ("warned", None),
        ("bounded", Some("eu:1:2:3")),
        ("listed", Some("eu:1:2:3")),
        ("mail", None),
        ("tags", None),
        ("long", Some("eu:1:2::3")),
        ("number", Some("eu:-5-3")),
    ] {
        let (targets, failed) = targets_of(&registry, event_type, &data);
        assert_eq!(
            (targets.first().map(String::as_str), failed),
            (target, target.is_none()),
            "{event_type}"
        );
    }
    // The value and the delimiter after it hold a delimiter that begins within the value.
    assert!(targets_of(&registry, "long", &serde_json::json!({ "a": "1:", "b": "3" })).1);
}

#[test]
fn schema_references_stay_within_the_file() {
    let file = "x-money: { type: object, properties: { next: { $ref: '#/x-money' }, amount: { $ref: '#/$defs/whole' } } }
events:
  a:
    data:
      $defs: { whole: { type: integer } }
      properties: { price: { $ref: '#/x-money' }, count: { $ref: '#/$defs/whole' } }
";
    let registry = registry(&[("a.yaml", file)]);
    let schema = registry.definitions()[0].schema.as_ref().unwrap();
    for (data, is_valid) in [
        (serde_json::json!({"price": {"amount": 1, "next": {"amount": 2}}, "count": 3}), true),
        (serde_json::json!({"price": {"next": {"amount": "2"}}}), false),
        (serde_json::json!({"count": "3"}), false),
    ] {
        let text = data.to_string();
        assert_eq!(schema.is_valid(&text), is_valid, "{data}");
    }
}

#[test]
fn the_format_keyword_of_a_schema_is_asserted() {
    let registry = registry(&[(
        "a.yaml",
        "events: { a: { data: { properties: { mail: { format: email } } } } }",
    )]);
    let schema = registry.definitions()[0].schema.as_ref().unwrap();
    for (mail, is_valid) in [("a@example.com", true), ("observer", false)] {
        let text = serde_json::json!({ "mail": mail }).to_string();
        assert_eq!(schema.is_valid(&text), is_valid, "{mail}");
    }
}

#[test]
fn the_keys_that_are_read_equal_those_of_the_json_schema() {
    let schema = super::super::file_schema();
    let keys = |schema: &serde_json::Value| {
        let mut keys: Vec<String> =
            schema["properties"].as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    for (name, read) in document::read::known_keys() {
        let mut read: Vec<String> = read.into_iter().map(str::to_owned).collect();
        read.sort();
        let described =
            if name == "RuleFile" { keys(&schema) } else { keys(&schema["$defs"][name]) };
        assert_eq!(read, described, "{name}");
    }
}

proptest! {
    #[test]
    fn different_values_never_give_one_name(
        first in prop::collection::vec("[a:/-]{1,4}", 3),
        second in prop::collection::vec("[a:/-]{1,4}", 3),
        delimiters in prop::collection::vec("[:/-]{1,3}", 2),
    ) {
        let file = format!("events: {{ t: {{ effects: [{{ delete: 'k{{a}}{}{{b}}{}{{c}}' }}] }} }}", delimiters[0], delimiters[1]);
        let registry = registry(&[("a.yaml", &file)]);
        let name = |values: &[String]| targets_of(&registry, "t", &serde_json::json!({ "a": values[0], "b": values[1], "c": values[2] })).0.pop();
        let names = (name(&first), name(&second));
        prop_assert!(first == second || names.0.is_none() || names.0 != names.1, "{names:?}");
    }

    /// A file that is cut anywhere is reported, and never panics.
    #[test]
    fn no_truncated_file_panics(from in 0usize..3_000, length in 0usize..40, typed in "[a-z{}\\[\\]:\"'*!&#?., \n\t-]{0,6}", is_json: bool) {
        let (path, text) = if is_json {
            ("a.json", include_str!("../../../tests/registry/sample.json"))
        } else {
            ("a.yaml", include_str!("../../../tests/registry/warned/fields.yaml"))
        };
        let from = text.len() * from / 3_000;
        let to = (from + length).min(text.len());
        let text = format!("{}{typed}{}", &text[..from], &text[to..]);
        if let Ok(loaded) = compile_texts(&[(path, &text)], &options()) {
            super::super::run_examples(&loaded);
        }
    }
}

/// Returns the CPU time of this thread, in nanoseconds.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

fn joined(count: usize, element: impl Fn(usize) -> String, separator: &str) -> String {
    (0..count).map(element).collect::<Vec<_>>().join(separator)
}

#[test]
fn loading_time_grows_linearly_with_the_files() {
    let with_data = |count| {
        let definition = |at| {
            format!(
                "  t{at}:\n    data: {{type: object, required: [id], properties: {{id: {{type: integer}}}}}}\n    effects: [{{delete: 'k{at}:{{id}}'}}]"
            )
        };
        format!("events:\n{}\n", joined(count, definition, "\n"))
    };
    let with_references = |count| {
        let definition = |at| {
            format!(
                "  t{at}: {{ data: {{ properties: {{ a: {{$ref: '#/x-id'}}, b: {{$ref: '#/x-id'}}, c: {{$ref: '#/$defs/c'}} }}, $defs: {{ c: {{}} }} }} }}"
            )
        };
        format!("x-id: {{ type: integer }}\nevents:\n{}\n", joined(count, definition, "\n"))
    };
    let minified = |count| {
        let definition =
            |at| format!("\"té{at}\":{{\"effects\":[{{\"delete\":\"k{at}:{{id}}\"}}]}}");
        format!("{{\"events\":{{{}}}}}", joined(count, definition, ","))
    };
    let anchors =
        |count| format!("x-a: [{}]\nevents: {{}}\n", joined(count, |at| format!("&a{at} é"), ", "));
    let aliases = |count| {
        format!(
            "x-a: &a [b, c]\nx-b: [{}]\nevents: {{}}\n",
            joined(count, |_| "*a".to_owned(), ", ")
        )
    };
    let nested = |count| {
        format!(
            "x-a: {}x{}\nevents: {{}}\n",
            "[&a [".repeat(40),
            format!("]{}]", ", y".repeat(count / 40)).repeat(40)
        )
    };
    let warnings = |count| {
        format!(
            "{{\"events\":{{\"a\":{{\"effects\":[{}]}}}}}}",
            joined(count, |_| "{\"delete\":\"x${id}\"}".to_owned(), ",")
        )
    };
    let retired = |count| {
        format!(
            "events:\n{}\n",
            joined(
                count,
                |at| format!("  t{at}: {{ retired: true }}\n  u{at}: {{ bind: v{at} }}"),
                "\n"
            )
        )
    };
    let versioned = |verb: &str, count| {
        joined(count / 2, |at| format!("{{{verb}: 'x{at}:{{k}}aaaa{{l}}'}}"), ",")
            .replace("'}", if verb == "write" { "', value: {}}" } else { "'}" })
    };
    let fenced = |count| {
        format!(
            "defaults: {{ttl: 1h}}\nevents:\n  a.b: {{version: '{{rev}}', effects: [{}]}}\n  a.c: {{version: '{{rev}}', effects: [{}]}}\n",
            versioned("write", count),
            versioned("delete", count).replace("'x", "'{k}:")
        )
    };
    type Make<'m> = &'m dyn Fn(usize) -> String;
    let makers: [(&str, &str, Make<'_>); 9] = [
        ("data", "a.yaml", &with_data),
        ("references", "a.yaml", &with_references),
        ("minified", "a.json", &minified),
        ("anchors on one line", "a.yaml", &anchors),
        ("aliases on one line", "a.yaml", &aliases),
        ("nested anchors", "a.yaml", &nested),
        ("warnings on one line", "a.json", &warnings),
        ("retired events", "a.yaml", &retired),
        ("versioned rules", "a.yaml", &fenced),
    ];
    for (name, path, make) in makers {
        let cpu = |count: usize| {
            let text = make(count);
            let start = cpu_ns();
            let loaded = compile_texts(&[(path, &text)], &options())
                .unwrap_or_else(|problems| panic!("{name}: {problems}"));
            assert!(loaded.warnings.len() <= 1_000);
            cpu_ns() - start
        };
        let (few, many) = (cpu(500), cpu(4_000));
        // Eight times the work. A quadratic algorithm would take 64 times as long.
        assert!(many < 24 * few.max(5_000_000), "{name}: {few} ns, then {many} ns");
    }
}

#[test]
fn schema_copies_are_bounded() {
    let text = "x".repeat(1_000_000);
    let aliases = format!(
        "x-a: &a {text}\nx-b: [{}]\nevents: {{}}\n",
        joined(5_000, |_| "*a".to_owned(), ", ")
    );
    assert!(problems(&aliases).contains("aliases add more than"));
    let definition = |at| format!("  t{at}: {{ data: {{ $ref: '#/x-a' }} }}");
    let references =
        format!("x-a: {{ description: {text} }}\nevents:\n{}\n", joined(100, definition, "\n"));
    assert!(problems(&references).contains("too large together"));
}

#[test]
fn a_file_reports_a_bounded_number_of_problems() {
    let told = compile_texts(
        &[(
            "a.yaml",
            &format!(
                "events: {{}}\nx: {}\n{}",
                "y".repeat(100_000),
                joined(5_000, |at| format!("k{at}: 1"), "\n")
            ),
        )],
        &options(),
    );
    let Diagnostics(problems) = told.unwrap_err();
    assert_eq!(problems.len(), 1_000);
    assert!(problems.iter().all(|problem| problem.to_string().len() < 2_000));
}

#[test]
fn a_ref_within_schema_data_is_not_a_reference() {
    let registry = registry(&[(
        "a.yaml",
        "events:\n  a:\n    data:\n      properties:\n        v: { enum: [ { $ref: '#/somewhere' } ] }\n        default: { $ref: '#/$defs/d' }\n      $defs: { d: { type: integer } }\n",
    )]);
    let schema = registry.definitions()[0].schema.as_ref().unwrap();
    for (text, is_valid) in [
        (r##"{"v":{"$ref":"#/somewhere"}}"##, true),
        (r#"{"v":1}"#, false),
        (r#"{"default":1}"#, true),
        (r#"{"default":"1"}"#, false),
    ] {
        assert_eq!(schema.is_valid(text), is_valid, "{text}");
    }
    assert!(
        problems("events: { a: { data: { properties: { default: { $ref: '#/nowhere' } } } } }")
            .contains("is neither in this schema nor in this file")
    );
}

#[test]
fn a_schema_bundle_refers_to_its_own_ids() {
    let data = |target: &str| {
        format!(
            "events: {{ a: {{ data: {{ $id: 'https://x.example/order', properties: {{ v: {{ $ref: '{target}' }} }}, $defs: {{ item: {{ $id: 'https://x.example/item', type: string }} }} }} }} }}"
        )
    };
    for target in ["https://x.example/item", "item"] {
        let registry = registry(&[("a.yaml", &data(target))]);
        let schema = registry.definitions()[0].schema.as_ref().unwrap();
        assert_eq!(
            [schema.is_valid(r#"{"v":"x"}"#), schema.is_valid(r#"{"v":1}"#)],
            [true, false],
            "{target}"
        );
    }
    assert!(problems(&data("https://x.example/other")).contains("is outside this file"));
}

#[test]
fn existing_schema_keywords_get_no_warning_and_slow_patterns_do() {
    let warnings = |data: &str| {
        let file = format!("events: {{ a: {{ data: {data} }} }}");
        Diagnostics(compile_texts(&[("a.yaml", &file)], &options()).unwrap().warnings).to_string()
    };
    for data in [
        "{ properties: { v: { contains: { const: 1 }, minContains: 2, maxContains: 3 } } }",
        "{ unevaluatedItems: false, dependentRequired: { a: [b] }, contentEncoding: base64 }",
        "{ properties: { v: { pattern: '(?<!a)b', maxLength: 100 }, w: { pattern: '^[a-z]{1,64}$' } } }",
    ] {
        assert_eq!(warnings(data), "", "{data}");
    }
    assert!(warnings("{ properties: { v: { pattern: '(?<!a)b' } } }").contains("slow to match"));
    assert!(warnings("{ contains: { minContain: 2 } }").contains("did you mean"));
}

#[test]
fn equal_patterns_are_shared_and_their_total_size_is_bounded() {
    let rules = |count: usize, pattern: &dyn Fn(usize) -> String| {
        let effects: String = (0..count)
            .map(|n| {
                format!("      - {{ delete: k, when: 'data.s.matches(\"{}\")' }}\n", pattern(n))
            })
            .collect();
        format!("events:\n  a:\n    effects:\n{effects}")
    };
    registry(&[("a.yaml", &rules(1_000, &|_| r"\\w{60}N".to_owned()))]);
    registry(&[("a.yaml", &rules(1_000, &|n| format!("^[a-z0-9-]+{n}$")))]);
    let text = rules(40, &|n| format!(r"\\w{{60}}{n}"));
    let refused = problems(&text);
    assert!(refused.contains("too large together"), "{refused}");
}

#[test]
fn the_examples_of_a_registry_share_one_work_limit() {
    let numbers = joined(60, |n| n.to_string(), ", ");
    let example = format!("{{ data: {{ a: [{numbers}], b: 1 }} }}");
    let text = format!(
        "events: {{ e: {{ effects: [{{ when: 'data.a.all(x, data.a.all(y, x + y < 1000))', delete: 'k:{{b}}' }}], examples: [{}] }} }}",
        joined(20, |_| example.clone(), ", ")
    );
    let loaded = compile_texts(&[("a.yaml", &text)], &options()).unwrap();
    let failing = |work| {
        loaded::run_within(&loaded, work)
            .iter()
            .map(|problem| problem.message.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(failing(10_000_000), Vec::<String>::new());
    let problems = failing(100_000);
    assert!(
        problems.len() == 1 && problems[0].contains("more than 100000 units of work"),
        "{problems:?}"
    );
}

#[test]
fn a_help_text_lists_a_few_of_thousands_of_names() {
    let lets = joined(2_000, |n| format!("l{n}: data.a"), ", ");
    let told = problems(&format!(
        "events: {{ e: {{ let: {{ {lets} }}, effects: [{{ delete: 'k:{{let.x}}' }}] }} }}"
    ));
    assert!(
        told.contains("l0, l1") && told.contains("and 1990 more") && told.len() < 1_000,
        "{told}"
    );
}

#[test]
fn a_long_entity_name_is_hashed() {
    let registry = registry(&[(
        "a.yaml",
        "events: { e: { version: { of: '{rev}', entity: 'post:{slug}' }, effects: [{ write: k, value: 1, ttl: 1h }] } }",
    )]);
    let family = |slug: &str| {
        let data = format!(r#"{{"rev":1,"slug":"{slug}"}}"#);
        let event = crate::event::Event {
            id: "1".into(),
            event_type: "e".into(),
            data_text: data.as_str().into(),
            ..crate::event::Event::default()
        };
        registry.resolve(&event).effects[0].version.clone().unwrap().family
    };
    assert_eq!(family("a"), "post:a");
    let long = family(&"a".repeat(100_000));
    assert_eq!((long.len(), long == family(&"a".repeat(100_001))), (64, false));
}
