//! Statements of the repository about itself: the checks before a change, the packages, the Rust
//! version that it needs, and what its source files may use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const CI_RUN: &str = include_str!("../../.ci/run");
const WORKFLOW: &str = include_str!("../../.github/workflows/ci.yml");
const MAKEFILE: &str = include_str!("../../Makefile");
const CONTRIBUTING: &str = include_str!("../../CONTRIBUTING.md");
const MANIFEST: &str = include_str!("../../Cargo.toml");
const IMAGE_CONTEXT: &str = include_str!("../../.dockerignore");

/// Returns the targets that a text calls as `make TARGET`.
fn made(text: &str) -> BTreeSet<&str> {
    text.split("make ")
        .skip(1)
        .map(|after| after.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).next().unwrap())
        .filter(|target| !target.is_empty())
        .collect()
}

fn targets() -> BTreeSet<&'static str> {
    MAKEFILE
        .lines()
        .filter_map(|line| line.split_once(":").filter(|(_, rest)| rest.contains("## ")))
        .map(|(target, _)| target)
        .collect()
}

#[test]
fn the_workflow_and_ci_run_call_the_same_targets() {
    let called = made(CI_RUN);
    assert!(called.contains("lint") && called.contains("test"), "{called:?}");
    assert_eq!(called, made(WORKFLOW));
}

#[test]
fn every_target_that_a_contributor_is_shown_exists() {
    let targets = targets();
    for text in [CI_RUN, CONTRIBUTING] {
        for target in made(text) {
            assert!(targets.contains(target), "the Makefile has no target {target:?}");
        }
    }
}

#[test]
fn contributors_are_shown_the_rust_that_cargo_demands() {
    let demanded = format!("Rust {}", env!("CARGO_PKG_RUST_VERSION"));
    assert!(CONTRIBUTING.contains(&demanded), "CONTRIBUTING.md does not name {demanded}");
}

/// Returns the folders of the packages of the workspace, without its root.
fn members() -> Vec<&'static str> {
    let (_, list) = MANIFEST.split_once("members = [").unwrap();
    let (list, _) = list.split_once(']').unwrap();
    list.split('"').skip(1).step_by(2).collect()
}

#[test]
fn the_image_is_built_from_every_package_of_the_workspace() {
    let members = members();
    assert!(members.len() > 1, "{members:?}");
    for member in members {
        let allowed = format!("!{member}");
        assert!(
            IMAGE_CONTEXT.lines().any(|line| line == allowed),
            ".dockerignore leaves out {member}"
        );
    }
}

/// Returns what Cargo prints about this workspace, without a network.
fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--package", "unstale-reader", "--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_reader_package_compiles_nothing_of_the_worker() {
    let tree = cargo(&["tree", "--edges", "normal,build", "--all-features", "--prefix", "none"]);
    let crates: BTreeSet<&str> =
        tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(crates.contains("unstale-reader") && crates.contains("redis"), "{crates:?}");
    for refused in ["unstale", "lapin", "axum", "hyper", "reqwest", "cel", "jsonschema", "clap"] {
        assert!(!crates.contains(refused), "a reader compiles {refused}");
    }
}

#[test]
fn the_reader_package_has_every_file_that_it_reads() {
    let list = cargo(&["package", "--no-verify", "--allow-dirty", "--list"]);
    let packed: BTreeSet<PathBuf> = list.lines().map(PathBuf::from).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/rust");
    let mut read = 0;
    for path in sources_in(&root.join("src")) {
        let text = std::fs::read_to_string(&path).unwrap();
        let folder = path.parent().unwrap().canonicalize().unwrap();
        for include in text.split("include_str!(\"").skip(1) {
            let file = folder.join(include.split('"').next().unwrap()).canonicalize().unwrap();
            let is_packed = file
                .strip_prefix(root.canonicalize().unwrap())
                .is_ok_and(|file| packed.contains(file));
            assert!(
                is_packed,
                "{} reads {}, which the package lacks",
                path.display(),
                file.display()
            );
            read += 1;
        }
    }
    assert!(read > 10, "only {read} files are read");
}

/// Returns the lines of code of a source file, without comments and unit tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Returns the source files of a folder in `src`, without unit tests.
fn sources(folder: &str) -> Vec<PathBuf> {
    sources_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder))
}

/// Returns the source files of a folder, without unit tests.
fn sources_in(folder: &Path) -> Vec<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match (path.is_dir(), path.file_stem().and_then(|stem| stem.to_str())) {
                (_, Some("tests")) => {}
                (true, _) => folders.push(path),
                (false, _) if path.extension().is_some_and(|extension| extension == "rs") => {
                    files.push(path);
                }
                (false, _) => {}
            }
        }
    }
    assert!(!files.is_empty(), "no source files");
    files
}

#[test]
fn event_registry_and_plan_use_no_socket_no_clock_and_no_runtime() {
    let refused = [
        "tokio",
        "lapin",
        "redis::",
        "reqwest",
        "std::net",
        "std::env",
        "SystemTime",
        "Instant",
        "Timestamp::now",
    ];
    for folder in ["event", "registry", "plan"] {
        for path in sources(folder) {
            // The deadline of a budget is the one look at a clock.
            let is_budget = path.ends_with("registry/budget.rs");
            let code = code(&path);
            for word in refused.iter().filter(|word| !(is_budget && **word == "Instant")) {
                assert!(!code.contains(word), "{} uses {word}", path.display());
            }
        }
    }
}

#[test]
fn no_two_public_types_have_one_name() {
    let mut places = BTreeMap::<String, PathBuf>::new();
    let readers = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/rust/src");
    for path in sources("").into_iter().chain(sources_in(&readers)) {
        for line in code(&path).lines() {
            let line = line.trim_start();
            let declared = ["pub struct ", "pub enum ", "pub trait ", "pub type "]
                .iter()
                .find_map(|keyword| line.strip_prefix(keyword));
            let Some(declared) = declared else { continue };
            let name = declared.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            if let Some(other) = places.insert(name.to_owned(), path.clone()) {
                panic!("{name} is in {} and in {}", other.display(), path.display());
            }
        }
    }
    assert!(places.len() > 100, "{} public types", places.len());
}

#[test]
fn the_map_of_the_worker_names_each_of_its_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/worker");
    let text = std::fs::read_to_string(root.join("mod.rs")).unwrap();
    let map: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
    for path in sources("worker") {
        // A file and its folder of the same name are one module.
        let inside = path.strip_prefix(&root).unwrap().with_extension("");
        let module = inside.iter().next().unwrap().to_str().unwrap();
        if module == "mod" {
            continue;
        }
        assert!(map.contains(&format!("`{module}`")), "src/worker/mod.rs does not name {module}");
    }
}
