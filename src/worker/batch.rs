//! A batch: deliveries that arrived together, from their requests to their settlement.
//!
//! Each step consumes the batch and returns its next state, so that no step can be left out:
//! - [`Resolved`]: its events are resolved. It stays in this state during an outage of Redis.
//! - [`PartlyApplied`]: only in the slow lane. Everything that one round trip can do is applied.
//! - [`Applied`]: Redis has answered for each effect.
//! - [`Settled`]: the broker has confirmed each republished message. Only this state returns the
//!   tags to acknowledge.

mod settle;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tracing::{debug, error};

use super::account::Charge;
use super::closers::given_up::Closers;
use super::closers::{LostConnections, Part};
use super::gate::Gate;
use super::in_flight::Taken;
use super::intake::Request;
use super::live::Live;
use crate::broker::Delivery;
use crate::cache::{Cache, KeyHits, Outage};
use crate::causes::Explain;
use crate::plan::{self, EffectOutcome, EffectRef};
use crate::reason::Reason;

pub(super) use settle::Settler;

/// Number of broken checkpoints in a row after which a batch is applied one delivery at a time.
const SUSPECTED_AFTER: u32 = 2;

/// The deliveries of a batch, in order, with one request for each. There is at least one.
#[derive(Debug)]
pub(super) struct Contents {
    taken: Taken,
    pub(super) requests: Vec<Request>,
    /// The registry that resolved them.
    pub(super) live: Arc<Live>,
    /// True if some effects were given up, since Redis closes the connection at them.
    has_closers: bool,
    _charge: Charge,
}

/// A batch that must be applied.
#[derive(Debug)]
pub(super) struct Resolved {
    contents: Contents,
    outages: Outages,
}

/// The outages of Redis that have kept a batch from being applied.
#[derive(Debug, Clone, Copy, Default)]
struct Outages {
    /// How many times in a row the checkpoint after the batch held a wrong counter.
    broke_checkpoint: u32,
    lost_connections: LostConnections,
    /// True if Redis may have deleted keys of the batch, although nothing of it counts as applied.
    was_tried: bool,
}

/// A batch that an outage kept from being applied. It is unknown which effects were applied.
#[derive(Debug)]
pub(super) struct NotApplied {
    pub(super) batch: Resolved,
    pub(super) outage: Outage,
}

/// A batch of one delivery whose slow effects remain.
#[derive(Debug)]
pub(super) struct PartlyApplied {
    batch: Resolved,
    /// The positions of the slow effects.
    slow: Vec<u32>,
    /// The other unfinished effects.
    rest: Vec<(u32, EffectOutcome)>,
}

/// A batch for each of whose effects Redis has answered.
#[derive(Debug)]
pub(super) struct Applied {
    contents: Contents,
    unfinished: Unfinished,
}

/// A batch that may be acknowledged.
#[derive(Debug)]
pub(super) struct Settled {
    contents: Contents,
    /// True if messages were republished. A crash before the acknowledgement publishes them twice.
    has_republished: bool,
}

/// The unfinished effects, by event, in order of position.
type Unfinished = BTreeMap<u32, Vec<(u32, EffectOutcome)>>;

impl Contents {
    /// Returns the outcome, with the name of the effect's rule in its message.
    pub(super) fn named(&self, effect: EffectRef, mut outcome: EffectOutcome) -> EffectOutcome {
        if let EffectOutcome::Retry { message, .. }
        | EffectOutcome::NotTried { message, .. }
        | EffectOutcome::Dead { message, .. } = &mut outcome
        {
            let rule = self.requests[effect.event as usize].resolution.effects
                [effect.position as usize]
                .rule;
            *message = format!("{}: {message}", self.live.registry.rules()[rule.0 as usize].name);
        }
        outcome
    }

    fn count(&self, hits: &[KeyHits]) {
        for hits in hits {
            self.live.metrics.keys(hits.rule, hits.yes, hits.no);
        }
    }

