//! Turns the facts of a status into findings: problems, and notes.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::facts::{
    BrokerFacts, HealFacts, HistoryFacts, QueueFacts, QueueKind, RedisFacts, Status, Unreadable,
    WorkerFacts,
};
use super::finding::{FindingCode, Findings};
use super::span::{age, span};

/// Time in flight after which a delivery counts as stuck: twice the 60 s for which a worker holds
/// deliveries during an outage.
const STUCK_S: f64 = 120.0;

/// Time without a report after which a worker counts as silent. It reports every 5 s.
pub const SILENT_S: f64 = 15.0;

/// Time for which a finding about the last heal is shown.
const HEAL_SHOWN_S: f64 = 86_400.0;

/// Advice for a history that the broker does not serve.
const BROKEN_HISTORY: &str = "workers continue without the history, and retry by themselves. If this persists, the broker has broken the stream: delete it \
     with `rabbitmqctl delete_queue`, and workers declare it again, or set UNSTALE_HISTORY=off";

/// Advice for a missing permission in RabbitMQ.
const GRANT: &str = "grant this user the permissions for `unstale dlq` and `unstale status` in docs/reference/rabbitmq-permissions.md";

/// Advice for keys that events of the past should have invalidated.
const STALE_UNTIL_TTL: &str =
    "stale values may be served until their TTL: delete keys that must be correct";

/// Returns the findings of a status.
pub fn judge(status: &Status) -> Findings {
    let mut findings = Findings::default();
    match &status.redis {
        Err(cause) => findings.problem(
            FindingCode::RedisUnavailable,
            format!("Redis is unavailable: {cause}"),
            "check Redis and UNSTALE_REDIS_URL. Workers pause meanwhile, lose nothing, and continue by themselves",
        ),
        Ok(redis) => judge_redis(redis, status.time, &mut findings),
    }
    if let Ok(redis) = &status.redis {
        judge_workers(&redis.workers, &mut findings);
    }
    match &status.rabbitmq {
        Err(cause) => findings.problem(
            FindingCode::RabbitmqUnavailable,
            cause.clone(),
            "check RabbitMQ and UNSTALE_AMQP_URL. Workers retry by themselves, and publishers keep their events meanwhile",
        ),
        Ok(broker) => judge_broker(broker, status.redis.as_ref().ok(), status.time, &mut findings),
    }
    findings
}

/// Help for a heal whose history cannot be read.
const UNREADABLE_HELP: &str = "grant `read` on the history, delete a history that the broker has broken (workers declare it again), or set \
     UNSTALE_HISTORY=off; then delete keys that must be correct. A worker tries every 30 s, and events are applied meanwhile";

/// Help for effects of a heal that Redis refused.
const REFUSED_HELP: &str = "old values stay readable until their TTL: give our Redis user the rights in docs/reference/redis-permissions.md, or remove \
     the rules whose keys it may not change. A worker tries again within 30 s to 5 minutes, as long as the history holds the events";

fn judge_redis(redis: &RedisFacts, now: Timestamp, findings: &mut Findings) {
    if redis.role.as_deref().is_some_and(|role| role != "master") {
        // A replica without facts refuses writes. This one takes them, and loses them at its next
        // synchronization.
        findings.problem(
            FindingCode::RedisReplica,
            "Redis is a writable replica, and will lose these writes",
            "set UNSTALE_REDIS_URL to the primary",
        );
    }
    if redis.healing {
        findings.note(
            FindingCode::HealRunning,
            format!(
                "a heal is running, because Redis lost writes or may have{}",
                heal_progress(redis)
            ),
            "workers wait for the heal, and continue by themselves",
        );
    }
    if let Some(owed) = &redis.owed_heal {
        let since =
            owed.since.map_or_else(String::new, |since| format!(" for {}", age(since, now)));
        findings.problem(
            FindingCode::HealOwed,
            format!(
                "a heal from {} of the history has been due{since}, and could not be done: {}",
                owed.from, owed.cause
            ),
            if owed.refused.is_some() { REFUSED_HELP } else { UNREADABLE_HELP },
        );
    }
    if let Some(lost) = &redis.lost_events {
        let text = |time: Option<Timestamp>| {
            time.map_or_else(|| "an unknown time".to_owned(), |time| format!("{time:.0}"))
        };
        findings.problem(
            FindingCode::HistoryEventsLost,
            format!(
                "events between {} and {} may be lost: neither a queue nor the history holds them, because both were deleted or replaced",
                text(lost.from),
                text(lost.until)
            ),
            format!("publish the events of that time again; {STALE_UNTIL_TTL} (shown for 24 hours)"),
        );
    }
    if let Some(heal) = &redis.last_heal {
        let age_s = heal.time.map_or(0.0, |time| now.duration_since(time).as_secs_f64());
        if age_s < HEAL_SHOWN_S {
            judge_heal(heal, age_s, redis, findings);
        }
    }
}

