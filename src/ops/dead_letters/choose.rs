//! The choice of the oldest letters, wherever they are in the queue.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use jiff::Timestamp;

use super::Letter;
use crate::broker::DeadLetter;

/// Keeps the oldest letters, at most `limit`, in order of time. Letters of the same time stay in
/// the queue's order, and letters without a time come first.
pub fn keep_oldest(letters: &mut Vec<Letter>, limit: usize) {
    letters.sort_by_key(|letter| letter.time);
    letters.truncate(limit);
}

/// The letters of a first look over the queue, from which the oldest are chosen for a later look.
/// It keeps no bodies.
#[derive(Debug, Default)]
pub struct Candidates {
    seen: Vec<(Option<Timestamp>, u64)>,
    hasher: RandomState,
}

/// The chosen letters that the later look has not taken yet.
#[derive(Debug)]
pub struct Chosen {
    /// Number of letters of each identity.
    left: HashMap<u64, usize>,
    hasher: RandomState,
}

impl Candidates {
    /// Adds a letter.
    pub fn add(&mut self, dead: &DeadLetter, letter: &Letter) {
        self.seen.push((letter.time, identity(&self.hasher, dead, letter)));
    }

    /// Chooses letters in the way of [`keep_oldest`].
    pub fn choose(mut self, limit: usize) -> Chosen {
        self.seen.sort_by_key(|(time, _)| *time);
        let mut left = HashMap::new();
        for (_, identity) in self.seen.into_iter().take(limit) {
            *left.entry(identity).or_default() += 1;
        }
        Chosen { left, hasher: self.hasher }
    }
}

impl Chosen {
    /// Returns true if the letter is a chosen one, and removes it from the choice.
    pub fn take(&mut self, dead: &DeadLetter, letter: &Letter) -> bool {
        let identity = identity(&self.hasher, dead, letter);
        let Some(count) = self.left.get_mut(&identity) else { return false };
        *count -= 1;
        if *count == 0 {
            self.left.remove(&identity);
        }
        true
    }

    /// Returns true if every chosen letter was taken.
    pub fn is_done(&self) -> bool {
        self.left.is_empty()
    }
}

/// Returns a hash that is the same in both looks. Letters with the same hash are interchangeable.
fn identity(hasher: &RandomState, dead: &DeadLetter, letter: &Letter) -> u64 {
    hasher.hash_one((
        dead.delivery.fingerprint(hasher),
        &letter.reason,
        letter.time,
        &letter.effects,
    ))
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::letter;
    use super::*;
    use crate::broker::Delivery;

    #[test]
    fn the_oldest_letters_are_chosen_as_often_as_they_were_seen() {
        let given =
            [("c", Some(3)), ("a", Some(1)), ("none", None), ("b", Some(2)), ("a", Some(1))];
        let letters: Vec<(DeadLetter, Letter)> = given
            .iter()
            .map(|(body, second)| {
                let time = second.map(|second| format!("2026-01-01T00:00:0{second}Z"));
                let dead =
                    DeadLetter { delivery: Delivery::of("", "q", body.as_bytes()), death: None };
                (dead, letter("expired", body, time.as_deref()))
            })
            .collect();
        for (limit, expected) in [
            (0, &[][..]),
            (1, &["none"]),
            (2, &["a", "none"]),
            (4, &["a", "none", "b", "a"]),
            (9, &["c", "a", "none", "b", "a"]),
        ] {
            let mut candidates = Candidates::default();
            letters.iter().for_each(|(dead, letter)| candidates.add(dead, letter));
            let mut chosen = candidates.choose(limit);
            let met: Vec<&str> = letters
                .iter()
                .filter(|(dead, letter)| chosen.take(dead, letter))
                .map(|(_, letter)| letter.event_type.as_str())
                .collect();
            assert_eq!((met.as_slice(), chosen.is_done()), (expected, true), "{limit}");
        }
    }
}
