//! Asks both servers for the facts of a status, at the same time and within bounds.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, timeout, timeout_at};

use super::facts::{
    BrokerFacts, HealFacts, HistoryFacts, LostFacts, OldestLetter, OwedFacts, ProgressFacts,
    QueueFacts, QueueKind, RedisFacts, Status, Unreadable, WorkerFacts,
};
use crate::broker::{
    AmqpError, BrokerError, DeadLetters, History, Inspector, Place, QueueState, Signer,
};
use crate::cache::{Cache, CacheError, CommandError, ReportedWorker, WorkerReport};
use crate::causes::{Explain, chain};
use crate::config::Config;
use crate::ops::dead_letters::Letter;
use crate::quantity::format_duration;

/// Maximum time for all questions. `status` answers within 10 s, even if a server is away.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Maximum time for the history. An empty history takes some seconds.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(4);

/// Number of times at which the start of the history is looked for.
const HISTORY_STEPS: i32 = 24;

/// Ratio of the age of each of these times to the age of the one before.
const HISTORY_RATIO: f64 = 0.7;

/// Maximum time for the dead letters at the head of the queue. Another command may hold them.
const LETTER_TIMEOUT: Duration = Duration::from_secs(2);

/// Minimum number of dead letters that are read to find the oldest.
const LETTERS: NonZeroU16 = NonZeroU16::new(100).unwrap();

/// Number of dead letters that are read at once beyond those, while the letters were requeued
/// before.
const MORE_LETTERS: NonZeroU16 = NonZeroU16::new(5_000).unwrap();

/// Maximum number of dead letters that are read to find the oldest.
const LETTERS_MAX: usize = 50_000;

/// Gathers the facts of a status. If a server cannot be asked, its error takes the place of its
/// facts.
///
/// # Errors
/// Settings that cannot make a connection.
pub async fn gather(config: &Config) -> Result<Status, CacheError> {
    let cache = Cache::connect(&config.redis, &config.amqp.queue)?;
    let deadline = Instant::now() + TIMEOUT;
    let redis = async {
        timeout_at(deadline, ask_redis(config, &cache))
            .await
            .unwrap_or_else(|_| Err(silent("Redis")))
    };
    let broker = async {
        match timeout_at(deadline, Inspector::connect(&config.amqp)).await {
            Ok(connected) => connected.map_err(|error| error.in_full()),
            Err(_) => Err(silent("RabbitMQ")),
        }
    };
    let (redis, inspector) = tokio::join!(redis, broker);
    let rabbitmq = match inspector {
        Ok(inspector) => {
            // The reports of workers name the retry steps to look for.
            let reports = redis.as_ref().map(|(_, reports)| reports.as_slice()).unwrap_or_default();
            let asked = timeout_at(deadline, ask_broker(config, &inspector, reports)).await;
            let asked = asked.map_or_else(
                |_| Err(silent("RabbitMQ")),
                |asked| asked.map_err(|error| error.in_full()),
            );
            let _ = timeout(Duration::from_secs(1), inspector.close()).await;
            asked
        }
        Err(cause) => Err(cause),
    };
    Ok(Status { time: Timestamp::now(), rabbitmq, redis: redis.map(|(facts, _)| facts) })
}

fn silent(server: &str) -> String {
    format!("{server} did not answer within {} s", TIMEOUT.as_secs())
}