fn heal_progress(redis: &RedisFacts) -> String {
    redis.heal_progress.as_ref().map_or_else(String::new, |progress| {
        let deaths = if progress.deaths > 0 {
            format!(", {} died on the way", counted(progress.deaths, "heal"))
        } else {
            String::new()
        };
        format!(
            " ({} of {}{deaths})",
            progress.done,
            counted(u32::try_from(progress.of).unwrap_or(u32::MAX), "message")
        )
    })
}

fn judge_heal(heal: &HealFacts, age_s: f64, redis: &RedisFacts, findings: &mut Findings) {
    let (workers, is_owed) = (&redis.workers, redis.owed_heal.is_some());
    let may_have_lost_events = redis.lost_events.is_some();
    let others: Vec<&str> = workers
        .iter()
        .filter(|worker| {
            !heal.digests.is_empty() && !heal.digests.contains(&worker.resolution_digest)
        })
        .map(|worker| worker.name.as_str())
        .collect();
    if !others.is_empty() {
        findings.note(
            FindingCode::HealOtherRules,
            format!(
                "no heal has applied the rules and settings of {} since Redis lost writes, or may have",
                others.join(", ")
            ),
            "these workers heal by themselves within a minute; if this persists, check their logs",
        );
    }
    let ago = span(age_s);
    if !heal.passed_over.is_empty() {
        let offsets = heal.passed_over.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        findings.problem(
            FindingCode::HealSkippedEvents,
            format!(
                "a heal {ago} ago skipped events of the history, because heals died at them or could not resolve them in time: \
                 offsets {offsets}"
            ),
            format!("apply them with `unstale replay --since offset:N --until offset:M`; {STALE_UNTIL_TTL}"),
        );
    } else if !heal.complete && !is_owed {
        findings.problem(
            FindingCode::HealIncomplete,
            format!("Redis lost writes {ago} ago, and the history did not hold all events that had to be applied again"),
            format!("{STALE_UNTIL_TTL} (shown for 24 hours)"),
        );
    } else if heal.complete {
        let advice = if may_have_lost_events {
            "see the problem `history.events-lost`; find out why Redis lost them"
        } else {
            "nothing is left to do; find out why Redis lost them"
        };
        findings.note(
            FindingCode::HealDone,
            format!("a heal was done {ago} ago, because Redis lost writes or may have"),
            advice,
        );
    }
}

