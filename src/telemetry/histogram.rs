//! A histogram without locks. The one of `prometheus-client` takes a mutex for every value.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Counts values by size. Clones share their counts.
#[derive(Debug, Clone)]
pub(crate) struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Upper bounds in millionths, ascending.
    bounds: Vec<u64>,
    /// One count for each bound, and a last one for larger values.
    counts: Vec<AtomicU64>,
    /// In millionths.
    sum: AtomicU64,
}

/// Values are stored in millionths. For seconds these are microseconds.
const SCALE: u64 = 1_000_000;

impl Histogram {
    /// Creates a histogram with these upper bounds, inclusive, in millionths and ascending.
    pub(crate) fn with_bounds_micros(bounds: Vec<u64>) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { bounds, counts, sum: AtomicU64::new(0) }))
    }

    /// Counts a time.
    pub(crate) fn observe_duration(&self, duration: Duration) {
        self.observe_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts a whole number.
    pub(crate) fn observe_count(&self, count: usize) {
        self.observe_micros((count as u64).saturating_mul(SCALE));
    }

    fn observe_micros(&self, value: u64) {
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum.fetch_add(value, Ordering::Relaxed);
    }
}

impl EncodeMetric for Histogram {
    #[expect(clippy::cast_precision_loss, reason = "the format's numbers are doubles")]
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bounds =
            self.0.bounds.iter().map(|bound| *bound as f64 / SCALE as f64).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds
            .zip(&self.0.counts)
            .map(|(bound, count)| (bound, count.load(Ordering::Relaxed)))
            .collect();
        let total = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum.load(Ordering::Relaxed) as f64 / SCALE as f64;
        encoder.encode_histogram::<NoLabelSet>(sum, total, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}
