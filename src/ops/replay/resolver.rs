//! Resolves messages of the history on a thread of its own, so that nothing else waits for an
//! expensive event.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use foldhash::{HashSet, HashSetExt};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::broker::Delivery;
use crate::event::{Decoded, Reading, decode};
use crate::reason::Reason;
use crate::registry::{Action, Budget, Effect, Pattern, Registry, Resolution, STACK_BYTES, Spent};

/// Maximum time for one event, which its budget enforces.
pub(super) const EVENT_TIME: Duration = Duration::from_secs(5);

/// Maximum number of tries of an event that ran out of time, which may be due to a busy machine.
const TRIES: u32 = 2;

/// Number of looks that find the thread at the same event, after which the thread is abandoned.
/// Looks are counted, because a clock also runs while the process is suspended.
const HANGS_AFTER_LOOKS: u32 = 30;

/// Maximum number of abandoned threads.
const HANGING_MAX: usize = 8;

/// Time between two looks at the progress of the thread.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Time after which a slice of a batch ends.
const SLICE_TIME: Duration = Duration::from_millis(100);

/// Size of the effects after which a slice of a batch ends.
const SLICE_BYTES: usize = 8 << 20;

/// Messages with their offsets.
pub(super) type Messages = Arc<Vec<(u64, Delivery)>>;

/// A resolved message.
#[derive(Debug)]
pub(super) enum ResolvedMessage {
    /// An event.
    Event {
        /// Its effects.
        resolution: Resolution,
        /// True if it is of a selected type.
        is_of_type: bool,
        /// True if it ran out of time before all effects were known.
        is_out_of_time: bool,
        /// True if it is a replayed letter, so that it is older than its place.
        is_letter: bool,
    },
    /// The record of a replay.
    Record,
    /// A deletion marker.
    Tombstone,
    /// A message that is not an event, or made the resolution panic.
    Unreadable(Reason, String),
    /// An event whose resolution does not end.
    Hangs(String),
}

/// The reason why messages were not resolved.
#[derive(Debug)]
pub(super) enum Unresolved {
    /// The replay was asked to stop.
    Stopped,
    /// The resolution of too many events does not end.
    Hangs,
}

/// Resolves messages.
#[derive(Debug)]
pub(super) struct Resolver {
    rules: Arc<Rules>,
    jobs: Option<mpsc::Sender<Job>>,
    /// Offsets of events whose resolution does not end.
    hanging: HashSet<u64>,
}

/// The inputs of a resolution.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) registry: Arc<Registry>,
    pub(super) types: Vec<Pattern>,
    pub(super) reading: Reading,
    /// Maximum time for one event.
    pub(super) event_time: Duration,
}

/// A part of a batch.
struct Job {
    batch: Messages,
    range: Range<usize>,
    /// The message that is being resolved.
    at: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    answer: oneshot::Sender<Vec<ResolvedMessage>>,
}

impl Resolver {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules: Arc::new(rules), jobs: None, hanging: HashSet::new() }
    }

    /// Resolves the first messages of a part of the batch, at least one.
    pub(super) async fn resolve(
        &mut self,
        batch: &Messages,
        part: Range<usize>,
        stop: &CancellationToken,
    ) -> Result<Vec<ResolvedMessage>, Unresolved> {
        let Range { start, mut end } = part;
        loop {
            if batch.get(start).is_some_and(|(offset, _)| self.hanging.contains(offset)) {
                let longest_s = (LOOK_INTERVAL * HANGS_AFTER_LOOKS).as_secs();
                let message = format!(
                    "resolving the event took longer than {longest_s} s: please report this bug with the event's shape"
                );
                return Ok(vec![ResolvedMessage::Hangs(message)]);
            }
            match self.ask(batch, start..end, stop).await? {
                Ok(messages) => return Ok(messages),
                Err(hangs_at) => {
                    if let Some((offset, delivery)) = batch.get(hangs_at) {
                        tracing::error!(offset, routing_key = ?delivery.routing_key(), "event skipped: its resolution does not end");
                        self.hanging.insert(*offset);
                    }
                    if self.hanging.len() > HANGING_MAX {
                        return Err(Unresolved::Hangs);
                    }
                    // The messages before it are resolved again.
                    end = hangs_at.max(start + 1);
                }
            }
        }
    }

    /// Has the thread resolve a range, and returns the messages, or the index of the one that
    /// hangs.
    async fn ask(
        &mut self,
        batch: &Messages,
        range: Range<usize>,
        stop: &CancellationToken,
    ) -> Result<Result<Vec<ResolvedMessage>, usize>, Unresolved> {
        let (answer, mut answered) = oneshot::channel();
        let (at, flag) =
            (Arc::new(AtomicUsize::new(range.start)), Arc::new(AtomicBool::new(false)));
        self.send(Job {
            batch: Arc::clone(batch),
            range,
            at: Arc::clone(&at),
            stop: Arc::clone(&flag),
            answer,
        });
        let (mut was_at, mut looks) = (at.load(Ordering::Relaxed), 0);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    flag.store(true, Ordering::Relaxed);
                    self.jobs = None;
                    return Err(Unresolved::Stopped);
                }
                messages = &mut answered => match messages {
                    Ok(messages) => return Ok(Ok(messages)),
                    // The thread is gone, because a panic could not be caught.
                    Err(_) => {
                        self.jobs = None;
                        return Ok(Err(at.load(Ordering::Relaxed)));
                    }
                },
                () = tokio::time::sleep(LOOK_INTERVAL) => {
                    let now_at = at.load(Ordering::Relaxed);
                    looks = if now_at == was_at { looks + 1 } else { 0 };
                    was_at = now_at;
                    if looks >= HANGS_AFTER_LOOKS {
                        flag.store(true, Ordering::Relaxed);
                        self.jobs = None;
                        return Ok(Err(now_at));
                    }
                }
            }
        }
    }

    /// Sends a job to the thread, or to a new one if the last was abandoned. A thread ends when its
    /// channel is closed.
    fn send(&mut self, job: Job) {
        let job = match &self.jobs {
            Some(jobs) => match jobs.send(job) {
                Ok(()) => return,
                Err(mpsc::SendError(job)) => job,
            },
            None => job,
        };
        let (jobs, asked) = mpsc::channel::<Job>();
        let rules = Arc::clone(&self.rules);
        let work = move || {
            while let Ok(job) = asked.recv() {
                let messages = rules.resolve(&job);
                let _ = job.answer.send(messages);
            }
        };
        if std::thread::Builder::new()
            .name("history".into())
            .stack_size(STACK_BYTES)
            .spawn(work)
            .is_ok()
            && jobs.send(job).is_ok()
        {
            self.jobs = Some(jobs);
        }
    }
}

