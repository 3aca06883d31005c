//! What an answer, or the lack of one, means.

use std::error::Error;
use std::time::SystemTime;

use reqwest::{Response, StatusCode};

use super::retry_after::retry_after;
use super::{LoadError, Loaded};
use crate::quantity::format_size_bytes;

/// What a status alone decides.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Body,
    Absent,
    Retry,
    Refused,
}

fn meaning(status: StatusCode) -> Meaning {
    match status.as_u16() {
        204 | 404 | 410 => Meaning::Absent,
        200..=299 => Meaning::Body,
        408 | 429 | 500..=599 => Meaning::Retry,
        _ => Meaning::Refused,
    }
}

/// Reads an answer of at most `max_bytes`; of a longer one, and of a refusal, no more is read than has come already.
pub(super) async fn read(loader: &str, mut answer: Response, max_bytes: usize) -> Result<Loaded, LoadError> {
    let status = answer.status();
    let code = status.as_u16();
    match meaning(status) {
        Meaning::Absent => return Ok(Loaded::Absent),
        Meaning::Retry => {
            let after = retry_after(answer.headers(), SystemTime::now());
            return Err(LoadError::Retry { after, message: format!("loader `{loader}` answered {code}") });
        }
        Meaning::Refused => {
            let hint = match code {
                300..=399 => ": redirects are not followed; let the schema name the final URL",
                401 | 403 => ": check the loader's headers",
                _ => "",
            };
            return Err(LoadError::Refused { message: format!("loader `{loader}` answered {code}{hint}") });
        }
        Meaning::Body => {}
    }

    let too_long = || {
        let limit = format_size_bytes(u64::try_from(max_bytes).unwrap_or(u64::MAX));
        LoadError::Refused {
            message: format!("loader `{loader}` answered {code} with more than {limit}; raise its max_bytes if that is right"),
        }
    };
    let announced = answer.content_length().unwrap_or(0);
    if usize::try_from(announced).map_or(true, |length| length > max_bytes) {
        return Err(too_long());
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|_| broken_off(loader))? {
        if chunk.len() > max_bytes - body.len() {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(if body.is_empty() { Loaded::Absent } else { Loaded::Value(body) })
}

fn broken_off(loader: &str) -> LoadError {
    LoadError::Retry { after: None, message: format!("loader `{loader}` broke off its answer") }
}

/// What a request that brought no answer means.
pub(super) fn unanswered(loader: &str, error: &reqwest::Error) -> LoadError {
    if error.is_builder() {
        return LoadError::Refused { message: format!("loader `{loader}`: no request can be made of the URL for this event") };
    }
    if error.is_connect() {
        // Causes below the request are those of DNS, TCP and TLS: they may name the host, which the schema chose, and nothing else.
        return LoadError::Retry { after: None, message: format!("loader `{loader}`: no connection: {}", innermost(error)) };
    }
    broken_off(loader)
}

/// The cause beneath all others. `reqwest` puts the URL in its own error, not in those beneath.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| "unknown cause".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_one_meaning() {
        for code in 100..=999 {
            let expected = match code {
                204 | 404 | 410 => Meaning::Absent,
                200..300 => Meaning::Body,
                408 | 429 | 500..600 => Meaning::Retry,
                _ => Meaning::Refused,
            };
            assert_eq!(meaning(StatusCode::from_u16(code).unwrap()), expected, "{code}");
        }
    }
}
