//! Asks both servers, at once and within bounds.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, timeout, timeout_at};

use super::facts::{
    BrokerFacts, HealFacts, HistoryFacts, OldestLetter, OwedFacts, ProgressFacts, QueueFacts,
    QueueKind, RedisFacts, Status, WorkerFacts,
};
use crate::broker::{BrokerError, DeadLetters, History, Inspector, Place, QueueState, Signer};
use crate::cache::{Cache, CacheError, CommandError, ReportedWorker, WorkerReport};
use crate::config::Config;
use crate::ops::dead_letters::Letter;
use crate::quantity::format_duration;

/// For all there is to ask: `status` answers within 10 s, whatever is away.
const PATIENCE: Duration = Duration::from_secs(8);

/// For the history, which takes some seconds where it is empty.
const HISTORY_PATIENCE: Duration = Duration::from_secs(4);

/// How many times back are tried, each so much nearer than the one before.
const HISTORY_STEPS: i32 = 24;
const HISTORY_RATIO: f64 = 0.7;

/// For the dead letters at the queue's head: another command may hold them.
const LETTER_PATIENCE: Duration = Duration::from_secs(2);

/// Dead letters that are looked at for the oldest, at least.
const LETTERS: NonZeroU16 = NonZeroU16::new(100).unwrap();

/// And at once beyond those, while they are letters that were given back before.
const MORE_LETTERS: NonZeroU16 = NonZeroU16::new(5_000).unwrap();

/// Dead letters that are looked at for the oldest, at most.
const LETTERS_MAX: usize = 50_000;

/// Finds out how everything stands. What cannot be asked is told in place of the answer.
///
/// # Errors
/// Settings that no connection can be made with.
pub async fn gather(config: &Config) -> Result<Status, CacheError> {
    let cache = Cache::connect(&config.redis, &config.amqp.queue)?;
    let deadline = Instant::now() + PATIENCE;
    let redis = async {
        timeout_at(deadline, ask_redis(config, &cache))
            .await
            .unwrap_or_else(|_| Err(silent("Redis")))
    };
    let broker = async {
        match timeout_at(deadline, Inspector::connect(&config.amqp)).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err(silent("RabbitMQ")),
        }
    };
    let (redis, inspector) = tokio::join!(redis, broker);
    let rabbitmq = match inspector {
        Ok(inspector) => {
            // Which rungs to look for is known from the workers.
            let reports = redis.as_ref().map(|(_, reports)| reports.as_slice()).unwrap_or_default();
            let asked = timeout_at(deadline, ask_broker(config, &inspector, reports)).await;
            let asked = asked.map_or_else(
                |_| Err(silent("RabbitMQ")),
                |asked| asked.map_err(|error| error.to_string()),
            );
            let _ = timeout(Duration::from_secs(1), inspector.close()).await;
            asked
        }
        Err(cause) => Err(cause),
    };
    Ok(Status { time: Timestamp::now(), rabbitmq, redis: redis.map(|(facts, _)| facts) })
}

fn silent(server: &str) -> String {
    format!("{server} gave no answer within {} s", PATIENCE.as_secs())
}

async fn ask_redis(
    config: &Config,
    cache: &Cache,
) -> Result<(RedisFacts, Vec<ReportedWorker>), String> {
    cache.probe().await.map_err(|outage| outage.to_string())?;
    let cause = |error: CommandError| error.to_string();
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
        refused_registry,
        retry_delays: ladder,
        in_flight: in_hand,
        oldest_unsettled_ms,
        not_ready,
        history_fault,
        ..
    } = reported.report.clone();
    let oldest = oldest_unsettled_ms.map(|ms| Duration::from_millis(ms) + reported.age);
    let name = if host.is_empty() { format!("pid {pid}") } else { format!("{host}:{pid}") };
    let oldest_unsettled_s = oldest.map(|age| age.as_secs_f64());
    let reported_s_ago = reported.age.as_secs_f64();
    WorkerFacts {
        name,
        version,
        digest,
        refused_registry,
        ladder,
        reported_s_ago,
        in_hand,
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
    asked.extend(names.retry.iter().map(|(_, name)| (QueueKind::Rung, name.clone())));
    asked.extend(
        left_rungs(config, reports)
            .into_iter()
            .map(|rung| (QueueKind::LeftRung, format!("{}.retry.{rung}", names.main))),
    );
    asked.push((QueueKind::Dead, names.dead.clone()));
    let mut queues = Vec::with_capacity(asked.len());
    for (kind, name) in asked {
        let state = inspector.queue(&name).await?;
        // One that its owner has deleted is forgotten.
        if kind != QueueKind::LeftRung || state != QueueState::Missing {
            queues.push(queue(name, kind, state));
        }
    }
    let history = match &config.amqp.history {
        None => HistoryFacts::Off,
        Some(_) => match inspector.queue(&names.history).await? {
            QueueState::Stands { .. } => history(config).await,
            QueueState::Missing => HistoryFacts::Missing,
            QueueState::Unknown(words) => HistoryFacts::Unknown(words),
        },
    };
    let any_dead = queues.iter().any(|queue| queue.kind == QueueKind::Dead && queue.ready > 0);
    let oldest_dead_letter = if any_dead { oldest_dead_letter(config).await } else { None };
    Ok(BrokerFacts { node: inspector.node().to_owned(), queues, oldest_dead_letter, history })
}

