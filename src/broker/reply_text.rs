//! Reads RabbitMQ's reply texts. No other file decides by these texts.
//!
//! AMQP 0-9-1 has some twenty reply codes, and RabbitMQ uses one code for several refusals. So
//! `refusal` decides by the code, and by the text only where the code leaves it open. A text may
//! hold names that users chose. So it is compared only at the places where RabbitMQ writes its own
//! words.
//!
//! The texts are those of RabbitMQ 3.10.8, 4.0.5 and 4.3.6, which the tests start. In RabbitMQ's
//! source they are in `rabbit_amqqueue`, `rabbit_channel`, `rabbit_misc`, `rabbit_reader` and
//! `rabbit_stream_queue`.

/// Reason of a `NOT_FOUND` (404).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotFound {
    /// There is no such queue.
    Queue,
    /// There is no such exchange.
    Exchange,
    /// The object exists and cannot be used now, for example because its node is down.
    Unserved,
}

/// Reads the text of a `NOT_FOUND`.
pub(super) fn not_found(text: &str) -> NotFound {
    let words = without_code(text);
    if words.starts_with("no queue '") {
        NotFound::Queue
    } else if words.starts_with("no exchange '") {
        NotFound::Exchange
    } else {
        NotFound::Unserved
    }
}

/// Reason of a `PRECONDITION_FAILED` (406).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precondition<'t> {
    /// The object exists with another value of an argument.
    OtherArgument(Difference<'t>),
    /// The node has no replica of the stream.
    NoReplica,
    /// A limit on the number of queues or exchanges is reached.
    AtLimit,
    /// The queue is no stream, and refuses an argument that only streams take.
    NotAStream,
    /// Any other reason, such as an object that the broker cannot make at all.
    Other,
}

/// Argument whose value differs from that of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Difference<'t> {
    /// Name of the argument, such as `x-max-age`, or `type` of an exchange.
    pub(super) argument: &'t str,
    /// Value that the object has; `None` if it has no such argument.
    pub(super) current: Option<&'t str>,
}

/// Reads the text of a `PRECONDITION_FAILED`.
pub(super) fn precondition_failed(text: &str) -> Precondition<'_> {
    let words = without_code(text);
    if let Some(difference) = difference(words) {
        Precondition::OtherArgument(difference)
    } else if words.ends_with("' does not have a running local replica")
        || words.ends_with("' does not have a replica on the local node")
        || words.ends_with("' does not have a running replica on the local node")
    {
        Precondition::NoReplica
    } else if words.starts_with("cannot declare ") && words.ends_with(" is reached") {
        Precondition::AtLimit
    } else if words.starts_with("invalid arg 'x-stream-offset' for ") {
        Precondition::NotAStream
    } else {
        Precondition::Other
    }
}

/// Reads `inequivalent arg 'x-max-age' for …: received … but current is …`.
///
/// The last part is one of `'1m'`, `the value '1m' of type 'longstr'` and `none`.
fn difference(words: &str) -> Option<Difference<'_>> {
    let (argument, rest) = words.strip_prefix("inequivalent arg '")?.split_once('\'')?;
    // A name may hold these words too. The broker's own words come last.
    let (_, current) = rest.rsplit_once("but current is ")?;
    Some(Difference { argument, current: current.split('\'').nth(1) })
}

/// Returns whether a `NOT_ALLOWED` (530) is for a limit of connections or channels, which is
/// temporary.
pub(super) fn is_limit(text: &str) -> bool {
    let ends = without_code(text).rsplit('\'').next().unwrap_or_default();
    ["connection limit", "user limit", "allowed limit"].iter().any(|limit| ends.contains(limit))
}

/// Returns whether an `ACCESS_REFUSED` (403) is for a name that begins with `amq.`.
pub(super) fn is_reserved_name(text: &str) -> bool {
    without_code(text).ends_with(" contains reserved prefix 'amq.*'")
}

