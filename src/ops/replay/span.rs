//! From where to where.

use jiff::{SignedDuration, Timestamp};

use crate::broker::Place;

/// A part of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its beginning. A time is good to a second and one chunk of the stream: a little more may be
    /// part of it.
    pub since: Place,
    /// What it ends before; where the history ends now, where there is none. A time as for `since`.
    pub until: Option<Place>,
}

/// A chunk is stamped when it is written, after its messages came; and times are sent to the broker
/// in whole seconds.
const SLACK: SignedDuration = SignedDuration::from_secs(1);

impl Span {
    /// The place to read from.
    pub(super) fn first(&self) -> Place {
        match self.since {
            Place::Time(time) => Place::Time(time.checked_sub(SLACK).unwrap_or(Timestamp::MIN)),
            offset @ Place::Offset(_) => offset,
        }
    }

    /// The place behind the last event to be applied.
    pub(super) fn end(&self) -> Place {
        match self.until {
            Some(Place::Time(time)) => {
                Place::Time(time.checked_add(SLACK).unwrap_or(Timestamp::MAX))
            }
            Some(offset @ Place::Offset(_)) => offset,
            None => Place::Offset(u64::MAX),
        }
    }

    /// The oldest offset there is, where the span may have begun before it: older segments are
    /// gone.
    pub(super) fn is_cut(&self, from: u64, first: u64) -> Option<u64> {
        let cut = match self.since {
            Place::Offset(offset) => offset < first,
            Place::Time(_) => from == first && first > 0,
        };
        cut.then_some(first)
    }

    /// Whether it ends before it begins, as far as that can be told without looking.
    pub fn is_reversed(&self) -> bool {
        match (self.since, self.until) {
            (Place::Time(since), Some(Place::Time(until))) => until < since,
            (Place::Offset(since), Some(Place::Offset(until))) => until < since,
            _ => false,
        }
    }
}
