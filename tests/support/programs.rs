//! Finds the server programs for the tests: those of this machine, or those of another root.
//!
//! - `UNSTALE_TEST_ROOT` names a root that `scripts/install-server-root.sh` made. Without it the
//!   programs are this machine's.
//! - `UNSTALE_TEST_REDIS` is `redis` (the default) or `valkey`, and selects the server that acts as
//!   Redis.
//!
//! `make test-matrix` sets them. Servers of a root share `/tmp`, `/proc`, `/dev` and the network
//! with the tests. So a test that passes a file to a server puts it into a temporary folder.

use std::path::{Path, PathBuf};
use std::process::Command;

const MISSING: &str = "is not installed: run scripts/install-servers.sh";

/// Script that runs a program in a root. Its path is that of this crate, wherever the tests run.
const IN_ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/in-server-root.sh");

/// Folder in which Debian keeps the RabbitMQ scripts that do not switch to the `rabbitmq` user.
const RABBITMQ: &str = "/usr/lib/rabbitmq/bin";

/// Returns a command that runs a server program by its name, such as `redis-server`.
pub(crate) fn server_command(name: &str) -> Command {
    let root = std::env::var_os("UNSTALE_TEST_ROOT").map(PathBuf::from);
    let name = in_the_words_of_the_cache(name);
    match root {
        None => {
            Command::new(find(&name, Path::new("/")).unwrap_or_else(|| panic!("{name} {MISSING}")))
        }
        Some(root) => {
            assert!(
                std::env::temp_dir().starts_with("/tmp"),
                "servers of another root see /tmp alone: unset TMPDIR"
            );
            let program = find(&name, &root).unwrap_or_else(|| {
                panic!("{name} is not in UNSTALE_TEST_ROOT={}: make the root with scripts/install-server-root.sh", root.display())
            });
            let mut command = Command::new(IN_ROOT);
            command
                .arg(&root)
                .arg(Path::new("/").join(program.strip_prefix(&root).expect("it was found there")));
            command
        }
    }
}

/// Returns the program's name for the selected server, since Valkey's programs have other names.
fn in_the_words_of_the_cache(name: &str) -> String {
    match (std::env::var("UNSTALE_TEST_REDIS").as_deref(), name.strip_prefix("redis-")) {
        (Ok("valkey"), Some(rest)) => format!("valkey-{rest}"),
        (Ok("valkey" | "redis") | Err(_), _) => name.to_owned(),
        (Ok(other), _) => panic!("UNSTALE_TEST_REDIS is `{other}`: it is `redis` or `valkey`"),
    }
}

/// Returns the full path of a program in a root. Searches the folder of RabbitMQ first, then
/// `PATH`.
fn find(name: &str, root: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/sbin"].map(PathBuf::from);
    let folders =
        std::iter::once(PathBuf::from(RABBITMQ)).chain(std::env::split_paths(&path)).chain(usual);
    // Puts an absolute path into the root.
    let within = |folder: PathBuf| {
        folder.strip_prefix("/").map_or(folder.clone(), |inner| root.join(inner)).join(name)
    };
    folders.map(within).find(|file| file.exists())
}