fn judge_broker(
    broker: &BrokerFacts,
    redis: Option<&RedisFacts>,
    now: Timestamp,
    findings: &mut Findings,
) {
    let missing: Vec<&str> = broker
        .queues
        .iter()
        .filter(|queue| !queue.exists)
        .map(|queue| queue.name.as_str())
        .collect();
    let none_exists = broker.queues.iter().all(|queue| !queue.exists);
    if none_exists {
        findings.problem(
            FindingCode::QueueNone,
            format!("the queue `{}` and its companions do not exist", first_name(broker)),
            "start a worker with `unstale run`, which declares them; or check UNSTALE_QUEUE and the virtual host in UNSTALE_AMQP_URL",
        );
    } else if !missing.is_empty() {
        findings.problem(
            FindingCode::QueueMissing,
            format!("queues do not exist: {}", missing.join(", ")),
            "workers declare them within half a minute, unless UNSTALE_DECLARE=none; if this persists, check the logs of workers, \
             UNSTALE_QUEUE and UNSTALE_RETRY_DELAYS",
        );
    }
    for queue in &broker.queues {
        judge_queue(queue, broker, redis, now, findings);
    }
    match &broker.history {
        HistoryFacts::Off => findings.note(
            FindingCode::HistoryOff,
            "UNSTALE_HISTORY=off: events are not recorded",
            "`unstale replay` has nothing to read, and a heal is not possible: after Redis loses writes, stale values may be served until their TTL",
        ),
        HistoryFacts::Missing if !none_exists => findings.problem(
            FindingCode::HistoryMissing,
            "the history does not exist",
            "workers declare it within half a minute, unless UNSTALE_DECLARE=none; set UNSTALE_HISTORY=off if the broker has no streams",
        ),
        HistoryFacts::Unknown(Unreadable { words, is_refused: true }) => findings.problem(
            FindingCode::HistoryRefused,
            format!("the user may not read the history: {words}"),
            GRANT,
        ),
        HistoryFacts::Unknown(Unreadable { words, is_refused: false }) => findings.problem(
            FindingCode::HistoryBroken,
            format!("the broker does not serve the history: {words}"),
            BROKEN_HISTORY,
        ),
        HistoryFacts::Missing | HistoryFacts::Empty | HistoryFacts::Exists { .. } => {}
    }
}

fn first_name(broker: &BrokerFacts) -> &str {
    broker.queues.first().map_or("", |queue| &queue.name)
}

fn judge_queue(
    queue: &QueueFacts,
    broker: &BrokerFacts,
    redis: Option<&RedisFacts>,
    now: Timestamp,
    findings: &mut Findings,
) {
    if let Some(Unreadable { words, is_refused }) = &queue.unknown {
        let advice = if *is_refused { GRANT } else { "check the broker's log" };
        findings.problem(
            FindingCode::QueueUnreadable,
            format!("cannot read the queue `{}`: {words}", queue.name),
            advice,
        );
        return;
    }
    if !queue.exists {
        return;
    }
    match queue.kind {
        QueueKind::Dead if queue.ready > 0 => {
            let oldest = broker.oldest_dead_letter.as_ref().map_or_else(String::new, |letter| {
                let since = letter
                    .time
                    .map_or_else(String::new, |time| format!(", {} old", age(time, now)));
                format!(", the oldest `{}`: {}{since}", letter.event_type, letter.reason)
            });
            findings.problem(
                FindingCode::QueueDeadLetters,
                format!("{} in `{}`{oldest}", counted(queue.ready, "dead letter"), queue.name),
                "find the reasons with `unstale dlq list` and fix them; then apply the letters with `unstale dlq replay`, or drop them with `unstale dlq drop`",
            );
        }
        QueueKind::Main | QueueKind::Slow if queue.consumers == 0 => {
            judge_unconsumed(queue, redis, findings);
        }
        QueueKind::Main
            if redis.is_some_and(|redis| redis.workers.is_empty() && !redis.healing) =>
        {
            findings.problem(
                FindingCode::WorkerUnreported,
                format!(
                    "`{}` has {}, and no worker has reported in the last 30 s",
                    queue.name,
                    counted(queue.consumers, "consumer")
                ),
                "check /readyz and the logs of workers: they are stalled, or Redis refuses their reports; a restart ends a stall",
            );
        }
        QueueKind::OtherRetryStep if queue.ready > 0 => findings.note(
            FindingCode::QueueOtherRetryStep,
            format!(
                "`{}` belongs to another retry schedule, and holds {}",
                queue.name,
                counted(queue.ready, "retry message")
            ),
            "the broker returns them to workers when they are due; then delete the queue",
        ),
        QueueKind::OtherRetryStep => findings.note(
            FindingCode::QueueOtherRetryStep,
            format!("`{}` belongs to another retry schedule, and is empty", queue.name),
            "delete the queue once no worker uses that schedule",
        ),
        _ => {}
    }
}

