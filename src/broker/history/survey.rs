//! Survey of the history: its first offset, its end, and the offsets of places in it.
//!
//! A stream over AMQP 0-9-1 reports neither its size, nor its end, nor the time of a message. So
//! the survey attaches consumers, and the first offset of each one is the answer. The end comes
//! from a consumer of the last chunk, which the broker sends whole.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use lapin::options::BasicQosOptions;
use lapin::types::AMQPValue;
use tokio::time::{Instant, sleep};

use super::super::convert::long;
use super::super::failure::BrokerError;
use super::super::link::{ANSWER_TIMEOUT, answered};
use super::attach::{self, Attached, Reading, given, long_long};
use super::{Connected, History};

/// Maximum number of messages in a chunk (osiris keeps their number in 16 bits). The last chunk
/// must come whole.
const CHUNK_MAX: u16 = u16::MAX;

/// Number of questions to the broker, and the time between them, before nothing counts as sent.
const QUIET_ROUNDS: u32 = 3;
const QUIET_INTERVAL: Duration = Duration::from_millis(10);

/// Same, for a place where no message is known. A heal must not take a slow broker for an empty
/// history.
const EMPTY_ROUNDS: u32 = 10;
const EMPTY_INTERVAL: Duration = Duration::from_millis(50);

/// Maximum time for the last chunk to come.
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// Time between two checks for arrived messages.
const SWEEP_INTERVAL: Duration = Duration::from_millis(5);

/// Place in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Message at that offset.
    Offset(u64),
    /// First message of the first chunk written at that time or later, to the second.
    Time(Timestamp),
}

/// Contents of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Oldest existing offset.
    pub first: u64,
    /// Offset after the newest one; equal to `first` if there is none.
    pub end: u64,
    /// An end that was known before the places were looked for; at most `end`.
    pub known_end: u64,
    /// Requested places, in order.
    pub places: Vec<Found>,
}

/// Offset of a place, between the first offset and the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The place is at this offset or later.
    pub earliest: u64,
    /// The place is at this offset or earlier. It differs from `earliest` only if the broker cannot
    /// read what is there.
    pub latest: u64,
}

impl Found {
    /// Returns exactly that offset.
    pub const fn at(offset: u64) -> Self {
        Self { earliest: offset, latest: offset }
    }
}

impl Survey {
    fn of_nothing(places: &[Place]) -> Self {
        Self { first: 0, end: 0, known_end: 0, places: vec![Found::at(0); places.len()] }
    }

    /// Returns whether a message at that place or after it was there before the survey.
    ///
    /// A consumer that attaches at a time to come gets the next message. Under traffic this one
    /// arrives before the end is known, so it does not show that the place is in the past.
    pub const fn reaches(&self, place: Found) -> bool {
        place.earliest < self.known_end
    }

    /// Returns whether the history is empty.
    pub fn is_empty(&self) -> bool {
        self.first == self.end
    }
}

/// Consumer that is attached only to learn an offset.
pub(super) struct Probe {
    reading: Reading,
    /// First offset that it got, and the newest.
    pub(super) first: Option<u64>,
    newest: Option<u64>,
}

impl History {
    /// Finds what the stream holds, and the offsets of the places.
    ///
    /// Places before its beginning are at `first`, those after its end at `end`.
    ///
    /// # Errors
    /// [`BrokerError`]: also when there is no such stream.
    pub async fn survey(&mut self, places: &[Place]) -> Result<Survey, BrokerError> {
        if let Some(survey) = self.survey_nodes(places).await? {
            (self.connected, self.end) = (None, survey.end);
            return Ok(survey);
        }
        if self.connected.is_none() {
            self.reconnect().await?;
        }
        let surveyed = match &self.connected {
            Some(connected) => survey(connected, &self.queue, places).await,
            None => Err(BrokerError::Unreachable("no connection".into())),
        };
        let surveyed = match surveyed {
            Err(error) => {
                if self.broker_failed(&error).await {
                    self.survey_apart(places).await
                } else {
                    Err(error)
                }
            }
            surveyed => surveyed,
        };
        // Dropping the connection also drops the probes' chunks in flight.
        self.connected = None;
        let survey = surveyed?;
        self.end = survey.end;
        Ok(survey)
    }

    /// Returns an offset shortly before the end: the first message of the last chunk. The
    /// connection is kept.
    ///
    /// Returns `None` if nothing comes in time, such as from an empty stream.
    ///
    /// # Errors
    /// [`BrokerError`]: also when there is no such stream.
    pub async fn last_chunk(&mut self) -> Result<Option<u64>, BrokerError> {
        if self.connected.is_none() {
            self.reconnect().await?;
        }
        let Some(connected) = &self.connected else { return Ok(None) };
        let mut probes = Vec::new();
        attach_all(connected, &self.queue, vec![(1, long("last"))], &mut probes).await?;
        let deadline = Instant::now() + LAST_WITHIN;
        while probes[0].first.is_none() && Instant::now() < deadline {
            sleep(QUIET_INTERVAL).await;
            round(connected, &self.queue, &mut probes).await?;
        }
        // The rest of the chunk is dropped as it arrives.
        round(connected, &self.queue, &mut probes).await?;
        Ok(probes[0].first)
    }

