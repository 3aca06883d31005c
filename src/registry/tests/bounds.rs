//! Input that a publisher could make large: resolving ends, and reports the limit.

use super::*;

fn deletes(each: Option<&str>, when: &str) -> Builder {
    let target = if each.is_some() { "x:{item}" } else { "x" };
    let mut builder = Builder::new().entry("user.updated");
    builder.registry.max_keys_per_event = 1_000_000;
    builder.rule(&[target], each, Some(when), |_| RuleBody::Delete)
}

fn strings(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|at| format!("{prefix}{at}")).collect()
}

/// Resolves with a hundredth of an event's budget.
fn resolve_within(builder: &Builder, data: &str) -> Resolution {
    let budget = Budget::with_limits(160_000, 160_000);
    builder.registry.resolve_within(&event("user.updated", data, None), &budget)
}

#[test]
fn an_event_beyond_its_budget_has_no_effects_and_names_the_rule() {
    let data = json!({"a": strings("a", 300), "b": strings("b", 300), "big": "x".repeat(20_000), "t": "y".repeat(100)}).to_string();
    for (each, when, reason) in [
        (None, "data.a.all(x, data.b.all(y, x != y))", Reason::Unresolvable),
        (None, "data.a.map(x, x + data.big).size() > 0", Reason::BlastRadius),
        (Some("data.a"), "data.b.exists(y, y == item)", Reason::Unresolvable),
        (
            Some("data.a"),
            "data.b.map(y, y)[0] == item || data.b.exists(y, y == item)",
            Reason::BlastRadius,
        ),
        (None, "data.a.filter(x, !(x in data.b)).size() > 0", Reason::Unresolvable),
        (None, "data.a.all(x, data.b.all(y, x.gone)) || true", Reason::Unresolvable),
    ] {
        let resolution = resolve_within(&deletes(each, when), &data);
        let failure = resolution.failure.expect(when);
        assert_eq!(
            (resolution.effects.len(), failure.reason, failure.at),
            (0, reason, 0),
            "{when}: {}",
            failure.message
        );
        assert!(
            failure.message.starts_with("t.yaml#user.updated/0: "),
            "{when}: {}",
            failure.message
        );
        assert!(failure.message.contains("160000"), "{when}: {}", failure.message);
    }
}

#[test]
fn a_spent_budget_removes_earlier_effects_and_failures() {
    let builder = Builder::new()
        .entry("user.updated")
        .delete("first")
        .delete("{gone}")
        .delete("{t}:{a[]}")
        .entry("#")
        .delete("last");
    let data = json!({"a": strings("a", 90), "t": "y".repeat(2_000)}).to_string();
    let resolution = resolve_within(&builder, &data);
    assert!(resolution.effects.is_empty());
    let failure = resolution.failure.unwrap();
    assert_eq!((failure.reason, failure.at), (Reason::BlastRadius, 0));
    assert!(failure.message.starts_with("t.yaml#user.updated/2: "), "{}", failure.message);
}

#[test]
fn a_deadline_ends_resolving() {
    let budget = Budget::for_event().until(std::time::Instant::now());
    let builder = Builder::new().entry("user.updated").delete("k");
    let resolution = builder.registry.resolve_within(&event("user.updated", "{}", None), &budget);
    assert_eq!(
        (resolution.effects.len(), resolution.failure.unwrap().reason),
        (0, Reason::Unresolvable)
    );
}

#[test]
fn tags_of_writes_count_as_targets() {
    let data =
        json!({"ks": (0..20).collect::<Vec<_>>(), "ts": (0..4).collect::<Vec<_>>()}).to_string();
    let builder = Builder::new().entry("user.updated").write("k:{ks[]}", &json!(1), &["t:{ts[]}"]);
    assert_eq!(builder.resolve(&data).effects.len(), 20);
    let builder =
        Builder::new().entry("user.updated").write("k:{ks[]}", &json!(1), &["t:{ts[]}", "u"]);
    let resolution = builder.resolve(&data);
    assert_eq!(
        (resolution.effects.len(), resolution.failure.unwrap().reason),
        (0, Reason::BlastRadius)
    );
}

#[test]
fn long_names_are_refused_and_other_names_are_not() {
    let data = json!({"xs": ["a", "b".repeat(8_192), "c"]}).to_string();
    let builder =
        Builder::new().entry("user.updated").delete("{xs[]}").write("k", &json!(1), &["{xs[]}x"]);
    let builder = builder.rule(&["{xs[]}y"], None, None, |_| RuleBody::InvalidateTags);
    let resolution = builder.resolve(&data);
    assert_eq!(
        lines(&resolution),
        ["delete p:a", "delete p:c", "delete p:k", "invalidate_tags ay", "invalidate_tags cy"]
    );
    let failure = resolution.failure.unwrap();
    assert_eq!((failure.reason, failure.at), (Reason::BlastRadius, 1));
    assert_eq!(failure.message, "t.yaml#user.updated/0: target: the key has more than 8192 bytes");
}

