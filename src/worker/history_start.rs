//! Remembers when the history was declared anew. A heal from an earlier time is incomplete, since
//! the stream holds nothing of that time. Each worker remembers it, and saves it in Redis for the
//! others.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::heal_record::now_ms;
use crate::broker::{BrokerError, History, Inspector};
use crate::cache::{Cache, Checkpoints, CommandError, HealFrom, LostEvents};
use crate::config::{AmqpConfig, Config};
use crate::ops::heal::{Healed, NotHealed, window};

/// The time of the history's declaration, as far as this worker knows.
#[derive(Debug)]
pub(super) struct HistoryStart {
    /// Milliseconds since the Unix epoch, by Redis' clock, which all workers share. 0: no worker
    /// has seen the history missing.
    born_ms: AtomicU64,
    /// By how much Redis' clock is ahead of this machine's, in milliseconds. [`NO_CLOCK`]: unknown.
    redis_ahead_ms: AtomicI64,
    /// True if the last look found no history.
    is_missing: AtomicBool,
    /// The broker at which the history has its mark, as far as this worker knows.
    mark: Mutex<Option<String>>,
}

/// Redis has not shown its clock yet.
const NO_CLOCK: i64 = i64::MIN;

impl Default for HistoryStart {
    fn default() -> Self {
        Self {
            born_ms: AtomicU64::default(),
            redis_ahead_ms: AtomicI64::new(NO_CLOCK),
            is_missing: AtomicBool::default(),
            mark: Mutex::default(),
        }
    }
}

impl HistoryStart {
    /// Notes that the history was declared anew just now.
    pub(super) fn is_now(&self) {
        self.learn(now_ms().saturating_add_signed(self.redis_ahead_ms()));
    }

    /// Notes Redis' clock. A time that this machine's clock gave before is replaced by a later one.
    fn redis_clock(&self, redis_ms: u64) {
        let ahead_ms =
            i64::try_from(redis_ms).unwrap_or(i64::MAX).saturating_sub_unsigned(now_ms());
        let before = self.redis_ahead_ms.swap(ahead_ms, Ordering::Relaxed);
        if before == NO_CLOCK && self.born_ms.load(Ordering::Relaxed) > 0 {
            self.learn(redis_ms);
        }
    }

    fn redis_ahead_ms(&self) -> i64 {
        match self.redis_ahead_ms.load(Ordering::Relaxed) {
            NO_CLOCK => 0,
            ahead_ms => ahead_ms,
        }
    }

    /// Notes whether the history was missing just now. A history that exists later holds nothing
    /// from before.
    pub(super) fn looked(&self, is_missing: bool) {
        if self.is_missing.swap(is_missing, Ordering::Relaxed) || is_missing {
            self.is_now();
        }
    }

    /// Notes that the history has its mark at that broker.
    pub(super) fn made_mark(&self, broker: String) {
        self.change_mark(|mark| *mark = Some(broker));
    }

    /// Notes that the history has no mark.
    pub(super) fn forget_mark(&self) {
        self.change_mark(|mark| *mark = None);
    }

    /// Returns whether the history had its mark at that broker.
    pub(super) fn knows_mark(&self, marks: &Checkpoints, broker: &str) -> bool {
        marks.history_mark() == Some(broker) || self.change_mark(|mark| mark.is_some())
    }