    /// Surveys as [`survey`](Self::survey) does, each place on a connection of its own.
    ///
    /// This is for a stream that the broker cannot read in part, and for which it ends the
    /// connection.
    async fn survey_apart(&mut self, places: &[Place]) -> Result<Survey, BrokerError> {
        let mut readable = None;
        let first = match self.try_at(long("first"), None).await? {
            Attached::At(offset) => {
                readable = Some(long("first"));
                offset
            }
            Attached::Nothing => {
                let Some(connected) = &self.connected else { return Err(held_back()) };
                let holds = attach::counts_any(&connected.link, &self.queue).await?;
                return if holds { Err(held_back()) } else { Ok(Survey::of_nothing(places)) };
            }
            Attached::Unreadable => 0,
        };
        // First offset without a message.
        let (mut held, mut end, mut step) = (first, None, 1_u64);
        while end.is_none_or(|end| end - held > 1) {
            let at = end.map_or(held.saturating_add(step), |end| held + (end - held) / 2);
            let attached = self.try_at(long_long(at), readable.clone()).await?;
            if let (Attached::At(offset), None) = (&attached, &readable) {
                // The first message is unreadable. Without this, each attempt waits long.
                readable = Some(long_long(*offset));
            }
            match attached {
                Attached::Nothing => end = Some(at),
                Attached::At(_) | Attached::Unreadable if at > 1 << 60 => {
                    return Err(BrokerError::Unreachable(
                        "the history's end cannot be found".into(),
                    ));
                }
                Attached::At(_) | Attached::Unreadable => (held, step) = (at, step * 2),
            }
        }
        let end = end.unwrap_or(first);
        let mut found = Vec::with_capacity(places.len());
        for place in places {
            let offset = match place {
                Place::Offset(offset) => Some(*offset),
                Place::Time(time) => match self.try_at(at_time(*time), readable.clone()).await? {
                    Attached::At(offset) => Some(offset),
                    Attached::Nothing => Some(end),
                    Attached::Unreadable => None,
                },
            };
            found.push(offset.map_or(Found { earliest: first, latest: end }, |offset| {
                Found::at(offset.clamp(first, end))
            }));
        }
        // The end was found first, and no place is after it.
        Ok(Survey { first, end, known_end: end, places: found })
    }
}

/// Surveys all places at once.
pub(super) async fn survey(
    connected: &Connected,
    queue: &str,
    places: &[Place],
) -> Result<Survey, BrokerError> {
    let times: Vec<AMQPValue> = places
        .iter()
        .filter_map(|place| if let Place::Time(time) = place { Some(at_time(*time)) } else { None })
        .collect();
    let of_first = std::iter::once((1, long("first")));
    let mut probes = Vec::new();
    attach_all(connected, queue, vec![(1, long("last"))], &mut probes).await?;
    if !comes_if_any(connected, queue, &mut probes).await? {
        return Ok(Survey::of_nothing(places));
    }
    let known_end = probes.pop().and_then(|probe| probe.first).map_or(0, |last| last + 1);
    attach_all(
        connected,
        queue,
        of_first.chain(times.into_iter().map(|time| (1, time))).collect(),
        &mut probes,
    )
    .await?;
    // After this round the stream knows all these consumers. It sends their messages before those
    // of later consumers.
    round(connected, queue, &mut probes).await?;
    let before = probes.len();
    attach_all(connected, queue, vec![(CHUNK_MAX, long("last"))], &mut probes).await?;
    if !comes_if_any(connected, queue, &mut probes).await? {
        return Ok(Survey::of_nothing(places));
    }
    // The broker answers after all that it has sent. It sends a chunk in one go. So two rounds
    // after the first message, the whole chunk is here.
    round(connected, queue, &mut probes).await?;
    round(connected, queue, &mut probes).await?;
    let end = probes[before].newest.map_or(0, |newest| newest + 1);
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut quiet_rounds = 0;
    // A time after the last chunk gets nothing.
    while probes[0].first.is_none()
        || (quiet_rounds < QUIET_ROUNDS
            && probes[1..before].iter().any(|probe| probe.first.is_none()))
    {
        if Instant::now() >= deadline {
            let cause = format!(
                "the history's first message did not arrive within {} s",
                ANSWER_TIMEOUT.as_secs()
            );
            return Err(BrokerError::Unreachable(cause.into()));
        }
        round(connected, queue, &mut probes).await?;
        quiet_rounds += 1;
        sleep(QUIET_INTERVAL).await;
    }
    let first = probes[0].first.unwrap_or(0);
    let mut at_times = probes[1..before].iter();
    let found = places.iter().map(|place| {
        let offset = match place {
            Place::Offset(offset) => *offset,
            Place::Time(_) => at_times.next().and_then(|probe| probe.first).unwrap_or(end),
        };
        Found::at(offset.clamp(first, end))
    });
    Ok(Survey { first, end, known_end: known_end.min(end), places: found.collect() })
}

fn held_back() -> BrokerError {
    BrokerError::Unreachable("the history holds messages, and the broker sends none".into())
}

