//! The program: its output and its exit codes.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const SCHEMA: &str = r#"
events:
  user.updated:
    data:
      type: object
      required: [id]
      properties: { id: { type: integer } }
    effects:
      - delete: "user:{id}"
      - invalidate_tags: "users"
        when: changed("name")
    examples:
      - data: { id: 7 }
        expect: ["delete user:7", "invalidate_tags users"]
"#;

fn registry(schema: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("user.yaml"), schema).unwrap();
    dir
}

fn unstale(args: &[&str], settings: &[(&str, &str)], stdin: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_unstale"))
        .args(args)
        .env_clear()
        .envs(settings.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that ends without reading its input closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn schemas(dir: &Path) -> [(&'static str, &str); 2] {
    [("UNSTALE_SCHEMAS", dir.to_str().unwrap()), ("UNSTALE_KEY_PREFIX", "eu:")]
}

#[test]
fn check_counts_files_events_effects_and_examples() {
    let dir = registry(SCHEMA);
    let (code, out, err) = unstale(&["check", dir.path().to_str().unwrap()], &[], "");
    assert_eq!((code, out.as_str()), (0, "1 file, 1 event, 2 effects, 1 example: ok\n"), "{err}");
}

#[test]
fn check_reports_every_problem_and_exits_with_64() {
    let dir = registry(&SCHEMA.replace("delete user:7", "delete user:8"));
    std::fs::write(dir.path().join("b.yaml"), "events: { a.b: { effects: [ { remove: x } ] } }")
        .unwrap();
    let (code, out, err) = unstale(&["check", dir.path().to_str().unwrap()], &[], "");
    assert_eq!(code, 64);
    assert!(err.contains("b.yaml:1:") && out.starts_with("not loaded: "), "{out}{err}");
    std::fs::remove_file(dir.path().join("b.yaml")).unwrap();
    let (code, out, err) = unstale(&["check", dir.path().to_str().unwrap()], &[], "");
    assert_eq!(code, 64);
    assert!(err.contains("user.yaml:") && err.contains("delete user:8"), "{err}");
    assert_eq!(out, "1 file, 1 event, 2 effects, 1 example: 1 problem\n");
    let (code, out, _) = unstale(&["check", "--json"], &schemas(dir.path()), "");
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &found["ok"], found["problems"].as_array().unwrap().len()),
        (64, &false.into(), 1),
        "{out}"
    );
}

#[test]
fn plan_refuses_empty_or_misshapen_input_and_says_what_to_do() {
    let dir = registry(SCHEMA);
    let plan = |input: &str| unstale(&["plan"], &schemas(dir.path()), input);
    for input in ["", "\n \n"] {
        let (code, out, err) = plan(input);
        assert_eq!((code, out.as_str()), (64, ""), "{err}");
        assert!(err.contains("error: there is no event"), "{err}");
    }
    let (code, out, _) =
        plan("{\n  \"type\": \"user.updated\",\n  \"data\": {\n    \"id\": 7\n  }\n}\n");
    assert!(code == 1 && out.contains("on one line, as `jq -c .` does"), "{out}");
    let (code, out, _) = plan(r#"{"routing_key":"user.updated","body":"{}","redelivered":true}"#);
    assert!(code == 1 && out.contains("`redelivered` is not part of a message"), "{out}");
    let settings =
        [("UNSTALE_SCHEMAS", dir.path().to_str().unwrap()), ("UNSTALE_MAX_BODY_BYTES", "1KiB")];
    let (code, _, err) = unstale(&["plan"], &settings, &"x".repeat(2 << 20));
    assert!(code == 64 && err.contains("no message is that long"), "{err}");
}

#[test]
fn names_and_patterns_that_match_no_event_are_refused() {
    let dir = registry(SCHEMA);
    for pattern in ["a..b", "a b", "user."] {
        let (code, _, err) =
            unstale(&["replay", "--since", "1h", "--type", pattern], &schemas(dir.path()), "");
        assert!(code == 64 && err.contains("matches no event"), "{pattern}: {code} {err}");
    }
    for name in ["user updated", "user..updated", ".user"] {
        let dir = registry(&SCHEMA.replace("user.updated", &format!("\"{name}\"")));
        let (code, _, err) = unstale(&["check", dir.path().to_str().unwrap()], &[], "");
        assert!(code == 64 && err.contains("name"), "{name}: {err}");
    }
    let (code, out, _) = unstale(&["start", "--help"], &[], "");
    assert!(code == 0 && out.contains("Run the worker"), "{out}");
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("a\nb");
    std::fs::create_dir(&odd).unwrap();
    std::fs::write(odd.join("c.yaml"), "events: [").unwrap();
    let (_, _, err) = unstale(&["check", odd.to_str().unwrap()], &[], "");
    assert!(err.lines().next().unwrap_or_default().contains("a\\nb/c.yaml:1:10"), "{err}");
}

#[test]
fn check_prints_the_json_schema_of_rule_files() {
    let (code, out, _) = unstale(&["check", "--print-schema"], &[], "");
    assert_eq!(code, 0);
    assert!(
        serde_json::from_str::<serde_json::Value>(&out).unwrap()["properties"]["events"]
            .is_object()
    );
}

#[test]
fn plan_shows_keys_with_the_prefix_and_exits_with_1_for_a_dead_letter() {
    let dir = registry(SCHEMA);
    let good =
        r#"{"type":"user.updated","id":"e","data":{"id":42,"name":"a"},"previous":{"name":"a"}}"#;
    let (code, out, err) = unstale(&["plan", "--json"], &schemas(dir.path()), good);
    assert_eq!(code, 0, "{err}");
    let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        plan["effects"],
        serde_json::json!([{"verb": "delete", "target": "eu:user:42", "rule": "user.yaml#user.updated/0"}])
    );
    assert!(plan["error"].is_null());
    let (code, out, _) = unstale(&["plan"], &schemas(dir.path()), good);
    assert_eq!(code, 0);
    insta::assert_snapshot!(out);
    let (code, out, _) = unstale(
        &["plan", "--json", "-"],
        &schemas(dir.path()),
        "{\"type\":\"user.updated\",\"data\":{}}\nnot json\n",
    );
    assert_eq!(code, 1);
    assert!(
        out.contains("invalid_data")
            && out.contains("\"effects\":[],\"error\":{\"reason\":\"malformed\""),
        "{out}"
    );
}

/// Returns the first character that a terminal would act on.
fn active(text: &str) -> Option<char> {
    text.chars().find(|c| {
        *c != '\n'
            && (c.is_control()
                || matches!(c, '\u{200e}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
    })
}

#[test]
fn text_of_events_and_rule_files_is_escaped_in_every_output() {
    const HOSTILE: &str = "\\u001b[2J\\u009b2J\\r\\n\\u007f\\u2028\\u202e";
    const RULES: &str = "events:
  \"hostile.\\e[2J\\u202e\":
    effects: [ { delete: x } ]
  user.updated:
    data: { type: object, additionalProperties: { type: integer } }
    effects: [ { write: \"user:{id}\", value: \"{data}\", ttl: 1h } ]
  any.thing:
    effects: [ { invalidate_tags: \"t:{text?}\" } ]
";
    let dir = registry(RULES);
    let (_, out, err) = unstale(&["check", dir.path().to_str().unwrap()], &[], "");
    assert_eq!(active(&(out + &err)), None);
    let lines = format!(
        "{{\"type\":\"user.updated\",\"id\":\"{HOSTILE}\",\"data\":{{\"id\":1,\"{HOSTILE}\":\"x\"}}}}\n\
         {{\"type\":\"any.thing{HOSTILE}\",\"data\":{{}}}}\n{{\"type\":\"any.thing\",\"data\":{{\"text\":\"{HOSTILE}\"}}}}\n\u{9b}2J\u{202e}\n"
    );
    for args in [&["plan"][..], &["plan", "--json"]] {
        let (code, out, err) = unstale(args, &schemas(dir.path()), &lines);
        assert_eq!(code, 1, "{err}");
        assert!(out.contains("u{202e}") || out.contains("\\u202e"), "{out}");
        assert_eq!(active(&(out + &err)), None, "{args:?}");
    }
    for args in
        [&["publish", "--dry-run", "--file", "-"][..], &["publish", "a\u{1b}[2J", "x\u{202e}"]]
    {
        let (_, out, err) =
            unstale(args, &[("UNSTALE_AMQP_URL", "amqp://127.0.0.1:1/%2f")], &lines);
        assert_eq!(active(&(out + &err)), None, "{args:?}");
    }
}

#[test]
fn plan_shows_the_url_of_a_loader_without_the_values_of_variables() {
    let rules = "loaders: { catalogue: { url: \"{vars.URL}\" } }
events:
  product.updated:
    effects: [ { warm: \"product:{id}\", from: \"catalogue:/p/{id}?key={vars.KEY}\", ttl: 1h } ]
";
    let dir = registry(rules);
    let [schemas, prefix] = schemas(dir.path());
    let settings = [
        schemas,
        prefix,
        ("UNSTALE_VAR_URL", "https://user:hunter2@internal/api/"),
        ("UNSTALE_VAR_KEY", "s3cret"),
    ];
    for args in [&["plan"][..], &["plan", "--json"]] {
        let (_, out, err) =
            unstale(args, &settings, r#"{"type":"product.updated","data":{"id":7}}"#);
        assert!(out.contains("{vars.URL}/p/7?key={vars.KEY}"), "{out}{err}");
        assert!(!out.contains("hunter2") && !out.contains("s3cret"), "{out}");
    }
}

#[test]
fn plan_takes_the_type_of_an_event_as_the_worker_does() {
    let dir = registry(SCHEMA);
    let [schemas, prefix] = schemas(dir.path());
    let line = r#"{"routing_key":"user.seen","headers":{"unstale-event-type":"user.updated"},"body":{"id":7}}"#;
    let (code, out, _) = unstale(&["plan"], &[schemas, prefix], line);
    assert!(code == 0 && out.contains("delete"), "{out}");
    let (code, out, _) =
        unstale(&["plan"], &[schemas, prefix, ("UNSTALE_TYPE_FROM", "routing_key")], line);
    assert!(code == 1 && out.starts_with("user.seen  ") && !out.contains("  delete "), "{out}");
}

#[test]
fn a_closed_stdout_is_not_an_error() {
    let dir = registry(SCHEMA);
    let events = "{\"type\":\"user.updated\",\"data\":{\"id\":1}}\n".repeat(20_000);
    let file = dir.path().join("events.jsonl");
    std::fs::write(&file, events).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_unstale"))
        .args(["plan", file.to_str().unwrap()])
        .env_clear()
        .envs(schemas(dir.path()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()),
        (Some(0), "")
    );
}

#[test]
fn wrong_usage_and_wrong_settings_exit_with_64() {
    for args in [&[][..], &["walk"], &["plan", "--yaml"], &["publish"], &["plan", "/no/such/file"]]
    {
        let dir = registry(SCHEMA);
        let (code, out, err) = unstale(args, &schemas(dir.path()), "");
        assert_eq!((code, out.as_str()), (64, ""), "{args:?}");
        assert!(!err.is_empty());
    }
    let (code, _, err) = unstale(
        &["publish", "a.b", "{}"],
        &[("UNSTALE_PREFETCH", "hunter2"), ("UNSTALE_LOG", "hunter2")],
        "",
    );
    assert_eq!(code, 64);
    assert!(
        err.starts_with("error: 2 settings cannot be used")
            && err.contains("UNSTALE_PREFETCH")
            && !err.contains("hunter2"),
        "{err}"
    );
}

#[test]
fn help_version_and_completions_exit_with_0() {
    for args in [
        &["--help"][..],
        &["-h"],
        &["--version"],
        &["run", "--help"],
        &["completions", "bash"],
        &["completions", "fish"],
    ] {
        let (code, out, err) = unstale(args, &[], "");
        assert!(code == 0 && !out.is_empty() && err.is_empty(), "{args:?}: {err}");
    }
    assert_eq!(
        unstale(&["--version"], &[], "").1,
        concat!("unstale ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn plan_reads_the_output_of_publish_with_dry_run() {
    let dir = registry(SCHEMA);
    let (code, line, err) =
        unstale(&["publish", "user.updated", "--dry-run", "--id", "e1"], &[], "{\"id\":7}");
    assert_eq!(code, 0, "{err}");
    let (code, out, _) = unstale(&["plan", "--json"], &schemas(dir.path()), &line);
    assert!(
        code == 0 && out.contains("\"target\":\"eu:user:7\"") && out.contains("\"id\":\"e1\""),
        "{out}"
    );
}

#[test]
fn publish_exits_with_69_if_the_broker_is_out_of_reach() {
    // Nothing listens on port 1 of a machine that runs tests.
    let (code, _, err) =
        unstale(&["publish", "a.b", "{}"], &[("UNSTALE_AMQP_URL", "amqp://127.0.0.1:1")], "");
    assert!(code == 69 && err.contains("RabbitMQ"), "{code}: {err}");
}

/// Runs `unstale status` on a terminal, without any server.
fn status_on_a_terminal(settings: &[(&str, &str)]) -> String {
    let output = Command::new("script")
        .args([
            "--quiet",
            "--return",
            "--command",
            &format!("{} status", env!("CARGO_BIN_EXE_unstale")),
            "/dev/null",
        ])
        .env_clear()
        .env("UNSTALE_AMQP_URL", "amqp://127.0.0.1:1")
        .env("UNSTALE_REDIS_URL", "redis://127.0.0.1:1")
        .env("TERM", "xterm")
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn status_has_colours_on_a_terminal_unless_no_color_is_set() {
    let painted = status_on_a_terminal(&[]);
    assert!(
        painted.contains("\u{1b}[1;31m2 problems:\u{1b}[0m")
            && painted.contains("\u{1b}[1;31m  ! Redis"),
        "{painted}"
    );
    for settings in [[("NO_COLOR", "1")], [("TERM", "dumb")]] {
        let plain = status_on_a_terminal(&settings);
        assert!(
            plain.contains("2 problems:") && !plain.contains('\u{1b}'),
            "{settings:?}: {plain}"
        );
    }
    assert!(
        status_on_a_terminal(&[("NO_COLOR", "")]).contains('\u{1b}'),
        "empty is as good as unset"
    );
    let (code, piped, _) = unstale(
        &["status"],
        &[("UNSTALE_AMQP_URL", "amqp://127.0.0.1:1"), ("UNSTALE_REDIS_URL", "redis://127.0.0.1:1")],
        "",
    );
    assert!(code == 1 && !piped.contains('\u{1b}'), "{piped}");
}
