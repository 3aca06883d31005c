//! Statements of the repository about itself: the checks before a change, the packages, the Rust
//! version that it needs, and the order among its source files.

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

/// Returns the paths that a text begins with: one, or those of a list in braces.
fn outermost(text: &str) -> impl Iterator<Item = &str> {
    let is_list = text.starts_with('{');
    let mut depth = 0;
    let end = text.find(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth <= 0 && !(c.is_alphanumeric() || c == '_' || c == ':')
    });
    let paths = text[..end.unwrap_or(text.len())].trim_start_matches('{');
    let mut depth = 0;
    paths.split(move |c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        is_list && depth == 0 && c == ','
    })
}

/// Returns the modules of a folder that each of its modules uses. A file and its folder of the same
/// name are one module, and the file `mod.rs` is none.
fn uses(folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder);
    let mut codes = BTreeMap::<String, String>::new();
    for path in sources(folder) {
        let inside = path.strip_prefix(&root).unwrap().with_extension("");
        let module = inside.iter().next().unwrap().to_str().unwrap();
        if module != "mod" {
            codes.entry(module.to_owned()).or_default().push_str(&code(&path));
        }
    }
    let from = [String::from("super::"), format!("crate::{folder}::")];
    let names = |code: &str, module: &str| {
        from.iter().flat_map(|from| code.split(from.as_str()).skip(1)).any(|after| {
            outermost(after).any(|path| path.split("::").next().unwrap().trim() == module)
        })
    };
    codes
        .iter()
        .map(|(user, code)| {
            let used = codes.keys().filter(|module| *module != user && names(code, module));
            (user.clone(), used.cloned().collect())
        })
        .collect()
}

/// Returns a circle in the graph, if there is one.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn from(
        at: &str,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
        uses: &BTreeMap<String, BTreeSet<String>>,
    ) -> Option<Vec<String>> {
        if let Some(begin) = path.iter().position(|module| module == at) {
            return Some(path[begin..].to_vec());
        }
        if done.contains(at) {
            return None;
        }
        path.push(at.to_owned());
        let found = uses[at].iter().find_map(|used| from(used, path, done, uses));
        path.pop();
        done.insert(at.to_owned());
        found
    }
    let mut done = BTreeSet::new();
    uses.keys().find_map(|module| from(module, &mut Vec::new(), &mut done, uses))
}

#[test]
fn no_circle_exists_between_the_files_of_a_folder() {
    for folder in ["cache", "worker"] {
        let uses = uses(folder);
        let arrows: usize = uses.values().map(BTreeSet::len).sum();
        assert!(arrows > uses.len(), "src/{folder}: {arrows} uses among {} files", uses.len());
        assert_eq!(circle(&uses), None, "src/{folder}");
    }
    let paths = |text| outermost(text).map(str::trim).collect::<Vec<_>>();
    assert_eq!(paths("a::B;\nuse super::c"), ["a::B"]);
    assert_eq!(paths("{a::{B, C}, d, e::{self}};\nuse x::{y}"), ["a::{B, C}", "d", "e::{self}"]);
    let of = |pairs: &[(&str, &str)]| {
        let mut uses = BTreeMap::<String, BTreeSet<String>>::new();
        for (user, used) in pairs {
            uses.entry((*used).to_owned()).or_default();
            uses.entry((*user).to_owned()).or_default().insert((*used).to_owned());
        }
        uses
    };
    assert_eq!(circle(&of(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
    assert!(circle(&of(&[("a", "b"), ("b", "c"), ("c", "b")])).is_some());
}

#[test]
fn the_map_of_the_worker_names_each_of_its_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/worker/mod.rs");
    let text = std::fs::read_to_string(root).unwrap();
    let map: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
    for module in uses("worker").keys() {
        assert!(map.contains(&format!("`{module}`")), "src/worker/mod.rs does not name {module}");
    }
}
