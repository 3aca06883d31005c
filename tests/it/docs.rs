//! The documentation says what the program does: its rule files load, its examples hold, its tables
//! name every setting and metric.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use unstale::config::{SETTINGS, Vars};
use unstale::reason::Reason;
use unstale::registry::{LoadOptions, MissingVars, Registry, RuleName, Verb, run_examples};
use unstale::telemetry::Metrics;

use crate::support::servers;

const SCHEMAS: &str = include_str!("../../docs/SCHEMAS.md");
const OPERATIONS: &str = include_str!("../../docs/OPERATIONS.md");
const READERS: &str = include_str!("../../docs/READERS.md");
const FAULTS: &str = include_str!("../../docs/FAULTS.md");
const CONSISTENCY: &str = include_str!("../../docs/CONSISTENCY.md");
const SERVICES: &str = include_str!("../../docs/SERVICES.md");
const README: &str = include_str!("../../README.md");

/// A fenced block of a page.
pub(crate) struct Block<'p> {
    /// The line it begins at.
    pub(crate) line: usize,
    pub(crate) language: &'p str,
    pub(crate) text: String,
}

pub(crate) fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block<'_>> = None;
    for (number, line) in (1..).zip(page.lines()) {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text.extend([line, "\n"]),
            (None, Some(language)) => {
                open = Some(Block { line: number + 1, language, text: String::new() })
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

/// The name in the comment `# schemas/<name>` that a whole file begins with.
fn file_name(block: &str) -> Option<&str> {
    block.lines().next()?.strip_prefix("# schemas/")
}

fn check(page: &str, line: usize, name: &str, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), text).unwrap();
    let options = LoadOptions {
        schemas: folder.path().to_owned(),
        key_prefix: String::new(),
        vars: Vars([("EPOCH".to_owned(), "1".to_owned())].into()),
        tag_prefix: "cache_tag:".to_owned(),
        max_keys_per_event: 10_000,
        missing_vars: MissingVars::Refuse,
    };
    let loaded =
        Registry::load(&options).unwrap_or_else(|problems| panic!("{page}:{line}: {problems}"));
    let failing: Vec<String> = run_examples(&loaded).iter().map(ToString::to_string).collect();
    assert!(failing.is_empty(), "{page}:{line}: {}", failing.join("\n"));
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.is_empty(), "{page}:{line}: {}", warnings.join("\n"));
}

#[test]
fn every_rule_file_shown_loads_without_a_warning_and_its_examples_hold() {
    let mut files = 0;
    for (page, text) in [("docs/SCHEMAS.md", SCHEMAS), ("README.md", README)] {
        for Block { line, text, .. } in
            blocks(text).into_iter().filter(|block| block.language == "yaml")
        {
            let Some(name) = file_name(&text) else {
                assert_ne!(
                    page, "docs/SCHEMAS.md",
                    "{page}:{line}: every block there is a whole file: begin it with `# schemas/<name>`"
                );
                continue;
            };
            check(page, line, name, &text);
            files += 1;
        }
    }
    assert!(files >= 10, "only {files} files were found: has the pages' form changed?");
}

/// Each command of a session (`$ …`) and what the page says it prints.
pub(crate) fn commands(session: &str) -> Vec<(&str, String)> {
    let mut commands: Vec<(&str, String)> = Vec::new();
    for line in session.lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command, String::new())),
            (None, Some((_, printed))) => printed.extend([line, "\n"]),
            (None, None) => panic!("a session begins with `$ `, not with `{line}`"),
        }
    }
    commands
}

