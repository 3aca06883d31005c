//! Finds out how far the history reaches, and where places are in it.
//!
//! A stream over AMQP 0-9-1 says neither how much it holds, nor where it ends, nor when a message
//! came. So consumers are attached, and the first offset that each gets tells; the end, a consumer
//! of the last chunk, which the broker sends whole.

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
use super::super::reply_text::is_internal_error;
use super::attach::{self, Reading, given};
use super::behind::{Attached, long_long};
use super::{Connected, History};

/// A chunk has at most so many messages (osiris keeps their number in 16 bits), and the last one is
/// to come whole.
const CHUNK_MAX: u16 = u16::MAX;

/// How often, and how far apart, the broker is asked whether it has sent anything, before there is
/// nothing.
const QUIET_ROUNDS: u32 = 3;
const QUIET_INTERVAL: Duration = Duration::from_millis(10);

/// The same where nothing is known to be there: a heal must not take a slow broker for an empty
/// history.
const EMPTY_ROUNDS: u32 = 10;
const EMPTY_INTERVAL: Duration = Duration::from_millis(50);

/// Maximum time for the last chunk to come.
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// Time between two looks at what has come.
const SWEEP_INTERVAL: Duration = Duration::from_millis(5);

/// A place in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The message of that offset.
    Offset(u64),
    /// The first message of the first chunk that the broker wrote then or later, to the second.
    Time(Timestamp),
}

/// What the history holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The oldest offset there is.
    pub first: u64,
    /// Behind the newest offset there is: equal to `first` where there is none.
    pub end: u64,
    /// The places asked for, in order.
    pub places: Vec<Found>,
}

/// Where a place is, between the first offset and the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// It is there or later.
    pub earliest: u64,
    /// It is there or earlier: another offset only where the broker cannot read what is there.
    pub latest: u64,
}

impl Found {
    /// Exactly there.
    pub const fn at(offset: u64) -> Self {
        Self { earliest: offset, latest: offset }
    }
}

impl Survey {
    fn of_nothing(places: &[Place]) -> Self {
        Self { first: 0, end: 0, places: vec![Found::at(0); places.len()] }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.first == self.end
    }
}

/// A consumer that is to find something out.
pub(super) struct Probe {
    reading: Reading,
    /// The first offset that it got, and the newest.
    pub(super) first: Option<u64>,
    newest: Option<u64>,
}

impl History {
    /// Finds out what the stream holds, and where the places are in it: those before its beginning
    /// at `first`, those behind its end at `end`.
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
                let cause = self.cause_of(&error).await;
                if is_internal_error(&cause) { self.survey_apart(places).await } else { Err(error) }
            }
            surveyed => surveyed,
        };
        // What is under way of the probes' chunks goes with the connection.
        self.connected = None;
        let survey = surveyed?;
        self.end = survey.end;
        Ok(survey)
    }

    /// Returns an offset close before the end: that of the last chunk's first message. `None` where
    /// nothing comes in time, such as from an empty stream. The connection is kept.
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
        // The rest of the chunk is thrown away as it comes.
        round(connected, &self.queue, &mut probes).await?;
        Ok(probes[0].first)
    }

    /// As [`survey`](Self::survey) where the broker cannot read some of the stream, and ends the
    /// connection over it: each place on a connection of its own.
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
        // The first offset at which there is nothing.
        let (mut held, mut end, mut step) = (first, None, 1_u64);
        while end.is_none_or(|end| end - held > 1) {
            let at = end.map_or(held.saturating_add(step), |end| held + (end - held) / 2);
            match self.try_at(long_long(at), readable.clone()).await? {
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
        Ok(Survey { first, end, places: found })
    }
}

/// All places at once.
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
    attach_all(
        connected,
        queue,
        of_first.chain(times.into_iter().map(|time| (1, time))).collect(),
        &mut probes,
    )
    .await?;
    // Once it is over, the stream knows all of them: what it sends them goes before what it sends
    // to those that come later.
    round(connected, queue, &mut probes).await?;
    let before = probes.len();
    attach_all(connected, queue, vec![(CHUNK_MAX, long("last"))], &mut probes).await?;
    let begun = Instant::now();
    while !comes(connected, queue, &mut probes).await? {
        if !attach::counts_any(&connected.link, queue).await? {
            return Ok(Survey::of_nothing(places));
        }
        if begun.elapsed() >= ANSWER_TIMEOUT {
            return Err(held_back());
        }
    }
    // The broker answers behind all that it has sent: a chunk is sent in one go, so two rounds
    // after its first message all of it is here.
    round(connected, queue, &mut probes).await?;
    round(connected, queue, &mut probes).await?;
    let end = probes[before].newest.map_or(0, |newest| newest + 1);
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut quiet_rounds = 0;
    // A time behind the last chunk gets nothing.
    while probes[0].first.is_none()
        || (quiet_rounds < QUIET_ROUNDS
            && probes[1..before].iter().any(|probe| probe.first.is_none()))
    {
        if Instant::now() >= deadline {
            return Err(BrokerError::Unreachable(format!(
                "the history's first message did not come within {} s",
                ANSWER_TIMEOUT.as_secs()
            )));
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
    Ok(Survey { first, end, places: found.collect() })
}

fn held_back() -> BrokerError {
    BrokerError::Unreachable("the history holds messages, and the broker sends none".into())
}

/// Waits until the last of the probes has got something, and returns whether it has.
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
        // A broker that answers slowly may be slow to send as well.
        sleep(EMPTY_INTERVAL.max(5 * asked.elapsed())).await;
    }
    // Channels answer while the stream's own process is busy, which has yet to say that there is
    // something. Some versions (3.10) ask it for each consumer that attaches: it answers behind
    // that.
    attach_all(connected, queue, vec![(1, long("next"))], probes).await?;
    round(connected, queue, probes).await?;
    probes.truncate(before);
    Ok(probes[before - 1].first.is_some())
}

/// As [`comes`], sure of nothing: a consumer attaches at `readable`, where something is, and gets
/// that later than what the last probe gets.
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

/// Attaches a consumer at each place, in order, behind the probes that are there. What comes is
/// taken meanwhile: the connection reads no further than that.
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

/// Asks something on each channel and waits for the answers, which come behind what was sent there
/// before.
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

/// Takes what has come.
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

/// Whole seconds, as AMQP counts them: an integer would be taken for an offset.
fn at_time(time: Timestamp) -> AMQPValue {
    AMQPValue::Timestamp(u64::try_from(time.as_second()).unwrap_or(0))
}
