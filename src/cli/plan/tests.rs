use std::time::Duration;

use super::*;
use crate::registry::{
    Action, Expiry, Only, RuleId, Stale, Verb, Version, Warm, Write as WriteEffect,
};
use crate::registry::{LoaderId, Note};

fn rules() -> Vec<RuleName> {
    [Verb::Delete, Verb::Write, Verb::Warm, Verb::Expire]
        .into_iter()
        .enumerate()
        .map(|(at, verb)| RuleName {
            name: format!("shop.yaml#product.updated/{at}"),
            verb,
            definition: 0,
        })
        .collect()
}

/// Resolves events in place of a registry, because these tests are about the output.
fn resolve(event: &Event<'_>) -> Resolution {
    let effect = |rule, target: &str, action| Effect {
        rule: RuleId(rule),
        target: target.to_owned(),
        action,
        version: None,
        again: None,
    };
    let ordered =
        |version: Version, effect: Effect| Effect { version: Some(Box::new(version)), ..effect };
    let hour = Expiry::After { ttl: Duration::from_secs(3_600), jitter: 0.1 };
    match event.event_type.as_ref() {
        "product.updated" => Resolution {
            matched: Matched::Definition(0),
            effects: vec![
                effect(0, "shop:product:7", Action::Delete),
                ordered(
                    Version {
                        family: "product".to_owned(),
                        digits: "12".to_owned(),
                        event: 1,
                        place: 2,
                    },
                    effect(
                        1,
                        "shop:product:7:summary",
                        Action::Write(Box::new(WriteEffect {
                            value: "{\"name\":\"K\u{1b}ite\"}".to_owned(),
                            expiry: hour,
                            tags: vec!["products".to_owned(), "toys".to_owned()],
                        })),
                    ),
                ),
                effect(
                    2,
                    "shop:product:7:page",
                    Action::Warm(Box::new(Warm {
                        loader: LoaderId(0),
                        url: "http://c/products/7".to_owned(),
                        expiry: Expiry::Never,
                        tags: vec![],
                        stale: Stale::Serve,
                        only: Only::Present,
                    })),
                ),
                effect(3, "shop:product:7:related", Action::Expire(Expiry::At(1_700_000_000_000))),
            ],
            ..Resolution::default()
        },
        "product.broken" => Resolution {
            matched: Matched::Definition(0),
            effects: vec![effect(0, "shop:product:7", Action::Delete)],
            failure: Some(Failure {
                reason: Reason::Unresolvable,
                message: "data.rev is absent".to_owned(),
                at: 1,
            }),
            ..Resolution::default()
        },
        "product.imported" => Resolution { matched: Matched::Retired(1), ..Resolution::default() },
        "product.seen" => Resolution { matched: Matched::Definition(2), ..Resolution::default() },
        _ => Resolution::default(),
    }
}

fn explain(event: &Event<'_>) -> Explanation {
    let seen = event.event_type == "product.seen";
    let note = Note {
        rule: RuleId(0),
        at: 0,
        item: Some(1),
        message: "`when` is false: data.id > 7".to_owned(),
    };
    Explanation { resolution: resolve(event), notes: if seen { vec![note] } else { vec![] } }
}

const EVENTS: &str = r#"{"type":"product.updated","id":"e1","time":"2026-01-02T03:04:05Z","data":{"id":7},"previous":{"id":7}}
{"routing_key":"product.broken","properties":{"message_id":"e2"},"body":{"id":7}}

{"type":"product.imported","id":"e3","data":{}}
{"type":"product.seen","id":"e4","data":{}}
{"type":"product.other","id":"e5","data":{}}
{"routing_key":"shopdb.shop.products","body":""}
[1,2]
"#;

fn planned(json: bool, unknown: UnknownPolicy, events: &str) -> (String, bool) {
    let rules = rules();
    let planner = Planner {
        rules: &rules,
        explain,
        is_known: &|_| false,
        unknown,
        reading: Reading::default(),
        vars: &Vars::default(),
        json,
        redact: false,
        unset: RefCell::default(),
    };
    let mut out = Vec::new();
    let (all_good, _) = planner.lines(events.as_bytes(), "stdin", &mut out).unwrap();
    (String::from_utf8(out).unwrap(), all_good)
}

#[test]
fn the_plan_as_text() {
    let (text, all_good) = planned(false, UnknownPolicy::Retry, EVENTS);
    assert!(!all_good && !text.contains('\u{1b}'));
    insta::assert_snapshot!(text);
}

#[test]
fn the_plan_as_json() {
    let (text, all_good) = planned(true, UnknownPolicy::Retry, EVENTS);
    assert!(!all_good);
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    insta::assert_snapshot!(text);
}

#[test]
fn an_unknown_event_is_not_a_dead_letter_if_unstale_unknown_is_drop() {
    let event = r#"{"type":"product.other","data":{}}"#;
    assert!(!planned(true, UnknownPolicy::Dead, event).1);
    assert!(planned(true, UnknownPolicy::Drop, event).1);
}
