//! The documentation says what the program does: its rule files load, its examples hold, its tables
//! name every setting and metric, and its links lead somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use unstale::config::{SETTINGS, Vars};
use unstale::reason::Reason;
use unstale::registry::{LoadOptions, MissingVars, Registry, RuleName, Verb, run_examples};
use unstale::telemetry::Metrics;

use crate::support::servers;

/// The most words that a page may have.
const MOST_WORDS: usize = 2_500;

/// `make bench` writes this page.
const GENERATED: &str = "docs/bench/results.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the text of a page, such as `docs/reference/settings.md`.
pub(crate) fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns every page below `docs`, and the README, by name.
fn pages() -> BTreeMap<String, String> {
    let mut found = files_in("docs", "md");
    found.push("README.md".into());
    found.into_iter().map(|name| (name.clone(), page(&name))).collect()
}

/// Returns the names of the files below a folder that end so, such as `docs/why.md`. Packages and
/// builds of the clients are left out.
fn files_in(folder: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                let is_ours = !path.ends_with("node_modules") && !path.ends_with("build");
                folders.extend(is_ours.then_some(path));
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

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
    for (page, text) in pages() {
        for Block { line, text, .. } in
            blocks(&text).into_iter().filter(|block| block.language == "yaml")
        {
            let name = file_name(&text).unwrap_or_else(|| {
                panic!("{page}:{line}: a `yaml` block is a whole rule file: begin it with `# schemas/<name>`")
            });
            check(&page, line, name, &text);
            files += 1;
        }
    }
    assert!(files >= 10, "only {files} files were found: has the pages' form changed?");
}

/// Each command of a session (`$ …`), and its output on the page.
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

/// Returns whether each command of a session needs no server.
fn is_offline(session: &str) -> bool {
    let offline = ["unstale check", "unstale plan", "unstale run"];
    commands(session).iter().all(|(command, _)| offline.iter().any(|run| command.contains(run)))
}

#[test]
fn commands_print_what_the_page_shows() {
    let programs = Path::new(env!("CARGO_BIN_EXE_unstale")).parent().unwrap().display();
    let mut ran = 0;
    for (page, text) in pages() {
        let folder = tempfile::tempdir().unwrap();
        for Block { line, language, text } in blocks(&text) {
            if let Some(name) = file_name(&text).filter(|_| language == "yaml") {
                // A session is about the file shown before it. The tutorial has its own folder.
                for schemas in ["schemas", "first"].map(|name| folder.path().join(name)) {
                    let _ = std::fs::remove_dir_all(&schemas);
                    std::fs::create_dir(&schemas).unwrap();
                    std::fs::write(schemas.join(name), &text).unwrap();
                }
            } else if language == "console" && text.starts_with("$ ") && is_offline(&text) {
                for (command, printed) in commands(&text) {
                    let mut shell = Command::new("sh");
                    shell
                        .args(["-c", &format!("exec 2>&1; {command}")])
                        .current_dir(folder.path())
                        .env_clear();
                    let output =
                        shell.env("PATH", format!("{programs}:/usr/bin:/bin")).output().unwrap();
                    let actual = String::from_utf8_lossy(&output.stdout);
                    assert_eq!(actual.trim_end(), printed.trim_end(), "{page}:{line}: {command}");
                    ran += 1;
                }
            }
        }
    }
    assert!(ran >= 9, "only {ran} commands were found");
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
    let text = page("docs/reference/settings.md");
    assert_same(
        "docs/reference/settings.md",
        first_cells(&text, "All settings"),
        SETTINGS.iter().map(|setting| setting.name),
    );
    for setting in SETTINGS {
        let row = text.lines().find(|line| line.starts_with(&format!("| `{}` |", setting.name)));
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
    let text = page("docs/reference/metrics.md");
    assert_same("docs/reference/metrics.md", first_cells(&text, "All metrics"), known);
}

#[test]
fn the_table_of_dead_letters_names_every_reason() {
    let text = page("docs/how-to/dead-letters.md");
    assert_same(
        "docs/how-to/dead-letters.md",
        first_cells(&text, "Reasons"),
        Reason::ALL.map(Reason::as_str),
    );
}

/// Returns a page without its code: neither links nor headings are in there.
fn without_code(page: &str) -> String {
    let mut text = String::new();
    let mut in_block = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            text.extend([line, "\n"]);
        }
    }
    text
}

