//! Tables of letters and of groups of letters.

use std::io::{self, Write};

use jiff::Timestamp;

use super::super::paint::Paint;
use crate::ops::dead_letters::{Group, Letter};
use crate::printable::shown;

/// Maximum width of a column.
const MAX_COLUMN_CHARS: usize = 40;

/// Maximum length of an id that is printed whole, which is the length of a UUID.
const ID_MAX_CHARS: usize = 36;

/// Length to which a longer id is cut.
const SHORT_ID_CHARS: usize = 16;

/// Returns a count with its noun, such as `1 dead letter` or `7 dead letters`.
pub(super) fn letters(count: usize) -> String {
    format!("{count} dead letter{}", if count == 1 { "" } else { "s" })
}

pub(super) fn write_groups(groups: &[Group], paint: Paint, out: &mut impl Write) -> io::Result<()> {
    let Some(largest) = groups.first() else { return Ok(()) };
    let width = largest.count.to_string().len().max("count".len());
    let head = ["count"]
        .into_iter()
        .chain(largest.common.iter().map(|(by, _)| by.as_str()))
        .chain(["first", "last"]);
    let rows = groups.iter().map(|group| {
        let common = group.common.iter().map(|(_, value)| optional(value.as_deref()));
        let count = format!("{:>width$}", group.count);
        [count].into_iter().chain(common).chain([second(group.first), second(group.last)]).collect()
    });
    table(&head.collect::<Vec<_>>(), &rows.collect::<Vec<_>>(), paint, out)
}

pub(super) fn write_lines(
    letters: &[Letter],
    paint: Paint,
    out: &mut impl Write,
) -> io::Result<()> {
    let rows = letters.iter().map(|letter| {
        let id = letter.id.as_deref().map_or_else(|| "-".to_owned(), |id| short(&shown(id)));
        vec![
            second(letter.time),
            shown(&letter.reason),
            shown(&letter.event_type),
            id,
            optional(letter.error.as_deref()),
        ]
    });
    table(&["time", "reason", "type", "id", "error"], &rows.collect::<Vec<_>>(), paint, out)
}

fn optional(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), shown)
}

/// Cuts an id that is longer than a UUID, such as a hash of 64 digits. `--id` takes the cut id.
fn short(id: &str) -> String {
    if id.chars().count() <= ID_MAX_CHARS {
        id.to_owned()
    } else {
        id.chars().take(SHORT_ID_CHARS).chain(['…']).collect()
    }
}

/// Returns a time without fractions of a second.
fn second(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn table(
    head: &[&str],
    rows: &[Vec<String>],
    paint: Paint,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count().min(MAX_COLUMN_CHARS));
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let line: String =
            cells.zip(&widths).map(|(cell, width)| format!("  {cell:<width$}")).collect();
        line.trim_end().to_owned()
    };
    writeln!(out, "{}", paint.faint(&line(&mut head.iter().copied())))?;
    for row in rows {
        writeln!(out, "{}", line(&mut row.iter().map(String::as_str)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_longer_than_a_uuid_is_cut() {
        let uuid = "123e4567-e89b-12d3-a456-426614174000";
        assert_eq!((short("42"), short(uuid)), ("42".to_owned(), uuid.to_owned()));
        assert_eq!(short(&"0123456789abcdef".repeat(4)), "0123456789abcdef…");
        assert_eq!(short(&"é".repeat(37)), format!("{}…", "é".repeat(16)));
    }
}