/// Waits until the last probe has received a message. Returns false if the stream is empty.
async fn comes_if_any(
    connected: &Connected,
    queue: &str,
    probes: &mut Vec<Probe>,
) -> Result<bool, BrokerError> {
    let begun = Instant::now();
    while !comes(connected, queue, probes).await? {
        if !attach::counts_any(&connected.link, queue).await? {
            return Ok(false);
        }
        if begun.elapsed() >= ANSWER_TIMEOUT {
            return Err(held_back());
        }
    }
    Ok(true)
}

/// Waits until the last probe has received a message, and returns whether it has.
pub(super) async fn comes(
    connected: &Connected,
    queue: &str,
    probes: &mut Vec<Probe>,
) -> Result<bool, BrokerError> {
    let before = probes.len();
    for _ in 0..EMPTY_ROUNDS {
        let asked = Instant::now();
        round(connected, queue, probes).await?;
        if probes[before - 1].first.is_some() {
            return Ok(true);
        }
        // A broker that answers slowly may also send slowly.
        sleep(EMPTY_INTERVAL.max(5 * asked.elapsed())).await;
    }
    // Channels answer even while the stream's own process is busy and has sent nothing yet. Some
    // versions (3.10) ask that process for each consumer that attaches, and it answers after its
    // messages.
    attach_all(connected, queue, vec![(1, long("next"))], probes).await?;
    round(connected, queue, probes).await?;
    probes.truncate(before);
    Ok(probes[before - 1].first.is_some())
}

/// Waits as [`comes`] does, at a place where no message is certain.
///
/// Another consumer attaches at `readable`, where a message exists. Its message comes later than
/// that of the last probe.
pub(super) async fn comes_before(
    connected: &Connected,
    queue: &str,
    probes: &mut Vec<Probe>,
    readable: AMQPValue,
) -> Result<bool, BrokerError> {
    let at = probes.len() - 1;
    round(connected, queue, probes).await?;
    attach_all(connected, queue, vec![(1, readable)], probes).await?;
    let begun = Instant::now();
    while probes[at].first.is_none() && probes[at + 1].first.is_none() {
        if begun.elapsed() >= ANSWER_TIMEOUT {
            return Err(held_back());
        }
        sleep(QUIET_INTERVAL).await;
        round(connected, queue, probes).await?;
    }
    round(connected, queue, probes).await?;
    probes.truncate(at + 1);
    Ok(probes[at].first.is_some())
}

/// Attaches a consumer at each place, in order, after the existing probes.
///
/// It takes arriving messages meanwhile, because the connection reads no further than that.
pub(super) async fn attach_all(
    connected: &Connected,
    queue: &str,
    places: Vec<(u16, AMQPValue)>,
    probes: &mut Vec<Probe>,
) -> Result<(), BrokerError> {
    let mut new: Vec<Option<Probe>> = Vec::new();
    new.resize_with(places.len(), || None);
    let attach = |(at, (prefetch, place))| async move {
        (at, attach::attach(&connected.link, queue, prefetch, place).await)
    };
    let mut attaching: FuturesUnordered<_> = places.into_iter().enumerate().map(attach).collect();
    loop {
        tokio::select! {
            attached = attaching.next() => match attached {
                Some((at, reading)) => new[at] = Some(Probe { reading: reading?, first: None, newest: None }),
                None => break,
            },
            () = sleep(SWEEP_INTERVAL) => {}
        }
        sweep(connected, queue, probes.iter_mut().chain(new.iter_mut().flatten()))?;
    }
    probes.extend(new.into_iter().flatten());
    Ok(())
}

/// Sends a request on each channel and waits for the answers. They come after all that was sent
/// there before.
async fn round(
    connected: &Connected,
    queue: &str,
    probes: &mut [Probe],
) -> Result<(), BrokerError> {
    let channels: Vec<_> = probes.iter().map(|probe| probe.reading.channel.clone()).collect();
    let asked = channels
        .iter()
        .map(|channel| answered(channel.basic_qos(1, BasicQosOptions { global: false })));
    let mut asked = pin!(try_join_all(asked));
    loop {
        tokio::select! {
            biased;
            answers = &mut asked => {
                answers?;
                return sweep(connected, queue, probes.iter_mut());
            }
            () = sleep(SWEEP_INTERVAL) => sweep(connected, queue, probes.iter_mut())?,
        }
    }
}

/// Takes the arrived messages.
fn sweep<'p>(
    connected: &Connected,
    queue: &str,
    probes: impl Iterator<Item = &'p mut Probe>,
) -> Result<(), BrokerError> {
    for probe in probes {
        while let Some(offset) = given(&mut probe.reading.consumer, queue)? {
            probe.first = probe.first.or(Some(offset));
            probe.newest = probe.newest.max(Some(offset));
        }
    }
    connected.allowance.took_all();
    Ok(())
}

/// Returns whole seconds, as AMQP counts them. The broker would take an integer for an offset.
fn at_time(time: Timestamp) -> AMQPValue {
    AMQPValue::Timestamp(u64::try_from(time.as_second()).unwrap_or(0))
}