/// What the history holds. A stream does not tell how old its messages are: places are looked for,
/// from the farthest that it may reach back to.
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
    match timeout(HISTORY_PATIENCE, surveyed).await {
        Err(_) => {
            HistoryFacts::Unknown(format!("no answer within {} s", HISTORY_PATIENCE.as_secs()))
        }
        Ok(Err(error)) => HistoryFacts::Unknown(error.to_string()),
        Ok(Ok(survey)) if survey.is_empty() => HistoryFacts::Empty,
        Ok(Ok(survey)) => {
            // Where it attaches behind the first message there was something older.
            let reached =
                times.iter().zip(&survey.places).find(|(_, place)| place.earliest > survey.first);
            HistoryFacts::Stands {
                first: survey.first,
                last: survey.end - 1,
                since: reached.map(|(time, _)| *time),
            }
        }
    }
}

/// Rungs that workers have, or remember of others, and that the settings here do not name.
fn left_rungs(config: &Config, reports: &[ReportedWorker]) -> BTreeSet<String> {
    let known: BTreeSet<String> =
        config.amqp.retry_delays.iter().map(|delay| format_duration(*delay)).collect();
    let told = reports.iter().flat_map(|reported| {
        reported.report.retry_delays.iter().chain(&reported.report.other_retry_delays)
    });
    told.filter(|rung| !known.contains(*rung)).cloned().collect()
}

fn queue(name: String, kind: QueueKind, state: QueueState) -> QueueFacts {
    let facts = QueueFacts { name, kind, exists: true, ready: 0, consumers: 0, unknown: None };
    match state {
        QueueState::Stands { ready, consumers } => QueueFacts { ready, consumers, ..facts },
        QueueState::Missing => QueueFacts { exists: false, ..facts },
        QueueState::Unknown(words) => QueueFacts { unknown: Some(words), ..facts },
    }
}

/// The oldest letter of those at the head of the queue. `None` where none can be looked at: their
/// number is known anyway.
///
/// The queue gives out what was given back before what never was given out. So a look that ends
/// before the last of the former would move them behind the others.
async fn oldest_dead_letter(config: &Config) -> Option<OldestLetter> {
    let deadline = Instant::now() + LETTER_PATIENCE;
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
        let was_given_back = batch.last().is_some_and(|dead| dead.delivery.redelivered());
        for letter in batch.iter().map(|dead| Letter::read(dead, config.reading)) {
            // Of the same time, the first in the queue.
            if oldest.as_ref().is_none_or(|oldest| letter.time < oldest.time) {
                oldest = Some(letter);
            }
        }
        if looked_at >= usize::from(LETTERS.get()) {
            if !was_given_back || looked_at >= LETTERS_MAX {
                break;
            }
            letters = letters.with_channel_max(MORE_LETTERS);
        }
        if batch.is_empty() {
            break;
        }
    }
    // Not waited for, they go back all the same.
    let _ = timeout(LETTER_PATIENCE, letters.close()).await;
    oldest.map(|letter| OldestLetter {
        reason: letter.reason,
        event_type: letter.event_type,
        time: letter.time,
    })
}
