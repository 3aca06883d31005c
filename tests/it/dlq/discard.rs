//! `unstale dlq drop`: it drops only letters that match, and only if that is confirmed.

use super::{declare, dlq, publish_letters};
use crate::end_to_end::stage::Stage;

const RULES: &str = r#"events: { user.updated: { effects: [ { delete: "user:{id}" } ] } }"#;

#[tokio::test(flavor = "multi_thread")]
async fn dlq_drop_drops_only_the_letters_that_match() {
    let stage = Stage::new(&[("user.yaml", RULES)]).await;
    declare(&stage).await;
    publish_letters(&stage, 0..20).await;
    let (code, _, err) = dlq(&stage, &["drop"]).await;
    assert!(code == 64 && err.contains("--yes"), "{code}: {err}");
    let (code, out, err) = dlq(&stage, &["drop", "--dry-run"]).await;
    assert!(
        code == 0
            && out.contains("20  loader_refused  user.updated")
            && err.contains("would drop 20 dead letters"),
        "{out}{err}"
    );
    assert_eq!(stage.ready(".dead").await, 20);
    let (code, _, err) = dlq(&stage, &["drop", "--id", "e3", "--yes"]).await;
    assert!(code == 0 && err.contains("dropped 1 dead letter "), "{err}");
    let (code, _, err) = dlq(&stage, &["drop", "--limit", "4", "--yes"]).await;
    assert!(code == 0 && err.contains("dropped 4 dead letters"), "{err}");
    let (_, listed, _) = dlq(&stage, &["list"]).await;
    let ids: Vec<&str> =
        listed.lines().skip(6).filter_map(|line| line.split_whitespace().nth(3)).collect();
    assert_eq!((ids.len(), ids[0]), (15, "e5"), "the oldest went: {listed}");
    let (code, _, err) = dlq(&stage, &["drop", "--reason", "malformed", "--yes"]).await;
    assert!(code == 0 && err.contains("dropped 0 dead letters"), "{err}");
    let (code, _, err) = dlq(&stage, &["drop", "--yes"]).await;
    assert!(code == 0 && err.contains("dropped 15 dead letters"), "{err}");
    assert_eq!((stage.ready("").await, stage.ready(".dead").await), (0, 0));
}
