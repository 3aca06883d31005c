//! The events that workloads publish.

/// What most workloads publish: an envelope with a small payload.
pub(crate) fn user_updated(id: u64) -> String {
    format!(
        r#"{{"id":"e-{id}","type":"user.updated","data":{{"id":{id},"email":"user{id}@example.org","plan":"team"}}}}"#
    )
}

/// The same with a revision that grows, and the team that the user belongs to.
pub(crate) fn user_revised(id: u64, teams: u64) -> String {
    let (team, rev) = (id % teams, id + 1);
    format!(
        r#"{{"id":"e-{id}","type":"user.updated","data":{{"id":{id},"email":"user{id}@example.org","plan":"team","team":{team},"rev":{rev}}}}}"#
    )
}

/// An event of another type with nothing but an id.
pub(crate) fn plain(event_type: &str, id: u64) -> String {
    format!(r#"{{"id":"e-{event_type}-{id}","type":"{event_type}","data":{{"id":{id}}}}}"#)
}