    /// Returns the effects of some events that must still be applied.
    fn collect<'b>(
        &'b self,
        cache: &'b Cache,
        events: Range<usize>,
        was_tried: bool,
    ) -> plan::Batch<'b> {
        let effects = self.requests[events.clone()]
            .iter()
            .map(|request| request.resolution.effects.len())
            .sum();
        let mut batch = plan::Batch::new(cache.tag_prefix(), effects);
        let first = u32::try_from(events.start).unwrap_or(u32::MAX);
        for (event, request) in (first..).zip(&self.requests[events]) {
            for (position, effect) in (0_u32..).zip(&request.resolution.effects) {
                let slot = EffectRef { event, position };
                match (request.asks_for(position), was_tried || request.was_tried) {
                    (false, _) => {}
                    (true, false) => batch.push(slot, effect),
                    (true, true) => batch.push_retried(slot, effect),
                }
            }
        }
        batch
    }
}

impl Resolved {
    /// Returns a batch of deliveries, with one request for each of them.
    pub(super) fn new(
        taken: Taken,
        requests: Vec<Request>,
        live: Arc<Live>,
        charge: Charge,
    ) -> Self {
        let contents = Contents { taken, requests, live, has_closers: false, _charge: charge };
        Self { contents, outages: Outages::default() }
    }

    pub(super) fn deliveries(&self) -> &[Delivery] {
        &self.contents.taken.deliveries
    }

    /// Applies everything that one round trip can do. A suspected batch first waits for its turn.
    pub(super) async fn apply(self, cache: &Cache, gate: &Gate) -> Result<Applied, NotApplied> {
        let _turn = if self.is_suspected() { Some(gate.turn_of_suspect().await) } else { None };
        self.apply_now(cache).await
    }

    async fn apply_now(mut self, cache: &Cache) -> Result<Applied, NotApplied> {
        let applied = if self.is_suspected() {
            self.apply_one_by_one(cache).await
        } else {
            self.apply_events(cache, 0..self.contents.requests.len()).await
        };
        match applied {
            Ok(unfinished) => Ok(Applied { contents: self.contents, unfinished }),
            Err(outage) => Err(self.not_applied(outage)),
        }
    }

    /// Applies everything of one delivery of the slow lane that one round trip can do. A message
    /// that the main lane republished does not ask for what the main lane has done.
    pub(super) async fn apply_quick_part(self, cache: &Cache) -> Result<PartlyApplied, NotApplied> {
        // A break that another delivery caused, perhaps in another worker, is found here and not
        // attributed to this event.
        if self.is_suspected()
            && let Err(outage) = cache.confirm_checkpoint().await
        {
            return Err(self.not_applied(outage));
        }
        if let Some(only) = self.contents.requests[0].only.clone() {
            return Ok(PartlyApplied { batch: self, slow: only, rest: Vec::new() });
        }
        // The main lane resolved it with another registry. So all of it is done here, the quick
        // part first.
        let outages = self.outages;
        let Applied { contents, mut unfinished } = self.apply_now(cache).await?;
        let (slow, rest): (Vec<_>, Vec<_>) = unfinished
            .remove(&0)
            .unwrap_or_default()
            .into_iter()
            .partition(|(_, outcome)| *outcome == EffectOutcome::Slow);
        let slow = slow.into_iter().map(|(position, _)| position).collect();
        Ok(PartlyApplied { batch: Self { contents, outages }, slow, rest })
    }

    fn not_applied(mut self, outage: Outage) -> NotApplied {
        self.note_tried();
        NotApplied { batch: self, outage }
    }

    /// Notes that Redis may have deleted keys of the batch, although nothing of it counts as
    /// applied. The batch then always warms its keys, since it is unknown which had a value.
    pub(super) fn note_tried(&mut self) {
        self.outages.was_tried = true;
    }