#[test]
fn commands_print_what_the_page_shows() {
    let programs = Path::new(env!("CARGO_BIN_EXE_unstale")).parent().unwrap().display();
    let folder = tempfile::tempdir().unwrap();
    let schemas = folder.path().join("schemas");
    let mut ran = 0;
    for Block { line, language, text } in blocks(SCHEMAS) {
        if let Some(name) = file_name(&text).filter(|_| language == "yaml") {
            // A session is about the file shown before it.
            let _ = std::fs::remove_dir_all(&schemas);
            std::fs::create_dir(&schemas).unwrap();
            std::fs::write(schemas.join(name), text).unwrap();
        } else if language == "console" {
            for (command, printed) in commands(&text) {
                let mut shell = Command::new("sh");
                shell
                    .args(["-c", &format!("exec 2>&1; {command}")])
                    .current_dir(folder.path())
                    .env_clear();
                let output =
                    shell.env("PATH", format!("{programs}:/usr/bin:/bin")).output().unwrap();
                let actual = String::from_utf8_lossy(&output.stdout);
                assert_eq!(
                    actual.trim_end(),
                    printed.trim_end(),
                    "docs/SCHEMAS.md:{line}: {command}"
                );
                ran += 1;
            }
        }
    }
    assert!(ran > 0, "no session was found");
}

/// The words in backquotes in the first cells of the first table below a heading.
fn first_cells<'p>(page: &'p str, heading: &str) -> Vec<&'p str> {
    let (_, section) = page
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("no section `{heading}`"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .map_while(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

fn assert_same<'a>(
    what: &str,
    documented: impl IntoIterator<Item = &'a str>,
    known: impl IntoIterator<Item = &'a str>,
) {
    let (documented, known): (BTreeSet<&str>, BTreeSet<&str>) =
        (documented.into_iter().collect(), known.into_iter().collect());
    let missing: Vec<_> = known.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&known).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "{what}: not documented: {missing:?}; documented and unknown: {invented:?}"
    );
}

#[test]
fn the_settings_table_names_every_setting_and_its_default() {
    assert_same(
        "docs/OPERATIONS.md, settings",
        first_cells(OPERATIONS, "Settings"),
        SETTINGS.iter().map(|setting| setting.name),
    );
    for setting in SETTINGS {
        let row =
            OPERATIONS.lines().find(|line| line.starts_with(&format!("| `{}` |", setting.name)));
        let row = row.unwrap_or_else(|| panic!("{} has no row of its own", setting.name));
        let default = row.split(" | ").nth(1).unwrap_or_default().trim();
        let expected = match setting.default {
            None | Some("") => "none".to_owned(),
            Some(text) => format!("`{text}`"),
        };
        assert_eq!(default, expected, "{}", setting.name);
    }
}

#[test]
fn the_metrics_table_names_every_metric() {
    let metrics = Metrics::new();
    // What has labels shows once they have values, as in a worker that runs.
    let rule =
        RuleName { name: "user.yaml#user.updated/0".to_owned(), verb: Verb::Delete, definition: 0 };
    metrics.for_registry("digest", &[rule], ["user.updated"]);
    metrics.set_paused("redis", false);
    metrics.set_loader_open("catalogue", false);
    let exposed = metrics.prometheus_text();
    let known: Vec<&str> = exposed
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    assert!(known.len() > 10, "{exposed}");
    assert_same("docs/OPERATIONS.md, metrics", first_cells(OPERATIONS, "Metrics"), known);
}

#[test]
fn the_table_of_dead_letters_names_every_reason() {
    assert_same(
        "docs/OPERATIONS.md, dead letters",
        first_cells(OPERATIONS, "Dead letters"),
        Reason::ALL.map(Reason::as_str),
    );
}

#[test]
fn links_between_the_pages_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (page, folder, text) in [
        ("docs/SCHEMAS.md", "docs", SCHEMAS),
        ("docs/OPERATIONS.md", "docs", OPERATIONS),
        ("docs/READERS.md", "docs", READERS),
        ("docs/SERVICES.md", "docs", SERVICES),
        ("README.md", "", README),
    ] {
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { root.join(page) } else { root.join(folder).join(file) };
            assert!(path.exists(), "{page}: `{target}` leads nowhere");
            if !anchor.is_empty() {
                let linked = std::fs::read_to_string(&path).unwrap();
                let found = linked
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .any(|heading| slug(heading) == anchor);
                assert!(found, "{page}: `{target}` names no heading");
            }
        }
    }
}

