//! The only place that decides by RabbitMQ's reply texts.
//!
//! AMQP 0-9-1 has some twenty reply codes, and RabbitMQ uses one code for several refusals. If the
//! code decides, `failure` matches it. If only the text is left of an error, a
//! function here reads it. The texts are those of RabbitMQ 3.12 to 4.3, which the tests start.

/// Returns whether the broker refused for a missing permission.
pub fn is_access_refused(text: &str) -> bool {
    text.contains("ACCESS_REFUSED")
}

/// Returns whether there is no such queue.
pub fn is_missing_queue(text: &str) -> bool {
    text.contains("no queue")
}

/// Returns whether there is no such exchange.
pub fn is_missing_exchange(text: &str) -> bool {
    text.contains("no exchange")
}

/// Returns whether a "not found" refusal means that the object does not exist.
///
/// A queue whose node is down is "not found" too.
pub(super) fn is_missing(text: &str) -> bool {
    is_missing_queue(text) || is_missing_exchange(text)
}

/// Returns whether the broker itself failed.
pub(super) fn is_internal_error(text: &str) -> bool {
    text.contains("INTERNAL_ERROR")
}

/// Returns whether the broker knows the queue, and none of its nodes can serve it.
pub(super) fn is_unserved(text: &str) -> bool {
    text.contains("NOT_FOUND") || is_internal_error(text)
}

/// Returns whether the node has no replica of the stream.
pub(super) fn has_no_replica(text: &str) -> bool {
    text.contains("replica")
}

/// Returns whether the queue refuses the argument that only streams take.
pub(super) fn is_not_a_stream(text: &str) -> bool {
    text.contains("x-stream-offset")
}

/// Returns whether an object exists with other arguments, which the text then names.
///
/// Other preconditions fail if the broker cannot make such an object at all.
pub(super) fn has_other_arguments(text: &str) -> bool {
    text.contains("inequivalent")
}

/// Returns whether the limit of connections or channels is reached, which is temporary.
pub(super) fn is_limit(text: &str) -> bool {
    text.contains("limit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_broker_are_told_apart() {
        let missing = "NOT_FOUND - no queue 'q' in vhost '/'";
        let down = "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor";
        assert!(is_missing(missing) && is_missing_queue(missing) && !is_missing_exchange(missing));
        assert!(is_missing("NOT_FOUND - no exchange 'x' in vhost '/'"));
        assert!(!is_missing(down) && is_unserved(down));
        assert!(is_unserved("INTERNAL_ERROR") && is_internal_error("INTERNAL_ERROR"));
        let refused = "ACCESS_REFUSED - read access to queue 'q' in vhost '/' refused for user 'u'";
        assert!(is_access_refused(refused) && !is_unserved(refused));
        let differs = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/'";
        assert!(has_other_arguments(differs) && !has_no_replica(differs));
        assert!(is_limit(
            "NOT_ALLOWED - access to vhost '/' refused: connection limit (1) is reached"
        ));
    }
}
