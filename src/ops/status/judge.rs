//! What of all that needs a person, and what is good to know.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use super::facts::{
    BrokerFacts, HealFacts, HistoryFacts, QueueFacts, QueueKind, RedisFacts, Status, WorkerFacts,
};
use crate::broker::reply_text;

/// A delivery in hand for longer than an outage is held (60 s), twice over, is stuck.
const STUCK_S: f64 = 120.0;

/// A worker reports every 5 s: one that has not for so long is stalled, killed, or cut off from
/// Redis.
pub const SILENT_S: f64 = 15.0;

/// A heal is told for a day.
const FORGOTTEN_S: f64 = 86_400.0;

/// Something to know, and what to do about it.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Finding {
    /// What is so.
    pub what: String,
    /// What to do, or why there is nothing to do.
    #[serde(rename = "do")]
    pub advice: String,
}

/// What a status comes to.
#[derive(Debug, Clone, Default, Serialize, PartialEq, Eq)]
pub struct Findings {
    /// What needs a person, the worst first.
    pub problems: Vec<Finding>,
    /// What does not.
    pub notes: Vec<Finding>,
}

impl Findings {
    fn problem(&mut self, what: impl Into<String>, advice: impl Into<String>) {
        self.problems.push(Finding { what: what.into(), advice: advice.into() });
    }

    fn note(&mut self, what: impl Into<String>, advice: impl Into<String>) {
        self.notes.push(Finding { what: what.into(), advice: advice.into() });
    }
}

/// What to do about a history that the broker does not serve.
const BROKEN_HISTORY: &str = "workers go on without it, and try again by themselves; if it stays, the broker has broken the stream: delete it \
     (`rabbitmqctl delete_queue`, or the management UI), and workers declare it anew; or set UNSTALE_HISTORY=off";

/// What to do about a missing permission in RabbitMQ.
const GRANT: &str = "grant this user the permissions of a person with `unstale dlq` and `unstale status`: \"Permissions in RabbitMQ\" in \
     docs/OPERATIONS.md";

/// Judges how things stand.
pub fn judge(status: &Status) -> Findings {
    let mut findings = Findings::default();
    match &status.redis {
        Err(cause) => findings.problem(
            format!("Redis cannot be worked with: {cause}"),
            "nothing is applied, and nothing is lost: workers pause, and go on by themselves once it takes writes; look at Redis, or at UNSTALE_REDIS_URL",
        ),
        Ok(redis) => judge_redis(redis, status.time, &mut findings),
    }
    if let Ok(redis) = &status.redis {
        judge_workers(&redis.workers, &mut findings);
    }
    match &status.rabbitmq {
        Err(cause) => findings.problem(
            cause.clone(),
            "workers try again by themselves, and events wait with their publishers; look at RabbitMQ, or at UNSTALE_AMQP_URL",
        ),
        Ok(broker) => judge_broker(broker, status.redis.as_ref().ok(), status.time, &mut findings),
    }
    findings
}

