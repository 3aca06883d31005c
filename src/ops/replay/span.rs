//! The span of a replay: its beginning and its end.

use jiff::{SignedDuration, Timestamp};

use crate::broker::Place;

/// A part of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The beginning. A time is accurate to a second and one chunk of the stream, so a little more
    /// may be included.
    pub since: Place,
    /// The place before which it ends, with the accuracy of `since`. `None` for the current end of
    /// the history.
    pub until: Option<Place>,
}

/// Time by which a span is extended. A chunk has the time of its writing, which is after its
/// messages arrived, and the broker takes times in whole seconds.
const SLACK: SignedDuration = SignedDuration::from_secs(1);

impl Span {
    /// Returns the place to read from.
    pub(super) fn first(&self) -> Place {
        match self.since {
            Place::Time(time) => Place::Time(time.checked_sub(SLACK).unwrap_or(Timestamp::MIN)),
            offset @ Place::Offset(_) => offset,
        }
    }

    /// Returns the place behind the last event to apply.
    pub(super) fn end(&self) -> Place {
        match self.until {
            Some(Place::Time(time)) => {
                Place::Time(time.checked_add(SLACK).unwrap_or(Timestamp::MAX))
            }
            Some(offset @ Place::Offset(_)) => offset,
            None => Place::Offset(u64::MAX),
        }
    }

    /// Returns the first offset of the history if the span may begin before it. Older segments are
    /// gone then.
    pub(super) fn is_cut(&self, from: u64, first: u64) -> Option<u64> {
        let cut = match self.since {
            Place::Offset(offset) => offset < first,
            Place::Time(_) => from == first && first > 0,
        };
        cut.then_some(first)
    }

    /// Returns true if it ends before it begins, as far as this is known without reading the
    /// history.
    pub fn is_reversed(&self) -> bool {
        match (self.since, self.until) {
            (Place::Time(since), Some(Place::Time(until))) => until < since,
            (Place::Offset(since), Some(Place::Offset(until))) => until < since,
            _ => false,
        }
    }
}
