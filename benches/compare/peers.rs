//! Programs of the peers, and their libraries from npm and PyPI in a folder of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");
const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.local/bench");

/// Returns the program with amqplib and ioredis.
pub(crate) fn node() -> Command {
    let mut command = Command::new("node");
    command.arg(installed().join("node/worker.js"));
    command
}

/// Returns one of the Python programs.
pub(crate) fn python(program: &str) -> Command {
    let mut command = Command::new(installed().join("python/bin/python"));
    command.arg(Path::new(PROGRAMS).join("python").join(program));
    command
}

fn installed() -> PathBuf {
    PathBuf::from(INSTALLED)
}

/// Installs the missing libraries, as the lock files pin them.
pub(crate) fn install() {
    let status = Command::new(Path::new(PROGRAMS).join("install.sh"))
        .arg(INSTALLED)
        .status()
        .expect("the script can be run");
    assert!(status.success(), "benches/peers/install.sh: {status}");
}

/// Returns the versions of the peers' runtimes and libraries.
pub(crate) fn versions() -> String {
    let version = |mut command: Command| {
        let output =
            command.arg("--version").output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).trim().to_owned()
    };
    let python = Command::new(installed().join("python/bin/python"));
    format!("Node {}, {}", version(Command::new("node")), version(python))
}
