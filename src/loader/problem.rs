//! Problems of a registry's loaders, which keep all of them from use.

use std::borrow::Cow;
use std::fmt;

use super::http_error::HttpError;
use crate::causes::Explain;

/// A reason why a loader of the registry cannot be used.
///
/// Messages hold no header's value and no URL, because both may hold secrets.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoaderProblem {
    /// `url` is not an absolute HTTP URL.
    #[error(
        "loader `{loader}`: `url` is not an absolute http or https URL; check the variables in it"
    )]
    Url {
        /// The loader's name in the rule file.
        loader: String,
    },
    /// HTTP does not allow the header (RFC 9110, section 5).
    #[error(
        "loader `{loader}`: HTTP cannot send the header `{header}`; check it for a line break or a control character"
    )]
    Header {
        /// The loader's name in the rule file.
        loader: String,
        /// The header's name.
        header: String,
    },
    /// The HTTP client could not be made. For `https`, the usual cause is a system without root
    /// certificates.
    #[error("loaders: cannot make an HTTP client")]
    Client(#[source] HttpError),
}

impl Explain for LoaderProblem {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Client(_) => Some(
                "loaders with https need the system's root certificates (Debian: ca-certificates)"
                    .into(),
            ),
            Self::Url { .. } | Self::Header { .. } => None,
        }
    }
}

/// All problems of a registry's loaders.
#[derive(Debug, Clone, thiserror::Error)]
pub struct LoaderProblems(pub Vec<LoaderProblem>);

impl fmt::Display for LoaderProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { "\n" }, problem.in_full())?;
        }
        Ok(())
    }
}

impl Explain for LoaderProblems {}
