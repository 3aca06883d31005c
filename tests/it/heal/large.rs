//! A heal over large bodies, in little memory.

#![expect(clippy::print_stderr, reason = "figures for who reads the output")]

use std::time::{Duration, Instant};

use super::heals;
use crate::end_to_end::stage::{SOON, Stage};
use crate::replay::bounds::record_large;
use crate::support::limits::Usage;
use crate::support::{full_runs, wait_until};

const USERS: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

/// Memory for data, in bytes.
const MEMORY: u64 = 256 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_heal_over_many_large_bodies_fits_into_256_mib() {
    let count: u32 = if full_runs() { 10_000 } else { 200 };
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    record_large(&stage, 0..count, 1 << 20, 100).await;
    for id in [0, count / 2, count - 1] {
        stage.set(&format!("user:{id}"), "old").await;
    }
    let _: () = redis::AsyncCommands::del(
        &mut stage.connection().await,
        format!("unstale:mark:{}", stage.queue),
    )
    .await
    .unwrap();
    let begun = Instant::now();
    let worker = stage.start_worker(&[("UNSTALE_HEAL_WINDOW", "1h")]);
    let pid = worker.pid().to_string();
    let limited = std::process::Command::new("prlimit")
        .args(["--pid", &pid, &format!("--data={MEMORY}")])
        .status()
        .unwrap();
    assert!(limited.success());
    let usage = || {
        Usage::of(worker.pid())
            .filter(|usage| usage.peak_bytes > 0)
            .unwrap_or_else(|| panic!("it died: {}", worker.stderr()))
    };
    wait_until(SOON + Duration::from_millis(250) * count, "the heal is done", async || {
        usage();
        matches!(worker.get("/readyz").await, Some((200, _)))
    })
    .await;
    eprintln!(
        "a heal over {count} bodies of 1 MiB: {:.1} s, {:?}",
        begun.elapsed().as_secs_f64(),
        usage()
    );
    assert_eq!(heals(&worker).await, 1.0, "{}", worker.stderr());
    for id in [0, count / 2, count - 1] {
        assert!(!stage.exists(&format!("user:{id}")).await, "{id}: {}", worker.stderr());
    }
    assert!(worker.stderr().contains(&format!("events={count}")), "{}", worker.stderr());
}
