//! The names of the headers that are ours. All but [`EVENT_TYPE`] are believed on republished
//! messages alone: see [`Provenance`](super::Provenance).

/// How many attempts have been made: 1 on the first retry copy.
pub const ATTEMPT: &str = "unstale-attempt";
/// Why the copy stands where it stands: a [`Reason`](crate::reason::Reason)'s name.
pub const REASON: &str = "unstale-reason";
/// The reason in words: paths and rules, never payload values; at most 1 KiB.
pub const ERROR: &str = "unstale-error";
/// The event's type. Set by a publisher it says what the body is the data of.
pub const EVENT_TYPE: &str = "unstale-event-type";
/// The exchange of the first arrival.
pub const EXCHANGE: &str = "unstale-exchange";
/// The routing key of the first arrival: its presence is what makes a message from the default
/// exchange a copy.
pub const ROUTING_KEY: &str = "unstale-routing-key";
/// When the event was first handled: RFC 3339.
pub const FIRST_TIME: &str = "unstale-first-time";
/// A time before which the event did not arrive: RFC 3339. From there on the history holds it.
pub const ARRIVED_AFTER: &str = "unstale-arrived-after";
/// An offset of the history before which it does not hold the event. No clock can spoil it.
pub const ARRIVED_OFFSET: &str = "unstale-arrived-offset";
/// When this copy was made: RFC 3339.
pub const TIME: &str = "unstale-time";
/// What is still to do, where not all: positions in the `effects` of `plan --json`, separated by
/// commas.
pub const EFFECTS: &str = "unstale-effects";
/// The digest of the registry that [`EFFECTS`] counts by.
pub const REGISTRY: &str = "unstale-registry";
/// The id that was made for an event without one of its own.
pub const EVENT_ID: &str = "unstale-event-id";
/// How the event was read: a [`Form`](super::Form)'s name.
pub const FORM: &str = "unstale-form";
/// The `expiration` that the copy had to clear.
pub const EXPIRATION: &str = "unstale-expiration";
/// The `user_id` that the copy had to clear.
pub const USER_ID: &str = "unstale-user-id";
/// The `CC` that the copy had to drop.
pub const CC: &str = "unstale-cc";
/// `true` where the publisher's headers did not fit a frame beside ours.
pub const HEADERS_DROPPED: &str = "unstale-headers-dropped";
/// The reasons for which it stood in the dead-letter queue before it was replayed, oldest first:
/// `reason@time`, separated by commas.
pub const EARLIER_REASONS: &str = "unstale-earlier-reasons";

/// How often it had been delivered in vain when it was set aside: added to what the broker counts
/// from then on.
pub const REDELIVERED: &str = "unstale-redelivered";

/// Shows that a worker wrote the headers of ours, for this body: HMAC-SHA256, in base64.
pub const SIGNATURE: &str = "unstale-signature";

/// What every name of ours starts with.
pub const PREFIX: &str = "unstale-";

/// Every name.
pub const ALL: [&str; 21] = [
    ATTEMPT,
    REASON,
    ERROR,
    EVENT_TYPE,
    EXCHANGE,
    ROUTING_KEY,
    FIRST_TIME,
    ARRIVED_AFTER,
    ARRIVED_OFFSET,
    TIME,
    EFFECTS,
    REGISTRY,
    EVENT_ID,
    FORM,
    EXPIRATION,
    USER_ID,
    CC,
    HEADERS_DROPPED,
    EARLIER_REASONS,
    REDELIVERED,
    SIGNATURE,
];
