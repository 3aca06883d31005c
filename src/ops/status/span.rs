//! Spans of time as text.

use jiff::Timestamp;

/// Returns the time since a moment, in its two largest units.
pub(super) fn age(time: Timestamp, now: Timestamp) -> String {
    span(now.duration_since(time).as_secs_f64())
}

/// Returns a span in its two largest units, such as `2h 5m`.
pub fn span(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a span that is shown to people"
    )]
    let whole = seconds.max(0.0) as u64;
    let units = [
        (whole / 86_400, "d"),
        (whole / 3_600 % 24, "h"),
        (whole / 60 % 60, "m"),
        (whole % 60, "s"),
    ];
    let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown = units[first..]
        .iter()
        .take(2)
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"));
    let text = shown.collect::<Vec<_>>().join(" ");
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_shown_in_their_two_largest_units() {
        let spans = [0.2, 59.0, 60.0, 61.0, 3_600.0, 3_725.0, 90_000.0];
        assert_eq!(spans.map(span), ["0s", "59s", "1m", "1m 1s", "1h", "1h 2m", "1d 1h"]);
    }
}
