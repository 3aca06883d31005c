//! Where a server is, as sentinels and nodes of a cluster announce it.

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
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

impl Address {
    /// Another server's URL, with this one's address.
    pub(super) fn in_url(&self, url: &Url) -> Result<Url, Outage> {
        let mut url = url.clone();
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let set = url.set_host(Some(&host)).is_ok() && url.set_port(Some(self.port)).is_ok();
        if set { Ok(url) } else { Err(Outage::new(format!("Redis announces an address that is none: {self}"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_the_place_of_a_urls() {
        let url = Url::parse("rediss://u:p%40@sentinel:26379/3").unwrap();
        for (host, expected) in [("10.0.0.1", "rediss://u:p%40@10.0.0.1:7000/3"), ("::1", "rediss://u:p%40@[::1]:7000/3")] {
            let address = Address { host: host.into(), port: 7000 };
            let moved = address.in_url(&url).unwrap();
            assert_eq!(moved.as_str(), expected);
        }
        assert_eq!(Address { host: "h".into(), port: 1 }.to_string(), "h:1");
    }
}