    fn change_mark<T>(&self, change: impl FnOnce(&mut Option<String>) -> T) -> T {
        change(&mut self.mark.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns whether somebody deleted the history and declared it anew, as its mark shows.
    async fn is_another(
        &self,
        amqp: &AmqpConfig,
        marks: &Checkpoints,
    ) -> Result<bool, BrokerError> {
        if marks.history_mark().is_none() && self.change_mark(|mark| mark.is_none()) {
            return Ok(false);
        }
        let inspector = Inspector::connect(amqp).await?;
        let exists = inspector.history_mark_exists().await?;
        let broker = inspector.broker().unwrap_or_default();
        inspector.close().await;
        Ok(exists == Some(false) && self.knows_mark(marks, &broker))
    }

    fn learn(&self, born_ms: u64) {
        self.born_ms.fetch_max(born_ms, Ordering::Relaxed);
    }

    /// Returns whether the history began after that place. The place's time may be by this
    /// machine's clock, or by that of a worker whose clock agrees with Redis'.
    fn is_after(&self, from: HealFrom) -> bool {
        let born_ms = i64::try_from(self.born_ms.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        let latest_ms = born_ms.max(born_ms.saturating_sub(self.redis_ahead_ms()));
        born_ms > 0 && from.time.is_some_and(|time| time.as_millisecond() < latest_ms)
    }

    /// Returns the span from which events may be lost, if a heal from that place was cut.
    pub(super) fn lost_since(&self, from: HealFrom) -> LostEvents {
        let noticed_ms = now_ms();
        let born_ms = self.born_ms.load(Ordering::Relaxed);
        let from_ms = from.time.and_then(|time| u64::try_from(time.as_millisecond()).ok());
        let until_ms = if self.is_after(from) { born_ms } else { noticed_ms };
        LostEvents { from_ms: from_ms.unwrap_or(0).min(until_ms), until_ms, noticed_ms }
    }

    /// Reads the time from the checkpoints, and saves it if they have an earlier one, also after
    /// Redis went back.
    pub(super) async fn note(
        &self,
        cache: &Cache,
        marks: &Checkpoints,
    ) -> Result<(), CommandError> {
        let held = marks.history_born_ms();
        self.redis_clock(marks.now_ms);
        self.learn(held);
        let born_ms = self.born_ms.load(Ordering::Relaxed);
        if held < born_ms {
            cache.note_history_birth(born_ms).await?;
        }
        match self.change_mark(|mark| mark.clone()) {
            Some(broker) if marks.history_mark() != Some(broker.as_str()) => {
                cache.note_history_mark(&broker).await
            }
            _ => Ok(()),
        }
    }

    /// Returns the result of a heal. It is incomplete if the history was declared anew since.
    /// `known`: an offset that the history had before the heal began.
    ///
    /// # Errors Returns [`NotHealed`] if the nodes that were read lag behind another node. The heal
    /// must then go on.
    pub(super) async fn judge(
        &self,
        config: &Config,
        marks: &Checkpoints,
        (from, known): (HealFrom, Option<u64>),
        healed: Healed,
    ) -> Result<Healed, NotHealed> {
        self.learn(marks.history_born_ms());
        if let Healed::Applied { end, .. } = &healed
            && let Some(known) = known
            && *end <= known
        {
            if end_of_all(&config.amqp).await? > known {
                return Err(BrokerError::Unreachable(
                    "the nodes of the history that answered lag behind another node".into(),
                )
                .into());
            }
            self.is_now();
        }
        if matches!(healed, Healed::Applied { .. }) && self.is_another(&config.amqp, marks).await? {
            self.is_now();
        }
        let is_cut = self.is_after(from.or_window(window(config), Timestamp::now()));
        Ok(if is_cut { healed.cut() } else { healed })
    }
}

/// Returns the end of the history, from the node whose replica holds most.
async fn end_of_all(amqp: &AmqpConfig) -> Result<u64, BrokerError> {
    let mut history = History::connect(amqp).await?;
    let survey = history.survey(&[]).await;
    history.close().await;
    Ok(survey?.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_that_was_missing_is_new_when_it_exists_again() {
        let birth = HistoryStart::default();
        let born_ms = || birth.born_ms.load(Ordering::Relaxed);
        birth.looked(false);
        assert_eq!(born_ms(), 0);
        birth.looked(true);
        assert!(born_ms() > 0, "even if this worker does not see it come back");
        birth.born_ms.store(1, Ordering::Relaxed);
        birth.looked(false);
        assert!(born_ms() > 1, "it came back since the last look");
        birth.born_ms.store(1, Ordering::Relaxed);
        birth.looked(false);
        assert_eq!(born_ms(), 1);
    }

    #[test]
    fn a_heal_from_before_the_history_is_not_complete() {
        let from = |ms: i64| HealFrom {
            offset: Some(0),
            time: Some(Timestamp::from_millisecond(ms).unwrap()),
        };
        let birth = HistoryStart::default();
        assert!(!birth.is_after(from(0)), "it has been there all the time");
        birth.learn(1_000);
        birth.learn(500);
        assert!(birth.is_after(from(999)) && !birth.is_after(from(1_000)));
        assert!(
            !birth.is_after(HealFrom { offset: Some(5), time: None }),
            "an offset of this stream"
        );
    }

    #[test]
    fn a_worker_three_hours_apart_notes_the_time_that_others_compare_with() {
        const HOURS: i64 = 3 * 3_600_000;
        for ahead_ms in [-HOURS, 0, HOURS] {
            // This worker's clock is late, right, or ahead.
            let redis_ms = || now_ms().saturating_add_signed(-ahead_ms);
            for knows_clock in [true, false] {
                let birth = HistoryStart::default();
                if knows_clock {
                    birth.redis_clock(redis_ms());
                    birth.is_now();
                } else {
                    birth.is_now();
                    birth.redis_clock(redis_ms());
                }
                let born_ms = birth.born_ms.load(Ordering::Relaxed);
                assert!(born_ms + 1_000 >= redis_ms(), "{ahead_ms}: others take it for older");
                // The events that were unapplied a minute ago, by this clock and by Redis'.
                for clock_ms in [now_ms(), redis_ms()] {
                    let minute_ago = i64::try_from(clock_ms).unwrap() - 60_000;
                    let time = Timestamp::from_millisecond(minute_ago).ok();
                    let from = HealFrom { offset: None, time };
                    assert!(birth.is_after(from), "{ahead_ms}: it is older than the history");
                }
            }
        }
    }
}
