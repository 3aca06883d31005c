//! The output on the terminal.

use std::io::IsTerminal as _;
use std::time::Duration;

use crate::cache::{Snapshot, State};
use crate::steps::Step;

const KEY_WIDTH: usize = 30;
const CELL_WIDTH: usize = 40;

/// Colour, on a terminal and unless `NO_COLOR` is set (<https://no-color.org>).
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    pub(crate) fn for_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { on: std::io::stdout().is_terminal() && !refused }
    }

    fn with(&self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn good(&self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn bad(&self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn strong(&self, text: &str) -> String {
        self.with("1", text)
    }

    fn faint(&self, text: &str) -> String {
        self.with("2", text)
    }

    fn changed(&self, text: &str) -> String {
        self.with("36", text)
    }
}

pub(crate) fn title(paint: &Paint, number: usize, of: usize, step: &Step) {
    println!("{}", paint.strong(&format!("{number}/{of}  {}", step.pattern)));
    println!("  {}", step.story);
    println!("  {} {} {}", paint.faint(step.form.name()), paint.strong(step.event_type), step.body);
}

pub(crate) fn show(paint: &Paint, step: &Step, before: &Snapshot, after: &Snapshot) {
    let rows: Vec<_> = step
        .rows
        .iter()
        .map(|row| {
            let (was, is) = (&before.watched[row.key], &after.watched[row.key]);
            let kept = same_value(was, is) && !step.is_shortened(row);
            (
                shorten(row.key, KEY_WIDTH),
                cell(was),
                cell(is),
                kept,
                *is == State::Absent,
                row.problem(was, is).is_none(),
            )
        })
        .collect();
    let width = |title: &str, cells: &mut dyn Iterator<Item = &String>| {
        cells.map(|cell| length(cell)).max().unwrap_or(0).max(length(title))
    };
    let keys = width("in Redis", &mut rows.iter().map(|row| &row.0));
    let befores = width("before", &mut rows.iter().map(|row| &row.1));
    let afters = width("after", &mut rows.iter().map(|row| &row.2));
    let rule = |left: &str, middle: &str, right: &str| {
        let line = [keys, befores, afters, 1].map(|width| "─".repeat(width + 2)).join(middle);
        println!("  {}", paint.faint(&format!("{left}{line}{right}")));
    };
    let bar = paint.faint("│");
    rule("┌", "┬", "┐");
    let head = [("in Redis", keys), ("before", befores), ("after", afters)]
        .map(|(title, width)| paint.strong(&pad(title, width)));
    println!("  {bar} {} {bar} {} {bar} {} {bar}   {bar}", head[0], head[1], head[2]);
    rule("├", "┼", "┤");
    for (key, was, is, kept, gone, right) in &rows {
        let is = pad(is, afters);
        let is = match (right, kept, gone) {
            (false, ..) => paint.bad(&is),
            (_, true, _) => paint.faint(&is),
            (_, _, true) => paint.with("33", &is),
            _ => paint.changed(&is),
        };
        let sign = if *right { paint.good("✓") } else { paint.bad("✗") };
        println!(
            "  {bar} {} {bar} {} {bar} {is} {bar} {sign} {bar}",
            pad(key, keys),
            pad(was, befores)
        );
    }
    rule("└", "┴", "┘");
}

pub(crate) fn summary(paint: &Paint, steps: &[Step], took: &[Duration], failed: &[&str]) {
    if !failed.is_empty() {
        println!(
            "{}",
            paint.bad(&format!(
                "{} of {} steps were not as expected: {}.",
                failed.len(),
                steps.len(),
                failed.join("; ")
            ))
        );
        return;
    }
    let slowest = took.iter().max().copied().unwrap_or_default();
    println!(
        "{}",
        paint.good(&format!("All {} steps as expected; the slowest took {slowest:.1?} from confirmed event to fresh cache.", steps.len()))
    );
    println!();
    println!("What to try next:");
    println!(
        "  make run                      the same servers and a worker, to publish to from your own code"
    );
    let worker = worker();
    println!(
        "  {worker} check     validates schemas/ and runs its examples; change a rule and see"
    );
    println!("  echo '{{\"type\":\"user.updated\",\"data\":{{\"id\":42}}}}' | {worker} plan");
    println!(
        "  docs/SCHEMAS.md               each pattern in depth, and what your application must do for it"
    );
}

/// Returns the worker's program, which is built beside this one, as a person here would call it.
fn worker() -> String {
    let Ok(tour) = std::env::current_exe() else { return "unstale".to_owned() };
    let worker = tour.with_file_name("unstale");
    let here = std::env::current_dir().unwrap_or_default();
    worker.strip_prefix(here).unwrap_or(&worker).display().to_string()
}

fn same_value(was: &State, is: &State) -> bool {
    match (was, is) {
        (State::Text { text: was, .. }, State::Text { text: is, .. }) => was == is,
        _ => was == is,
    }
}

fn cell(state: &State) -> String {
    match state {
        State::Absent => "(none)".to_owned(),
        State::Text { text, ttl: None } => shorten(text, CELL_WIDTH),
        State::Text { text, ttl: Some(ttl) } => {
            let ttl = lifetime(*ttl);
            format!("{} ⧗ {ttl}", shorten(text, CELL_WIDTH - 3 - length(&ttl)))
        }
        State::Set(members) => {
            let members: Vec<&str> = members.iter().map(String::as_str).collect();
            shorten(&format!("{{{}}}", members.join(", ")), CELL_WIDTH)
        }
    }
}

/// Formats a lifetime in whole seconds, rounded up almost as Redis' `TTL` does: `1h`, `59m 58s`,
/// `27s`.
pub(crate) fn lifetime(ttl: Duration) -> String {
    let seconds = ttl.as_millis().div_ceil(1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let parts = [(hours, "h"), (minutes, "m"), (seconds, "s")];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(length(text))))
}

fn shorten(text: &str, width: usize) -> String {
    if length(text) <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}
