//! Rule files prepared by an attacker with access to their repository: links, devices, and texts
//! that grow when read.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::end_to_end::stage::Stage;
use crate::support::{wait_until, worker::Worker};

/// Memory and CPU limits of `unstale check` for any directory, as `prlimit` takes them.
const LIMITS: [&str; 2] = ["--data=268435456", "--cpu=60"];

/// Content of files outside the registry.
const SECRET: &str = "amqp://worker:S3cretPw@rabbit:5672/%2f";

/// Runs `unstale check` on a directory, within the limits. Returns its output.
fn check(name: &str, schemas: &Path) -> String {
    let mut command = Command::new("prlimit");
    command.args(LIMITS).arg(env!("CARGO_BIN_EXE_unstale")).arg("check");
    let output =
        command.env_clear().env("UNSTALE_SCHEMAS", schemas).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    // A signal has no exit code. An abort for lack of memory has none either.
    assert!(
        matches!(output.status.code(), Some(0 | 1 | 64)),
        "{name}: {}: {}",
        output.status,
        &text[text.len().saturating_sub(2_000)..]
    );
    assert!(text.len() < 1 << 20, "{name}: {} bytes of complaints", text.len());
    text
}

/// Creates a registry of one good file, beside a folder outside the registry.
fn registry() -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let schemas = folder.path().join("schemas");
    std::fs::create_dir(&schemas).unwrap();
    std::fs::write(
        schemas.join("a.yaml"),
        r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#,
    )
    .unwrap();
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    for name in ["secret", "secret.yaml"] {
        std::fs::write(outside.join(name), format!("{SECRET}\n  - {SECRET}: [\n")).unwrap();
    }
    (folder, schemas)
}

#[test]
fn links_lead_nowhere_outside_the_registry() {
    let targets = [
        "../outside/secret",
        "../outside/secret.yaml",
        "../outside",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
        "nowhere",
        "b.yaml",
        "../schemas/../outside/secret.yaml",
    ];
    for target in targets {
        for name in ["b.yaml", "b.json", "b"] {
            let (_folder, schemas) = registry();
            symlink(target, schemas.join(name)).unwrap();
            let text = check(&format!("{name} -> {target}"), &schemas);
            assert!(
                !text.contains("S3cretPw") && !text.contains("root:"),
                "{name} -> {target}: {text}"
            );
        }
    }
    // A link to a link, and a link through a folder.
    let (folder, schemas) = registry();
    symlink("../outside", folder.path().join("schemas/deep")).unwrap();
    symlink("deep/secret.yaml", schemas.join("b.yaml")).unwrap();
    symlink("b.yaml", schemas.join("c.yaml")).unwrap();
    let text = check("a link to a link", &schemas);
    assert!(!text.contains("S3cretPw"), "{text}");
}

#[test]
fn links_to_folders_above_end() {
    let (_folder, schemas) = registry();
    for name in ["one", "two", "three"] {
        symlink(".", schemas.join(name)).unwrap();
        symlink("..", schemas.join(format!("{name}-up"))).unwrap();
    }
    std::fs::create_dir(schemas.join("below")).unwrap();
    symlink("../below", schemas.join("below/again")).unwrap();
    check("links to folders above", &schemas);
}

#[test]
fn devices_and_pipes_are_no_rule_files() {
    let (_folder, schemas) = registry();
    let made = Command::new("mkfifo").arg(schemas.join("pipe.yaml")).status().unwrap();
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(schemas.join("socket.yaml")).unwrap();
    check("a pipe and a socket", &schemas);
}

#[test]
fn a_mounted_config_map_loads() {
    let (_folder, schemas) = registry();
    std::fs::create_dir(schemas.join("..2026_01_31")).unwrap();
    std::fs::write(
        schemas.join("..2026_01_31/b.yaml"),
        r#"events: { page.changed: { effects: [ { delete: "page" } ] } }"#,
    )
    .unwrap();
    symlink("..2026_01_31", schemas.join("..data")).unwrap();
    symlink("..data/b.yaml", schemas.join("b.yaml")).unwrap();
    let text = check("a ConfigMap", &schemas);
    assert!(text.contains("2 files"), "{text}");
}