fn judge_redis(redis: &RedisFacts, now: Timestamp, findings: &mut Findings) {
    if redis.role.as_deref().is_some_and(|role| role != "master") {
        // It takes writes, or there would be no facts: a writable replica loses them at its next
        // synchronization.
        findings.problem(
            "Redis is a replica that takes writes, and will lose them",
            "set UNSTALE_REDIS_URL to the primary",
        );
    }
    if redis.healing {
        let progress = redis.heal_progress.as_ref().map_or_else(String::new, |progress| {
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
        });
        findings.note(
            format!("Redis lost writes, or may have: the history is being applied again{progress}"),
            "workers wait for it, and go on by themselves",
        );
    }
    if let Some(owed) = &redis.owed_heal {
        let since =
            owed.since.map_or_else(String::new, |since| format!("for {} ", age(since, now)));
        findings.problem(
            format!("{since}the history from {} on is to be applied again, and has not been: {}", owed.from, owed.cause),
            "a worker tries every 30 s, and events are applied meanwhile: grant `read` on the history, delete a history that the broker has broken \
             (workers declare it again), or set UNSTALE_HISTORY=off; then flush what must be right",
        );
    }
    let age_s =
        |heal: &HealFacts| heal.time.map_or(0.0, |time| now.duration_since(time).as_secs_f64());
    if let Some(heal) = redis
        .last_heal
        .as_ref()
        .filter(|heal| age_s(heal) < FORGOTTEN_S && !heal.digests.is_empty())
    {
        let others = redis
            .workers
            .iter()
            .filter(|worker| !heal.digests.contains(&worker.digest))
            .map(|worker| worker.name.as_str());
        let others = others.collect::<Vec<_>>().join(", ");
        if !others.is_empty() {
            findings.note(
                format!("no heal has applied the rules of {others} since Redis lost writes, or may have"),
                "these workers heal again by themselves, within a minute; their log says what keeps them from it",
            );
        }
    }
    match &redis.last_heal {
        Some(heal) if !heal.passed_over.is_empty() && age_s(heal) < FORGOTTEN_S => {
            let offsets = heal.passed_over.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            findings.problem(
                format!(
                    "{} ago a heal left out the events at these offsets of the history, since heals died there or could not resolve them in time: \
                     {offsets}",
                    seconds(age_s(heal))
                ),
                "what they had invalidated stays readable until its TTL: `unstale replay --since offset:N` tries them again, in a process of its own",
            );
        }
        Some(heal) if !heal.complete && age_s(heal) < FORGOTTEN_S => findings.problem(
            format!("{} ago Redis lost writes, and the history did not hold all that was to be applied again", seconds(age_s(heal))),
            "what they had invalidated stays readable until its TTL: flush what must be right (this is told for a day)",
        ),
        Some(heal) if age_s(heal) < FORGOTTEN_S => findings.note(
            format!("{} ago the history was applied again: Redis had lost writes, or may have", seconds(age_s(heal))),
            "nothing is left to do; find out why Redis went back",
        ),
        Some(_) | None => {}
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
            format!("there is no queue `{}` nor any beside it", first_name(broker)),
            "no worker has run here yet: start one with `unstale run`; or look at UNSTALE_QUEUE and at the virtual host in UNSTALE_AMQP_URL",
        );
    } else if !missing.is_empty() {
        findings.problem(
            format!("missing: {}", missing.join(", ")),
            "workers declare what is missing within half a minute, unless UNSTALE_DECLARE=none: look at their log, at UNSTALE_QUEUE and \
             at UNSTALE_RETRY_DELAYS",
        );
    }
    for queue in &broker.queues {
        judge_queue(queue, broker, redis, now, findings);
    }
    match &broker.history {
        HistoryFacts::Off => findings.note(
            "UNSTALE_HISTORY=off: no history is kept",
            "`unstale replay` has nothing to read, and what a Redis that went back had lost stays readable until its TTL",
        ),
        HistoryFacts::Missing if !none_exists => findings.problem(
            "there is no history",
            "workers declare it within half a minute, unless UNSTALE_DECLARE=none; or set UNSTALE_HISTORY=off where the broker has no streams",
        ),
        HistoryFacts::Unknown(words) if reply_text::is_access_refused(words) => {
            findings.problem(format!("the history cannot be looked at: {words}"), GRANT);
        }
        HistoryFacts::Unknown(words) => findings.problem(format!("the broker does not serve the history: {words}"), BROKEN_HISTORY),
        HistoryFacts::Missing | HistoryFacts::Empty | HistoryFacts::Stands { .. } => {}
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
    if let Some(words) = &queue.unknown {
        let advice =
            if reply_text::is_access_refused(words) { GRANT } else { "look at the broker's log" };
        findings.problem(format!("`{}` cannot be looked at: {words}", queue.name), advice);
        return;
    }
    if !queue.exists {
        return;
    }
    match queue.kind {
        QueueKind::Dead if queue.ready > 0 => {
            let oldest = broker.oldest_dead_letter.as_ref().map_or_else(String::new, |letter| {
                let since = letter.time.map_or_else(String::new, |time| format!(" {} old", age(time, now)));
                format!(", the oldest{since} (`{}`: {})", letter.event_type, letter.reason)
            });
            findings.problem(
                format!("{} in `{}`{oldest}", counted(queue.ready, "dead letter"), queue.name),
                "`unstale dlq list` says why; once that is mended `unstale dlq replay` puts them back, and `unstale dlq drop` drops what will never do",
            );
        }
        QueueKind::Main | QueueKind::Slow if queue.consumers == 0 => {
            let waiting = if queue.ready > 0 { format!(": {} waiting", counted(queue.ready, "event")) } else { String::new() };
            let what = format!("nobody consumes `{}`{waiting}", queue.name);
            let paused = redis.is_some_and(|redis| redis.workers.iter().any(|worker| !worker.not_ready.is_empty()));
            match redis {
                None => findings.note(what, "workers pause while Redis is away"),
                Some(_) if paused => findings.note(what, "workers run and are not ready, see there"),
                Some(_) => findings.problem(what, "start a worker: `unstale run`"),
            }
        }
        QueueKind::Main if redis.is_some_and(|redis| redis.workers.is_empty() && !redis.healing) => findings.problem(
            format!("`{}` has {}, and no worker has reported within 30 s", queue.name, counted(queue.consumers, "consumer")),
            "workers are stalled, or their Redis refuses their reports: look at /readyz and at their logs; a restart ends a stall",
        ),
        QueueKind::LeftRung if queue.ready > 0 => findings.note(
            format!("`{}` is a rung of another ladder, and {} in it", queue.name, are(queue.ready, "copy", "copies")),
            "they go back to work by themselves when their time is up; then delete the queue",
        ),
        QueueKind::LeftRung => {
            findings.note(format!("`{}` is an empty rung of another ladder", queue.name), "once no worker has that ladder: delete it");
        }
        _ => {}
    }
}

