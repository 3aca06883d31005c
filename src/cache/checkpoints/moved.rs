//! Tells slots that moved from a server that was replaced, when a checkpoint is on another server
//! than at its last write. A restarted server or a promoted replica may have lost writes.

use std::collections::{BTreeSet, HashSet};

use redis::Cmd;

use super::super::Cache;
use super::super::answer::text_of;
use super::super::failure::CommandError;
use super::{CheckpointHash, Checkpoints};

/// Answer of a script if another server wrote the checkpoints last.
pub(super) const REPLACED: i64 = 3;

impl Cache {
    /// Returns the identities of the servers that wrote checkpoints which others have now, if all
    /// of them still serve: then slots have moved. `None` means that one was restarted, or replaced
    /// by a replica.
    pub(super) async fn moved_slots(&self, answers: &[(i64, Checkpoints)]) -> Option<Vec<String>> {
        if !self.backend.moves_slots() {
            return None;
        }
        let answering = answers
            .iter()
            .flat_map(|(_, checkpoints)| &checkpoints.hashes)
            .map(|hash| hash.server.clone())
            .collect();
        let moved = moved_slots(answers, &answering);
        if moved.is_some() {
            return moved;
        }
        // A primary that all checkpoints have left may still serve.
        let all: HashSet<String> = self
            .backend
            .infos()
            .await
            .iter()
            .filter_map(text_of)
            .filter_map(|info| identity(&info))
            .collect();
        moved_slots(answers, &all)
    }

    /// Notes the servers that have checkpoints of moved slots now.
    pub(super) async fn note_new_homes(
        &self,
        answers: &[(i64, Checkpoints)],
    ) -> Result<(), CommandError> {
        let moved = answers
            .iter()
            .zip(&self.context.checkpoint_hashes)
            .filter(|((word, _), _)| *word == REPLACED);
        let commands = moved.filter_map(|((_, checkpoints), name)| {
            let server = checkpoints.hashes.first()?.server.as_str();
            Some(super::arguments("HSET", &[name, "server", server]))
        });
        let commands: Vec<Cmd> = commands.collect();
        self.ask_all(|_| commands).await.map(drop)
    }
}

/// Returns the identities of the servers that wrote checkpoints which others have now, if all of
/// them are among `serving`.
fn moved_slots(answers: &[(i64, Checkpoints)], serving: &HashSet<String>) -> Option<Vec<String>> {
    let replaced = answers
        .iter()
        .filter(|(word, _)| *word == REPLACED)
        .flat_map(|(_, checkpoints)| &checkpoints.hashes);
    let writers: BTreeSet<&str> = replaced.filter_map(CheckpointHash::written_on).collect();
    writers
        .iter()
        .all(|writer| serving.contains(*writer))
        .then(|| writers.into_iter().map(str::to_owned).collect())
}

/// Reads the identity of a primary, as `lua/checkpoint.lua` does. A demoted one keeps its
/// replication id for a moment.
fn identity(info: &str) -> Option<String> {
    let value =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    if value("role").map(str::trim) != Some("master") {
        return None;
    }
    let [run, replication] = ["run_id", "master_replid"].map(|name| value(name).map(str::trim));
    Some(format!("{}:{}", run?, replication?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(word: i64, written_on: &str, server: &str) -> (i64, Checkpoints) {
        (
            word,
            Checkpoints::of(
                1,
                server.to_owned(),
                vec![("server".to_owned(), written_on.to_owned())],
            ),
        )
    }

    #[test]
    fn slots_have_moved_if_their_writers_still_serve() {
        let serving = ["a:1", "b:1"].map(str::to_owned).into_iter().collect();
        let moved =
            [answer(1, "a:1", "a:1"), answer(REPLACED, "a:1", "b:1"), answer(1, "b:1", "b:1")];
        assert_eq!(moved_slots(&moved, &serving), Some(vec!["a:1".to_owned()]));
        let restarted = [answer(REPLACED, "c:1", "a:1"), answer(1, "b:1", "b:1")];
        assert_eq!(moved_slots(&restarted, &serving), None);
    }

    #[test]
    fn an_identity_is_read_as_scripts_read_it() {
        let info = "# Server\r\nrun_id:ab12\r\n# Replication\r\nrole:master\r\nmaster_replid:cd\r\nmaster_replid2:00\r\n";
        assert_eq!(identity(info).as_deref(), Some("ab12:cd"));
        assert_eq!(identity(&info.replace("role:master", "role:slave")), None);
        assert_eq!(identity("run_id:ab12\r\n"), None);
    }
}
