//! Reloads of rule files that change all the time, or that cannot be read.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::stage::{SOON, Stage};
use crate::status::json;
use crate::support::wait_until;

const USERS: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

const MEMBERS: &str = r#"events: { member.updated: { effects: [ { delete: "member:{id}" } ] } }"#;

/// Change to the rule files.
type Change<'c> = &'c dyn Fn();

/// Returns the reason in `unstale status` why the worker did not load the current rule files.
async fn refused(stage: &Stage) -> Option<String> {
    let (_, status) = json(stage, &[]).await;
    status["redis"]["workers"][0]["refused_registry"].as_str().map(str::to_owned)
}

/// Returns whether `unstale status` notes that rule files change all the time.
async fn notes_changes(stage: &Stage, file: &str) -> bool {
    let (_, status) = json(stage, &[]).await;
    let notes = status["notes"].as_array().cloned().unwrap_or_default();
    notes.iter().any(|note| {
        note["code"] == "worker.changing-rules"
            && note["what"].as_str().is_some_and(|what| what.contains(file))
    })
}

/// Rewrites a file again and again, until it is dropped.
struct Storm(Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Storm {
    fn start(folder: &Path) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, file, new) =
            (Arc::clone(&is_over), folder.join("storm.yaml"), folder.join("storm.new"));
        let thread = std::thread::spawn(move || {
            for n in 0u64.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                std::fs::write(&new, format!("events: {{}} # {n}\n")).unwrap();
                std::fs::rename(&new, &file).unwrap();
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        Self(is_over, Some(thread))
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let _ = self.1.take().map(std::thread::JoinHandle::join);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_all_the_time_stops_no_reload() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let worker = stage.worker(&[]).await;
    let storm = Storm::start(stage.schemas.path());
    stage.write_schema("users.yaml", MEMBERS);
    wait_until(Duration::from_secs(40), "the changed file is loaded", async || {
        worker.stderr().contains("bound the registry's routing keys")
    })
    .await;
    stage.set("member:1", "old").await;
    stage.publish("member.updated", r#"{"id":1}"#).await;
    stage.wait_gone("member:1").await;
    wait_until(SOON, "the status shows it", async || notes_changes(&stage, "storm.yaml").await)
        .await;
    let (log, warning) = (worker.stderr(), "rule files change all the time");
    assert_eq!(log.matches(warning).count(), 1, "{log}");

    drop(storm);
    wait_until(Duration::from_secs(40), "the status no longer shows it", async || {
        !notes_changes(&stage, "storm.yaml").await
    })
    .await;
    stage.write_schema("users.yaml", USERS);
    let reloads = || worker.stderr().matches("registry reloaded").count();
    let before = reloads();
    wait_until(SOON, "reloads are as quick as before", async || reloads() > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_files_that_cannot_be_read_are_reported() {
    let stage = Stage::new(&[("users.yaml", USERS)]).await;
    let folder = stage.schemas.path();
    let (below, file) = (folder.join("teams"), folder.join("teams/one/members.yaml"));
    std::fs::create_dir_all(below.join("one")).unwrap();
    std::fs::write(&file, MEMBERS).unwrap();
    symlink("teams/one", folder.join("linked")).unwrap();
    let worker = stage.worker_without_override(&[]).await;
    let mode = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    let aside = folder.join("teams/.aside");
    let put_back = || std::fs::rename(&aside, &file).unwrap();
    let (unreadable, no_search, unlisted) =
        (|| mode(&file, 0), || mode(&below, 0o644), || mode(&below, 0));
    let dangling = || {
        std::fs::remove_file(folder.join("linked")).unwrap();
        symlink("teams/none", folder.join("linked")).unwrap();
    };
    let pipe = || {
        std::fs::rename(&file, &aside).unwrap();
        assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    };
    let large = || {
        std::fs::rename(&file, &aside).unwrap();
        std::fs::File::create(&file).unwrap().set_len(17 << 20).unwrap();
    };
    let socket = || {
        std::fs::rename(&file, &aside).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&file).unwrap());
    };
    let linked = || {
        std::fs::remove_file(folder.join("linked")).unwrap();
        symlink("teams/one", folder.join("linked")).unwrap();
    };
    let all: [(&str, Change<'_>, &str, Change<'_>); 7] = [
        ("an unreadable file", &unreadable, "members.yaml", &|| mode(&file, 0o644)),
        ("a folder without search", &no_search, "teams/one", &|| mode(&below, 0o755)),
        ("an unreadable folder", &unlisted, "teams", &|| mode(&below, 0o755)),
        ("a link to no folder", &dangling, "linked", &linked),
        ("a pipe", &pipe, "members.yaml", &put_back),
        ("a file that is too large", &large, "members.yaml", &put_back),
        ("a socket", &socket, "members.yaml", &|| {
            std::fs::remove_file(&file).unwrap();
            put_back();
        }),
    ];
    for (name, spoil, named, fix) in all {
        let failures =
            async || worker.metrics().await.sum("unstale_registry_reload_failures_total", &[]);
        let (logged, failed) = (worker.stderr().len(), failures().await);
        spoil();
        wait_until(SOON, name, async || refused(&stage).await.is_some()).await;
        let is_error = |line: &str| line.contains("ERROR") && line.contains(named);
        let log = worker.stderr()[logged..].to_owned();
        assert_eq!(log.lines().filter(|line| is_error(line)).count(), 1, "{name}:\n{log}");
        assert!((failures().await - failed - 1.0).abs() < 0.5, "{name}:\n{log}");
        fix();
        wait_until(SOON, name, async || refused(&stage).await.is_none()).await;
        stage.set("member:1", "old").await;
        stage.publish("member.updated", r#"{"id":1}"#).await;
        stage.wait_gone("member:1").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_is_not_reported_as_the_cause_of_a_refusal() {
    let stage = Stage::new(&[("a.yaml", USERS)]).await;
    let worker = stage.worker(&[]).await;
    stage.write_schema("b.yaml", "events: { member.updated: { efects: [] } }");
    wait_until(SOON, "the broken registry is reported", async || refused(&stage).await.is_some())
        .await;
    let cause = refused(&stage).await.unwrap();
    assert!(cause.contains("b.yaml") && cause.contains("error["), "{cause}");
    let log = worker.stderr();
    let warnings: Vec<&str> =
        log.lines().filter(|line| line.contains("warning[data.missing]")).collect();
    assert!(!warnings.is_empty() && warnings.iter().all(|line| line.contains("WARN")), "{log}");
}