fn judge_workers(workers: &[WorkerFacts], findings: &mut Findings) {
    for worker in workers {
        if worker.reported_s_ago > SILENT_S {
            findings.problem(
                format!("worker {} has not reported for {}", worker.name, seconds(worker.reported_s_ago)),
                "it is stalled, was killed, or does not reach Redis: look at its /readyz and its log; what it had in flight comes again",
            );
        } else if !worker.not_ready.is_empty() {
            findings.problem(
                format!("worker {} is not ready: {}", worker.name, worker.not_ready.join("; ")),
                "it tries again by itself; its log says more",
            );
        } else if let Some(age_s) = worker.oldest_unsettled_s.filter(|age_s| *age_s > STUCK_S) {
            findings.problem(
                format!("worker {} has had a delivery in flight for {}", worker.name, seconds(age_s)),
                "a slow loader, the drain of a huge tag, or an alarm of RabbitMQ's: its log says more",
            );
        }
    }
    if let Some((name, cause)) =
        workers.iter().find_map(|worker| Some((&worker.name, worker.history_fault.as_ref()?)))
    {
        findings.problem(
            format!("worker {name} does without the history, which misses events since, and Redis cannot be healed by those: {cause}"),
            BROKEN_HISTORY,
        );
    }
    for worker in workers {
        if let Some(cause) = &worker.refused_registry {
            findings.problem(
                format!("worker {} works with an older registry, since the files as they are now do not load: {cause}", worker.name),
                "mend them, which is taken within seconds: `unstale check` shows all that is wrong; a worker that starts now will not",
            );
        }
    }
    let digests: BTreeSet<&str> = workers.iter().map(|worker| worker.digest.as_str()).collect();
    if digests.len() > 1 {
        let each =
            workers.iter().map(|worker| format!("{} {}", worker.name, short(&worker.digest)));
        findings.note(
            format!("workers run different registries: {}", each.collect::<Vec<_>>().join(", ")),
            "that passes within seconds of a roll-out; if it stays, the log of the one behind says why it does not load the newer one",
        );
    }
}

/// Enough of a digest to tell two apart.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

fn counted(count: u32, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

fn are(count: u32, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one} is") } else { format!("{count} {many} are") }
}

/// How long ago, in the two largest units.
pub(super) fn age(time: Timestamp, now: Timestamp) -> String {
    seconds(now.duration_since(time).as_secs_f64())
}

/// A span in its two largest units.
pub fn seconds(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a span that is shown to people"
    )]
    let whole = seconds.max(0.0) as u64;
    let units = [
        (whole / 86_400, "d"),
        (whole / 3_600 % 24, "h"),
        (whole / 60 % 60, "m"),
        (whole % 60, "s"),
    ];
    let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown = units[first..]
        .iter()
        .take(2)
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"));
    let text = shown.collect::<Vec<_>>().join(" ");
    if text.is_empty() { "0s".to_owned() } else { text }
}
