//! URLs that may contain secrets.

use std::fmt;

/// A URL that may contain a password, or a secret in its query. `Debug` and `Display` hide both.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(url::Url);

impl SecretUrl {
    /// Wraps a URL.
    pub fn new(url: url::Url) -> Self {
        Self(url)
    }

    /// Returns the URL with its secrets, for connecting. It must not be shown.
    pub fn expose(&self) -> &url::Url {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        if shown.password().is_some() && shown.set_password(Some("***")).is_err() {
            return f.write_str("***");
        }
        if shown.query().is_some() {
            shown.set_query(Some("***"));
        }
        write!(f, "{shown}")
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_password_and_query() {
        for (url, shown) in [
            (
                "amqps://me:secret@host:5671/v?heartbeat=5&password=secret",
                "amqps://me:***@host:5671/v?***",
            ),
            ("redis://:secret@host/0?token=secret", "redis://:***@host/0?***"),
            ("redis://host/0", "redis://host/0"),
        ] {
            let url = SecretUrl::new(url.parse().unwrap());
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
        }
    }
}
