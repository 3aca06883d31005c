//! What the servers are that the tests start. Their programs say it, not the names of roots.
//!
//! A test that holds differently for some servers asks here, and says in a comment what differs.

use std::sync::OnceLock;

use super::programs::server_command;

/// Major, minor, patch.
pub(crate) type Version = (u32, u32, u32);

/// The servers of this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Servers {
    pub(crate) rabbitmq: Version,
    /// `Redis` or `Valkey`.
    pub(crate) redis_software: &'static str,
    /// Its own version, not that of the Redis whose commands it knows.
    pub(crate) redis: Version,
}

impl Servers {
    /// Whether users need a permission on what they only look at (passive declarations).
    pub(crate) fn a_look_needs_a_permission(&self) -> bool {
        self.rabbitmq >= (4, 2, 6)
    }

    /// Whether a stream that the broker has broken ends the connection of each publisher whose
    /// message is bound to it. Earlier versions leave such a stream out.
    pub(crate) fn a_broken_stream_ends_publishers(&self) -> bool {
        self.rabbitmq >= (4, 1, 0)
    }
}

/// The servers of this run, asked once.
pub(crate) fn servers() -> &'static Servers {
    static ASKED: OnceLock<Servers> = OnceLock::new();
    ASKED.get_or_init(|| {
        let redis = said_by("redis-server", "--version");
        let (software, version) =
            redis.split_once(" server v=").unwrap_or_else(|| panic!("redis-server says: {redis}"));
        Servers {
            rabbitmq: version_of(&said_by("rabbitmqctl", "version")),
            redis_software: if software == "Valkey" { "Valkey" } else { "Redis" },
            redis: version_of(version),
        }
    })
}

fn said_by(program: &str, argument: &str) -> String {
    let output = server_command(program)
        .arg(argument)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {argument}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("versions are plain text")
}

/// The version that a text begins with.
pub(crate) fn version_of(text: &str) -> Version {
    let first = text.split_whitespace().next().unwrap_or_default();
    let mut numbers = first
        .split('.')
        .map(|number| number.parse().unwrap_or_else(|_| panic!("no version: {text}")));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}
