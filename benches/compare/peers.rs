//! The peers' programs, with their npm and PyPI libraries in a folder of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");
const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.local/bench");

/// amqplib and ioredis.
pub(crate) fn node() -> Command {
    let mut command = Command::new("node");
    command.arg(installed().join("node/worker.js"));
    command
}

/// Returns the command of one Python program.
pub(crate) fn python(program: &str) -> Command {
    let mut command = Command::new(installed().join("python/bin/python"));
    command.arg(Path::new(PROGRAMS).join("python").join(program));
    command
}

fn installed() -> PathBuf {
    PathBuf::from(INSTALLED)
}

/// Installs missing libraries in the versions of the lock files.
pub(crate) fn install() {
    let status = Command::new(Path::new(PROGRAMS).join("install.sh"))
        .arg(INSTALLED)
        .status()
        .expect("the script can be run");
    assert!(status.success(), "benches/peers/install.sh: {status}");
}

/// Returns the versions of the programs that run the peers.
pub(crate) fn versions() -> String {
    let version = |mut command: Command| {
        let output =
            command.arg("--version").output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).trim().to_owned()
    };
    let python = Command::new(installed().join("python/bin/python"));
    format!("Node {}, {}", version(Command::new("node")), version(python))
}
