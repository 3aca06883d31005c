//! Measures one event between its bytes and the plan for Redis, and the loading of its rules.
//!
//! The measures are CPU time of this thread, and peak of its allocations.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use unstale::event::{Decoded, Message, Reading, decode};
use unstale::plan::{Batch, EffectRef};
use unstale::registry::{Action, Budget, Registry, Resolution};

/// Maximum CPU time for one event. A build without optimization is about twenty times slower than a
/// release.
pub(crate) const CPU: Duration =
    if cfg!(debug_assertions) { Duration::from_secs(20) } else { Duration::from_secs(1) };

/// Maximum CPU time for loading one rule file.
pub(crate) const LOAD_CPU: Duration =
    if cfg!(debug_assertions) { Duration::from_secs(20) } else { Duration::from_secs(1) };

/// Maximum memory for one event, without its body.
pub(crate) const MEMORY_BYTES: u64 = 64 << 20;

/// The CPU clock of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Clock {
    account: Option<File>,
    opened: Instant,
}

impl Clock {
    /// Opens the CPU clock of this thread. The fallback is the wall clock.
    pub(crate) fn of_this_thread() -> Self {
        Self { account: File::open("/proc/thread-self/schedstat").ok(), opened: Instant::now() }
    }

    /// Returns the CPU time of the thread. Any thread may call it.
    pub(crate) fn now(&self) -> Duration {
        self.nanos().map_or_else(|| self.opened.elapsed(), Duration::from_nanos)
    }

    fn nanos(&self) -> Option<u64> {
        let mut text = [0; 64];
        let count = self.account.as_ref()?.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..count]).ok()?.split(' ').next()?.parse().ok()
    }
}

/// The cost of an event.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) cpu: Duration,
    pub(crate) bytes: u64,
    pub(crate) work: u64,
    pub(crate) charged_bytes: u64,
    pub(crate) is_spent: bool,
    pub(crate) effects: usize,
}

impl Cost {
    /// The rank that a search maximizes. It must not depend on the machine, since a seed must
    /// repeat the same round.
    #[expect(clippy::cast_precision_loss, reason = "a rank")]
    pub(crate) fn height(&self) -> f64 {
        (self.work as f64 / 16e6)
            .max(self.charged_bytes as f64 / 16e6)
            .max(self.bytes as f64 / MEMORY_BYTES as f64)
    }
}

/// Resolves an event and plans it, as a worker does.
///
/// # Errors
/// A text that says which limit the event exceeded.
pub(crate) fn measure(clock: &Clock, registry: &Registry, body: &[u8]) -> Result<Cost, String> {
    let message = Message { exchange: "events", routing_key: "e.a", body, ..Message::default() };
    let mut cost = Cost::default();
    let before = clock.now();
    let mut ended = Ok(());
    let counted = allocation_counter::measure(|| {
        ended = catch_unwind(AssertUnwindSafe(|| {
            let Ok(Decoded::Event(event)) = decode(&message, Reading::default()) else {
                return Ok(());
            };
            let budget = Budget::for_bytes(event.bytes());
            let resolution = registry.resolve_within(&event, &budget);
            let mut batch = Batch::new("cache_tag:", 1);
            for (position, effect) in (0..).zip(&resolution.effects) {
                batch.push(EffectRef { event: 0, position }, effect);
            }
            drop(batch.finish());
            (cost.work, cost.charged_bytes, cost.is_spent) =
                (budget.spent_work(), budget.spent_bytes(), budget.is_spent());
            cost.effects = resolution.effects.len();
            judge(&resolution, budget.is_spent())
        }))
        .unwrap_or_else(|_| Err("it panicked".to_owned()));
    });
    cost.cpu = clock.now().saturating_sub(before);
    cost.bytes = counted.bytes_max;
    ended?;
    if cost.cpu > CPU || cost.bytes > MEMORY_BYTES {
        return Err(format!("it cost too much: {cost:?}"));
    }
    Ok(cost)
}

/// Checks that a resolution may be applied.
fn judge(resolution: &Resolution, is_spent: bool) -> Result<(), String> {
    if is_spent && (resolution.failure.is_none() || !resolution.effects.is_empty()) {
        return Err(format!(
            "the budget is spent, and yet {} effects, {:?}",
            resolution.effects.len(),
            resolution.failure
        ));
    }
    // A tag's name is not a key: its set has a prefix.
    let mut keys =
        resolution.effects.iter().filter(|effect| effect.action != Action::InvalidateTag);
    if let Some(effect) = keys.find(|effect| {
        effect.target.starts_with("unstale:") || effect.target.starts_with("cache_tag:")
    }) {
        return Err(format!("it reaches an own key by {:?}", effect.action.verb()));
    }
    if let Some(failure) = &resolution.failure {
        let message = &failure.message;
        if message.contains(super::payload::SECRET)
            || message.chars().any(char::is_control)
            || message.len() > 4096
        {
            return Err(format!("a message with text of the payload: {message:?}"));
        }
    }
    Ok(())
}
