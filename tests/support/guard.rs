//! Runs child processes that never outlive the test process, even if `kill -9` ends it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// Script that waits on a pipe that only the test process holds. A line means that everything was
/// cleaned up. The end of the pipe without a line means that the test process has ended. Then the
/// watchdog ends the child and removes its folder. The second removal covers files that children of
/// a dying server still wrote.
const WATCHDOG: &str = r#"
    if read -r _; then exit 0; fi
    kill -9 "$0" 2>/dev/null
    [ -n "$1" ] || exit 0
    rm -rf -- "$1"; sleep 1; rm -rf -- "$1"
"#;

/// A running child. Dropping it kills the child.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Child,
    watchdog: Child,
}

impl Guarded {
    /// Starts `command` in its own process group, so that Ctrl-C reaches it only through the test
    /// process. The watchdog removes `folder` when the test process dies.
    pub(crate) fn spawn(mut command: Command, folder: Option<&Path>) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, &child.id().to_string()])
            .arg(folder.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh is there on every system that these tests support");
        Self { child, watchdog }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the child, with its stdout and stderr if the command piped them.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours can be waited for")
    }

    pub(crate) fn signal(&self, name: &str) {
        send_signal(name, self.pid());
    }

    /// Closes the pipe as the death of the test process would.
    pub(crate) fn lose_pipe(&mut self) {
        drop(self.watchdog.stdin.take());
    }

    /// Sends `kill -9`, and waits for the end.
    pub(crate) fn kill(&mut self) {
        if self.exited().is_none() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
        if let Some(mut pipe) = self.watchdog.stdin.take() {
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.watchdog.wait();
    }
}

/// Sends a signal by name (`TERM`, `STOP`, `CONT`) through the shell's `kill`, since a call from
/// Rust would need `unsafe`.
pub(crate) fn send_signal(name: &str, pid: u32) {
    let status = Command::new("sh")
        .args(["-c", r#"kill -s "$0" "$1""#, name, &pid.to_string()])
        .status()
        .expect("sh runs");
    assert!(status.success(), "kill -s {name} {pid}: {status}");
}

/// Returns the end of a log, for the message about a server that did not start.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
