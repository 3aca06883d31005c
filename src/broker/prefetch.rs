//! Prefetch: a number of deliveries in flight, limited by the memory of their bodies.

/// Maximum average size of the bodies in one prefetch window.
const WINDOW_BYTES: f64 = 16.0 * 1024.0 * 1024.0;

/// Target size when a window shrinks or grows, so that it does not change again at once.
const AIM_BYTES: f64 = WINDOW_BYTES / 2.0;

/// Waiting windows that count as a backlog: enough to justify a new consumer.
const BACKLOG_WINDOWS: u32 = 8;

/// Weight of one more body in the mean: about the last 200 count.
const WEIGHT: f64 = 1.0 / 200.0;

/// Follows the mean size of bodies, and decides when to consume again with another prefetch.
#[derive(Debug, Clone, PartialEq)]
pub struct Prefetch {
    full: u16,
    backlog_full: u16,
    has_backlog: bool,
    current: u16,
    mean_body_bytes: f64,
    seen: u32,
}

impl Prefetch {
    /// Starts at `full`, which is also the limit without a backlog.
    ///
    /// A prefetch of 0 means no limit to AMQP, so it counts as 1.
    pub fn new(full: u16) -> Self {
        let full = full.max(1);
        Self {
            full,
            backlog_full: full,
            has_backlog: false,
            current: full,
            mean_body_bytes: 0.0,
            seen: 0,
        }
    }

    /// Starts with this prefetch until the size of bodies is known.
    pub fn starting_at(self, first: u16) -> Self {
        Self { current: first.clamp(1, self.full), ..self }
    }

    /// Raises the limit while a backlog waits.
    ///
    /// The number of deliveries in flight then limits the rate, because each message and its
    /// acknowledgement travel over the network.
    pub fn rising_to(self, backlog_full: u16) -> Self {
        Self { backlog_full: backlog_full.max(self.full), ..self }
    }

    /// Notes the number of messages that wait in the queue.
    pub fn note_waiting(&mut self, waiting: u32) {
        let full = u32::from(self.full);
        self.has_backlog = if self.has_backlog {
            waiting >= full
        } else {
            waiting >= full.saturating_mul(BACKLOG_WINDOWS)
        };
    }

    /// Returns whether a backlog waits: it begins at eight windows and ends below one.
    pub fn has_backlog(&self) -> bool {
        self.has_backlog
    }

    /// Returns the current limit.
    fn bound(&self) -> u16 {
        if self.has_backlog { self.backlog_full } else { self.full }
    }

    /// Returns the prefetch to consume with.
    pub fn current(&self) -> u16 {
        self.current
    }

    /// Notes the size of one more body.
    pub fn observe(&mut self, body_bytes: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a mean")]
        let bytes = body_bytes as f64;
        self.seen = self.seen.saturating_add(1);
        // A plain mean at first: a moving one would take long to leave its starting point.
        let weight = WEIGHT.max(1.0 / f64::from(self.seen));
        self.mean_body_bytes += (bytes - self.mean_body_bytes) * weight;
    }

    /// Returns another prefetch if the current one no longer fits, and makes it the current one.
    pub fn adapt(&mut self) -> Option<u16> {
        let window = self.mean_body_bytes * f64::from(self.current);
        let grown = self.mean_body_bytes * f64::from(self.current) * 4.0;
        let fits = self.current <= self.bound() && window <= WINDOW_BYTES;
        let has_room = self.seen > 0 && self.current < self.bound() && grown < AIM_BYTES;
        let wanted = if !fits || has_room { self.fitting() } else { self.current };
        (wanted != self.current).then(|| {
            self.current = wanted;
            wanted
        })
    }

    fn fitting(&self) -> u16 {
        let count = (AIM_BYTES / self.mean_body_bytes.max(1.0)).clamp(1.0, f64::from(self.bound()));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within 1..=full"
        )]
        let count = count as u16;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(full: u16, bodies: &[(usize, usize)]) -> Prefetch {
        let mut prefetch = Prefetch::new(full);
        for &(count, bytes) in bodies {
            for _ in 0..count {
                prefetch.observe(bytes);
                prefetch.adapt();
            }
        }
        prefetch
    }

    #[test]
    fn small_bodies_leave_it_alone() {
        assert_eq!(after(1_000, &[(5_000, 500)]).current(), 1_000);
        assert_eq!(after(1_000, &[(5_000, 16_000)]).current(), 1_000);
    }

    #[test]
    fn large_bodies_shrink_it_and_small_ones_bring_it_back() {
        assert_eq!(after(1_000, &[(10, 1 << 20)]).current(), 8);
        assert_eq!(after(1_000, &[(10, 1 << 20), (5_000, 500)]).current(), 1_000);
        assert_eq!(after(1_000, &[(10, 1 << 30)]).current(), 1, "never below one");
    }

    #[test]
    fn it_widens_from_its_beginning_once_bodies_are_known_to_be_small() {
        let mut prefetch = Prefetch::new(10_000).starting_at(16);
        assert_eq!((prefetch.adapt(), prefetch.current()), (None, 16), "nothing is known yet");
        prefetch.observe(1 << 20);
        assert_eq!(prefetch.adapt(), None);
        for _ in 0..2_000 {
            prefetch.observe(300);
        }
        assert_eq!(prefetch.adapt(), Some(10_000));
        assert_eq!(Prefetch::new(4).starting_at(16).current(), 4);
    }

    #[test]
    fn one_large_body_among_many_small_changes_nothing() {
        assert_eq!(after(1_000, &[(1_000, 500), (1, 1 << 20)]).current(), 1_000);
    }

    #[test]
    fn no_limit_at_all_is_not_to_be_had() {
        assert_eq!(Prefetch::new(0).current(), 1);
    }

    #[test]
    fn a_backlog_of_small_bodies_widens_it_until_less_waits_than_a_window_holds() {
        let mut prefetch = Prefetch::new(1_000).rising_to(3_000);
        prefetch.observe(500);
        for (waiting, wanted) in
            [(7_999, None), (8_000, Some(3_000)), (1_000, None), (999, Some(1_000)), (7_999, None)]
        {
            prefetch.note_waiting(waiting);
            assert_eq!(prefetch.adapt(), wanted, "{waiting} wait");
        }
        prefetch.observe(1 << 20);
        prefetch.note_waiting(1_000_000);
        assert_eq!(prefetch.adapt(), Some(15), "large bodies shrink it all the same");
        let mut fixed = Prefetch::new(1_000);
        fixed.note_waiting(1_000_000);
        assert_eq!(fixed.adapt(), None, "a prefetch that somebody set");
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds_and_settles(
            full: u16,
            backlog_full: u16,
            steps in prop::collection::vec((0_usize..40_000_000, 0_u32..1_000_000), 1..200),
        ) {
            let mut prefetch = Prefetch::new(full).rising_to(backlog_full);
            for (bytes, waiting) in steps {
                prefetch.observe(bytes);
                prefetch.note_waiting(waiting);
                prefetch.adapt();
                prop_assert!((1..=full.max(backlog_full).max(1)).contains(&prefetch.current()));
                prop_assert_eq!(prefetch.adapt(), None, "the same mean asks once");
                prop_assert!(prefetch.current() == 1 || prefetch.mean_body_bytes * f64::from(prefetch.current()) <= WINDOW_BYTES);
            }
        }
    }
}