fn judge_unconsumed(queue: &QueueFacts, redis: Option<&RedisFacts>, findings: &mut Findings) {
    let waiting = if queue.ready > 0 {
        format!(", {} waiting", counted(queue.ready, "event"))
    } else {
        String::new()
    };
    let what = format!("no worker consumes `{}`{waiting}", queue.name);
    let is_paused =
        |redis: &RedisFacts| redis.workers.iter().any(|worker| !worker.not_ready.is_empty());
    let code = FindingCode::QueueUnconsumed;
    match redis {
        None => findings.note(code, what, "workers pause while Redis is unavailable"),
        Some(redis) if is_paused(redis) => {
            findings.note(
                code,
                what,
                "workers run, and are not ready: see the problem `worker.not-ready`",
            );
        }
        Some(_) => findings.problem(code, what, "start a worker with `unstale run`"),
    }
}

fn judge_workers(workers: &[WorkerFacts], findings: &mut Findings) {
    for worker in workers {
        if worker.reported_s_ago > SILENT_S {
            findings.problem(
                FindingCode::WorkerSilent,
                format!("worker {} has not reported for {}", worker.name, span(worker.reported_s_ago)),
                "check its /readyz and its log: it is stalled, was killed, or cannot reach Redis. The broker redelivers its events in flight",
            );
        } else if !worker.not_ready.is_empty() {
            findings.problem(
                FindingCode::WorkerNotReady,
                format!("worker {} is not ready: {}", worker.name, worker.not_ready.join("; ")),
                "it retries by itself; if this persists, check its log",
            );
        } else if let Some(age_s) = worker.oldest_unsettled_s.filter(|age_s| *age_s > STUCK_S) {
            findings.problem(
                FindingCode::WorkerStuck,
                format!("worker {} has had a delivery in flight for {}", worker.name, span(age_s)),
                "check its log for a slow loader, the drain of a huge tag, or a memory or disk alarm of RabbitMQ",
            );
        }
    }
    if let Some((name, cause)) =
        workers.iter().find_map(|worker| Some((&worker.name, worker.history_fault.as_ref()?)))
    {
        findings.problem(
            FindingCode::WorkerNoHistory,
            format!("worker {name} runs without the history, so a heal cannot repeat current events: {cause}"),
            BROKEN_HISTORY,
        );
    }
    for worker in workers {
        if let Some(cause) = &worker.refused_registry {
            findings.problem(
                FindingCode::WorkerOutdatedRules,
                format!("worker {} uses older rules, because the current rule files do not load: {cause}", worker.name),
                "fix the files that `unstale check` reports; running workers reload within seconds. Until then, new workers refuse to start",
            );
        }
    }
    if let Some((name, file)) =
        workers.iter().find_map(|worker| Some((&worker.name, worker.changing_rules.as_ref()?)))
    {
        findings.note(
            FindingCode::WorkerChangingRules,
            format!("rule files of worker {name} change all the time, such as {file}: changes load after 10 s, and a half-written file may load"),
            "find out what writes the rule files, and let it write only changed files",
        );
    }
    let digests: BTreeSet<&str> = workers.iter().map(|worker| worker.digest.as_str()).collect();
    if digests.len() > 1 {
        let each = workers
            .iter()
            .map(|worker| format!("{} {}", worker.name, short_digest(&worker.digest)));
        findings.note(
            FindingCode::WorkerDifferentRules,
            format!("workers use different rule files: {}", each.collect::<Vec<_>>().join(", ")),
            "this ends within seconds of a roll-out; if it persists, check the log of the worker with the older files",
        );
    }
}

/// Returns enough characters of a digest to distinguish two of them.
pub fn short_digest(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

fn counted(count: u32, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}
