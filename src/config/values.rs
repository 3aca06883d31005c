//! Parsers of single values. Each error says what was expected, and never quotes the value.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::quantity::{QuantityError, parse_duration, parse_size_bytes};

/// Maximum length of a short string, whose length is one byte (AMQP 0-9-1, section 4.2.5.3).
pub(super) const MAX_SHORT_STRING_BYTES: usize = 255;

/// Maximum length of the suffix of a queue's name: `.retry.` and a delay of 13 characters. The
/// suffix `.history` is shorter.
const MAX_QUEUE_SUFFIX_BYTES: usize = 20;

/// Maximum message TTL that RabbitMQ accepts: 2^32 - 1 ms (`rabbit_misc:check_expiry`).
const MAX_MESSAGE_TTL: Duration = Duration::from_millis(u32::MAX as u64);

/// The expectation that a value does not meet. The setting's name is put before it.
pub(super) type Expected = String;

/// Returns the value of the choice with that name.
pub(super) fn one_of<T: Clone>(text: &str, choices: &[(&str, T)]) -> Result<T, Expected> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(value.clone());
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    match names.split_last() {
        Some((last, rest)) => Err(format!("expected {} or {last}", rest.join(", "))),
        None => Err("accepts no value".to_owned()),
    }
}

/// Parses a value that `off` disables.
pub(super) fn or_off<T>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, Expected>,
) -> Result<Option<T>, Expected> {
    if text == "off" {
        return Ok(None);
    }
    parse(text).map(Some).map_err(|expected| format!("{expected}, or off"))
}

/// Parses a whole number within limits.
pub(super) fn whole<T: TryFrom<u64>>(
    text: &str,
    least: u64,
    most: u64,
    example: &str,
) -> Result<T, Expected> {
    // `parse` would accept a leading plus.
    let number = if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse::<u64>().ok()
    } else {
        None
    };
    number
        .filter(|number| (least..=most).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("expected a whole number from {least} to {most}, such as {example}"))
}

/// Turns the error of a quantity into an expectation.
pub(super) fn quantity<T>(read: Result<T, QuantityError>) -> Result<T, Expected> {
    read.map_err(|error| error.to_string())
}

/// Parses a duration above zero.
pub(super) fn duration_above_zero(text: &str) -> Result<Duration, Expected> {
    quantity(parse_duration(text)).and_then(|duration| {
        if duration.is_zero() {
            Err("expected a duration above 0".to_owned())
        } else {
            Ok(duration)
        }
    })
}

/// Parses a duration in whole seconds, the unit of a stream's `x-max-age`.
pub(super) fn whole_seconds(text: &str) -> Result<Duration, Expected> {
    let duration = duration_above_zero(text)?;
    if duration.subsec_nanos() == 0 {
        Ok(duration)
    } else {
        Err("expected whole seconds, such as 90s or 7d".to_owned())
    }
}

/// Parses a size above zero, in bytes.
pub(super) fn size_above_zero(text: &str) -> Result<u64, Expected> {
    quantity(parse_size_bytes(text)).and_then(|bytes| {
        if bytes == 0 { Err("expected a size above 0".to_owned()) } else { Ok(bytes) }
    })
}

/// Parses a size that an object in memory can have, in bytes.
pub(super) fn size_in_memory(text: &str) -> Result<usize, Expected> {
    usize::try_from(size_above_zero(text)?)
        .map_err(|_| "expected a size that fits into memory".to_owned())
}

/// Parses the delays of the retry steps, in ascending order.
pub(super) fn retry_delays(text: &str) -> Result<Vec<Duration>, Expected> {
    let delays =
        text.split(',').map(|delay| parse_duration(delay.trim())).collect::<Result<Vec<_>, _>>();
    let delays = delays
        .map_err(|_| "expected durations between commas, such as 1s,10s,1m,10m".to_owned())?;
    // Each delay names a queue, so equal delays would be one queue.
    if delays.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err("expected each delay to be longer than the one before, such as 1s,10s,1m,10m (60s and 1m are the same)".to_owned());
    }
    match (delays.first(), delays.last()) {
        (Some(first), Some(last)) if !first.is_zero() && *last <= MAX_MESSAGE_TTL => Ok(delays),
        _ => Err("expected delays above 0 and of at most 49d, the limit of RabbitMQ".to_owned()),
    }
}