async fn ask_redis(
    config: &Config,
    cache: &Cache,
) -> Result<(RedisFacts, Vec<ReportedWorker>), String> {
    cache.probe().await.map_err(|outage| outage.in_full())?;
    let cause = |error: CommandError| error.in_full();
    let server = cache.server().await.map_err(cause)?;
    let reports = cache.reports().await.map_err(cause)?;
    let addresses: Vec<String> = config.redis.urls.iter().map(ToString::to_string).collect();
    let mut workers: Vec<WorkerFacts> = reports.iter().map(worker).collect();
    workers.sort_by(|one, other| one.name.cmp(&other.name));
    let marks = cache.read_checkpoints().await.map_err(cause)?;
    let time = |ms: u64| Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok();
    let last_heal = marks.last_heal().map(|heal| HealFacts {
        time: time(heal.ended_ms),
        from: time(heal.from_ms),
        count: heal.count,
        complete: heal.complete,
        digests: marks.healed_by(),
        passed_over: heal.details.passed_over,
    });
    let owed_heal = marks.owed().all.map(|owed| OwedFacts {
        since: time(owed.since_ms),
        from: owed.from.to_string(),
        cause: owed.cause,
        refused: owed.refused.map(|refused| refused.count),
    });
    let heal_progress = marks.progress().and_then(|progress| {
        let (first, end) = (progress.first?, progress.end?);
        let done = progress.applied_to.unwrap_or(first).saturating_sub(first);
        Some(ProgressFacts {
            done,
            of: end.saturating_sub(first),
            deaths: progress.died.map_or(0, |died| died.deaths()),
        })
    });
    let facts = RedisFacts {
        address: addresses.join(","),
        software: server.software,
        version: server.version,
        role: server.role,
        replicas: server.replicas,
        healing: marks.is_wanted(),
        heal_progress,
        owed_heal,
        lost_events: marks
            .lost()
            .map(|lost| LostFacts { from: time(lost.from_ms), until: time(lost.until_ms) }),
        last_heal,
        workers,
    };
    Ok((facts, reports))
}

fn worker(reported: &ReportedWorker) -> WorkerFacts {
    let WorkerReport {
        host,
        pid,
        version,
        digest,
        resolution_digest,
        refused_registry,
        changing_rules,
        retry_delays: retry_steps,
        in_flight,
        oldest_unsettled_ms,
        not_ready,
        history_fault,
        ..
    } = reported.report.clone();
    let resolution_digest =
        if resolution_digest.is_empty() { digest.clone() } else { resolution_digest };
    let oldest = oldest_unsettled_ms.map(|ms| Duration::from_millis(ms) + reported.age);
    let name = if host.is_empty() { format!("pid {pid}") } else { format!("{host}:{pid}") };
    let oldest_unsettled_s = oldest.map(|age| age.as_secs_f64());
    let reported_s_ago = reported.age.as_secs_f64();
    WorkerFacts {
        name,
        version,
        digest,
        resolution_digest,
        refused_registry,
        changing_rules,
        retry_steps,
        reported_s_ago,
        in_flight,
        oldest_unsettled_s,
        not_ready,
        history_fault,
    }
}

async fn ask_broker(
    config: &Config,
    inspector: &Inspector,
    reports: &[ReportedWorker],
) -> Result<BrokerFacts, BrokerError> {
    let names = inspector.names();
    let mut asked =
        vec![(QueueKind::Main, names.main.clone()), (QueueKind::Slow, names.slow.clone())];
    asked.extend(names.retry.iter().map(|(_, name)| (QueueKind::RetryStep, name.clone())));
    asked.extend(
        other_retry_steps(config, reports)
            .into_iter()
            .map(|step| (QueueKind::OtherRetryStep, format!("{}.retry.{step}", names.main))),
    );
    asked.push((QueueKind::Dead, names.dead.clone()));
    let mut queues = Vec::with_capacity(asked.len());
    for (kind, name) in asked {
        let state = inspector.queue(&name).await?;
        // The queue of another schedule that was deleted is not worth a mention.
        if kind != QueueKind::OtherRetryStep || !matches!(state, QueueState::Missing) {
            queues.push(queue(name, kind, state));
        }
    }
    let history = match &config.amqp.history {
        None => HistoryFacts::Off,
        Some(_) => match inspector.queue(&names.history).await? {
            QueueState::Stands { .. } => history(config).await,
            QueueState::Missing => HistoryFacts::Missing,
            QueueState::Unknown(error) => HistoryFacts::Unknown(unreadable(&error)),
        },
    };
    let any_dead = queues.iter().any(|queue| queue.kind == QueueKind::Dead && queue.ready > 0);
    let oldest_dead_letter = if any_dead { oldest_dead_letter(config).await } else { None };
    Ok(BrokerFacts { node: inspector.node().to_owned(), queues, oldest_dead_letter, history })
}

