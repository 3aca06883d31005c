//! Turns times by this machine's clock into places in the history, whose chunks have times by the
//! broker's clock.
//!
//! AMQP does not show the broker's clock. Attaching to the stream at a time shows whether the
//! newest chunk is younger than that time. The search narrows the newest chunk's time to two times
//! of a grid. The requested age is subtracted from that time. The broker's clock shows this time or
//! a later one.

use jiff::{SignedDuration, Timestamp};

use crate::broker::{BrokerError, History, Place, Survey};

/// Seconds from now at which the newest chunk is looked for, the latest first.
const GRID_S: [i64; 16] = [
    30 * 86_400,
    2 * 86_400,
    86_400,
    5 * 3_600,
    2 * 3_600,
    1_800,
    300,
    60,
    -60,
    -300,
    -1_800,
    -7_200,
    -6 * 3_600,
    -86_400,
    -3 * 86_400,
    -8 * 86_400,
];

/// Accuracy in seconds with which the newest chunk's time is found. A heal reads at most this much
/// history needlessly.
const ACCURACY_S: i64 = 300;

/// Number of parts into which the range between two times is divided for the next look.
const PARTS: i64 = 8;

/// Maximum number of looks.
const LOOKS_MAX: u32 = 4;

/// The place at which a heal begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    /// Offset of the first event.
    pub offset: u64,
    /// True if the history reaches back as far as was asked for.
    pub is_whole: bool,
    /// True if the history holds nothing.
    pub is_empty: bool,
}

/// The time at which the newest chunk was written.
enum Newest {
    /// At this time or a little later, in seconds since the Unix epoch.
    At(i64),
    /// Earlier than every time of the grid.
    Earlier,
    /// There is no chunk.
    Never,
}

/// Finds a place in the history that is early enough for an offset and for a time.
///
/// `time` comes from a clock that may differ from the broker's. If neither is given, the place is
/// `window` before the newest chunk.
///
/// # Errors
/// [`BrokerError`], also if there is no history.
pub async fn beginning(
    history: &mut History,
    offset: Option<u64>,
    time: Option<Timestamp>,
    window: SignedDuration,
) -> Result<Beginning, BrokerError> {
    let now = Timestamp::now();
    let age = match (offset, time) {
        (Some(_), None) => None,
        (None, None) => Some(window),
        // A time in the future is from another clock, so its age is unknown.
        (_, Some(time)) if time > now => Some(window),
        (_, Some(time)) => Some(now.duration_since(time)),
    };
    let Some(age) = age else {
        let survey = history.survey(&[]).await?;
        return Ok(at_offset(&survey, offset));
    };
    let newest = newest_chunk(history, now.as_second()).await?;
    let place = |second: i64| {
        Place::Time(
            Timestamp::from_second(second)
                .unwrap_or(Timestamp::UNIX_EPOCH)
                .max(Timestamp::UNIX_EPOCH),
        )
    };
    let mut places: Vec<Place> = time.map(|time| place(time.as_second() - 1)).into_iter().collect();
    match newest {
        Newest::At(second) => {
            places.push(place(second.saturating_sub(age.as_secs()).saturating_sub(1)))
        }
        // The age is unknown, so the whole history is applied.
        Newest::Earlier => places.push(Place::Offset(0)),
        Newest::Never => {
            return Ok(Beginning {
                offset: 0,
                is_whole: is_whole_if_empty(offset, time),
                is_empty: true,
            });
        }
    }
    let survey = history.survey(&places).await?;
    let by_offset = at_offset(&survey, offset);
    let by_time = survey.places.iter().map(|place| place.earliest).min().unwrap_or(survey.first);
    Ok(Beginning {
        offset: if offset.is_some() { by_offset.offset.min(by_time) } else { by_time },
        is_whole: (offset.is_none() || by_offset.is_whole)
            && (by_time > survey.first || survey.first == 0),
        is_empty: survey.is_empty(),
    })
}

/// Returns true if an empty stream lacks no event. This holds if its end was known to be 0, or if
/// the caller knew neither offset nor time.
fn is_whole_if_empty(offset: Option<u64>, time: Option<Timestamp>) -> bool {
    match offset {
        Some(offset) => offset == 0,
        None => time.is_none(),
    }
}

/// Returns the beginning for an offset. An offset beyond the end comes from a stream that was
/// deleted since, so all of the new stream is applied.
fn at_offset(survey: &Survey, offset: Option<u64>) -> Beginning {
    let (offset, is_whole) = match offset {
        Some(offset) if offset <= survey.end => (offset.max(survey.first), offset >= survey.first),
        Some(_) => (survey.first, false),
        None => (survey.first, survey.first == 0),
    };
    Beginning { offset, is_whole, is_empty: survey.is_empty() }
}

/// Finds the time of the newest chunk, with an accuracy of [`ACCURACY_S`]. The chunk is at least as
/// young as the returned time.
async fn newest_chunk(history: &mut History, now_s: i64) -> Result<Newest, BrokerError> {
    let mut grid: Vec<i64> = GRID_S.iter().map(|from_now| now_s + from_now).collect();
    let mut found: Option<(i64, i64)> = None;
    for _ in 0..LOOKS_MAX {
        let places: Vec<Place> = grid
            .iter()
            .filter_map(|second| Timestamp::from_second(*second).ok())
            .map(Place::Time)
            .collect();
        let survey = history.survey(&places).await?;
        if survey.is_empty() {
            return Ok(Newest::Never);
        }
        // The latest grid time that a message follows. Messages that the broker cannot read count
        // as well.
        let reached = survey.places.iter().position(|place| survey.reaches(*place));
        let between = match (reached, found) {
            (Some(0), None) => return Ok(Newest::At(grid[0])),
            (Some(at), Some((_, later))) => (grid[at], if at == 0 { later } else { grid[at - 1] }),
            (Some(at), None) => (grid[at], grid[at - 1]),
            (None, None) => return Ok(Newest::Earlier),
            (None, Some((earlier, _))) => (earlier, grid[grid.len() - 1]),
        };
        found = Some(between);
        let (earlier, later) = between;
        if later - earlier <= ACCURACY_S {
            break;
        }
        grid = (1..PARTS).rev().map(|part| earlier + (later - earlier) * part / PARTS).collect();
    }
    Ok(found.map_or(Newest::Earlier, |(earlier, _)| Newest::At(earlier)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_behind_the_end_of_the_history_means_all_of_a_new_stream() {
        let survey = Survey { first: 10, end: 20, known_end: 20, places: Vec::new() };
        for (offset, found, is_whole) in [
            (Some(5), 10, false),
            (Some(10), 10, true),
            (Some(15), 15, true),
            (Some(20), 20, true),
            (Some(21), 10, false),
        ] {
            assert_eq!(
                at_offset(&survey, offset),
                Beginning { offset: found, is_whole, is_empty: false },
                "{offset:?}"
            );
        }
    }

    #[test]
    fn an_empty_history_is_whole_only_if_no_event_had_arrived() {
        let then = Some(Timestamp::UNIX_EPOCH);
        for (offset, time, is_whole) in [
            (None, None, true),
            (Some(0), then, true),
            (Some(8), then, false),
            (Some(8), None, false),
            (None, then, false),
        ] {
            assert_eq!(is_whole_if_empty(offset, time), is_whole, "{offset:?} {time:?}");
        }
    }

    #[test]
    fn the_grid_of_times_goes_back_in_time() {
        assert!(GRID_S.is_sorted_by(|later, earlier| later > earlier));
    }
}
