//! What a publisher could make large: it ends, and says so. (In tests an event has 10,000 steps, a hundredth of what it has elsewhere.)

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

#[test]
fn loops_within_loops_are_counted() {
    let data = json!({"a": strings("a", 150), "b": strings("b", 150), "big": "x".repeat(20_000)}).to_string();
    for (each, when) in [
        (None, "data.a.all(x, data.b.all(y, x != y))"),
        (None, "data.a.map(x, x + data.big).size() > 0"),
        (Some("data.a"), "data.b.exists(y, y == item)"),
        (Some("data.a"), "data.b.map(y, y)[0] == item || data.b.exists(y, y == item)"),
    ] {
        let resolution = deletes(each, when).resolve(&data);
        assert!(!resolution.effects.is_empty(), "{when}: the safe side holds");
        let failure = resolution.failure.expect(when);
        assert_eq!(failure.reason, Reason::Unresolvable, "{when}");
        assert!(failure.message.contains("steps"), "{when}: {}", failure.message);
    }
}

#[test]
fn membership_in_a_long_list_is_counted() {
    let data = json!({"a": strings("a", 600), "b": strings("b", 600)}).to_string();
    let resolution = deletes(None, "data.a.filter(x, x in data.b).size() > 0").resolve(&data);
    assert!(resolution.failure.unwrap().message.contains("steps"));
}

#[test]
fn what_people_write_is_not_too_much() {
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
    let resolution = deletes(Some("data.a"), "!(item in data.b) && data.orders[0].id == 0").resolve(&data);
    assert_eq!((resolution.effects.len(), resolution.failure), (80, None));
}

#[test]
fn arrays_that_multiply_to_nothing_are_counted() {
    let empties: Vec<_> = (0..1100).map(|_| json!({"zs": []})).collect();
    let absent: Vec<_> = (0..1100).map(|_| json!({})).collect();
    for ys in [empties, absent] {
        let data = json!({"xs": (0..1100).collect::<Vec<_>>(), "ys": ys}).to_string();
        let (keys, reason) = targets("{xs[]}:{ys[].zs[]}", &data);
        assert_eq!((keys.len(), reason), (0, Some(Reason::BlastRadius)));
    }
}

#[test]
fn a_whole_payload_in_every_key_is_bounded() {
    let data = json!({"xs": (0..100).collect::<Vec<_>>(), "text": "x".repeat(1024 * 1024)}).to_string();
    let resolution = Builder::new().entry("user.updated").write("k:{xs[]}", &json!("{data}"), &[]).resolve(&data);
    let written = resolution.effects.iter().filter(|effect| matches!(effect.action, Action::Write(_))).count();
    assert_eq!((resolution.effects.len(), written), (100, 63));
    let failure = resolution.failure.unwrap();
    assert_eq!((failure.reason, failure.at), (Reason::Unresolvable, 63));
}

#[test]
fn changed_is_answered_for_each_path() {
    let builder = Builder::new().entry("user.updated").rule(
        &["{item}"],
        Some("data.xs"),
        Some("changed('a') && !changed('b') || item == 'c' && changed('xs')"),
        |_| RuleBody::Delete,
    );
    let now = r#"{"a":1,"b":2,"xs":["a","b"]}"#;
    let resolve = |previous| lines(&builder.registry.resolve(&event("user.updated", now, Some(previous))));
    assert_eq!(resolve(r#"{"a":2,"b":2.0}"#), ["delete p:a", "delete p:b"]);
    assert_eq!(resolve(r#"{"a":1,"b":2}"#), [""; 0]);
    assert_eq!(resolve(r#"{"a":2,"b":3}"#), [""; 0]);
}

#[test]
fn the_first_failing_effect_stands_where_it_would_be() {
    let data = r#"{"a":[{"id":1},{"id":2,"b":[{"c":"x"}]}]}"#;
    let resolution = Builder::new().entry("user.updated").delete("{a[].id}:{a[].b[].c}").resolve(data);
    assert_eq!(lines(&resolution), ["delete p:2:x"]);
    assert_eq!(resolution.failure.unwrap().at, 0);
}

#[test]
fn what_is_written_in_an_expression_is_tried_when_it_loads() {
    let vars = Vars::default();
    let names = Names { lets: &[], in_each: false, vars: &vars };
    for (text, says) in [
        ("data.x.matches('[')", "not a regular expression"),
        ("matches(data.x, '(?=a)')", "not a regular expression"),
        ("date(event.time, '%Y', 'Europe/Atlantis')", "no IANA time zone"),
        ("date(event.time, '%!', 'UTC')", "no format of strftime"),
        ("data.x = 1", "not an expression"),
    ] {
        let problem = Expression::compile(text, &names).expect_err(text);
        assert!(problem.message.contains(says) && problem.hint.is_some(), "{text}: {problem:?}");
    }
    for text in ["data.x.matches('^a+$')", "date(data.t, data.format, data.zone)", "date(event.time, '%G-W%V', 'America/New_York')"] {
        Expression::compile(text, &names).expect(text);
    }
    for (text, hint) in [
        ("data.x = 1", "=="),
        ("data.x === 1", "=="),
        ("data.x == 1 and data.y", "&&"),
        ("not data.x", "!"),
        ("{plan} == 'pro'", "without braces"),
    ] {
        let problem = Expression::compile(text, &names).expect_err(text);
        assert!(problem.hint.as_deref().unwrap().contains(hint), "{text}: {problem:?}");
        assert!(!problem.message.contains("expecting {"), "{problem:?}");
    }
}

#[test]
fn milliseconds_are_no_moment_to_expire_at() {
    let at = |data| {
        let builder = Builder::new().entry("user.updated");
        let builder = builder.rule(&["k"], None, None, |names| RuleBody::Expire(ExpiryRule::At(Template::parse("{t}", names).unwrap())));
        let resolution = builder.resolve(data);
        (resolution.effects.first().map(|effect| effect.action.clone()), resolution.failure.map(|failure| failure.reason))
    };
    assert_eq!(at(r#"{"t":1767323045}"#), (Some(Action::Expire(Expiry::At(1_767_323_045_000))), None));
    assert_eq!(at(r#"{"t":-5}"#), (Some(Action::Expire(Expiry::At(-5000))), None));
    assert_eq!(at(r#"{"t":1767323045123}"#), (None, Some(Reason::Unresolvable)));
}
