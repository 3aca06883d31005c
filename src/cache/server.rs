//! Software, version and role of the Redis server.

use super::Cache;
use super::answer::text_of;
use super::failure::CommandError;

/// Description that a server gives of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Name of the software: `Redis`, or `Valkey`, `Dragonfly` and others that speak its protocol.
    pub software: &'static str,
    /// Version of that software, such as `7.0.15`; `None` without the right to ask.
    pub version: Option<String>,
    /// Role in Redis' words: `master` or `slave`.
    pub role: Option<String>,
    /// Number of replicas that follow it.
    pub replicas: Option<u32>,
}

impl Cache {
    /// Returns the server's description. Without the right to `INFO`, all its fields are empty.
    ///
    /// # Errors
    /// An outage.
    pub async fn server(&self) -> Result<ServerInfo, CommandError> {
        let mut info = String::new();
        for section in ["server", "replication"] {
            let mut command = redis::cmd("INFO");
            command.arg(section);
            match self.call("INFO", command).await {
                Ok(value) => info.extend(text_of(&value)),
                Err(error @ CommandError::Outage(_)) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(read(&info))
    }
}

/// Field with the software's own version, and its name. `redis_version` is the Redis that it is
/// compatible with.
const SOFTWARE: [(&str, &str); 3] =
    [("valkey_version", "Valkey"), ("dragonfly_version", "Dragonfly"), ("redis_version", "Redis")];

fn read(info: &str) -> ServerInfo {
    let value =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let known = SOFTWARE.iter().find_map(|(field, software)| Some((*software, value(field)?)));
    ServerInfo {
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
    fn missing_fields_of_info_are_none() {
        let info = "# ServerInfo\r\nredis_version:7.0.15\r\n# Replication\r\nrole:master\r\nconnected_slaves:2\r\n";
        let expected = ServerInfo {
            software: "Redis",
            version: Some("7.0.15".into()),
            role: Some("master".into()),
            replicas: Some(2),
        };
        assert_eq!(read(info), expected);
        assert_eq!(
            read(""),
            ServerInfo { software: "Redis", version: None, role: None, replicas: None }
        );
    }

    #[test]
    fn other_software_is_named_with_its_own_version() {
        let valkey =
            "# ServerInfo\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n";
        let dragonfly = "# ServerInfo\r\nredis_version:7.2.0\r\ndragonfly_version:df-v1.30.0\r\n";
        for (info, software, version) in
            [(valkey, "Valkey", "9.1.2"), (dragonfly, "Dragonfly", "df-v1.30.0")]
        {
            let server = read(info);
            assert_eq!((server.software, server.version.as_deref()), (software, Some(version)));
        }
    }
}