/// Patch releases are not compared, and a machine's own servers are not either.
#[test]
fn the_servers_of_the_matrix_are_those_that_the_page_names() {
    if std::env::var_os("UNSTALE_TEST_ROOT").is_none() {
        return;
    }
    let servers = servers();
    let ((rabbitmq, rabbitmq_minor, _), (redis, redis_minor, _)) =
        (servers.rabbitmq, servers.redis);
    let cells = [
        format!("{rabbitmq}.{rabbitmq_minor}."),
        format!("{} {redis}.{redis_minor}.", servers.redis_software),
    ];
    let is_this_run = |row: &&str| {
        row.split('|')
            .skip(1)
            .zip(&cells)
            .all(|(cell, begin)| cell.trim().starts_with(begin.as_str()))
    };
    let (_, rows) = SERVICES.split_once("## Tested servers").unwrap();
    assert!(
        rows.lines().any(|row| is_this_run(&row)),
        "docs/SERVICES.md has no row of {servers:?}"
    );
}

/// The anchor that GitHub makes of a heading.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// The tests of a tree, by their full names: `faults::caches::redis_killed_and_started_again`.
fn tests_in(folder: &Path, root: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_in(&path, root, found);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let mut module: Vec<String> = path
            .strip_prefix(root)
            .unwrap()
            .with_extension("")
            .iter()
            .map(|part| part.to_str().unwrap().into())
            .collect();
        module.retain(|part| part != "mod" && part != "main" && part != "lib");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim_start) {
            if line.starts_with("mod tests {") {
                module.push("tests".into());
            } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(rest) =
                line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "))
                && std::mem::take(&mut is_test)
            {
                let name = rest.split('(').next().unwrap();
                found.insert(
                    module.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join("::"),
                );
            }
        }
    }
}

/// All tests: the integration tests, and those in `src`.
fn all_tests() -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut integration, mut units) = (BTreeSet::new(), BTreeSet::new());
    for (folder, found) in [("tests/it", &mut integration), ("src", &mut units)] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        tests_in(&root, &root, found);
    }
    (integration, units)
}

/// The tests that the rows of a page end with.
fn tests_of_rows(page: &str) -> BTreeSet<&str> {
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter_map(|line| line.strip_suffix("` |")?.rsplit_once("| `"));
    rows.map(|(_, test)| test).collect()
}

#[test]
fn what_holds_names_a_test_that_tries_it() {
    let (integration, _) = all_tests();
    let (_, holds) = CONSISTENCY.split_once("## What holds").unwrap();
    let (holds, _) = holds.split_once("## What does not").unwrap();
    let listed = tests_of_rows(holds);
    let rows = holds.lines().filter(|line| line.starts_with("| **")).count();
    assert_eq!(listed.len(), rows, "a row of docs/CONSISTENCY.md names no test, or another's");
    let missing: Vec<&&str> = listed.iter().filter(|test| !integration.contains(**test)).collect();
    assert!(missing.is_empty(), "docs/CONSISTENCY.md names tests that are not there: {missing:?}");
}

#[test]
fn every_fault_has_its_test_and_every_fault_test_its_row() {
    let (integration, units) = all_tests();
    let listed = tests_of_rows(FAULTS);
    assert!(
        listed.len() > 40,
        "only {} rows were found: has the page's form changed?",
        listed.len()
    );
    let missing: Vec<&&str> = listed
        .iter()
        .filter(|test| !integration.contains(**test) && !units.contains(**test))
        .collect();
    assert!(missing.is_empty(), "docs/FAULTS.md lists tests that are not there: {missing:?}");
    let is_fault = |test: &&String| test.starts_with("faults::") || test.starts_with("soak::");
    let unlisted: Vec<&String> = integration
        .iter()
        .filter(is_fault)
        .filter(|test| !listed.contains(test.as_str()))
        .collect();
    assert!(unlisted.is_empty(), "docs/FAULTS.md lacks a row for {unlisted:?}");
}