impl Rules {
    fn resolve(&self, job: &Job) -> Vec<ResolvedMessage> {
        let begun = Instant::now();
        let mut messages = Vec::with_capacity(job.range.len());
        let mut bytes = 0;
        for (at, (_, delivery)) in job.range.clone().zip(&job.batch[job.range.clone()]) {
            job.at.store(at, Ordering::Relaxed);
            // A panic loses this message only, because the closure shares no mutable state.
            if delivery.replayed_from().is_some() {
                messages.push(ResolvedMessage::Record);
                continue;
            }
            let message = catch_unwind(AssertUnwindSafe(|| self.read(&delivery.message(), &job.stop))).unwrap_or_else(|_| {
                ResolvedMessage::Unreadable(
                    Reason::Panicked,
                    "decoding or resolving the event panicked: please report this bug with the event's shape".into(),
                )
            });
            bytes += if let ResolvedMessage::Event { resolution, .. } = &message {
                resolution.effects.iter().map(weight_bytes).sum()
            } else {
                0
            };
            messages.push(message);
            if bytes >= SLICE_BYTES || begun.elapsed() >= SLICE_TIME {
                break;
            }
        }
        messages
    }

    fn read(&self, message: &crate::event::Message<'_>, stop: &Arc<AtomicBool>) -> ResolvedMessage {
        let is_known = |event_type: &str| self.registry.knows_bodiless(event_type);
        match decode(message, self.reading).map(|decoded| decoded.if_known(is_known)) {
            Ok(Decoded::Event(event)) => {
                let is_of_type = self.types.is_empty()
                    || self.types.iter().any(|pattern| pattern.matches(&event.event_type));
                let mut tries = 0;
                loop {
                    let budget = Budget::for_bytes(message.body.len())
                        .until(Instant::now() + self.event_time)
                        .stopped_by(Arc::clone(stop));
                    let resolution = self.registry.resolve_within(&event, &budget);
                    let is_out_of_time = budget.spent() == Some(Spent::Time);
                    tries += 1;
                    if !is_out_of_time || tries == TRIES || stop.load(Ordering::Relaxed) {
                        return ResolvedMessage::Event {
                            resolution,
                            is_of_type,
                            is_out_of_time,
                            is_letter: message.origin.says_how_to_read(),
                        };
                    }
                }
            }
            Ok(Decoded::Tombstone | Decoded::Bodiless(_)) => ResolvedMessage::Tombstone,
            Err(malformed) => ResolvedMessage::Unreadable(Reason::Malformed, malformed.to_string()),
        }
    }
}

/// Returns the size of an effect in memory, in bytes.
pub(super) fn weight_bytes(effect: &Effect) -> usize {
    let written = match &effect.action {
        Action::Write(write) => {
            write.value.len() + write.tags.iter().map(String::len).sum::<usize>()
        }
        Action::Warm(warm) => warm.url.len() + warm.tags.iter().map(String::len).sum::<usize>(),
        _ => 0,
    };
    size_of::<Effect>() + effect.target.len() + written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Vars;
    use crate::event;
    use crate::registry::{LoadOptions, MissingVars};

    fn is_out_of_time(event_time: Duration) -> Option<bool> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(
            directory.path().join("users.yaml"),
            r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#,
        )
        .unwrap();
        let options = LoadOptions {
            schemas: directory.path().to_owned(),
            key_prefix: String::new(),
            vars: Vars::default(),
            tag_prefix: "cache_tag:".to_owned(),
            max_keys_per_event: 10,
            missing_vars: MissingVars::Refuse,
        };
        let registry = Arc::new(Registry::load(&options).unwrap().registry);
        let rules = Rules { registry, types: Vec::new(), reading: Reading::default(), event_time };
        let message = event::Message {
            exchange: "events",
            routing_key: "user.updated",
            body: br#"{"id":1}"#,
            ..event::Message::default()
        };
        match rules.read(&message, &Arc::default()) {
            ResolvedMessage::Event { resolution, is_out_of_time, .. } => {
                assert_eq!(resolution.effects.len(), usize::from(!is_out_of_time));
                Some(is_out_of_time)
            }
            _ => None,
        }
    }

    #[test]
    fn an_event_that_ran_out_of_time_is_marked_as_such() {
        assert_eq!(is_out_of_time(EVENT_TIME), Some(false));
        assert_eq!(is_out_of_time(Duration::ZERO), Some(true));
    }
}
