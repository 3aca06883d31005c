//! Names of the headers that unstale sets.
//!
//! All except [`EVENT_TYPE`] count on republished messages only: see
//! [`Provenance`](super::Provenance).

/// Number of attempts made so far: 1 on the first retry message.
pub const ATTEMPT: &str = "unstale-attempt";
/// Name of the [`Reason`](crate::reason::Reason) for the retry, the slow lane or the dead letter.
pub const REASON: &str = "unstale-reason";
/// The reason in words: paths and rules, never payload values. At most 1 KiB.
pub const ERROR: &str = "unstale-error";
/// The event's type. A publisher may set it too: the body is then the data of such an event.
pub const EVENT_TYPE: &str = "unstale-event-type";
/// The exchange of the first arrival.
pub const EXCHANGE: &str = "unstale-exchange";
/// The routing key of the first arrival. Its presence marks a message from the default exchange as
/// republished.
pub const ROUTING_KEY: &str = "unstale-routing-key";
/// Time when the event was first handled, in RFC 3339.
pub const FIRST_TIME: &str = "unstale-first-time";
/// A time before the event's arrival, in RFC 3339. The history contains the event from there on.
pub const ARRIVED_AFTER: &str = "unstale-arrived-after";
/// A stream offset before the event's place in the history. It does not depend on any clock.
pub const ARRIVED_OFFSET: &str = "unstale-arrived-offset";
/// Time when the message was republished, in RFC 3339.
pub const TIME: &str = "unstale-time";
/// Effects that are still to do, unless it is all of them. A list of positions in the `effects` of
/// `plan --json`, separated by commas.
pub const EFFECTS: &str = "unstale-effects";
/// Digest of the registry to which the positions in [`EFFECTS`] refer.
pub const REGISTRY: &str = "unstale-registry";
/// The id that a worker made for an event without an id.
pub const EVENT_ID: &str = "unstale-event-id";
/// Name of the [`Form`](super::Form) in which the event was read.
pub const FORM: &str = "unstale-form";
/// The publisher's `expiration`, which a republished message cannot keep.
pub const EXPIRATION: &str = "unstale-expiration";
/// The publisher's `user_id`, which a republished message cannot keep.
pub const USER_ID: &str = "unstale-user-id";
/// The publisher's `CC`, which a republished message cannot keep.
pub const CC: &str = "unstale-cc";
/// `true` if the publisher's headers and ours did not fit into one frame.
pub const HEADERS_DROPPED: &str = "unstale-headers-dropped";
/// Reasons for which the message was a dead letter before it was replayed, oldest first. A list of
/// `reason@time`, separated by commas.
pub const EARLIER_REASONS: &str = "unstale-earlier-reasons";

/// Redelivery count when a worker moved the message to the slow lane. It is added to the broker's
/// later count.
pub const REDELIVERED: &str = "unstale-redelivered";

/// The offset from which on a replay applied events again. On the record of a replay in the history
/// only.
pub const REPLAYED_FROM: &str = "unstale-replayed-from";

/// HMAC-SHA256 over our headers and this body, in base64. It proves that a worker wrote the
/// headers.
pub const SIGNATURE: &str = "unstale-signature";

/// Prefix of all these names.
pub const PREFIX: &str = "unstale-";

/// All these names.
pub const ALL: [&str; 22] = [
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
    REPLAYED_FROM,
    SIGNATURE,
];
