//! Messages of the history → what they do, on a thread of their own: whatever an event costs,
//! nothing else waits for it.

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

/// Maximum time for one event, which its budget looks at.
pub(super) const EVENT_TIME: Duration = Duration::from_secs(5);

/// Tries of one event whose time was up: a busy machine may be what took it.
const TRIES: u32 = 2;

/// Number of looks that find a thread at the same event, after which it is left to itself. Looks
/// are counted, since a clock goes on while the process is suspended.
const HANGS_AFTER_LOOKS: u32 = 30;

/// Threads that may be left to themselves.
const HANGING_MAX: usize = 8;

/// Time between two looks at whether the thread gets on.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A slice of a batch ends after this time, or when its effects take so many bytes.
const SLICE_TIME: Duration = Duration::from_millis(100);
const SLICE_BYTES: usize = 8 << 20;

/// Messages with their offsets.
pub(super) type Messages = Arc<Vec<(u64, Delivery)>>;

/// A message that was resolved.
#[derive(Debug)]
pub(super) enum Message {
    /// An event.
    Event {
        /// Its effects.
        resolution: Resolution,
        /// True if it is of a type that is asked for.
        is_of_type: bool,
        /// True if its time was up before all effects were known.
        is_out_of_time: bool,
    },
    /// A deletion marker.
    Tombstone,
    /// Nobody knows what it does.
    Unreadable(Reason, String),
    /// It was not resolved in time, and does not end.
    Hangs(String),
}

/// Why there are no messages.
#[derive(Debug)]
pub(super) enum Unresolved {
    /// It was asked to stop.
    Stopped,
    /// Too many events hang.
    Hangs,
}

/// Resolves messages.
#[derive(Debug)]
pub(super) struct Resolver {
    rules: Arc<Rules>,
    jobs: Option<mpsc::Sender<Job>>,
    /// Offsets of events that hang.
    hanging: HashSet<u64>,
}

/// Everything that resolution needs.
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
    answer: oneshot::Sender<Vec<Message>>,
}

impl Resolver {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules: Arc::new(rules), jobs: None, hanging: HashSet::new() }
    }

    /// Resolves the first messages of that part of the batch, one at least.
    pub(super) async fn resolve(
        &mut self,
        batch: &Messages,
        part: Range<usize>,
        stop: &CancellationToken,
    ) -> Result<Vec<Message>, Unresolved> {
        let Range { start, mut end } = part;
        loop {
            if batch.get(start).is_some_and(|(offset, _)| self.hanging.contains(offset)) {
                let longest_s = (LOOK_INTERVAL * HANGS_AFTER_LOOKS).as_secs();
                let message = format!(
                    "resolving the event took longer than {longest_s} s: please report it, with the event's shape"
                );
                return Ok(vec![Message::Hangs(message)]);
            }
            match self.ask(batch, start..end, stop).await? {
                Ok(messages) => return Ok(messages),
                Err(hangs_at) => {
                    if let Some((offset, delivery)) = batch.get(hangs_at) {
                        tracing::error!(offset, routing_key = ?delivery.routing_key(), "an event of the history hangs: it is left out");
                        self.hanging.insert(*offset);
                    }
                    if self.hanging.len() > HANGING_MAX {
                        return Err(Unresolved::Hangs);
                    }
                    // What came before it is resolved once more.
                    end = hangs_at.max(start + 1);
                }
            }
        }
    }

    /// The messages, or which of them hangs.
    async fn ask(
        &mut self,
        batch: &Messages,
        range: Range<usize>,
        stop: &CancellationToken,
    ) -> Result<Result<Vec<Message>, usize>, Unresolved> {
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
                    // The thread is gone: not even the panic could be caught.
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

    /// To the thread, or to another one where it has been left to itself. It ends when nobody asks
    /// it any more.
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
    fn resolve(&self, job: &Job) -> Vec<Message> {
        let begun = Instant::now();
        let mut messages = Vec::with_capacity(job.range.len());
        let mut bytes = 0;
        for (at, (_, delivery)) in job.range.clone().zip(&job.batch[job.range.clone()]) {
            job.at.store(at, Ordering::Relaxed);
            // Nothing is shared with what may panic: the message alone is lost.
            let message = catch_unwind(AssertUnwindSafe(|| self.read(&delivery.message(), &job.stop))).unwrap_or_else(|_| {
                Message::Unreadable(
                    Reason::Panicked,
                    "decoding or resolving the event panicked: please report it, with the event's shape".into(),
                )
            });
            bytes += if let Message::Event { resolution, .. } = &message {
                resolution.effects.iter().map(weight).sum()
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

    fn read(&self, message: &crate::event::Message<'_>, stop: &Arc<AtomicBool>) -> Message {
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
                        return Message::Event { resolution, is_of_type, is_out_of_time };
                    }
                }
            }
            Ok(Decoded::Tombstone | Decoded::Bodiless(_)) => Message::Tombstone,
            Err(malformed) => Message::Unreadable(Reason::Malformed, malformed.to_string()),
        }
    }
}

/// In bytes.
pub(super) fn weight(effect: &Effect) -> usize {
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
            Message::Event { resolution, is_out_of_time, .. } => {
                assert_eq!(resolution.effects.len(), usize::from(!is_out_of_time));
                Some(is_out_of_time)
            }
            _ => None,
        }
    }

    #[test]
    fn an_event_whose_time_is_up_is_another_thing_than_one_that_cannot_be_resolved() {
        assert_eq!(is_out_of_time(EVENT_TIME), Some(false));
        assert_eq!(is_out_of_time(Duration::ZERO), Some(true));
    }
}
