//! The report: a table on the terminal, `results.json`, `results.md`, `events.svg` and
//! `figures.svg`.

mod markdown;
mod plot;

use std::path::Path;

use serde::Serialize;

use crate::figures::{self, Figure};
use crate::results::Results;

/// The machine and the versions of the measurement.
#[derive(Debug, Serialize)]
pub(crate) struct Conditions {
    pub(crate) machine: String,
    pub(crate) servers: String,
    pub(crate) peers: String,
    pub(crate) rounds: usize,
    /// In RFC 3339.
    pub(crate) time: String,
    pub(crate) load_average_before: String,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    conditions: &'a Conditions,
    figures: &'a [Figure],
    results: &'a Results,
}

/// Writes the files, and returns the table.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(
    out: &Path,
    conditions: &Conditions,
    results: &Results,
) -> std::io::Result<String> {
    let figures = &figures::figures(results);
    let text = markdown::report(conditions, results, figures);
    std::fs::create_dir_all(out)?;
    let report = Report { conditions, figures, results };
    std::fs::write(out.join("results.json"), serde_json::to_string_pretty(&report)? + "\n")?;
    std::fs::write(out.join("results.md"), &text)?;
    std::fs::write(out.join("events.svg"), plot::events(results))?;
    std::fs::write(out.join("figures.svg"), plot::figures(figures))?;
    Ok(text)
}
