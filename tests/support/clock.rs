//! Gives processes that the tests start a wrong clock: a shim returns another time than the
//! kernel's. Time passes at the usual rate, and monotonic clocks are unchanged. Linux only.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Functions that replace those of the C library in a process. libfaketime does not work with the
/// jemalloc of Redis.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static long apart(void) {
    static long seconds;
    static int known;
    if (!known) {
        const char *text = getenv("CLOCK_APART_S");
        seconds = text ? atol(text) : 0;
        known = 1;
    }
    return seconds;
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += apart();
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    if (now) *now = time.tv_sec;
    return time.tv_sec;
}
"#;

/// Returns the environment of a process whose clock is that many hours ahead of the test's clock.
/// Returns nothing if the clock is right. The shim is copied to `folder`, which a server of another
/// root must see.
pub(crate) fn settings(hours_ahead: i32, folder: &Path) -> Vec<(&'static str, String)> {
    if hours_ahead == 0 {
        return Vec::new();
    }
    let library = folder.join("clock.so");
    // A running server has the file mapped, so it is not written again.
    if !library.exists() {
        std::fs::copy(shim(), &library).expect("the folder is ours");
    }
    let library = library.to_str().expect("an ordinary path").to_owned();
    vec![("LD_PRELOAD", library), ("CLOCK_APART_S", (hours_ahead * 3_600).to_string())]
}

/// Returns the shim's library. It is built once, with the C compiler that Rust uses as linker.
fn shim() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(|| {
        let file = |name: &str| {
            format!("{}/clock-{}{name}", env!("CARGO_TARGET_TMPDIR"), std::process::id())
        };
        let (source, library) = (file(".c"), file(".so"));
        std::fs::write(&source, SHIM).expect("cargo made the folder");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o", &library, &source])
            .output()
            .expect("cc runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        library
    })
}
