//! Measures the resources of a process, and runs a process within limits. Linux only.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::guard::Guarded;

/// Ticks per second in `/proc/PID/stat`. Linux guarantees this value to programs, whatever the
/// kernel uses.
const TICKS: u64 = 100;

/// The resources that a process has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) struct Usage {
    /// CPU time of all its threads, including ended ones.
    pub(crate) cpu: Duration,
    /// Resident memory now.
    pub(crate) resident_bytes: u64,
    /// Maximum resident memory since its start, or since [`forget_peak`].
    pub(crate) peak_bytes: u64,
}

impl Usage {
    /// Reads the usage from `/proc`. Returns `None` if the process has ended.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before the last parenthesis may contain spaces. Fields 14 and 15 are user and
        // system time.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 =
            fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kibibytes = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.parse().ok()
        };
        Some(Self {
            cpu: Duration::from_millis(ticks * 1000 / TICKS),
            resident_bytes: kibibytes("VmRSS:")? << 10,
            peak_bytes: kibibytes("VmHWM:")? << 10,
        })
    }
}

/// Makes the kernel reset the peak of a process' resident memory.
pub(crate) fn forget_peak(pid: u32) {
    let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// Script that stops and continues the process `$0` in turn, without a process for each pause. It
/// ends with the process.
const DUTY_CYCLE: &str = r#"
    exec {never}<> <(:)
    while kill -STOP "$0" 2>/dev/null; do
        read -r -t "$1" -u "$never"
        kill -CONT "$0" 2>/dev/null || exit 0
        read -r -t "$2" -u "$never"
    done
"#;

/// Limits of a process, like those of a container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SmallBox {
    /// Maximum memory that it may write to. This is stricter than a limit of resident memory, since
    /// untouched pages count too.
    pub(crate) bytes: u64,
    /// CPU share in hundredths, at most 100, since it is bound to one CPU.
    pub(crate) hundredths_of_a_cpu: u64,
    /// Maximum number of open descriptors.
    pub(crate) files: u64,
}

impl SmallBox {
    /// The limits from the documentation: 256 MiB, half a CPU and 1,024 descriptors.
    pub(crate) const USUAL: Self = Self { bytes: 256 << 20, hundredths_of_a_cpu: 50, files: 1_024 };

    /// Applies the limits to a running process, until the returned guard is dropped or the process
    /// ends.
    pub(crate) fn hold(self, pid: u32) -> Guarded {
        let limit = |program: &str, args: &[&str]| {
            let status = Command::new(program)
                .args(args)
                .stdout(Stdio::null())
                .status()
                .unwrap_or_else(|error| panic!("{program}: {error}"));
            assert!(status.success(), "{program} {args:?}: {status}");
        };
        let pid = pid.to_string();
        limit(
            "prlimit",
            &[
                "--pid",
                &pid,
                &format!("--data={}", self.bytes),
                &format!("--nofile={}", self.files),
            ],
        );
        limit("taskset", &["-a", "-p", "-c", &first_cpu(), &pid]);
        let period_ms = 100;
        let runs_ms = period_ms * self.hundredths_of_a_cpu / 100;
        let seconds = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
        let mut command = Command::new("bash");
        command.args(["-c", DUTY_CYCLE, &pid, &seconds(period_ms - runs_ms), &seconds(runs_ms)]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Guarded::spawn(command, None)
    }
}

/// Returns the first CPU that this process may use.
fn first_cpu() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .expect("Linux has it")
        .trim();
    allowed.chars().take_while(char::is_ascii_digit).collect()
}
