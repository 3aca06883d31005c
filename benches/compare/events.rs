//! Events that workloads publish.

/// Returns the event of most workloads: an envelope with a small payload.
pub(crate) fn user_updated(id: u64) -> String {
    format!(
        r#"{{"id":"e-{id}","type":"user.updated","data":{{"id":{id},"email":"user{id}@example.org","plan":"team"}}}}"#
    )
}

/// Returns the same event with a growing revision, and with the user's team.
pub(crate) fn user_revised(id: u64, teams: u64) -> String {
    let (team, rev) = (id % teams, id + 1);
    format!(
        r#"{{"id":"e-{id}","type":"user.updated","data":{{"id":{id},"email":"user{id}@example.org","plan":"team","team":{team},"rev":{rev}}}}}"#
    )
}

/// Returns an event of another type that has an id only.
pub(crate) fn plain(event_type: &str, id: u64) -> String {
    format!(r#"{{"id":"e-{event_type}-{id}","type":"{event_type}","data":{{"id":{id}}}}}"#)
}
