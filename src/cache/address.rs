//! The address of a server, as sentinels and nodes of a cluster announce it.

use std::fmt::{self, Display};

use url::Url;

use super::failure::Outage;

/// Host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Address {
    /// Returns the address in a URL.
    pub(super) fn of(url: &Url) -> Self {
        let host = url
            .host_str()
            .unwrap_or_default()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        Self { host, port: url.port().unwrap_or(6379) }
    }

    /// Takes the host of another address if this one has none. A node that does not know its own
    /// host announces none.
    pub(super) fn or_host_of(self, other: &Self) -> Self {
        if self.host.is_empty() || self.host == "?" {
            Self { host: other.host.clone(), ..self }
        } else {
            self
        }
    }

    /// Returns another server's URL with this address.
    pub(super) fn in_url(&self, url: &Url) -> Result<Url, Outage> {
        let mut url = url.clone();
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let set = url.set_host(Some(&host)).is_ok() && url.set_port(Some(self.port)).is_ok();
        if set {
            Ok(url)
        } else {
            Err(Outage::new(format!("Redis announces an invalid address: {self}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_replaces_that_of_a_url() {
        let url = Url::parse("rediss://u:p%40@sentinel:26379/3").unwrap();
        for (host, expected) in [
            ("10.0.0.1", "rediss://u:p%40@10.0.0.1:7000/3"),
            ("::1", "rediss://u:p%40@[::1]:7000/3"),
        ] {
            let address = Address { host: host.into(), port: 7000 };
            let moved = address.in_url(&url).unwrap();
            assert_eq!(moved.as_str(), expected);
            assert_eq!(Address::of(&moved), address);
        }
        assert_eq!(Address::of(&Url::parse("redis://h").unwrap()).to_string(), "h:6379");
    }
}
