//! Schedule of the second look at members that tag maintenance has set aside.
//!
//! A member whose key and lease are gone is not dropped at once, since its key may be about to be
//! set. It is set aside and still belongs to the tag: an invalidation deletes its key with the
//! others.
//!
//! The second look comes after more than two filling times ([`FILLED_FOR`]). A member whose key or
//! lease exists by then returns to the tag's set. The others are dropped.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Time for which each of a tag's four sets is filled before it rests. It is much longer than a
/// plan takes from joining a set to setting its keys.
pub(super) const FILLED_FOR: Duration = Duration::from_secs(15);

/// Tags with members set aside, and when their second looks are due.
#[derive(Debug)]
pub struct Asides {
    filled_for: Duration,
    sets: HashMap<Vec<u8>, Aside>,
}

#[derive(Debug, Clone, Copy)]
struct Aside {
    last: Instant,
    due: Instant,
}

impl Asides {
    pub(super) fn new(filled_for: Duration) -> Self {
        Self { filled_for, sets: HashMap::new() }
    }

    /// Notes that members of a tag's set were set aside.
    pub fn note(&mut self, set: &[u8], now: Instant) {
        let due = now + self.settles_after();
        self.sets.entry(set.to_owned()).or_insert(Aside { last: now, due }).last = now;
    }

    /// Returns a set whose second look is due.
    pub fn due(&self, now: Instant) -> Option<Vec<u8>> {
        self.sets.iter().find(|(_, aside)| aside.due <= now).map(|(set, _)| set.clone())
    }

    /// Returns when the next second look is due, if there is one.
    pub fn next_due(&self) -> Option<Instant> {
        self.sets.values().map(|aside| aside.due).min()
    }

    /// Notes that no member of the set is due any more.
    pub fn settled(&mut self, set: &[u8], now: Instant) {
        let after = self.settles_after();
        if let Some(aside) = self.sets.get_mut(set) {
            if aside.last + after <= aside.due {
                self.sets.remove(set);
            } else {
                // Each of the four sets stays due while two others are filled.
                aside.due = (now + self.filled_for).min(aside.last + after).max(now);
            }
        }
    }

    /// Forgets a set that cannot be looked at.
    pub fn forget(&mut self, set: &[u8]) {
        self.sets.remove(set);
    }

    fn settles_after(&self) -> Duration {
        self.filled_for * 2 + self.filled_for / 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILLED: Duration = Duration::from_secs(10);

    #[test]
    fn members_set_aside_get_a_second_look_while_they_are_due() {
        let start = Instant::now();
        let mut asides = Asides::new(FILLED);
        asides.note(b"t", start);
        assert_eq!(
            asides.due(start + 2 * FILLED),
            None,
            "it may still be joined by what was under way"
        );
        let due = asides.next_due().unwrap();
        assert!(due > start + 2 * FILLED && due < start + 3 * FILLED);
        asides.settled(b"t", due);
        assert_eq!(asides.next_due(), None);
    }

    /// Each of the four sets is due from two filling times after its own to the end of the fourth.
    #[test]
    fn every_member_set_aside_gets_a_second_look_in_time() {
        let start = Instant::now();
        for notes in 1..40_u32 {
            let mut asides = Asides::new(FILLED);
            let noted: Vec<Instant> = (0..notes).map(|note| start + FILLED * note / 7).collect();
            let (mut looks, mut left) = (Vec::new(), noted.as_slice());
            loop {
                match (left.first(), asides.next_due()) {
                    (Some(&at), due) if due.is_none_or(|due| at <= due) => {
                        asides.note(b"t", at);
                        left = &left[1..];
                    }
                    (_, Some(due)) => {
                        looks.push(due);
                        asides.settled(b"t", due);
                    }
                    (_, None) => break,
                }
            }
            for at in noted {
                let filling = (at - start).as_millis() / FILLED.as_millis();
                let is_due = |look: &&Instant| {
                    let back = (**look - start).as_millis() / FILLED.as_millis()
                        - filling.min((**look - start).as_millis() / FILLED.as_millis());
                    back == 2 || back == 3
                };
                assert!(
                    looks.iter().any(|look| is_due(&look)),
                    "{notes} notes: nobody looked for what was set aside {:?} in",
                    at - start
                );
            }
        }
    }
}