/// Returns the text without its code: `no queue 'q'` for `NOT_FOUND - no queue 'q'`.
fn without_code(text: &str) -> &str {
    text.split_once(" - ").map_or(text, |(_, words)| words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_object_differs_from_one_that_is_down() {
        for (text, found) in [
            ("NOT_FOUND - no queue 'q' in vhost '/'", NotFound::Queue),
            ("NOT_FOUND - no exchange 'x' in vhost '/'", NotFound::Exchange),
            (
                "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor",
                NotFound::Unserved,
            ),
            (
                "NOT_FOUND - queue 'q' in vhost '/' has crashed and failed to restart",
                NotFound::Unserved,
            ),
            (
                "NOT_FOUND - home node 'rabbit@a' of durable queue 'q' in vhost '/' is down or inaccessible",
                NotFound::Unserved,
            ),
            // 3.10, then later versions.
            (
                "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/': its master replica <1.2.3> may be stopping or being demoted",
                NotFound::Unserved,
            ),
            (
                "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/': its leader <1.2.3> may be stopping or being demoted",
                NotFound::Unserved,
            ),
            (
                "NOT_FOUND - queue 'no queue' in vhost '/' process is stopped by supervisor",
                NotFound::Unserved,
            ),
            (
                "NOT_FOUND - queue 'q' in vhost 'no exchange' process is stopped by supervisor",
                NotFound::Unserved,
            ),
        ] {
            assert_eq!(not_found(text), found, "{text}");
        }
    }

    #[test]
    fn failed_preconditions_are_distinguished() {
        use Precondition::{AtLimit, NoReplica, NotAStream, Other, OtherArgument};
        let differs = |argument, current| OtherArgument(Difference { argument, current });
        for (text, read) in [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-max-age' for queue 'q' in vhost '/': received the value '1D' of type 'longstr' but current is the value '7D' of type 'longstr'",
                differs("x-max-age", Some("7D")),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-overflow' for queue 'q.dead' in vhost '/': received the value 'reject-publish' of type 'longstr' but current is none",
                differs("x-overflow", None),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'",
                differs("durable", Some("false")),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x' in vhost '/': received 'topic' but current is 'direct'",
                differs("type", Some("direct")),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'but current is ' in vhost '/': received 'topic' but current is 'headers'",
                differs("type", Some("headers")),
            ),
            // 3.10: of the queue, and of the channel.
            (
                "PRECONDITION_FAILED - queue 'q' does not have a replica on the local node",
                NoReplica,
            ),
            (
                "PRECONDITION_FAILED - queue 'q' in vhost '/' does not have a running local replica",
                NoReplica,
            ),
            // 3.12 and 3.13, then 4.0 to 4.3.
            (
                "PRECONDITION_FAILED - queue 'queue 'q' in vhost '/'' does not have a running replica on the local node",
                NoReplica,
            ),
            (
                "PRECONDITION_FAILED - stream queue 'q' in vhost '/' does not have a running replica on the local node",
                NoReplica,
            ),
            (
                "PRECONDITION_FAILED - invalid arg 'x-stream-offset' for queue 'q' in vhost '/' of queue type rabbit_quorum_queue",
                NotAStream,
            ),
            (
                "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost 'v' (3) is reached",
                AtLimit,
            ),
            // Since 4.1.
            (
                "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in cluster (3) is reached",
                AtLimit,
            ),
            (
                "PRECONDITION_FAILED - cannot declare exchange 'x': exchange limit of 3 is reached",
                AtLimit,
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'limit is reached' in vhost '/': received 'true' but current is 'false'",
                differs("durable", Some("false")),
            ),
            (
                "PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'x-stream-offset replica' in vhost '/': unacceptable type",
                Other,
            ),
            (
                "PRECONDITION_FAILED - Cannot declare a queue 'q' of type 'stream' on node 'rabbit@a': the corresponding feature flag is disabled",
                Other,
            ),
        ] {
            assert_eq!(precondition_failed(text), read, "{text}");
        }
    }

    #[test]
    fn a_limit_differs_from_a_refusal() {
        for (text, limit) in [
            (
                "NOT_ALLOWED - access to vhost '/' refused for user 'u': connection limit (1) is reached",
                true,
            ),
            (
                "NOT_ALLOWED - connection refused for user 'u': user connection limit (1) is reached",
                true,
            ),
            // Since 4.0.
            ("NOT_ALLOWED - connection refused: node connection limit (1) is reached", true),
            (
                "NOT_ALLOWED - access to vhost '/' refused for user 'u': connection limit cannot be queried, timeout",
                true,
            ),
            (
                "NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user limit of (1)",
                true,
            ),
            (
                "NOT_ALLOWED - number of channels opened on node 'rabbit@a' has reached the maximum allowed limit of 1",
                true,
            ),
            ("NOT_ALLOWED - access to vhost '/' refused for user 'u'", false),
            ("NOT_ALLOWED - access to vhost 'limited' refused for user 'u'", false),
            ("NOT_ALLOWED - access to vhost '/' refused for user 'connection limit'", false),
            ("NOT_ALLOWED - vhost limits not found", false),
        ] {
            assert_eq!(is_limit(text), limit, "{text}");
        }
    }

    #[test]
    fn a_reserved_name_differs_from_a_missing_permission() {
        for (text, is_reserved) in [
            ("ACCESS_REFUSED - queue name 'amq.q' contains reserved prefix 'amq.*'", true),
            ("ACCESS_REFUSED - exchange name 'amq.x' contains reserved prefix 'amq.*'", true),
            (
                "ACCESS_REFUSED - configure access to queue 'a contains reserved prefix' in vhost '/' refused for user 'u'",
                false,
            ),
        ] {
            assert_eq!(is_reserved_name(text), is_reserved, "{text}");
        }
    }
}
