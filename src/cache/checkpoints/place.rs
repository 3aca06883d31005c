//! Places in the history, as checkpoints and heals name them: by offset and by time.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Margin for different clocks, and for the broker, which stamps a chunk of the stream when it
/// writes it.
const MARGIN: SignedDuration = SignedDuration::from_secs(60);

/// The oldest event that may still be unapplied, as a lower bound of its arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LowWatermark {
    /// Time by the worker's clock, in milliseconds since the Unix epoch; 0 if nothing is known.
    pub time_ms: u64,
    /// Offset in the history; `None` if it is not known.
    pub offset: Option<u64>,
}

/// Time of a low watermark that covers nothing any more.
pub(super) const NO_BOUND: u64 = 9_007_199_254_740_991;

/// Time that is no bound, for use beside an offset that is one. No field covers anything above it.
const NO_TIME: u64 = NO_BOUND - 1;

impl LowWatermark {
    /// Returns the bound that an offset of the history is.
    pub fn at_offset(offset: u64) -> Self {
        Self { time_ms: NO_TIME, offset: Some(offset) }
    }

    /// Returns the lower bound of both.
    #[must_use]
    pub fn lower(self, other: Self) -> Self {
        Self { time_ms: self.time_ms.min(other.time_ms), offset: lower(self.offset, other.offset) }
    }
}

impl From<u64> for LowWatermark {
    fn from(time_ms: u64) -> Self {
        Self { time_ms, offset: None }
    }
}

/// Place where a heal begins in the history: the earlier of both fields. Without either it begins
/// `UNSTALE_HEAL_WINDOW` before the history's newest chunk, by the broker's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HealFrom {
    /// An offset of the stream.
    pub offset: Option<u64>,
    /// A time by a worker's clock, which may differ from the broker's.
    #[serde(with = "millis", rename = "time_ms")]
    pub time: Option<Timestamp>,
}

impl fmt::Display for HealFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.offset, self.time) {
            (Some(offset), Some(time)) => write!(f, "offset {offset} or {time}"),
            (Some(offset), None) => write!(f, "offset {offset}"),
            (None, Some(time)) => write!(f, "{time}"),
            (None, None) => f.write_str("UNSTALE_HEAL_WINDOW"),
        }
    }
}

/// Serializes times as milliseconds since the Unix epoch.
mod millis {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde asks for it")]
    pub(super) fn serialize<S: Serializer>(
        time: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(Timestamp::as_millisecond).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<i64>::deserialize(deserializer)?
            .and_then(|ms| Timestamp::from_millisecond(ms).ok()))
    }
}

impl HealFrom {
    /// Returns the place that a low watermark asks for, with a margin for clocks. Offsets include
    /// theirs already.
    pub fn low(low: LowWatermark) -> Self {
        if low.time_ms >= NO_TIME && low.offset.is_some() {
            return Self { offset: low.offset, time: None };
        }
        let time =
            i64::try_from(low.time_ms).ok().and_then(|low| Timestamp::from_millisecond(low).ok());
        let time =
            time.and_then(|low| low.checked_sub(MARGIN).ok()).unwrap_or(Timestamp::UNIX_EPOCH);
        Self { offset: low.offset, time: Some(time.max(Timestamp::UNIX_EPOCH)) }
    }

    /// Returns the place itself, or without one the time that lies `window` before `now`. A heal
    /// that begins there reaches back at least as far as one without a place.
    #[must_use]
    pub fn or_window(self, window: SignedDuration, now: Timestamp) -> Self {
        if self != Self::default() {
            return self;
        }
        let time = now.checked_sub(window).unwrap_or(Timestamp::UNIX_EPOCH);
        Self { offset: None, time: Some(time.max(Timestamp::UNIX_EPOCH)) }
    }

    /// Returns the place that is early enough for both. A heal without any place must get one first
    /// ([`or_window`](Self::or_window)): its window cannot be compared.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        Self { offset: lower(self.offset, other.offset), time: lower(self.time, other.time) }
    }
}

fn lower<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_of_two_places_covers_both() {
        let place = |offset, time: Option<i64>| HealFrom {
            offset,
            time: time.map(|ms| Timestamp::from_millisecond(ms).unwrap()),
        };
        assert_eq!(
            place(Some(5), Some(9)).earlier(place(Some(7), Some(3))),
            place(Some(5), Some(3))
        );
        assert_eq!(place(None, Some(9)).earlier(place(Some(7), None)), place(Some(7), Some(9)));
        assert_eq!(HealFrom::default().earlier(HealFrom::default()), HealFrom::default());
    }

    #[test]
    fn the_default_window_counts_beside_a_known_place() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let hour = SignedDuration::from_hours(1);
        let window = HealFrom::default().or_window(hour, at(7_200));
        assert_eq!(window, HealFrom { offset: None, time: Some(at(3_600)) });
        let known = HealFrom { offset: Some(9), time: Some(at(7_000)) };
        assert_eq!(known.or_window(hour, at(7_200)), known);
        assert_eq!(window.earlier(known), HealFrom { offset: Some(9), time: Some(at(3_600)) });
        assert_eq!(HealFrom::default().or_window(hour, at(60)).time, Some(Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn a_low_watermark_adds_a_margin_of_a_minute() {
        let from = |time_ms, offset| HealFrom::low(LowWatermark { time_ms, offset });
        assert_eq!(from(90_000, Some(3)).time.unwrap().as_millisecond(), 30_000);
        assert_eq!(from(90_000, Some(3)).offset, Some(3));
        assert_eq!(
            from(0, None).time,
            Some(Timestamp::UNIX_EPOCH),
            "nothing known means all of the history"
        );
        assert_eq!(from(u64::MAX, None).time, Some(Timestamp::UNIX_EPOCH));
        assert_eq!(
            HealFrom::low(LowWatermark::at_offset(3)),
            HealFrom { offset: Some(3), time: None }
        );
        let both = LowWatermark::at_offset(3).lower(90_000.into());
        assert_eq!(
            HealFrom::low(both).time.unwrap().as_millisecond(),
            30_000,
            "another bound's time counts"
        );
    }
}