/// Accepts text without control characters.
pub(super) fn printable(text: &str) -> Result<String, Expected> {
    if text.chars().any(char::is_control) {
        Err("expected text without control characters".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Refuses a prefix under which unstale has keys of its own.
pub(super) fn not_ours(prefix: String) -> Result<String, Expected> {
    if prefix.starts_with("unstale:") {
        return Err("expected a prefix that does not begin with unstale:, which is reserved for keys of unstale".to_owned());
    }
    Ok(prefix)
}

/// Accepts the beginning of a Redis key. Control characters are allowed, since some libraries write
/// them.
pub(super) fn not_empty(text: &str) -> Result<String, Expected> {
    if text.is_empty() {
        Err("empty: give it a value, or unset it".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Accepts a name of AMQP with at most this many bytes.
pub(super) fn name(text: &str, most_bytes: usize) -> Result<String, Expected> {
    not_empty(text)?;
    if text.len() > most_bytes {
        return Err(format!("expected at most {most_bytes} bytes"));
    }
    printable(text)
}

/// Accepts the name of a queue of ours.
pub(super) fn queue(text: &str) -> Result<String, Expected> {
    if text.starts_with("amq.") {
        return Err(
            "expected a name that does not begin with amq., which RabbitMQ reserves".to_owned()
        );
    }
    name(text, MAX_SHORT_STRING_BYTES - MAX_QUEUE_SUFFIX_BYTES)
}

/// Parses routing keys with commas between them. Repetitions are dropped.
pub(super) fn routing_keys(text: &str) -> Result<Vec<String>, Expected> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut keys = Vec::new();
    for key in text.split(',').map(str::trim) {
        let key = name(key, MAX_SHORT_STRING_BYTES).map_err(|_| {
            "expected routing keys of 1 to 255 bytes between commas, such as user.*,order.#"
                .to_owned()
        })?;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// Accepts the path of a directory.
pub(super) fn path(text: &str) -> Result<PathBuf, Expected> {
    if text.is_empty() || text.contains('\0') {
        Err("expected the path of a directory, such as schemas".to_owned())
    } else {
        Ok(text.into())
    }
}

/// Parses an IP address with a port.
pub(super) fn socket_addr(text: &str) -> Result<SocketAddr, Expected> {
    text.parse().map_err(|_| {
        "expected an IP address and a port, such as 127.0.0.1:9477, 0.0.0.0:9477 or [::1]:9477"
            .to_owned()
    })
}

/// Accepts directives of `tracing-subscriber`'s `EnvFilter`.
pub(super) fn log_directives(text: &str) -> Result<String, Expected> {
    const EXPECTED: &str = "expected a level (off, error, warn, info, debug), or levels by target between commas, such as info,unstale::broker=debug";
    // EnvFilter reads any bare word as a target, and silences everything else: `verbose`,
    // `warning`.
    let bare_words_are_levels = text.split(',').map(str::trim).all(|directive| {
        directive.contains(['=', '['])
            || directive.parse::<tracing::level_filters::LevelFilter>().is_ok()
    });
    if text.is_empty()
        || !bare_words_are_levels
        || tracing_subscriber::EnvFilter::builder().parse(text).is_err()
    {
        return Err(EXPECTED.to_owned());
    }
    Ok(text.to_owned())
}

/// Accepts PEM text with that label if `check` accepts it too.
pub(super) fn pem(
    text: &str,
    label: &str,
    check: impl Fn(&str) -> Result<(), &'static str>,
) -> Result<String, Expected> {
    if text.contains("-----BEGIN ") && text.contains(label) {
        return check(text).map(|()| text.to_owned()).map_err(str::to_owned);
    }
    Err(format!(
        "expected PEM text, with a line -----BEGIN …{label}; for the path of a file, use the form of the name that ends in _FILE"
    ))
}
