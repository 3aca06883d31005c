//! Letters for people.

use std::io::{self, Write};

use jiff::Timestamp;

use super::super::plan::shown;
use crate::ops::dead_letters::{Group, Letter};

/// The widest a column is made by what stands in it.
const MAX_COLUMN_CHARS: usize = 40;

/// `1 dead letter`, `7 dead letters`
pub(super) fn letters(count: usize) -> String {
    format!("{count} dead letter{}", if count == 1 { "" } else { "s" })
}

pub(super) fn write_groups(groups: &[Group], out: &mut impl Write) -> io::Result<()> {
    let width = groups.first().map_or(0, |largest| largest.count.to_string().len()).max("count".len());
    let rows = groups.iter().map(|group| {
        let count = format!("{:>width$}", group.count);
        [count, shown(&group.reason), shown(&group.event_type), second(group.first), second(group.last)]
    });
    table(["count", "reason", "type", "first", "last"], rows.collect(), out)
}

pub(super) fn write_lines(letters: &[Letter], out: &mut impl Write) -> io::Result<()> {
    let rows = letters.iter().map(|letter| {
        let text = |value: &Option<String>| value.as_deref().map_or_else(|| "-".to_owned(), shown);
        [second(letter.time), shown(&letter.reason), shown(&letter.event_type), text(&letter.id), text(&letter.error)]
    });
    table(["time", "reason", "type", "id", "error"], rows.collect(), out)
}

/// To the second.
fn second(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>, out: &mut impl Write) -> io::Result<()> {
    let mut widths = head.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count().min(MAX_COLUMN_CHARS));
        }
    }
    for row in std::iter::once(&head.map(str::to_owned)).chain(&rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line += &format!("  {cell:<width$}");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
