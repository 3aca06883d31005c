//! Holds the deliveries in flight while Redis is away. A Redis that only lacks memory still accepts
//! deletions. Then the deletions of held batches and of new arrivals take effect at once.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::arrivals::Arrivals;
use super::{BEAT, SettledBatch, acknowledge};
use crate::broker::{SessionEnded, Tag};
use crate::cache::Outage;
use crate::worker::acknowledgement::{LaneState, Unacknowledged};
use crate::worker::batch::Batch;
use crate::worker::in_order::InOrder;
use crate::worker::resolver::FirstLook;
use crate::worker::suspects::Suspects;
use crate::worker::taken::Taken;
use crate::worker::{Shared, copies};

/// Maximum time republished messages have to be confirmed before everything else is requeued.
const SETTLE_BEFORE_REQUEUE: Duration = Duration::from_secs(5);

/// Batches that wait for the end of an outage.
pub(super) struct HeldBack<'h> {
    pub(super) outage: &'h Outage,
    /// When the first of them failed.
    pub(super) since: tokio::time::Instant,
    pub(super) batches: &'h mut VecDeque<Batch>,
    /// True if more deliveries are taken meanwhile, for their deletions.
    pub(super) takes: bool,
}

/// Waits for Redis, and meanwhile settles batches that were applied before the outage. Returns
/// false if the held batches are to be requeued. By then every batch that can be settled is
/// settled, otherwise its messages would be republished twice.
pub(super) async fn hold<F>(
    shared: &Shared,
    arrivals: &mut Arrivals<'_>,
    settling: &mut InOrder<F>,
    settled: &mut Unacknowledged,
    HeldBack { outage, since, batches, mut takes }: HeldBack<'_>,
    stop: &CancellationToken,
    suspects: &mut Suspects<'_>,
) -> Result<bool, SessionEnded>
where
    F: Future<Output = Result<SettledBatch, SessionEnded>>,
{
    let mut beats = tokio::time::interval(BEAT);
    if outage.out_of_memory {
        takes &= delete_now(shared, batches).await;
    }
    let opened = {
        let mut opens = pin!(shared.gate.hold(stop, outage, since));
        loop {
            let takes_now = takes && shared.main_resolver.has_room();
            tokio::select! {
                biased;
                batch = settling.next(), if !settling.is_empty() => {
                    let state = LaneState { prefetch: 0, has_suspects: suspects.any() };
                    acknowledge(arrivals.lane, settled, &batch?, state)?;
                    arrivals.count(shared);
                }
                _ = beats.tick() => arrivals.beat(shared)?,
                opened = &mut opens => break opened,
                arrived = arrivals.next_or_end(takes_now, shared.config.batch) => {
                    match arrivals.read(shared, suspects, arrived?) {
                        None => {}
                        Some(FirstLook::Done(mut batch)) => {
                            takes = batch.delete_now(shared).await;
                            batches.push_back(batch);
                        }
                        // It may need room that only the held batches can free. Deliveries behind
                        // it wait too.
                        Some(FirstLook::Heavy(heavy)) => {
                            takes = false;
                            arrivals.put_back(shared, heavy);
                        }
                    }
                }
            }
        }
    };
    if !opened {
        // An alarm of the broker may block this for ever.
        let settle_all = async {
            while !settling.is_empty() {
                let state = LaneState { prefetch: 0, has_suspects: suspects.any() };
                acknowledge(arrivals.lane, settled, &settling.next().await?, state)?;
            }
            Ok::<(), SessionEnded>(())
        };
        tokio::time::timeout(SETTLE_BEFORE_REQUEUE, settle_all).await.unwrap_or(Ok(()))?;
    }
    Ok(opened)
}

/// Deletes the keys that held batches delete. Returns true if Redis accepted all deletions.
async fn delete_now(shared: &Shared, batches: &mut VecDeque<Batch>) -> bool {
    // A batch may warm a key that a later batch deletes early.
    batches.iter_mut().for_each(Batch::note_tried);
    for batch in batches {
        // Each attempt at a silent server takes seconds.
        if !batch.delete_now(shared).await {
            return false;
        }
    }
    true
}

/// Settles one delivery by itself. Returns `None` if it is to be requeued, since Redis is away.
pub(in crate::worker) async fn handle(
    shared: &Shared,
    publisher: &copies::Publisher,
    stop: &CancellationToken,
    taken: Taken,
) -> Result<Option<Tag>, SessionEnded> {
    let mut batch = shared.main_resolver.read_one(shared, taken).await;
    let mut held_since = None;
    loop {
        match batch.apply(shared).await {
            Ok(unsettled) => {
                batch.settle(shared, publisher, &unsettled).await?;
                return Ok(batch.last_tag());
            }
            Err(outage) => {
                shared.gate.close(&outage);
                batch.not_applied(&outage);
                if outage.out_of_memory {
                    batch.delete_now(shared).await;
                }
                let since = *held_since.get_or_insert_with(tokio::time::Instant::now);
                if !shared.gate.hold(stop, &outage, since).await {
                    return Ok(None);
                }
            }
        }
    }
}