#[test]
fn no_rule_reaches_reserved_keys_or_sets_of_tags() {
    let unprefixed = |target: &str, body: fn() -> RuleBody, tag_prefix: &str| {
        let mut builder = Builder::new()
            .entry("user.updated")
            .rule(&[target], None, None, |_| body())
            .last(|definition| {
                definition.rules.last_mut().unwrap().key_prefix = String::new();
            });
        builder.registry.tag_prefix = tag_prefix.to_owned();
        let data = r#"{"a":"unstale:mark:unstale","b":"cache_tag:x","c":"unst","d":"ale:seq","e":"unstale"}"#;
        let resolution = builder.resolve(data);
        (lines(&resolution), resolution.failure.map(|failure| (failure.reason, failure.message)))
    };
    for (target, says) in [
        ("{a}", "reserved for unstale"),
        ("{c}{d}", "reserved for unstale"),
        ("{e}:fence/{{x}}", "reserved for unstale"),
        ("{b}", "invalidate_tags"),
    ] {
        let (lines, failure) = unprefixed(target, || RuleBody::Delete, "cache_tag:");
        let (reason, message) = failure.expect(target);
        assert_eq!((lines.len(), reason), (0, Reason::Unresolvable), "{target}");
        assert!(message.contains(says), "{target}: {message}");
    }
    assert_eq!(
        unprefixed("{e}", || RuleBody::Delete, "cache_tag:"),
        (vec!["delete unstale".to_owned()], None)
    );
    assert_eq!(unprefixed("{a}", || RuleBody::InvalidateTags, "cache_tag:").1, None);
    let (lines, failure) = unprefixed("{d}", || RuleBody::InvalidateTags, "unst");
    assert_eq!((lines.len(), failure.unwrap().0), (0, Reason::Unresolvable));
}

#[test]
fn no_failure_message_holds_a_control_character() {
    let builder = Builder::new().entry("user.updated").delete("{o[\"a\nb\u{1b}\"]}");
    let message = builder.resolve("{}").failure.unwrap().message;
    assert!(!message.contains(char::is_control) && message.contains("\\n"), "{message}");
}

#[test]
fn realistic_rules_stay_within_the_budget() {
    let data = json!({
        "many": (0..2000).collect::<Vec<_>>(),
        "a": strings("t", 80),
        "b": strings("u", 80),
        "orders": (0..50).map(|id| json!({"id": id, "lines": strings("s", 20)})).collect::<Vec<_>>(),
    })
    .to_string();
    for when in [
        "data.many.exists(n, n == 1999)",
        "data.many.filter(n, n % 2 == 0).map(n, n * 2).size() == 1000",
        "data.a.filter(t, !(t in data.b)).size() == 80",
        "data.a.all(t, data.b.all(u, t != u))",
        "data.orders.all(o, o.lines.exists(l, l == 's19'))",
        "has(data.orders[0].lines) && data.a.map(t, data.b[0]).size() == 80",
        "data.a.map(t, {'k': t}).all(m, m.k in data.a)",
    ] {
        let resolution = deletes(None, when).resolve(&data);
        assert_eq!((resolution.effects.len(), resolution.failure), (1, None), "{when}");
    }
    let resolution =
        deletes(Some("data.a"), "!(item in data.b) && data.orders[0].id == 0").resolve(&data);
    assert_eq!((resolution.effects.len(), resolution.failure), (80, None));
}

#[test]
fn arrays_that_multiply_are_charged_even_without_targets() {
    let empties: Vec<_> = (0..200).map(|_| json!({"zs": []})).collect();
    let absent: Vec<_> = (0..200).map(|_| json!({})).collect();
    for ys in [empties, absent] {
        let data = json!({"xs": (0..200).collect::<Vec<_>>(), "ys": ys}).to_string();
        let resolution = resolve_within(
            &Builder::new().entry("user.updated").delete("{xs[]}:{ys[].zs[]}"),
            &data,
        );
        assert_eq!(
            (resolution.effects.len(), resolution.failure.unwrap().reason),
            (0, Reason::Unresolvable)
        );
    }
}

