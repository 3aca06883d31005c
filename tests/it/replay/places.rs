//! `unstale replay`: the span of a replay.

use super::{APART, declare, replay, wait_recorded};
use crate::end_to_end::stage::Stage;

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

#[tokio::test(flavor = "multi_thread")]
async fn replay_of_an_empty_history_or_of_places_beyond_it_applies_nothing() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    let missing = replay(&stage, &["--since", "1h"]).await;
    assert_eq!(missing.code, 69, "{}", missing.err);
    assert!(
        missing.err.contains("no queue") && missing.err.contains("UNSTALE_HISTORY=off"),
        "{}",
        missing.err
    );
    declare(&stage).await;
    let empty = replay(&stage, &["--since", "1h", "--json"]).await.clean().json();
    assert_eq!((&empty["events"], &empty["end"]), (&0.into(), &0.into()), "{empty}");
    stage.publish("user.updated", r#"{"id":1}"#).await;
    wait_recorded(&stage, 1).await;
    for since in ["offset:1", "offset:99999", "2999-01-01T00:00:00Z"] {
        let json = replay(&stage, &["--since", since, "--json"]).await.clean().json();
        assert_eq!((&json["events"], &json["end"]), (&0.into(), &1.into()), "{since}: {json}");
        let told = replay(&stage, &["--since", since]).await.clean().err;
        assert!(
            told.contains("warning: no event is in that span: the history ends with offset:0\n"),
            "{told}"
        );
    }
    let reversed = replay(&stage, &["--since", "1h", "--until", "2h"]).await;
    assert_eq!(reversed.code, 64, "{}", reversed.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_takes_offsets_exactly_and_times_to_a_second_and_a_chunk() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    let mut moments = Vec::new();
    for id in 0..4 {
        // The test must wait here: only the time of the chunks distinguishes them.
        tokio::time::sleep(APART).await;
        stage.publish("user.updated", &format!(r#"{{"id":{id}}}"#)).await;
        moments.push(jiff::Timestamp::now().to_string());
    }
    wait_recorded(&stage, 4).await;
    for (args, events) in [
        (vec!["--since", &moments[0]], 4),
        (vec!["--since", &moments[1]], 3),
        (vec!["--since", &moments[3]], 1),
        (vec!["--since", &moments[1], "--until", &moments[2]], 2),
        (vec!["--since", "1h", "--until", &moments[0]], 1),
        (vec!["--since", "offset:1"], 3),
        (vec!["--since", "offset:1", "--until", "offset:3"], 2),
        (vec!["--since", "offset:0", "--until", "2999-01-01T00:00:00Z"], 4),
    ] {
        let json =
            replay(&stage, &[&args[..], &["--json", "--dry-run"]].concat()).await.clean().json();
        assert_eq!(json["events"], events, "{args:?}: {json}");
    }
}
