//! Lifetimes of values in Redis' units. Chance and the clock enter here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::registry::Expiry;

pub use unstale_reader::LONGEST_LEASE;

/// Maximum lifetime. Redis adds the clock to it and refuses times near 2^63 ms; this is 146 million
/// years.
const LONGEST_MS: i64 = i64::MAX / 2;

/// Arguments of SET, PEXPIRE and the scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub(super) unit: Unit,
    /// Lifetime of the value.
    pub(super) millis: i64,
    /// Lifetime of a tag's set with the value in it: never less.
    pub(super) set_millis: i64,
}

/// Origin of the milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// They count from now.
    After,
    /// They count from the Unix epoch.
    At,
    /// The value does not expire.
    Never,
}

impl Unit {
    /// Returns the option of SET, which `tag_member.lua` reads as well.
    pub(super) const fn option(self) -> &'static str {
        match self {
            Self::After => "PX",
            Self::At => "PXAT",
            Self::Never => "",
        }
    }

    /// Returns the command that expires a key.
    pub(super) const fn command(self) -> &'static str {
        match self {
            Self::At => "PEXPIREAT",
            Self::After | Self::Never => "PEXPIRE",
        }
    }
}

impl Lifetime {
    /// Draws a lifetime, or `None` if it is over already. Each call draws new jitter.
    pub(super) fn draw(expiry: Expiry, now_ms: i64) -> Option<Self> {
        match expiry {
            Expiry::Never => Some(Self { unit: Unit::Never, millis: 0, set_millis: 0 }),
            Expiry::At(at) => {
                (at > now_ms).then_some(Self { unit: Unit::At, millis: at, set_millis: at })
            }
            Expiry::After { ttl, jitter } => {
                let longest = millis(ttl);
                #[expect(
                    clippy::cast_precision_loss,
                    clippy::cast_possible_truncation,
                    reason = "chance needs no more digits"
                )]
                let off = (longest as f64 * jitter * fastrand::f64()) as i64;
                Some(Self {
                    unit: Unit::After,
                    millis: (longest - off).max(1),
                    set_millis: longest,
                })
            }
        }
    }
}

impl Lifetime {
    /// Returns the lifetime of a tag's set that the key joins in a step of its own. The value's
    /// time begins later, by a lease at most.
    pub(super) fn joined_millis(self) -> i64 {
        if self.unit == Unit::Never {
            0
        } else {
            self.set_millis.saturating_add(millis(LONGEST_LEASE)).min(LONGEST_MS)
        }
    }
}

/// Converts to milliseconds, at least one: Redis refuses 0.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(LONGEST_MS).clamp(1, LONGEST_MS)
}

pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_shortens_the_key_but_not_its_set() {
        let expiry = Expiry::After { ttl: Duration::from_secs(100), jitter: 0.1 };
        let drawn: Vec<_> = (0..200).map(|_| Lifetime::draw(expiry, 0).unwrap()).collect();
        assert!(drawn.iter().all(|lifetime| (90_000..=100_000).contains(&lifetime.millis)
            && lifetime.set_millis == 100_000));
        assert!(drawn.iter().any(|lifetime| lifetime.millis != drawn[0].millis));
    }

    #[test]
    fn a_lifetime_that_redis_refuses_is_never_drawn() {
        for (ttl, jitter) in
            [(Duration::ZERO, 0.0), (Duration::from_millis(1), 1.0), (Duration::MAX, 0.0)]
        {
            let lifetime = Lifetime::draw(Expiry::After { ttl, jitter }, 0).unwrap();
            assert!(lifetime.millis >= 1 && lifetime.millis <= LONGEST_MS);
        }
        assert_eq!(Lifetime::draw(Expiry::At(5), 5), None);
        assert_eq!(Lifetime::draw(Expiry::At(-1), 5), None);
    }
}
