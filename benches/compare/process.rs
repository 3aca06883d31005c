//! Measurements of a process, from Linux.

use std::time::Duration;

/// Unit of Linux' counts, independent of the kernel's own tick (`USER_HZ`).
const TICKS_PER_S: f64 = 100.0;

/// Returns the CPU time of a process and its threads so far, ended ones included. Zero after its
/// end.
pub(crate) fn cpu(pid: u32) -> Duration {
    stat(&pid.to_string()).map_or(Duration::ZERO, |stat| stat.cpu)
}

/// Returns the same for all processes of a group. A server may be a script that has started others.
pub(crate) fn cpu_of_group(group: u32) -> Duration {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| stat(process.file_name().to_str()?))
        .filter(|stat| stat.group == group)
        .map(|stat| stat.cpu)
        .sum()
}

/// Returns the idle time of all cores so far, added up.
pub(crate) fn idle() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // `idle` and `iowait` are the fourth and fifth field in the line of all cores (proc(5)).
    let all = stat.lines().next().unwrap_or_default().split_ascii_whitespace();
    ticks(all.skip(4).take(2))
}

struct Stat {
    group: u32,
    cpu: Duration,
}

fn stat(process: &str) -> Option<Stat> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may contain spaces. `pgrp`, `utime` and `stime` are the 3rd, 12th and
    // 13th fields after it (proc(5)).
    let fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let group = fields.clone().nth(2)?.parse().ok()?;
    Some(Stat { group, cpu: ticks(fields.skip(11).take(2)) })
}

fn ticks<'f>(fields: impl Iterator<Item = &'f str>) -> Duration {
    let ticks: f64 = fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    Duration::from_secs_f64(ticks / TICKS_PER_S)
}

/// Returns the maximum of its resident memory, in MiB.
pub(crate) fn peak_resident_mib(pid: u32) -> f64 {
    status_kib(pid, "VmHWM:") / 1024.0
}

fn status_kib(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix("kB")?.trim().parse().ok());
    value.unwrap_or_default()
}

/// Describes the machine in a line: processor, cores, memory, kernel.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| {
        line.strip_prefix("model name")?.split_once(": ").map(|(_, model)| model.to_owned())
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = read("/proc/meminfo");
    let kib: f64 = memory
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok()
        })
        .unwrap_or(0.0);
    let kernel = read("/proc/sys/kernel/osrelease");
    let model = model.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!("{model}, {cores} cores, {:.0} GiB, Linux {}", kib / 1024.0 / 1024.0, kernel.trim())
}
