//! What Redis says of itself.

use super::Cache;
use super::failure::CommandError;
use super::workers::text_of;

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `Redis`, or the name of what speaks its protocol: `Valkey`, `Dragonfly`.
    pub software: &'static str,
    /// Its own version, such as `7.0.15`; `None` where our user may not ask.
    pub version: Option<String>,
    /// `master` or `slave`, as Redis calls them.
    pub role: Option<String>,
    /// How many replicas follow it.
    pub replicas: Option<u32>,
}

impl Cache {
    /// Asks what the server is. A user without `INFO` learns nothing.
    ///
    /// # Errors
    /// An outage.
    pub async fn server(&self) -> Result<Server, CommandError> {
        let mut told = String::new();
        for section in ["server", "replication"] {
            let mut command = redis::cmd("INFO");
            command.arg(section);
            match self.call("INFO", command).await {
                Ok(value) => told.extend(text_of(&value)),
                Err(error @ CommandError::Outage(_)) => return Err(error),
                Err(CommandError::Refused(_) | CommandError::Failed(_)) => {}
            }
        }
        Ok(read(&told))
    }
}

/// Software by the field of its own version. In `redis_version` each names the Redis that it is
/// compatible with.
const SOFTWARE: [(&str, &str); 3] =
    [("valkey_version", "Valkey"), ("dragonfly_version", "Dragonfly"), ("redis_version", "Redis")];

fn read(info: &str) -> Server {
    let value =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let known = SOFTWARE.iter().find_map(|(field, software)| Some((*software, value(field)?)));
    Server {
        software: known.map_or("Redis", |(software, _)| software),
        version: known.map(|(_, version)| version.to_owned()),
        role: value("role").map(str::to_owned),
        replicas: value("connected_slaves").and_then(|count| count.parse().ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_read_as_far_as_it_goes() {
        let info = "# Server\r\nredis_version:7.0.15\r\n# Replication\r\nrole:master\r\nconnected_slaves:2\r\n";
        let expected = Server {
            software: "Redis",
            version: Some("7.0.15".into()),
            role: Some("master".into()),
            replicas: Some(2),
        };
        assert_eq!(read(info), expected);
        assert_eq!(
            read(""),
            Server { software: "Redis", version: None, role: None, replicas: None }
        );
    }

    #[test]
    fn other_software_is_named_with_its_own_version() {
        let valkey =
            "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n";
        let dragonfly = "# Server\r\nredis_version:7.2.0\r\ndragonfly_version:df-v1.30.0\r\n";
        for (info, software, version) in
            [(valkey, "Valkey", "9.1.2"), (dragonfly, "Dragonfly", "df-v1.30.0")]
        {
            let server = read(info);
            assert_eq!((server.software, server.version.as_deref()), (software, Some(version)));
        }
    }
}
