//! Computes versions and expiry times from an event.

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::compile::family_of;
use super::effect::{Expiry, Version};
use super::functions::hex;
use super::model::{ExpiryRule, Family, VersionRule};
use super::render::Miss;
use super::scope::{Binding, Scope};

/// Returns the time to live of a value.
pub(super) fn expiry_of(
    rule: &ExpiryRule,
    scope: &Scope<'_, '_>,
    bindings: &[Binding<'_>],
) -> Result<Expiry, Miss> {
    match rule {
        ExpiryRule::After { ttl, jitter } => Ok(Expiry::After { ttl: *ttl, jitter: *jitter }),
        ExpiryRule::Never => Ok(Expiry::Never),
        ExpiryRule::At(template) => {
            let mut text = String::new();
            template.render(scope, bindings, &mut text)?;
            let seconds = || {
                let seconds = text.parse::<i64>().ok().filter(|_| !text.starts_with('+'))?;
                // Milliseconds, read as seconds, are beyond the year 9999. They are read as
                // milliseconds instead.
                Timestamp::from_second(seconds)
                    .or_else(|_| Timestamp::from_millisecond(seconds))
                    .ok()
                    .map(Timestamp::as_millisecond)
            };
            let moment = || text.parse::<Timestamp>().ok().map(Timestamp::as_millisecond);
            seconds().or_else(moment).map(Expiry::At).ok_or_else(|| {
                Miss::Unresolvable(
                    "neither RFC 3339 nor whole Unix seconds or milliseconds before the year 10000"
                        .to_owned(),
                )
            })
        }
    }
}

/// Maximum length of an entity's name, in bytes. A longer name is hashed, because it becomes part
/// of a Redis key that is kept for `UNSTALE_FENCE_TTL`.
const MAX_FAMILY_BYTES: usize = 255;

/// Error: a `write` needs a version that cannot be computed.
pub(super) struct Unordered;

/// Returns the position of an effect among those of its entity.
pub(super) fn version_of(
    rule: &VersionRule,
    place: u32,
    scope: &Scope<'_, '_>,
    bindings: &[Binding<'_>],
) -> Result<Version, Miss> {
    let mut text = String::new();
    rule.of.render(scope, bindings, &mut text)?;
    let unusable = || {
        Miss::Unresolvable("neither an integer from 0 to 2^63-1 nor RFC 3339 since 1970".to_owned())
    };
    let digits = if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse::<i64>().map_err(|_| unusable())?.to_string()
    } else {
        let time: Timestamp = text.parse().map_err(|_| unusable())?;
        u128::try_from(time.as_nanosecond()).map_err(|_| unusable())?.to_string()
    };
    let family = match &rule.family {
        Family::EventType => family_of(&scope.event.event.event_type).to_owned(),
        Family::Entity(template) => {
            let mut family = String::new();
            template.render(scope, bindings, &mut family)?;
            if family.len() > MAX_FAMILY_BYTES { hex(&Sha256::digest(&family)) } else { family }
        }
    };
    Ok(Version { family, digits, event: scope.event.hash(), place })
}