/// Returns the targets of a page's links.
fn links(page: &str) -> Vec<String> {
    let text = without_code(page);
    // A code span may look like a link, and the text of a link may have code spans.
    let parts: Vec<&str> = text.split('`').collect();
    let outside: String = parts.iter().step_by(2).copied().collect();
    let targets = outside.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}

/// Returns the anchors that GitHub and mdBook make of a page's headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let text = without_code(page);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|heading| {
            let anchor = slug(heading);
            let count = seen.entry(anchor.clone()).or_default();
            *count += 1;
            if *count == 1 { anchor } else { format!("{anchor}-{}", *count - 1) }
        })
        .collect()
}

/// Panics where a link or a mention of a page leads nowhere.
fn assert_leads_somewhere(from: &str, folder: &Path, target: &str) {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { root().join(from) } else { root().join(folder).join(file) };
    assert!(path.exists(), "{from}: `{target}` leads nowhere");
    if !anchor.is_empty() && path.extension().is_some_and(|extension| extension == "md") {
        let linked = std::fs::read_to_string(&path).unwrap();
        assert!(anchors(&linked).contains(anchor), "{from}: `{target}` names no heading");
    }
}

#[test]
fn links_between_the_pages_lead_somewhere() {
    let mut pages = pages();
    for name in ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"] {
        if root().join(name).exists() {
            pages.insert(name.into(), page(name));
        }
    }
    for folder in ["clients", "examples"] {
        pages.extend(files_in(folder, "md").into_iter().map(|name| (name.clone(), page(&name))));
    }
    let mut checked = 0;
    for (name, text) in &pages {
        let folder = Path::new(name).parent().unwrap();
        for target in links(text).iter().filter(|target| !target.contains("://")) {
            assert_leads_somewhere(name, folder, target);
            checked += 1;
        }
    }
    assert!(checked > 200, "only {checked} links were found");
}

/// The program's hints name pages, and so do scripts and comments.
#[test]
fn pages_that_the_sources_name_exist() {
    let mut named = 0;
    let folders = ["src", "tests", "benches", "demo", "clients", "examples", "schemas", "scripts"];
    let sources = folders.iter().flat_map(|folder| {
        ["rs", "sh", "py", "js", "ts", "lua", "yaml", "conf", "snap", "toml"]
            .into_iter()
            .flat_map(|extension| files_in(folder, extension))
    });
    let others = ["Makefile", "docker-compose.yml", "Dockerfile", "Cargo.toml"];
    for name in sources.chain(others.map(str::to_owned)) {
        // Its pages are examples.
        if name == "scripts/test_lint_prose.py" {
            continue;
        }
        let text =
            String::from_utf8_lossy(&std::fs::read(root().join(&name)).unwrap()).into_owned();
        for (at, _) in text.match_indices("docs/") {
            let is_path = |c: char| c.is_ascii_alphanumeric() || "/_.-#".contains(c);
            let rest = &text[at..];
            let mention = &rest[..rest.find(|c| !is_path(c)).unwrap_or(rest.len())];
            let mention = mention.trim_end_matches('.');
            let file = mention.split('#').next().unwrap();
            if file.ends_with(".md") {
                assert_leads_somewhere(&name, Path::new(""), mention);
                named += 1;
            }
        }
    }
    assert!(named > 10, "only {named} mentions were found");
}

