//! The command `unstale check [DIR]`.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::configure::configure;
use super::{CliError, Exit};
use crate::config::{RegistryConfig, Scope};
use crate::printable::{printable_json, printable_lines};
use crate::registry::{
    Diagnostic, LoadOptions, LoadedRegistry, MissingVars, Registry, Severity, file_schema,
    run_examples,
};

/// Check rule files and run their examples, without any server
///
/// Prints every problem in one run, with its file, line and column, and how to fix it. Exits with
/// 64 if there is an error or an example fails, and with 0 if there are only warnings.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct CheckArgs {
    /// Directory of the rule files [default: UNSTALE_SCHEMAS]
    dir: Option<PathBuf>,
    /// Print the JSON Schema of rule files, with which editors complete and check them
    #[arg(long, conflicts_with_all = ["dir", "json"])]
    print_schema: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:

  unstale check
  unstale check ./schemas && git push
  unstale check --print-schema > registry.schema.json";

pub(super) fn run(args: &CheckArgs) -> Result<Exit, CliError> {
    if args.print_schema {
        writeln!(io::stdout(), "{:#}", file_schema())?;
        return Ok(Exit::Clean);
    }
    let mut config = configure(Scope::Offline)?.registry;
    if let Some(dir) = &args.dir {
        config.schemas.clone_from(dir);
    }
    let findings = Findings::of(&config);
    if args.json {
        writeln!(io::stdout(), "{}", printable_json(&findings.json().to_string()))?;
    } else {
        let mut err = io::stderr().lock();
        for problem in &findings.problems {
            writeln!(err, "{}", printable_lines(&problem.to_string()))?;
        }
        writeln!(io::stdout(), "{}", findings.summary())?;
    }
    Ok(if findings.is_ok() { Exit::Clean } else { Exit::Usage })
}

/// Returns the options with which offline commands load the registry. A variable without a value is
/// only a warning.
pub(super) fn offline(config: &RegistryConfig) -> LoadOptions {
    LoadOptions { missing_vars: MissingVars::Warn, ..LoadOptions::for_run(config) }
}

/// Numbers of a registry's parts.
#[derive(Default)]
struct Counts {
    files: usize,
    events: usize,
    effects: usize,
    examples: usize,
}

/// The result of a check.
struct Findings {
    /// `None` if the registry did not load.
    counts: Option<Counts>,
    problems: Vec<Diagnostic>,
}

impl Findings {
    fn of(config: &RegistryConfig) -> Self {
        match Registry::load(&offline(config)) {
            Ok(loaded) => {
                let failed = run_examples(&loaded);
                let counts = Some(Counts::of(&loaded));
                Self { counts, problems: loaded.warnings.into_iter().chain(failed).collect() }
            }
            Err(problems) => Self { counts: None, problems: problems.0 },
        }
    }

    fn of_severity(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    fn is_ok(&self) -> bool {
        self.counts.is_some() && self.of_severity(Severity::Error) == 0
    }

    fn summary(&self) -> String {
        let mut verdict = match self.of_severity(Severity::Error) {
            0 => "ok".to_owned(),
            problems => count(problems, "problem"),
        };
        match self.of_severity(Severity::Warning) {
            0 => {}
            warnings => verdict = format!("{verdict}, {}", count(warnings, "warning")),
        }
        match &self.counts {
            None => format!("not loaded: {verdict}"),
            Some(Counts { files, events, effects, examples }) => format!(
                "{}, {}, {}, {}: {verdict}",
                count(*files, "file"),
                count(*events, "event"),
                count(*effects, "effect"),
                count(*examples, "example")
            ),
        }
    }

    fn json(&self) -> serde_json::Value {
        let counts = self
            .counts
            .as_ref()
            .map(|counts| json!({"files": counts.files, "events": counts.events, "effects": counts.effects, "examples": counts.examples}));
        let problems: Vec<_> = self.problems.iter().map(problem).collect();
        json!({"ok": self.is_ok(), "counts": counts, "problems": problems})
    }
}

impl Counts {
    fn of(loaded: &LoadedRegistry) -> Self {
        let entries = &loaded.registry.definitions;
        Self {
            files: entries.iter().map(|entry| &entry.file).collect::<BTreeSet<_>>().len(),
            events: entries.len(),
            effects: loaded.registry.rules.len(),
            examples: loaded.examples.len(),
        }
    }
}

fn problem(problem: &Diagnostic) -> serde_json::Value {
    let place = |number: u32| (number > 0).then_some(number);
    json!({
        "file": problem.file,
        "line": place(problem.line),
        "column": place(problem.column),
        "code": problem.code.as_str(),
        "severity": problem.severity.to_string(),
        "message": problem.message,
        "hint": problem.help,
    })
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
