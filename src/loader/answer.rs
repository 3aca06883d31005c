//! The meaning of a loader's answer, and of a request without an answer.

use std::time::SystemTime;

use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, HeaderMap};
use reqwest::{Response, StatusCode};

use super::http_error::HttpError;
use super::outcome::{LoadError, LoadOutcome};
use super::retry_after::retry_after;
use crate::causes::Cause;
use crate::quantity::format_size_bytes;

/// The meaning of an HTTP status.
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
        // The body is not the whole value: accepted work, a part, a report on several resources, a
        // difference. An unknown 2xx status counts as 200 (RFC 9110, section 15).
        202 | 206 | 207 | 208 | 226 => Meaning::Refused,
        200..=299 => Meaning::Body,
        408 | 429 | 500..=599 => Meaning::Retry,
        _ => Meaning::Refused,
    }
}

/// Reads an answer of at most `max_bytes`. The body of a longer answer, or of a refusal, is not
/// read to its end.
pub(super) async fn read(
    loader: &str,
    mut answer: Response,
    max_bytes: usize,
) -> Result<LoadOutcome, LoadError> {
    let status = answer.status();
    let code = status.as_u16();
    match meaning(status) {
        Meaning::Absent => return Ok(LoadOutcome::Absent),
        Meaning::Retry => {
            let after = retry_after(answer.headers(), SystemTime::now());
            return Err(LoadError::Retry {
                after,
                cause: format!("loader `{loader}` answered {code}").into(),
            });
        }
        Meaning::Refused => {
            let hint = match code {
                300..=399 => ": redirects are not followed; name the final URL in the rule file",
                401 | 403 => ": check the loader's headers",
                206 => {
                    ": a part is not stored as the whole; make the service ignore `Range`, or the cache in front of it answer in full"
                }
                200..=299 => ": a value needs status 200",
                _ => "",
            };
            return Err(LoadError::Refused {
                cause: format!("loader `{loader}` answered {code}{hint}").into(),
            });
        }
        Meaning::Body => {}
    }
    if let Some(what) = encoded_or_partial(answer.headers()) {
        return Err(LoadError::Refused {
            cause: format!("loader `{loader}` answered {code} with {what}").into(),
        });
    }

    let too_long = || {
        let limit = format_size_bytes(u64::try_from(max_bytes).unwrap_or(u64::MAX));
        LoadError::Refused {
            cause: format!(
                "loader `{loader}` answered {code} with more than {limit}; raise its `max_bytes` if values are that large"
            )
            .into(),
        }
    };
    let announced = answer.content_length().unwrap_or(0);
    if usize::try_from(announced).map_or(true, |length| length > max_bytes) {
        return Err(too_long());
    }
    let mut body = Vec::new();
    while let Some(chunk) =
        answer.chunk().await.map_err(|error| incomplete_answer(loader, error))?
    {
        if chunk.len() > max_bytes - body.len() {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(if body.is_empty() { LoadOutcome::Absent } else { LoadOutcome::Value(body) })
}

/// Returns why the body is not the whole value as it is, judged by its headers.
fn encoded_or_partial(headers: &HeaderMap) -> Option<&'static str> {
    let is_identity = |coding: &[u8]| {
        coding.trim_ascii().is_empty() || coding.trim_ascii().eq_ignore_ascii_case(b"identity")
    };
    if headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|value| !value.as_bytes().split(|&b| b == b',').all(is_identity))
    {
        return Some(
            "a `Content-Encoding`, though the request asked for identity: make the service honour `Accept-Encoding: identity`",
        );
    }
    headers
        .contains_key(CONTENT_RANGE)
        .then_some("a `Content-Range`: a part is not stored as the whole")
}

fn incomplete_answer(loader: &str, error: reqwest::Error) -> LoadError {
    failed(format!("loader `{loader}` closed the connection before the end of its answer"), error)
}

/// Returns the meaning of a request without an answer.
pub(super) fn unanswered(loader: &str, error: reqwest::Error) -> LoadError {
    if error.is_builder() {
        let what = format!("loader `{loader}`: the URL for this event cannot be requested");
        return LoadError::Refused { cause: what.into() };
    }
    if error.is_connect() {
        // The cause may name the host, which the rule file chose, and nothing else.
        return failed(format!("loader `{loader}`: no connection"), error);
    }
    incomplete_answer(loader, error)
}

fn failed(what: String, error: reqwest::Error) -> LoadError {
    LoadError::Retry { after: None, cause: Cause::new(Failed { what, error: error.into() }) }
}

/// Request that failed at the loader.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Failed {
    what: String,
    #[source]
    error: HttpError,
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn an_encoded_or_partial_body_is_not_a_value() {
        let table: [(&[(HeaderName, &'static str)], bool); 9] = [
            (&[], true),
            (&[(CONTENT_ENCODING, "identity")], true),
            (&[(CONTENT_ENCODING, " Identity ,identity")], true),
            (&[(CONTENT_ENCODING, "")], true),
            (&[(CONTENT_ENCODING, "gzip")], false),
            (&[(CONTENT_ENCODING, "identity, br")], false),
            (&[(CONTENT_ENCODING, "identity"), (CONTENT_ENCODING, "zstd")], false),
            (&[(CONTENT_ENCODING, "x-unheard-of")], false),
            (&[(CONTENT_RANGE, "bytes 0-1/9")], false),
        ];
        for (given, whole) in table {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.append(name.clone(), HeaderValue::from_static(value));
            }
            assert_eq!(encoded_or_partial(&headers).is_none(), whole, "{given:?}");
        }
    }

    #[test]
    fn every_status_has_one_meaning() {
        for code in 100..=999 {
            let expected = match code {
                204 | 404 | 410 => Meaning::Absent,
                202 | 206 | 207 | 208 | 226 => Meaning::Refused,
                200..300 => Meaning::Body,
                408 | 429 | 500..600 => Meaning::Retry,
                _ => Meaning::Refused,
            };
            assert_eq!(meaning(StatusCode::from_u16(code).unwrap()), expected, "{code}");
        }
    }
}