    /// Notes an outage that this batch met before all others. The batch may be its cause.
    pub(super) fn met(&mut self, outage: &Outage) {
        let times = &mut self.outages.broke_checkpoint;
        *times = if outage.broke_checkpoint { *times + 1 } else { 0 };
        if outage.lost_connection {
            self.outages.lost_connections.add();
        }
    }

    /// Notes that a probe failed too: the server was away, and the batch is not the cause.
    pub(super) fn forget_lost_connections(&mut self) {
        self.outages.lost_connections = LostConnections::default();
    }

    /// Returns true if one of its deliveries may be the one that breaks the checkpoint or loses the
    /// connection. Such a batch must be applied alone.
    pub(super) fn is_suspected(&self) -> bool {
        self.contents.has_closers
            || self.outages.broke_checkpoint >= SUSPECTED_AFTER
            || self.outages.lost_connections.is_suspicious()
    }

    /// Notes the outage that a part of the batch met when it was applied alone. An event that
    /// breaks the checkpoint becomes a dead letter. So does an effect that loses the connection.
    fn met_alone(&mut self, part: Part, outage: &Outage) {
        if outage.broke_checkpoint {
            self.give_up(part.event);
        }
        let request = &mut self.contents.requests[part.event];
        let lost_max = request.lost_connections_max(part.position);
        if !outage.lost_connection || !self.outages.lost_connections.is_caused_by(part, lost_max) {
            return;
        }
        self.contents.has_closers = true;
        if request.verdict.is_none()
            && let Some(bytes) = request.closes_at(part.position)
        {
            let routing_key = self.deliveries()[part.event].routing_key();
            error!(
                ?routing_key,
                bytes,
                "an effect is dead-lettered: applied alone, it loses the connection to Redis each time"
            );
        }
    }

    /// Dead-letters one event, which breaks the checkpoint when applied alone.
    pub(super) fn give_up(&mut self, event: usize) {
        if self.contents.requests[event].verdict.is_some() {
            return;
        }
        let routing_key = self.deliveries()[event].routing_key();
        error!(
            ?routing_key,
            "an event is dead-lettered: applied alone, it changes the checkpoint by which this worker notices lost writes"
        );
        let error = "applied alone, the event breaks unstale's own checkpoint in Redis (`unstale:mark:*`) each time: look for own keys \
                     among its targets and among the members of its tags";
        self.contents.requests[event].give_up(Reason::Unresolvable, error.to_owned());
    }

    /// Deletes the keys that the batch deletes, while Redis refuses everything that needs memory.
    /// The batch must still be applied. Returns true if Redis accepted the deletions.
    pub(super) async fn delete_now(&mut self, cache: &Cache) -> bool {
        self.note_tried();
        let all = 0..self.contents.requests.len();
        let deleted = cache.delete_now(&self.contents.collect(cache, all, true).finish()).await;
        if let Err(outage) = &deleted {
            debug!(cause = outage.in_full(), "deletions wait too");
        }
        deleted.is_ok()
    }

    /// Applies each delivery by itself, up to the first outage. A delivery that causes outages even
    /// so is dead-lettered, and skipped the next time.
    async fn apply_one_by_one(&mut self, cache: &Cache) -> Result<Unfinished, Outage> {
        let mut unfinished = Unfinished::new();
        for event in 0..self.contents.requests.len() {
            // A break that another delivery caused, perhaps in another worker, is found here and
            // not attributed to this event.
            cache.confirm_checkpoint().await?;
            let applied = match &self.contents.requests[event].closers {
                Some(closers) => self.apply_effects(cache, event, closers).await,
                None => {
                    let applied = self.apply_events(cache, event..event + 1).await;
                    applied.map_err(|outage| (Part { event, position: None }, outage))
                }
            };
            match applied {
                Ok(of_event) => unfinished.extend(of_event),
                Err((part, outage)) => {
                    self.met_alone(part, &outage);
                    return Err(outage);
                }
            }
        }
        Ok(unfinished)
    }

