//! Regression cases: inputs in `tests/cases/`, and the expected results of `plan` and `check`.
//!
//! | member | meaning |
//! |---|---|
//! | `about` | property that must hold |
//! | `kind` | `plan` or `check` |
//! | `rules` | the only rule file; or `definitions` or `values`, how many of them it has |
//! | `lines` | input of `plan`; or `integers`, `text` or `texts`, the one long member of an event |
//! | `expect.exit` | exit status |
//! | `expect.present`, `expect.absent` | text that the output holds, or does not |
//! | `expect.reasons`, `expect.targets` | by line: reason of the dead letter, and targets |
//! | `expect.cpu_s` | maximum CPU time in seconds, for a build without optimization |

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// Maximum CPU time in seconds, if a case sets none.
const CPU_S: u64 = 60;

fn count(of: &Value) -> usize {
    usize::try_from(of["count"].as_u64().unwrap_or_else(|| panic!("no count: {of}"))).unwrap()
}

fn rules(case: &Value) -> String {
    if let Some(definitions) = case["definitions"].as_u64() {
        let definition = |at| {
            format!(
                "  t{at}:\n    data: {{type: object, required: [id], properties: {{id: {{type: integer}}}}}}\n    effects:\n    - delete: \"k{at}:{{id}}\"\n"
            )
        };
        return format!("events:\n{}", (0..definitions).map(definition).collect::<String>());
    }
    if let Some(values) = case["values"].as_u64() {
        return format!(
            "x-values: [{}]\nevents: {{}}\n",
            "1,".repeat(usize::try_from(values).unwrap())
        );
    }
    case["rules"].as_str().unwrap().to_owned()
}

fn lines(case: &Value) -> Vec<String> {
    let event = |of: &Value, value: Value| {
        let body = json!({ of["member"].as_str().unwrap(): value }).to_string();
        vec![json!({ "routing_key": of["type"], "body": body }).to_string()]
    };
    let piece = |of: &Value| of["piece"].as_str().unwrap_or_default().to_owned();
    match (&case["integers"], &case["text"], &case["texts"]) {
        (of @ Value::Object(_), _, _) => event(of, (0..count(of)).collect()),
        (_, of @ Value::Object(_), _) => event(of, piece(of).repeat(count(of)).into()),
        (_, _, of @ Value::Object(_)) => {
            event(of, (0..count(of)).map(|at| piece(of).replace('%', &at.to_string())).collect())
        }
        _ => case["lines"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|line| line.as_str().unwrap().to_owned())
            .collect(),
    }
}

fn run(case: &Value) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("rules.yaml"), rules(case)).unwrap();
    let cpu_s = case["expect"]["cpu_s"].as_u64().unwrap_or(CPU_S);
    let command = if case["kind"] == "check" { "check" } else { "plan --json" };
    // The kernel ends a process that exceeds it. A wall clock would not be reliable on a busy
    // machine.
    let mut child = Command::new("sh")
        .args([
            "-c",
            &format!("ulimit -t {cpu_s}; exec \"$0\" {command}"),
            env!("CARGO_BIN_EXE_unstale"),
        ])
        .env_clear()
        .env("UNSTALE_SCHEMAS", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = lines(case).join("\n");
    // `check` reads no input.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn judge(path: &Path) {
    let case: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (name, about, expect) = (path.display(), &case["about"], &case["expect"]);
    let output = run(&case);
    let (out, err) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let code = output
        .status
        .code()
        .unwrap_or_else(|| panic!("{name}: {about}: ended by a signal, {}: {err}", output.status));
    if let Some(expected) = expect["exit"].as_i64() {
        assert_eq!(i64::from(code), expected, "{name}: {about}: {out}{err}");
    }
    let both = out.clone() + &err;
    assert!(
        expect["present"].as_str().is_none_or(|text| both.contains(text)),
        "{name}: {about}: {both}"
    );
    assert!(
        expect["absent"].as_str().is_none_or(|text| !both.contains(text)),
        "{name}: {about}: {both}"
    );
    let plans: Vec<Value> =
        out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if let Some(reasons) = expect["reasons"].as_array() {
        let found: Vec<&Value> = plans.iter().map(|plan| &plan["error"]["reason"]).collect();
        assert_eq!(found, reasons.iter().collect::<Vec<_>>(), "{name}: {about}: {err}");
    }
    if let Some(targets) = expect["targets"].as_array() {
        let of = |plan: &Value| {
            plan["effects"]
                .as_array()
                .unwrap()
                .iter()
                .map(|effect| effect["target"].clone())
                .collect::<Value>()
        };
        assert_eq!(plans.iter().map(of).collect::<Vec<_>>(), *targets, "{name}: {about}: {err}");
    }
}

#[test]
fn what_went_wrong_once_has_its_expected_result() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().for_each(|path| judge(path));
}
