//! Decides what the main lane does next, from what is under way. It uses no clock and no server.

use std::time::Duration;

/// Maximum number of batches on their way to Redis at once. They fill a slow link, and the prefetch
/// bounds them too.
const MAX_APPLYING: usize = 16;

/// Minimum time between sending a batch and taking more deliveries, unless Redis answers sooner.
///
/// A nearby Redis answers sooner, so the next batch holds all that arrived meanwhile. A larger
/// batch saves commands and wakeups. A slow link has several batches on their way instead.
pub(super) const SLOW_LINK: Duration = Duration::from_micros(500);

/// Minimum number of deliveries in a batch on a slow link, while other batches are on their way.
const GATHERED: usize = 50;

/// Everything that is under way in the main lane.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct UnderWay {
    /// Batches on their way to Redis.
    pub(super) applying: usize,
    /// True if the batch on its way must be applied alone.
    pub(super) is_alone: bool,
    /// Batches that are resolved and not sent.
    pub(super) waiting: usize,
    /// True while another thread reads a delivery.
    pub(super) is_reading: bool,
    /// True while a batch is settled: the broker has not confirmed all republished messages.
    pub(super) is_settling: bool,
    /// True if settled deliveries are not acknowledged.
    pub(super) is_unacknowledged: bool,
    /// True if deliveries have arrived that the lane has not handed out.
    pub(super) has_left_over: bool,
    /// True if the deliveries in flight leave memory for more.
    pub(super) has_room: bool,
    /// True if the lane winds down.
    pub(super) is_stopping: bool,
    /// Time since the last batch was sent, if any is on its way.
    pub(super) since_sent: Duration,
}

/// The next step of the main lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Ends the lane: it winds down, and nothing is under way.
    End,
    /// Waits for the next event of the lane, and takes deliveries meanwhile.
    Wait(Take),
}

/// The deliveries that are taken meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    /// None are taken until something else has happened.
    Nothing,
    /// None are taken until the last batch has been on its way for [`SLOW_LINK`].
    AfterSlowLink,
    /// They are taken as soon as at least that many have arrived.
    AtLeast(usize),
}

impl UnderWay {
    /// Returns true if the first waiting batch may be sent now. `is_suspected`: it must be applied
    /// alone.
    pub(super) fn may_send(&self, is_suspected: bool) -> bool {
        self.applying == 0 || !(self.is_alone || is_suspected || self.applying >= MAX_APPLYING)
    }

    /// Returns true if no batch is read, waits, is applied or is settled.
    pub(super) fn is_idle(&self) -> bool {
        self.applying == 0 && self.waiting == 0 && !self.is_reading && !self.is_settling
    }

    /// Returns the next step.
    pub(super) fn step(&self) -> Step {
        if self.is_stopping && self.is_idle() && !self.has_left_over && !self.is_unacknowledged {
            return Step::End;
        }
        // A delivery that another thread reads, or a waiting batch, comes before all others.
        let may_take = !self.is_alone
            && self.applying < MAX_APPLYING
            && self.waiting == 0
            && !self.is_reading
            && self.has_room
            && (!self.is_stopping || self.has_left_over);
        Step::Wait(match self.applying {
            _ if !may_take => Take::Nothing,
            0 => Take::AtLeast(1),
            _ if self.since_sent < SLOW_LINK => Take::AfterSlowLink,
            _ => Take::AtLeast(GATHERED),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: UnderWay = UnderWay {
        applying: 0,
        is_alone: false,
        waiting: 0,
        is_reading: false,
        is_settling: false,
        is_unacknowledged: false,
        has_left_over: false,
        has_room: true,
        is_stopping: false,
        since_sent: SLOW_LINK,
    };

    #[test]
    fn takes_deliveries_as_the_link_and_what_is_under_way_allow() {
        let sending = UnderWay { applying: 1, ..IDLE };
        let cases = [
            (IDLE, Take::AtLeast(1)),
            (UnderWay { since_sent: Duration::ZERO, ..IDLE }, Take::AtLeast(1)),
            (sending, Take::AtLeast(GATHERED)),
            (UnderWay { since_sent: Duration::ZERO, ..sending }, Take::AfterSlowLink),
            (UnderWay { applying: MAX_APPLYING - 1, ..IDLE }, Take::AtLeast(GATHERED)),
            (UnderWay { applying: MAX_APPLYING, ..IDLE }, Take::Nothing),
            (UnderWay { is_alone: true, ..sending }, Take::Nothing),
            (UnderWay { waiting: 1, ..sending }, Take::Nothing),
            (UnderWay { is_reading: true, ..IDLE }, Take::Nothing),
            (UnderWay { has_room: false, ..sending }, Take::Nothing),
            (UnderWay { is_settling: true, ..IDLE }, Take::AtLeast(1)),
            (UnderWay { is_unacknowledged: true, ..IDLE }, Take::AtLeast(1)),
            (UnderWay { is_stopping: true, ..sending }, Take::Nothing),
            (UnderWay { is_stopping: true, has_left_over: true, ..IDLE }, Take::AtLeast(1)),
        ];
        for (under_way, expected) in cases {
            assert_eq!(under_way.step(), Step::Wait(expected), "{under_way:?}");
        }
    }

    #[test]
    fn ends_only_when_it_winds_down_and_nothing_is_left() {
        let stopping = UnderWay { is_stopping: true, ..IDLE };
        assert_eq!(stopping.step(), Step::End);
        for busy in [
            IDLE,
            UnderWay { applying: 1, ..stopping },
            UnderWay { waiting: 1, ..stopping },
            UnderWay { is_reading: true, ..stopping },
            UnderWay { is_settling: true, ..stopping },
            UnderWay { is_unacknowledged: true, ..stopping },
            UnderWay { has_left_over: true, ..stopping },
        ] {
            assert_ne!(busy.step(), Step::End, "{busy:?}");
        }
    }

    #[test]
    fn a_suspected_batch_is_sent_alone() {
        // The batches on their way, whether one of them must be alone, whether the next must be,
        // and whether it may be sent.
        let cases = [
            (0, false, false, true),
            (0, false, true, true),
            (1, false, false, true),
            (1, false, true, false),
            (1, true, false, false),
            (MAX_APPLYING, false, false, false),
        ];
        for (applying, is_alone, is_suspected, expected) in cases {
            let under_way = UnderWay { applying, is_alone, ..IDLE };
            assert_eq!(under_way.may_send(is_suspected), expected, "{under_way:?} {is_suspected}");
        }
    }
}
