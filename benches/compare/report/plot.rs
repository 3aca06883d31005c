//! Two pictures: the events per second of each workload, and the distance of each figure from its
//! limit.

use std::fmt::Write as _;

use crate::figures::{Bound, Figure};
use crate::results::{Results, rounded};

const WIDTH: f64 = 960.0;
const ROW: f64 = 22.0;
/// Left end of the bars. Names are before it.
const LEFT: f64 = 380.0;
/// Right end of the longest bar. Its value is to the right of it.
const RIGHT: f64 = 840.0;

const GOOD: &str = "#2a7f62";
const BAD: &str = "#c0392b";
const PLAIN: &str = "#8a94a0";

/// Draws a bar for each contender, grouped by workload. A line shows the minimum and maximum of the
/// rounds.
pub(super) fn events(results: &Results) -> String {
    let series: Vec<_> =
        results.series.iter().filter(|series| series.measure == "events/s").collect();
    let longest = series.iter().map(|series| series.most()).fold(1.0, f64::max);
    let x = |value: f64| LEFT + (RIGHT - LEFT) * value / longest;
    let mut plot =
        Plot::new("Events a second: the median, and the least to the most of the rounds");
    let mut workload = None;
    for series in series {
        if workload.replace(series.workload) != Some(series.workload) {
            plot.y += ROW / 2.0;
        }
        let color = if series.who.starts_with("unstale") || series.who.contains("worker") {
            GOOD
        } else {
            PLAIN
        };
        plot.name(&format!("({}) {}", series.workload, series.who));
        plot.bar(LEFT, x(series.median()), color);
        plot.line(x(series.least()), x(series.most()));
        plot.value(x(series.most()), &rounded(series.median()));
        plot.y += ROW;
    }
    plot.finish()
}

/// Draws a bar for each figure: the measured value as a part of the limit, which is the vertical
/// line.
pub(super) fn figures(figures: &[Figure]) -> String {
    let mut plot = Plot::new("Measured values against their limits (the line); green is within");
    // Longer bars than three times the limit add nothing.
    let x = |part: f64| LEFT + (RIGHT - LEFT) * part.clamp(0.0, 3.0) / 3.0;
    for figure in figures {
        let (Some(seen), Bound::AtLeast(bound) | Bound::AtMost(bound)) =
            (figure.seen, figure.bound)
        else {
            continue;
        };
        let sign = if matches!(figure.bound, Bound::AtLeast(_)) { "≥" } else { "≤" };
        plot.name(&format!("({}) {}", figure.workload, figure.what));
        plot.bar(LEFT, x(seen / bound), if figure.holds() == Some(true) { GOOD } else { BAD });
        plot.upright(x(1.0));
        plot.value(
            x((seen / bound).max(1.0)),
            &format!("{} ({sign} {})", rounded(seen), rounded(bound)),
        );
        plot.y += ROW;
    }
    plot.finish()
}

struct Plot {
    body: String,
    y: f64,
}

/// Writing to a String cannot fail.
impl Plot {
    fn new(title: &str) -> Self {
        let mut plot = Self { body: String::new(), y: 24.0 };
        let _ =
            writeln!(plot.body, r#"<text x="12" y="{}" font-weight="bold">{title}</text>"#, plot.y);
        plot.y += ROW;
        plot
    }

    fn name(&mut self, name: &str) {
        let _ = writeln!(
            self.body,
            r#"<text x="{}" y="{}" text-anchor="end">{name}</text>"#,
            LEFT - 8.0,
            self.y + 13.0
        );
    }

    fn value(&mut self, x: f64, value: &str) {
        let _ =
            writeln!(self.body, r#"<text x="{:.1}" y="{}">{value}</text>"#, x + 6.0, self.y + 13.0);
    }

    fn bar(&mut self, from: f64, to: f64, color: &str) {
        let (y, width, height) = (self.y + 2.0, (to - from).max(1.0), ROW - 6.0);
        let _ = writeln!(
            self.body,
            r#"<rect x="{from}" y="{y}" width="{width:.1}" height="{height}" fill="{color}"/>"#
        );
    }

    fn line(&mut self, from: f64, to: f64) {
        let y = self.y + ROW / 2.0 - 1.0;
        let _ = writeln!(
            self.body,
            r##"<line x1="{from:.1}" y1="{y}" x2="{to:.1}" y2="{y}" stroke="#222"/>"##
        );
    }

    fn upright(&mut self, x: f64) {
        let (from, to) = (self.y, self.y + ROW);
        let _ = writeln!(
            self.body,
            r##"<line x1="{x:.1}" y1="{from}" x2="{x:.1}" y2="{to}" stroke="#222" stroke-width="2"/>"##
        );
    }

    fn finish(self) -> String {
        let height = self.y + 12.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n{}</svg>\n",
            self.body
        )
    }
}
