//! The limit of file descriptors. Below a minimum, a worker could not connect to its servers.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything whose number no setting bounds: servers, the nodes of clusters, rule
/// files, the runtime.
const FOR_SERVERS_AND_FILES: u64 = 256;

/// The process may open fewer files than it needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the process may open {limit} files and needs up to {needed}: connections to the servers may fail; raise the limit (ulimit -n, \
     LimitNOFILE= of systemd, --ulimit nofile= of Docker)"
)]
pub(crate) struct TooFew {
    limit: u64,
    needed: u64,
}

/// Raises the process's own limit as far as its user may where it is below what `connections` take.
///
/// # Errors
/// [`TooFew`] if the limit stays too low.
pub(crate) fn ensure_for(connections: usize) -> Result<(), TooFew> {
    let needed =
        FOR_SERVERS_AND_FILES.saturating_add(u64::try_from(connections).unwrap_or(u64::MAX));
    let limits = getrlimit(Resource::Nofile);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if is_enough(limits.current) {
        return Ok(());
    }
    let raised = if is_enough(limits.maximum) { Some(needed) } else { limits.maximum };
    let limit =
        match setrlimit(Resource::Nofile, Rlimit { current: raised, maximum: limits.maximum }) {
            Ok(()) => raised,
            Err(_) => limits.current,
        };
    if is_enough(limit) { Ok(()) } else { Err(TooFew { limit: limit.unwrap_or(u64::MAX), needed }) }
}
