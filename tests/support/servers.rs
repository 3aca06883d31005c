//! Determines the software and version of the servers under test, from their programs and not from
//! the names of roots.
//!
//! A test that differs between servers asks here, and states the difference in a comment.

use std::sync::OnceLock;

use super::programs::server_command;

/// Major, minor and patch number.
pub(crate) type Version = (u32, u32, u32);

/// The servers of this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Servers {
    pub(crate) rabbitmq: Version,
    /// `Redis` or `Valkey`.
    pub(crate) redis_software: &'static str,
    /// The server's own version. For Valkey it is not the version of the Redis whose commands it
    /// supports.
    pub(crate) redis: Version,
}

impl Servers {
    /// Returns true if users need a permission for passive declarations, which only look.
    pub(crate) fn a_look_needs_a_permission(&self) -> bool {
        self.rabbitmq >= (4, 2, 6)
    }

    /// Returns true if a stream that the broker has broken ends publishers' connections. It affects
    /// each publisher whose message is bound to the stream. Earlier versions leave such a stream
    /// out.
    pub(crate) fn a_broken_stream_ends_publishers(&self) -> bool {
        self.rabbitmq >= (4, 1, 0)
    }
}

/// Returns the servers of this run, which are asked once.
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

/// Returns the version at the start of a text.
pub(crate) fn version_of(text: &str) -> Version {
    let first = text.split_whitespace().next().unwrap_or_default();
    let mut numbers = first
        .split('.')
        .map(|number| number.parse().unwrap_or_else(|_| panic!("no version: {text}")));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}
