//! Measured values, round by round.

use serde::Serialize;

/// One measure of one contender in one workload, with a value for each round.
#[derive(Debug, Serialize)]
pub(crate) struct Series {
    pub(crate) workload: char,
    pub(crate) who: String,
    pub(crate) measure: &'static str,
    pub(crate) rounds: Vec<f64>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    pub(crate) series: Vec<Series>,
}

impl Results {
    /// Adds and prints the value of one more round.
    #[expect(clippy::print_stderr, reason = "progress")]
    pub(crate) fn note(&mut self, workload: char, who: &str, measure: &'static str, value: f64) {
        eprintln!("  ({workload}) {who}: {} {measure}", rounded(value));
        match self.series.iter_mut().find(|series| series.is(workload, who, measure)) {
            Some(series) => series.rounds.push(value),
            None => self.series.push(Series {
                workload,
                who: who.to_owned(),
                measure,
                rounds: vec![value],
            }),
        }
    }

    pub(crate) fn of(&self, workload: char, who: &str, measure: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.is(workload, who, measure))
    }

    pub(crate) fn median(&self, workload: char, who: &str, measure: &str) -> Option<f64> {
        self.of(workload, who, measure).map(Series::median)
    }

    /// Returns the median of the rounds' ratios. Both values of a round were measured one after the
    /// other, so a long disturbance cancels out.
    pub(crate) fn ratio(&self, workload: char, measure: &str, who: &str, to: &str) -> Option<f64> {
        self.across((workload, who, measure), (workload, to, measure))
    }

    /// Returns the same for any two series.
    pub(crate) fn across(&self, of: (char, &str, &str), to: (char, &str, &str)) -> Option<f64> {
        let (of, to) = (self.of(of.0, of.1, of.2)?, self.of(to.0, to.1, to.2)?);
        Some(median(of.rounds.iter().zip(&to.rounds).map(|(of, to)| of / to).collect()))
    }

    /// Returns the median of the rounds' differences.
    pub(crate) fn beyond(&self, workload: char, measure: &str, who: &str, to: &str) -> Option<f64> {
        let (of, to) = (self.of(workload, who, measure)?, self.of(workload, to, measure)?);
        Some(median(of.rounds.iter().zip(&to.rounds).map(|(of, to)| of - to).collect()))
    }
}

impl Series {
    fn is(&self, workload: char, who: &str, measure: &str) -> bool {
        (self.workload, self.who.as_str(), self.measure) == (workload, who, measure)
    }

    pub(crate) fn median(&self) -> f64 {
        median(self.rounds.clone())
    }

    pub(crate) fn least(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn most(&self) -> f64 {
        self.rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

/// Returns the median. For an even number of values it is the mean of the middle two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}

/// Returns the value below which this many hundredths of the values are.
pub(crate) fn percentile(values: &mut [f64], hundredths: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = (values.len() as f64 * hundredths / 100.0).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Returns a number with its significant digits.
pub(crate) fn rounded(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => {
            let digits = format!("{value:.0}");
            let mut out = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at) % 3 == 0 && !out.ends_with('-') {
                    out.push(',');
                }
                out.push(digit);
            }
            out
        }
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
