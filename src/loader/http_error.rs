//! Errors of the HTTP client, without the URLs that they name.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Error of the HTTP client, shown as its innermost cause: one of DNS, TCP or TLS.
///
/// The levels above that cause name the steps of the client alone, and the first one the URL, which
/// may hold secrets.
#[derive(Debug, Clone)]
pub struct HttpError(Arc<reqwest::Error>);

impl From<reqwest::Error> for HttpError {
    fn from(error: reqwest::Error) -> Self {
        Self(Arc::new(error.without_url()))
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cause: &dyn Error = &*self.0;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        fmt::Display::fmt(cause, f)
    }
}

impl Error for HttpError {}