/// A running worker checks its registry each second, and logs the problems.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_prints_nothing_from_outside_the_registry() {
    let stage = Stage::new(&[(
        "a.yaml",
        r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#,
    )])
    .await;
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), format!("{SECRET}\n")).unwrap();
    let worker: Worker = stage.worker(&[]).await;
    let before = worker.stderr().lines().count();
    symlink(outside.path().join("secret"), stage.schemas.path().join("b.yaml")).unwrap();
    wait_until(Duration::from_secs(20), "the worker has looked", async || {
        worker.stderr().lines().count() > before
    })
    .await;
    stage.set("user:1", "old").await;
    stage.publish("user.updated", r#"{"id":1}"#).await;
    stage.wait_gone("user:1").await;
    assert!(!worker.stderr().contains("S3cretPw"), "{}", worker.stderr());
}

fn entries(count: usize) -> String {
    let mut text = "events:\n".to_owned();
    for n in 0..count {
        let _ = writeln!(text, "  e.n{n}: {{ effects: [ {{ delete: \"k:{n}\" }} ] }}");
    }
    text
}

fn texts() -> Vec<(&'static str, String)> {
    let aliases = |count: usize| {
        format!(
            "x-text: &t \"{}\"\nx-all: [{}]\nevents: {{}}\n",
            "x".repeat(1 << 20),
            "*t,".repeat(count)
        )
    };
    let mut laughs = "x-a: &a [\"lol\"]\n".to_owned();
    for (n, name) in ('b'..='j').enumerate() {
        let before = (b'a' + u8::try_from(n).unwrap()) as char;
        let _ = writeln!(laughs, "x-{name}: &{name} [{}]", vec![format!("*{before}"); 9].join(","));
    }
    let with_data = |count: usize| -> String {
        let mut text = "events:\n".to_owned();
        for n in 0..count {
            let _ = writeln!(
                text,
                "  e.n{n}: {{ data: {{ type: object, properties: {{ id: {{ $ref: '#/x-id' }} }} }}, effects: [ {{ delete: \"k:{{id}}\" }} ] }}"
            );
        }
        text + "x-id: { type: integer }\n"
    };
    let when = |text: &str| {
        format!(
            "events: {{ e.a: {{ effects: [ {{ delete: k, when: {} }} ] }} }}",
            serde_json::to_string(text).unwrap()
        )
    };
    let data = |schema: &str| {
        format!("events: {{ e.a: {{ data: {schema}, effects: [ {{ delete: k }} ] }} }}")
    };
    vec![
        ("5,000 aliases of a long text", aliases(5_000)),
        ("90,000 aliases of a long text", aliases(90_000)),
        ("aliases of aliases", laughs),
        (
            "50,000 anchors on a line",
            format!(
                "x-a: [{}]\nevents: {{}}\n",
                (0..50_000).map(|n| format!("&a{n} 1,")).collect::<String>()
            ),
        ),
        (
            "a long line of JSON",
            format!(r#"{{"x-a":[{}1],"events":{{}}}}"#, r#"{"a":[1,2,"three"]},"#.repeat(50_000)),
        ),
        ("20,000 events", entries(20_000)),
        ("1,600 events with a schema", with_data(1_600)),
        (
            "one key 50,000 times",
            format!("events:\n{}", "  e.a: { effects: [ { delete: k } ] }\n".repeat(50_000)),
        ),
        (
            "50,000 unknown keys",
            format!(
                "{}events: {{}}\n",
                (0..50_000).map(|n| format!("evnts{n}: 1\n")).collect::<String>()
            ),
        ),
        ("100,000 levels", format!("events: {}{}", "[".repeat(100_000), "]".repeat(100_000))),
        (
            "100,000 open levels of blocks",
            (0..2_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect(),
        ),
        (
            "20,000 effects",
            format!(
                "events: {{ e.a: {{ effects: [{}] }} }}",
                r#"{ delete: "k:{id}:{t}" },"#.repeat(20_000)
            ),
        ),
        (
            "20,000 templates",
            format!(
                "events: {{ e.a: {{ effects: [ {{ delete: [{}] }} ] }} }}",
                r#""k:{id}:{t}","#.repeat(20_000)
            ),
        ),
        (
            "2,000 expressions",
            format!(
                "events: {{ e.a: {{ let: {{ {} }} }} }}",
                (0..2_000)
                    .map(|n| format!("l{n}: \"data.a.map(x, x + {n})\", "))
                    .collect::<String>()
            ),
        ),
        (
            "a pattern that grows",
            when(r#"data.a.matches("((((a{1,100}){1,100}){1,100}){1,100})")"#),
        ),
        (
            "a pattern of classes",
            when(&format!(r#"data.a.matches("{}")"#, r"\\p{L}{1,200}".repeat(200))),
        ),
        ("300 levels of CEL", when(&format!("{}1{}", "(".repeat(300), ")".repeat(300)))),
        ("400 levels of lists", when(&format!("{}1{} == []", "[".repeat(400), "]".repeat(400)))),
        ("a chain of conditions", when(&vec!["a"; 1_000].join(" || "))),
        ("a schema that refers to itself", data(r##"{ $ref: "#" }"##)),
        (
            "schemas that refer to each other",
            data(
                r##"{ $defs: { a: { $ref: "#/$defs/b" }, b: { $ref: "#/$defs/a" } }, $ref: "#/$defs/a" }"##,
            ),
        ),
        (
            "20,000 references",
            data(&format!(
                r##"{{ $defs: {{ a: {{ type: integer }} }}, allOf: [{}] }}"##,
                r##"{ $ref: "#/$defs/a" },"##.repeat(20_000)
            )),
        ),
        (
            "a schema's pattern that grows",
            data(r#"{ properties: { a: { pattern: "((((a{1,100}){1,100}){1,100}){1,100})" } } }"#),
        ),
        (
            "90 levels of schemas",
            data(&format!("{}true{}", "{ anyOf: [".repeat(90), "] }".repeat(90))),
        ),
        ("an external reference", data(r#"{ $ref: "file:///etc/passwd" }"#)),
        (
            "an example that costs much",
            format!(
                "events: {{ e.a: {{ let: {{ l: \"data.a.map(x, data.a.map(y, x + y))\" }}, effects: [ {{ delete: \"k:{{let.l[][]}}\" }} ], examples: [ {{ data: {{ a: [{}] }} }} ] }} }}",
                (0..2_000).map(|n| format!("\"{n:0>200}\"")).collect::<Vec<_>>().join(",")
            ),
        ),
        (
            "control characters",
            "events: { \"e.a\\u001b[2J\\nERROR forged\": { effects: [ { delte: k } ] } }"
                .to_owned(),
        ),
    ]
}

#[test]
fn a_rule_file_of_any_form_loads_or_is_refused_in_a_small_box() {
    for (name, text) in texts() {
        for extension in
            if text.starts_with('{') { ["json", "yaml"].as_slice() } else { ["yaml"].as_slice() }
        {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(format!("rules.{extension}")), &text).unwrap();
            let text = check(name, folder.path());
            let forged = |c: char| c != '\n' && super::is_forged(c);
            assert!(!text.contains(forged), "{name}: {text:?}");
            assert!(!text.contains("root:"), "{name}: {text}");
        }
    }
}

#[test]
fn very_many_files_load_or_are_refused_in_a_small_box() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..20_000 {
        std::fs::write(
            folder.path().join(format!("{n}.yaml")),
            format!("events: {{ e.n{n}: {{ effects: [ {{ delete: k }} ] }} }}"),
        )
        .unwrap();
    }
    check("20,000 files", folder.path());
}