/// Returns the state of the history. A stream does not show the age of its messages, so this looks
/// for places at several times, beginning with the longest retention.
async fn history(config: &Config) -> HistoryFacts {
    let farthest = config.amqp.history.map_or(Duration::ZERO, |history| history.max_age);
    let now = Timestamp::now();
    let times: Vec<Timestamp> = (0..HISTORY_STEPS)
        .filter_map(|step| {
            now.checked_sub(
                SignedDuration::try_from(farthest.mul_f64(HISTORY_RATIO.powi(step))).ok()?,
            )
            .ok()
        })
        .collect();
    let places: Vec<Place> = times.iter().copied().map(Place::Time).collect();
    let surveyed = async {
        let mut history = History::connect(&config.amqp).await?;
        let survey = history.survey(&places).await;
        let _ = timeout(Duration::from_secs(1), history.close()).await;
        survey
    };
    match timeout(HISTORY_TIMEOUT, surveyed).await {
        Err(_) => {
            let words = format!("no answer within {} s", HISTORY_TIMEOUT.as_secs());
            HistoryFacts::Unknown(Unreadable { words, is_refused: false })
        }
        // The advice for a missing permission is the same as that of the finding.
        Ok(Err(error)) => HistoryFacts::Unknown(match error.is_access_refused() {
            true => Unreadable { words: chain(&error).to_string(), is_refused: true },
            false => Unreadable { words: error.in_full(), is_refused: false },
        }),
        Ok(Ok(survey)) if survey.is_empty() => HistoryFacts::Empty,
        Ok(Ok(survey)) => {
            // If a time attaches behind the first message, an older message exists.
            let reached =
                times.iter().zip(&survey.places).find(|(_, place)| place.earliest > survey.first);
            HistoryFacts::Exists {
                first: survey.first,
                last: survey.end - 1,
                since: reached.map(|(time, _)| *time),
            }
        }
    }
}

/// Returns the retry steps that workers have or remember, and that the settings here do not name.
fn other_retry_steps(config: &Config, reports: &[ReportedWorker]) -> BTreeSet<String> {
    let known: BTreeSet<String> =
        config.amqp.retry_delays.iter().map(|delay| format_duration(*delay)).collect();
    let reported = reports.iter().flat_map(|reported| {
        reported.report.retry_delays.iter().chain(&reported.report.other_retry_delays)
    });
    reported.filter(|step| !known.contains(*step)).cloned().collect()
}

fn queue(name: String, kind: QueueKind, state: QueueState) -> QueueFacts {
    let facts = QueueFacts { name, kind, exists: true, ready: 0, consumers: 0, unknown: None };
    match state {
        QueueState::Stands { ready, consumers } => QueueFacts { ready, consumers, ..facts },
        QueueState::Missing => QueueFacts { exists: false, ..facts },
        QueueState::Unknown(error) => QueueFacts { unknown: Some(unreadable(&error)), ..facts },
    }
}

fn unreadable(error: &AmqpError) -> Unreadable {
    Unreadable { words: chain(error).to_string(), is_refused: error.is_access_refused() }
}

/// Returns the oldest of the letters at the head of the queue. `None` if they cannot be read, which
/// does not matter much, because their number is known.
///
/// The queue delivers requeued letters before those that were never delivered. A look that ends
/// before the last requeued letter would move the ones it read behind the others.
async fn oldest_dead_letter(config: &Config) -> Option<OldestLetter> {
    let deadline = Instant::now() + LETTER_TIMEOUT;
    let mut letters = timeout_at(deadline, DeadLetters::connect(&config.amqp, &Signer::default()))
        .await
        .ok()?
        .ok()?
        .with_channel_max(LETTERS);
    let mut oldest: Option<Letter> = None;
    let mut looked_at = 0;
    while let Ok(Ok(batch)) =
        timeout_at(deadline, letters.next_batch(usize::from(LETTERS.get()))).await
    {
        looked_at += batch.len();
        let was_requeued = batch.last().is_some_and(|dead| dead.delivery.redelivered());
        for letter in batch.iter().map(|dead| Letter::read(dead, config.reading)) {
            // Among letters of the same time, the first in the queue counts as the oldest.
            if oldest.as_ref().is_none_or(|oldest| letter.time < oldest.time) {
                oldest = Some(letter);
            }
        }
        if looked_at >= usize::from(LETTERS.get()) {
            if !was_requeued || looked_at >= LETTERS_MAX {
                break;
            }
            letters = letters.with_channel_max(MORE_LETTERS);
        }
        if batch.is_empty() {
            break;
        }
    }
    // If this times out, the broker requeues the letters when the connection ends.
    let _ = timeout(LETTER_TIMEOUT, letters.close()).await;
    oldest.map(|letter| OldestLetter {
        reason: letter.reason,
        event_type: letter.event_type,
        time: letter.time,
    })
}
