//! Rules and events that cost too much once. Every `cargo test` replays them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::cost::{Clock, LOAD_CPU, measure};
use super::payload::Genome;
use super::round::load;

/// Writes a case into `target/fuzz/`. A case worth keeping goes to `tests/fuzz/corpus/`, with a
/// comment. Without genes, the case concerns loading the rules.
pub(crate) fn save(seed: u64, rules: &Value, genome: Option<&Genome>) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../fuzz");
    let path = folder.join(format!("{seed}.json"));
    let case = json!({ "found": format!("seed {seed}"), "rules": rules, "genes": genome.map(|genome| genome.0) });
    let _ = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&path, format!("{case:#}\n")));
    path
}

/// Writes a case whose body does not come from genes.
pub(crate) fn save_body(seed: u64, rules: &Value, body: &Value) -> PathBuf {
    let path = save(seed, rules, None);
    let case = json!({ "found": format!("variant {seed}"), "rules": rules, "body": body });
    let _ = std::fs::write(&path, format!("{case:#}\n"));
    path
}

/// Replays every case.
pub(crate) fn replay() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let clock = Clock::of_this_thread();
    for path in paths {
        let case: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let (loaded, taken) = load(&clock, &case["rules"]);
        assert!(taken <= LOAD_CPU, "{}: loading took {taken:?} of CPU", path.display());
        let body = match (&case["body"], &case["genes"]) {
            (Value::Null, Value::Null) => continue,
            (Value::Null, genes) => Genome(serde_json::from_value(genes.clone()).unwrap()).body(),
            (body, _) => body.to_string().into_bytes(),
        };
        // Rules that no longer load have no cost.
        let Ok(loaded) = loaded else { continue };
        if let Err(problem) = measure(&clock, &loaded.registry, &body) {
            panic!("{}: {problem}", path.display());
        }
    }
}
