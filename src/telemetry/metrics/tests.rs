use super::*;
use crate::registry::{Matched, RuleId, Verb};

fn rules() -> Vec<RuleName> {
    vec![RuleName {
        name: "user.yaml#user.updated/0".to_owned(),
        verb: Verb::Delete,
        definition: 0,
    }]
}

#[test]
fn every_documented_metric_is_exposed() {
    let metrics = Metrics::new();
    let handles = metrics.for_registry("abc", &rules(), ["user.updated"]);
    handles.event(Matched::Definition(0), EventOutcome::Applied);
    handles.event(Matched::Unknown, EventOutcome::Dead);
    handles.event(Matched::Retired(0), EventOutcome::Retired);
    handles.effects(RuleId(0), 3);
    handles.keys(RuleId(0), 2, 1);
    metrics.event_to_applied(Duration::from_millis(1));
    metrics.event_to_applied(Duration::from_secs(3_000));
    metrics.set_paused("redis", true);
    metrics.retried();
    metrics.dead(Reason::Malformed);
    metrics.batch(256);
    metrics.set_in_flight(7);
    metrics.reload_failed();
    metrics.healed();
    let text = metrics.prometheus_text();
    for line in [
        r#"unstale_events_total{type="user.updated",outcome="applied"} 1"#,
        r#"unstale_events_total{type="user.updated",outcome="retired"} 1"#,
        r#"unstale_events_total{type="unknown",outcome="dead"} 1"#,
        r#"unstale_effects_total{rule="user.yaml#user.updated/0",verb="delete"} 3"#,
        r#"unstale_keys_total{rule="user.yaml#user.updated/0",verb="delete",hit="yes"} 2"#,
        r#"unstale_keys_total{rule="user.yaml#user.updated/0",verb="delete",hit="no"} 1"#,
        r#"unstale_event_to_applied_seconds_bucket{le="0.001"} 1"#,
        r#"unstale_event_to_applied_seconds_bucket{le="600.0"} 1"#,
        r#"unstale_event_to_applied_seconds_bucket{le="+Inf"} 2"#,
        "unstale_event_to_applied_seconds_count 2",
        "unstale_oldest_unsettled_seconds 0.0",
        r#"unstale_paused{cause="redis"} 1"#,
        "unstale_retries_total 1",
        r#"unstale_dead_total{reason="malformed"} 1"#,
        r#"unstale_dead_total{reason="panicked"} 0"#,
        r#"unstale_batch_events_bucket{le="256.0"} 1"#,
        r#"unstale_batch_events_bucket{le="128.0"} 0"#,
        "unstale_in_flight 7",
        r#"unstale_registry_info{digest="abc"} 1"#,
        "unstale_registry_reload_failures_total 1",
        "unstale_heals_total 1",
        "# TYPE unstale_retries_total counter",
        "# TYPE unstale_in_flight gauge",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing of\n{text}");
    }
    assert!(!text.contains("# EOF"));
    assert!(metrics.openmetrics().ends_with("# EOF\n"));
}

#[test]
fn a_reload_keeps_counts_and_exposes_only_the_new_digest() {
    let metrics = Metrics::new();
    metrics
        .for_registry("old", &rules(), ["user.updated"])
        .event(Matched::Definition(0), EventOutcome::Applied);
    let handles = metrics.for_registry("new", &rules(), ["order.*", "user.updated"]);
    handles.event(Matched::Definition(1), EventOutcome::Applied);
    let text = metrics.openmetrics();
    assert!(
        text.contains(r#"unstale_events_total{type="user.updated",outcome="applied"} 2"#),
        "{text}"
    );
    assert!(text.contains(r#"digest="new""#) && !text.contains(r#"digest="old""#), "{text}");
}

#[test]
fn the_age_of_the_oldest_delivery_in_flight_grows() {
    let metrics = Metrics::new();
    metrics.set_oldest_unsettled(Some(SystemTime::now() - Duration::from_secs(90)));
    let text = metrics.openmetrics();
    let age = text
        .lines()
        .find_map(|line| line.strip_prefix("unstale_oldest_unsettled_seconds "))
        .unwrap();
    assert!((90.0..150.0).contains(&age.parse::<f64>().unwrap()), "{age}");
}