#[test]
fn changed_has_one_result_per_path() {
    let builder = Builder::new().entry("user.updated").rule(
        &["{item}"],
        Some("data.xs"),
        Some("changed('a') && !changed('b') || item == 'c' && changed('xs')"),
        |_| RuleBody::Delete,
    );
    let now = r#"{"a":1,"b":2,"xs":["a","b"]}"#;
    let resolve =
        |previous| lines(&builder.registry.resolve(&event("user.updated", now, Some(previous))));
    assert_eq!(resolve(r#"{"a":2,"b":2.0}"#), ["delete p:a", "delete p:b"]);
    assert_eq!(resolve(r#"{"a":1,"b":2}"#), [""; 0]);
    assert_eq!(resolve(r#"{"a":2,"b":3}"#), [""; 0]);
}

#[test]
fn a_failure_records_the_index_of_the_failing_effect() {
    let data = r#"{"a":[{"id":1},{"id":2,"b":[{"c":"x"}]}]}"#;
    let resolution =
        Builder::new().entry("user.updated").delete("{a[].id}:{a[].b[].c}").resolve(data);
    assert_eq!(lines(&resolution), ["delete p:2:x"]);
    assert_eq!(resolution.failure.unwrap().at, 0);
}

#[test]
fn literals_of_an_expression_are_checked_at_load() {
    let vars = Vars::default();
    let names = KnownNames { lets: &[], in_each: false, vars: &vars };
    for (text, says) in [
        ("data.x.matches('[')", "not a regular expression"),
        ("matches(data.x, '(?=a)')", "not a regular expression"),
        ("date(event.time, '%Y', 'Europe/Atlantis')", "is not a time zone"),
        ("date(event.time, '%!', 'UTC')", "is not a format of strftime"),
        ("data.x = 1", "not an expression"),
        (format!("data{} == 1", "[0]".repeat(1_300)).as_str(), "nested deeper"),
        (format!("data{} == 1", ".a".repeat(2_000)).as_str(), "nested deeper"),
        (format!("data{}", ".a".repeat(2_000)).as_str(), "nested deeper"),
        (format!("lets{}", ".a".repeat(2_000)).as_str(), "nested deeper"),
    ] {
        let problem = Expression::compile(text, &names).expect_err(text);
        assert!(problem.message.contains(says) && problem.help.is_some(), "{text}: {problem:?}");
    }
    for text in [
        "data.x.matches('^a+$')",
        "date(data.t, data.format, data.zone)",
        "date(event.time, '%G-W%V', 'America/New_York')",
    ] {
        Expression::compile(text, &names).expect(text);
    }
    for (text, help) in [
        ("data.x = 1", "=="),
        ("data.x === 1", "=="),
        ("data.x == 1 and data.y", "&&"),
        ("not data.x", "!"),
        ("{plan} == 'pro'", "has no braces"),
    ] {
        let problem = Expression::compile(text, &names).expect_err(text);
        assert!(problem.help.as_deref().unwrap().contains(help), "{text}: {problem:?}");
        assert!(!problem.message.contains("expecting {"), "{problem:?}");
    }
}

#[test]
fn an_expiry_in_milliseconds_is_read_and_an_unreadable_one_deletes() {
    let at = |data: &str| {
        let builder = Builder::new().entry("user.updated");
        let builder = builder.rule(&["k"], None, None, |names| {
            RuleBody::Expire(ExpiryRule::At(Template::parse("{t}", names).unwrap()))
        });
        let resolution = builder.resolve(data);
        (
            resolution.effects.first().map(|effect| effect.action.clone()),
            resolution.failure.map(|failure| failure.reason),
        )
    };
    assert_eq!(
        at(r#"{"t":1767323045}"#),
        (Some(Action::Expire(Expiry::At(1_767_323_045_000))), None)
    );
    assert_eq!(at(r#"{"t":-5}"#), (Some(Action::Expire(Expiry::At(-5000))), None));
    assert_eq!(
        at(r#"{"t":1767323045123}"#),
        (Some(Action::Expire(Expiry::At(1_767_323_045_123))), None)
    );
    assert_eq!(
        at(r#"{"t":"2026-01-02T03:04:05Z"}"#),
        (Some(Action::Expire(Expiry::At(1_767_323_045_000))), None)
    );
    for unreadable in [
        r#""2026-01-02""#,
        r#""soon""#,
        "1767323045.5",
        r#""1767323045.5""#,
        "null",
        "[]",
        "1e300",
        "9223372036854775807",
    ] {
        let data = format!("{{\"t\":{unreadable}}}");
        let (action, failure) = at(&data);
        assert_eq!(
            (action, failure),
            (Some(Action::Delete), Some(Reason::Unresolvable)),
            "{unreadable}"
        );
    }
    assert_eq!(at("{}"), (Some(Action::Delete), Some(Reason::Unresolvable)));
}
