//! Holds the deliveries in flight while Redis is away. If Redis only lacks memory, it still accepts
//! deletions. Then the deletions of held batches and of new arrivals take effect at once.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use super::{BEAT, MainLane};
use crate::broker::SessionEnded;
use crate::worker::batch::{Applied, NotApplied, Resolved};
use crate::worker::resolver::FirstLook;

/// Maximum time to wait for confirmations of republished messages before the rest is requeued.
const SETTLE_BEFORE_REQUEUE: Duration = Duration::from_secs(5);

/// The prefetch that counts for acknowledgements during an outage. With it, each settled batch is
/// acknowledged at once.
const AT_ONCE: u16 = 0;

impl MainLane<'_, '_> {
    /// Waits for Redis, and meanwhile settles batches that were applied before the outage.
    ///
    /// Returns false if the held batches must be requeued. Before that it settles every batch that
    /// can be settled, since otherwise messages would be republished twice.
    pub(super) async fn hold(&mut self, failed: NotApplied) -> Result<bool, SessionEnded> {
        let NotApplied { mut batch, outage } = failed;
        self.acknowledge_all()?;
        self.pipeline.gate.close(&outage);
        batch.met(&outage);
        self.hold_all_behind(batch).await;
        let since = *self.held_since.get_or_insert_with(tokio::time::Instant::now);
        // A delivery that is read on another thread comes before all that would be taken now.
        let mut takes = outage.out_of_memory && !self.stopping && self.reading.is_empty();
        if outage.out_of_memory {
            takes &= self.delete_now().await;
        }
        let mut beats = tokio::time::interval(BEAT);
        let opened = {
            let mut opens = pin!(self.pipeline.gate.hold(self.stop, &outage, since));
            loop {
                let takes_now = takes && self.pipeline.resolver.has_room();
                tokio::select! {
                    biased;
                    batch = self.settling.next(), if !self.settling.is_empty() => {
                        self.acknowledge(&batch?, AT_ONCE)?;
                        self.arrivals.count();
                    }
                    _ = beats.tick() => self.arrivals.beat()?,
                    opened = &mut opens => break opened,
                    arrived = self.arrivals.next_or_end(takes_now, self.shared.config.batch) => {
                        match self.arrivals.read(self.suspects, arrived?) {
                            None => {}
                            Some(FirstLook::Done(mut batch)) => {
                                takes = batch.delete_now(self.pipeline.cache).await;
                                self.waiting.push_back(batch);
                            }
                            // A heavy delivery may need memory that only the held batches can
                            // free. Deliveries after it wait too.
                            Some(FirstLook::Heavy(heavy)) => {
                                takes = false;
                                self.arrivals.put_back(heavy);
                            }
                        }
                    }
                }
            }
        };
        if !self.pipeline.gate.passed_each_probe() {
            self.waiting.iter_mut().for_each(Resolved::forget_lost_connections);
        }
        if !opened {
            // An alarm of the broker may block the confirmations without end.
            let settle_all = async {
                while !self.settling.is_empty() {
                    let batch = self.settling.next().await?;
                    self.acknowledge(&batch, AT_ONCE)?;
                }
                Ok::<(), SessionEnded>(())
            };
            tokio::time::timeout(SETTLE_BEFORE_REQUEUE, settle_all).await.unwrap_or(Ok(()))?;
        }
        Ok(opened)
    }

    /// Puts a batch before all waiting ones. The batches that were sent after it follow it, and are
    /// applied again, which keeps the order.
    async fn hold_all_behind(&mut self, first: Resolved) {
        let mut held = VecDeque::from([first]);
        while !self.applying.is_empty() {
            held.push_back(match self.applying.next().await {
                Ok(applied) => Applied::again(applied),
                Err(not_applied) => not_applied.batch,
            });
        }
        held.append(&mut self.waiting);
        self.waiting = held;
    }

    /// Deletes the keys that held batches delete. Returns true if Redis accepted all deletions.
    async fn delete_now(&mut self) -> bool {
        // The early deletion of one batch may hit a key that an earlier batch warms.
        self.waiting.iter_mut().for_each(Resolved::note_tried);
        for batch in &mut self.waiting {
            // The other batches are not tried: each attempt at a server that does not answer takes
            // seconds.
            if !batch.delete_now(self.pipeline.cache).await {
                return false;
            }
        }
        true
    }
}
