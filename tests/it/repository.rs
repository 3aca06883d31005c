//! What the repository says of itself: the checks that run before a change, and the Rust that it
//! needs.

use std::collections::BTreeSet;

const CI_RUN: &str = include_str!("../../.ci/run");
const WORKFLOW: &str = include_str!("../../.github/workflows/ci.yml");
const MAKEFILE: &str = include_str!("../../Makefile");
const CONTRIBUTING: &str = include_str!("../../CONTRIBUTING.md");

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