/// Paths are those of the repository, or of `src`: `worker/batch.rs`.
#[test]
fn source_files_that_the_pages_name_exist() {
    let mut named = 0;
    for (name, text) in pages() {
        let text = without_code(&text);
        for path in text.split('`').skip(1).step_by(2) {
            let is_path = path.chars().all(|c| c.is_ascii_alphanumeric() || "/_.-".contains(c));
            let is_source = path.ends_with(".rs") || path.ends_with(".lua");
            if is_path && is_source && path.contains('/') {
                let exists =
                    ["", "src"].iter().any(|folder| root().join(folder).join(path).exists());
                assert!(exists, "{name}: `{path}` is no file");
                named += 1;
            }
        }
    }
    assert!(named > 30, "only {named} files were found");
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let listed = links(&page("docs/SUMMARY.md"));
    let pages = files_in("docs", "md");
    let pages = pages.iter().filter_map(|name| name.strip_prefix("docs/"));
    assert_same(
        "docs/SUMMARY.md",
        listed.iter().map(String::as_str),
        pages.filter(|name| *name != "SUMMARY.md"),
    );
}

#[test]
fn no_page_is_too_long() {
    for (name, text) in pages() {
        // A page prints whole scripts, which must not be shortened.
        let scripts = blocks(&text).into_iter().filter(|block| block.language == "lua");
        let script_words: usize =
            scripts.map(|script| script.text.split_whitespace().count()).sum();
        let words = text.split_whitespace().count() - script_words;
        assert!(
            words <= MOST_WORDS || name == GENERATED,
            "{name} has {words} words, at most {MOST_WORDS}: split it"
        );
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
    let text = page("docs/reference/servers.md");
    let (_, rows) = text.split_once("## Tested servers").unwrap();
    assert!(
        rows.lines().any(|row| is_this_run(&row)),
        "docs/reference/servers.md has no row of {servers:?}"
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
        let (mut is_test, mut is_for_both) = (false, false);
        for line in text.lines().map(str::trim_start) {
            if is_for_both && line != "}" {
                // The names of bodies that run against a single server and a cluster.
                let name = line.trim_end_matches([',', ';']);
                for kind in ["single", "cluster"] {
                    found.insert(format!("{}::{kind}::{name}", module.join("::")));
                }
            } else if is_for_both || line == "super::on_both! {" {
                is_for_both = !is_for_both;
            } else if line.starts_with("mod tests {") {
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
    let text = page("docs/consistency.md");
    let (_, holds) = text.split_once("\n## What holds\n").unwrap();
    let (holds, _) = holds.split_once("\n## ").unwrap();
    let listed = tests_of_rows(holds);
    let rows = holds.lines().filter(|line| line.starts_with("| **")).count();
    assert!(rows > 5, "only {rows} rows were found: has the page's form changed?");
    assert_eq!(listed.len(), rows, "a row of docs/consistency.md names no test, or another's");
    let missing: Vec<&&str> = listed.iter().filter(|test| !integration.contains(**test)).collect();
    assert!(missing.is_empty(), "docs/consistency.md names tests that are not there: {missing:?}");
}

#[test]
fn every_fault_has_its_test_and_every_fault_test_its_row() {
    let (integration, units) = all_tests();
    let pages: String = files_in("docs/faults", "md").iter().map(|name| page(name)).collect();
    let listed = tests_of_rows(&pages);
    assert!(
        listed.len() > 40,
        "only {} rows were found: has the page's form changed?",
        listed.len()
    );
    let missing: Vec<&&str> = listed
        .iter()
        .filter(|test| !integration.contains(**test) && !units.contains(**test))
        .collect();
    assert!(missing.is_empty(), "docs/faults lists tests that are not there: {missing:?}");
    let is_fault = |test: &&String| test.starts_with("faults::") || test.starts_with("soak::");
    let unlisted: Vec<&String> = integration
        .iter()
        .filter(is_fault)
        .filter(|test| !listed.contains(test.as_str()))
        .collect();
    assert!(unlisted.is_empty(), "docs/faults lacks a row for {unlisted:?}");
}
