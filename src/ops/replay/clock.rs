//! Times by our clock → places in the history, whose chunks have times by the broker's clock.
//!
//! Over AMQP nobody tells the broker's clock. But attaching at a time finds out whether the newest
//! chunk is younger: so the newest chunk's time is found between two times of a grid, and an age
//! counts from there back. The broker's clock is that late at least.

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

/// How closely the newest chunk's time is looked for, in seconds: the most that is read needlessly.
const CLOSE_S: i64 = 300;

/// Looks between two times of the grid, and how often.
const PARTS: i64 = 8;
const LOOKS_MAX: u32 = 4;

/// Where a heal begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    /// The offset.
    pub offset: u64,
    /// True if the history reaches back as far as was asked for.
    pub is_whole: bool,
    /// True if the history holds nothing.
    pub is_empty: bool,
}

/// When the newest chunk was written, in seconds since the Unix epoch.
enum Newest {
    /// Then or a little later.
    At(i64),
    /// Earlier than all of the grid.
    Earlier,
    /// There is none.
    Never,
}

/// Finds the place that is early enough for both: an offset, and a time by a clock that may differ
/// from the broker's. Without either, `window` before the newest chunk.
///
/// # Errors
/// [`BrokerError`]: also when there is no history.
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
        // A time of another clock: nobody knows how old it is.
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
        // All there is.
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

/// An empty stream holds all that was asked for only where nothing had come before: its end was
/// known to be 0, or nothing was known.
fn is_whole_if_empty(offset: Option<u64>, time: Option<Timestamp>) -> bool {
    match offset {
        Some(offset) => offset == 0,
        None => time.is_none(),
    }
}

/// An offset that is behind the end belongs to a stream that was deleted since: all of the new one
/// is behind it.
fn at_offset(survey: &Survey, offset: Option<u64>) -> Beginning {
    let (offset, is_whole) = match offset {
        Some(offset) if offset <= survey.end => (offset.max(survey.first), offset >= survey.first),
        Some(_) => (survey.first, false),
        None => (survey.first, survey.first == 0),
    };
    Beginning { offset, is_whole, is_empty: survey.is_empty() }
}

/// A time that the newest chunk is at least as young as, in seconds since the Unix epoch, within
/// [`CLOSE_S`] of it. `None` where it is older than all of the grid, or there is none.
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
        // The latest time that has something; what the broker cannot read is there as well.
        let reached = survey.places.iter().position(|place| place.earliest < survey.end);
        let between = match (reached, found) {
            (Some(0), None) => return Ok(Newest::At(grid[0])),
            (Some(at), Some((_, later))) => (grid[at], if at == 0 { later } else { grid[at - 1] }),
            (Some(at), None) => (grid[at], grid[at - 1]),
            (None, None) => return Ok(Newest::Earlier),
            (None, Some((earlier, _))) => (earlier, grid[grid.len() - 1]),
        };
        found = Some(between);
        let (earlier, later) = between;
        if later - earlier <= CLOSE_S {
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
    fn an_offset_behind_the_end_means_all_of_a_new_stream() {
        let survey = Survey { first: 10, end: 20, places: Vec::new() };
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
    fn an_empty_stream_is_whole_only_where_nothing_had_come() {
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
    fn the_grid_goes_back_in_time() {
        assert!(GRID_S.is_sorted_by(|later, earlier| later > earlier));
    }
}
