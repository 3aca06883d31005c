//! What people and programs get to see: a table on the terminal, `results.json`, `results.md`, `events.svg` and `figures.svg`.

mod markdown;
mod plot;

use std::path::Path;

use serde::Serialize;

use crate::figures::Figure;
use crate::results::Results;

/// Where and with what it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Conditions {
    pub(crate) machine: String,
    pub(crate) servers: String,
    pub(crate) peers: String,
    pub(crate) rounds: usize,
    /// RFC 3339.
    pub(crate) time: String,
    pub(crate) load_average_before: String,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    conditions: &'a Conditions,
    figures: &'a [Figure],
    results: &'a Results,
}

/// Shows the table and writes the files.
///
/// # Errors
/// When a file cannot be written.
#[expect(clippy::print_stdout, reason = "a benchmark's report")]
pub(crate) fn write(out: &Path, conditions: &Conditions, results: &Results, figures: &[Figure]) -> std::io::Result<()> {
    let text = markdown::report(conditions, results, figures);
    println!("{text}");
    std::fs::create_dir_all(out)?;
    let report = Report { conditions, figures, results };
    std::fs::write(out.join("results.json"), serde_json::to_string_pretty(&report)? + "\n")?;
    std::fs::write(out.join("results.md"), text)?;
    std::fs::write(out.join("events.svg"), plot::events(results))?;
    std::fs::write(out.join("figures.svg"), plot::figures(figures))?;
    println!("written: results.json, results.md, events.svg and figures.svg in {}", out.display());
    Ok(())
}