    /// Applies the effects of one event one by one, up to the first outage. Returns the part that
    /// met the outage.
    async fn apply_effects(
        &self,
        cache: &Cache,
        event: usize,
        closers: &Closers,
    ) -> Result<Unfinished, (Part, Outage)> {
        let contents = &self.contents;
        let request = &contents.requests[event];
        let index = u32::try_from(event).unwrap_or(u32::MAX);
        let named =
            |position, outcome| contents.named(EffectRef { event: index, position }, outcome);
        let mut rest = Vec::new();
        for (position, effect) in (0..).zip(&request.resolution.effects) {
            if !request.asks_for(position) || closers.leaves_out(position) {
                continue;
            }
            let mut plan = plan::Batch::new(cache.tag_prefix(), 1);
            plan.push_retried(EffectRef { event: index, position }, effect);
            let applied = cache.apply(&plan.finish()).await;
            let applied =
                applied.map_err(|outage| (Part { event, position: Some(position) }, outage))?;
            contents.count(&applied.hits);
            let outcomes = applied.unsettled.into_iter();
            rest.extend(outcomes.map(|(_, outcome)| (position, named(position, outcome))));
        }
        closers.add_outcomes(&mut rest, named);
        Ok(if rest.is_empty() { Unfinished::new() } else { Unfinished::from([(index, rest)]) })
    }

    async fn apply_events(
        &self,
        cache: &Cache,
        events: Range<usize>,
    ) -> Result<Unfinished, Outage> {
        let contents = &self.contents;
        let collected = contents.collect(cache, events, self.outages.was_tried);
        let applied = cache.apply(&collected.finish()).await?;
        contents.count(&applied.hits);
        let mut unfinished = Unfinished::new();
        for (slot, outcome) in applied.unsettled {
            let outcome = contents.named(slot, outcome);
            unfinished.entry(slot.event).or_default().push((slot.position, outcome));
        }
        unfinished
            .values_mut()
            .for_each(|effects| effects.sort_unstable_by_key(|(position, _)| *position));
        Ok(unfinished)
    }
}

impl PartlyApplied {
    pub(super) fn contents(&self) -> &Contents {
        &self.batch.contents
    }

    /// Returns the positions of the slow effects.
    pub(super) fn slow(&self) -> &[u32] {
        &self.slow
    }

    /// Returns the applied batch. `unfinished`: the slow effects that are still unfinished.
    pub(super) fn applied(self, unfinished: Vec<(u32, EffectOutcome)>) -> Applied {
        let mut rest = self.rest;
        rest.extend(unfinished);
        rest.sort_unstable_by_key(|(position, _)| *position);
        let contents = &self.batch.contents;
        if let Some(closers) = &contents.requests[0].closers {
            closers.add_outcomes(&mut rest, |position, outcome| {
                contents.named(EffectRef { event: 0, position }, outcome)
            });
        }
        let unfinished =
            if rest.is_empty() { Unfinished::new() } else { Unfinished::from([(0, rest)]) };
        Applied { contents: self.batch.contents, unfinished }
    }

    /// Returns true if each effect must be applied alone.
    pub(super) fn is_suspected(&self) -> bool {
        self.batch.is_suspected()
    }

    /// Returns to the state before the quick part, after an outage that the effect at that position
    /// met.
    pub(super) fn not_applied(mut self, position: u32, outage: Outage) -> NotApplied {
        if self.is_suspected() {
            self.batch.met_alone(Part { event: 0, position: Some(position) }, &outage);
        }
        self.batch.not_applied(outage)
    }
}

impl Applied {
    /// Returns to the state before. An earlier batch was not applied, so both must be applied again
    /// to keep the order.
    pub(super) fn again(self) -> Resolved {
        let outages = Outages { was_tried: true, ..Outages::default() };
        Resolved { contents: self.contents, outages }
    }
}
