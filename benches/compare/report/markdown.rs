//! Tables in Markdown that are readable on a terminal too.

use std::fmt::Write as _;

use super::Conditions;
use crate::figures::{Bound, Figure};
use crate::results::{Results, rounded};

pub(super) fn report(conditions: &Conditions, results: &Results, figures: &[Figure]) -> String {
    let mut out = String::from("# Results of `make bench`\n\n");
    let Conditions { machine, servers, peers, rounds, time, load_average_before } = conditions;
    let peers = if peers.is_empty() { String::new() } else { format!("; {peers}") };
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{time}, on {machine}; {servers}{peers}; {rounds} rounds; load average before: {load_average_before}.\n"
    );
    out += &table(&["", "figure", "wanted", "seen", ""], figures.iter().map(figure_row).collect());
    out += "\nWhat they are made of: medians, and the least and the most of the rounds.\n\n";
    let rows = results.series.iter().map(|series| {
        let (least, most) = (rounded(series.least()), rounded(series.most()));
        let spread =
            if series.rounds.len() > 1 { format!("{least} – {most}") } else { String::new() };
        vec![
            series.workload.to_string(),
            series.who.clone(),
            series.measure.to_owned(),
            rounded(series.median()),
            spread,
        ]
    });
    out += &table(&["", "who", "measure", "median", "least – most"], rows.collect());
    out
}

fn figure_row(figure: &Figure) -> Vec<String> {
    let wanted = match figure.bound {
        Bound::AtLeast(bound) => format!("≥ {}", rounded(bound)),
        Bound::AtMost(bound) => format!("≤ {}", rounded(bound)),
        Bound::None => String::new(),
    };
    let seen = figure.seen.map(rounded).unwrap_or_default();
    vec![
        figure.workload.to_string(),
        figure.what.clone(),
        wanted,
        seen,
        figure.verdict().to_owned(),
    ]
}

fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<String>| {
        let cells = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!(" {cell}{} ", " ".repeat(width - cell.chars().count())));
        format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
    };
    let mut out = line(head.iter().map(|cell| (*cell).to_owned()).collect());
    out += &format!(
        "|{}|\n",
        widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("|")
    );
    rows.into_iter().for_each(|row| out += &line(row));
    out
}
