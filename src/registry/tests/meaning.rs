//! Expressions have the results that the `cel` crate gives.

use proptest::prelude::*;

use super::super::budget::Budget;
use super::super::lets::Lets;
use super::super::places::Places;
use super::super::scope::{EventScope, Scope};
use super::oracle;
use super::properties::{expression, hostile_json};
use super::*;

fn ours(
    text: &str,
    data: &str,
    previous: &str,
    budget: &Budget,
) -> Option<Result<String, (String, bool)>> {
    let vars = Vars::default();
    let expression =
        Expression::compile(text, &KnownNames { lets: &[], in_each: false, vars: &vars }).ok()?;
    let event = event("user.updated", data, Some(previous));
    let scope = EventScope::new(&event, budget);
    let (lets, places) = (Lets::new(&[]), Places::default());
    let scope = Scope { event: &scope, lets: &lets, item: None, places: &places };
    let answer = expression.evaluate(&scope).and_then(|value| value.to_json(budget));
    Some(answer.map_err(|fault| (fault.message, fault.is_absence)))
}

/// Parses JSON with numbers as doubles, because we keep the published text and CEL keeps values.
fn normal(json: &str) -> serde_json::Value {
    fn rounded(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Number(number) => {
                number.as_f64().map_or(serde_json::Value::Null, Into::into)
            }
            serde_json::Value::Array(elements) => elements.into_iter().map(rounded).collect(),
            serde_json::Value::Object(members) => {
                members.into_iter().map(|(name, value)| (name, rounded(value))).collect()
            }
            other => other,
        }
    }
    rounded(Json::parse(json).unwrap().to_value())
}

/// Asserts that both results agree. A result that CEL cannot write as JSON is not compared.
fn agree(text: &str, data: &str, previous: &str) -> Result<(), TestCaseError> {
    let (has_map, has_loop) = (text.contains('{'), text.contains("(x, "));
    // CEL's own maps have no order, and its lazy maps do not equal them.
    if has_map && has_loop {
        return Ok(());
    }
    // We refuse to round, and CEL rounds.
    if converts_inexact(text, data, previous) {
        return Ok(());
    }
    let Some(ours) = ours(text, data, previous, &Budget::for_event()) else { return Ok(()) };
    let cel = oracle::answer(text, data, previous, !has_loop);
    match (&ours, &cel) {
        (Ok(ours), Ok(cel)) => {
            prop_assert_eq!(normal(ours), normal(cel), "{} {} {}", text, data, previous)
        }
        // CEL takes a lazy map for null when it describes an error.
        (Err(_), Err(_)) if has_loop => {}
        (Err((_, ours)), Err(cel)) => {
            prop_assert_eq!(*ours, cel.is_absence, "{} {} {} {:?}", text, data, previous, cel)
        }
        (Ok(_), Err(cel)) => prop_assert!(
            cel.message.starts_with("JSON cannot hold the value"),
            "{text} {data} {previous}: {cel:?}"
        ),
        // CEL's specification has no `in` of a list or a map among keys. The crate finds a computed
        // one in none.
        (Err((message, _)), Ok(_))
            if has_loop && message.starts_with("`@in` has no answer for (") => {}
        (Err(ours), Ok(cel)) => prop_assert!(false, "{text} {data} {previous}: {ours:?} {cel}"),
    }
    Ok(())
}

fn converts_inexact(text: &str, data: &str, previous: &str) -> bool {
    let inexact = ["1e308", "1e400", "123456789012345678901234567890", "double("];
    (text.contains("string(") || text.contains("int("))
        && inexact
            .iter()
            .any(|number| [text, data, previous].iter().any(|source| source.contains(number)))
}

#[test]
fn numbers_that_a_conversion_would_round_are_refused() {
    let inexact = [
        "9007199254740992.0",
        "18446744073709551616",
        "123456789012345678901234567890",
        "-9223372036854775809",
        "1e400",
    ];
    for number in inexact {
        let data = format!(r#"{{"id":{number}}}"#);
        for text in ["string(data.id)", "int(data.id)", "uint(data.id)", "data.id"] {
            let answer = ours(text, &data, "{}", &Budget::for_event()).unwrap();
            match answer {
                Ok(kept) => assert_eq!((text, kept.as_str()), ("data.id", number)),
                Err((message, is_absence)) => {
                    assert!(message.contains("not exact") && !is_absence, "{text} {message}");
                }
            }
        }
    }
    for (number, text) in [
        ("18446744073709551615", "18446744073709551615"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9007199254740993", "9007199254740993"),
        ("0.5", "0.5"),
    ] {
        let data = format!(r#"{{"id":{number}}}"#);
        let answer = ours("string(data.id)", &data, "{}", &Budget::for_event()).unwrap();
        assert_eq!(answer.unwrap(), format!("{text:?}"));
    }
}

#[test]
fn macros_have_the_results_of_cel() {
    let data = r#"{"a":[1,2,3,2],"b":["x","y"],"c":[true,null,"t"],"o":{"k":1,"l":[1]},"n":null,"d":[[1],[2,3]]}"#;
    for text in [
        "data.a.map(x, x * 2)",
        "data.a.map(x, x > 1, x * 2)",
        "data.a.filter(x, x > 1)",
        "data.a.exists_one(x, x == 1)",
        "data.a.exists_one(x, x == 2)",
        "data.a.existsOne(x, x == 3)",
        "data.a.all(x, x > 0)",
        "data.a.all(x, 1 / (x - 2) < 5)",
        "data.a.exists(x, 1 / (x - 2) < -5)",
        "data.a.exists(x, 1 / (x - 2) > 0)",
        "data.c.all(x, x)",
        "data.c.exists(x, x)",
        "data.c.filter(x, x)",
        "data.c.exists_one(x, x)",
        "data.n.map(x, x)",
        "data.o.map(x, x)",
        "data.o.exists(x, x == 'l')",
        "data.d.map(x, x.map(y, x.size() + y))",
        "data.d.map(x, data.a.filter(y, y in x))",
        "data.a.map(data, data)",
        "data.a.map(x, data.a.map(x, x)).size()",
        "[1, 2].map(x, [x, x]) + [[3]]",
        "data.a + data.b",
        "data.a + data.d[0]",
        "data.o[1]",
        "data.o[null]",
        "null in data.o",
        "1 in data.o || 'k' in data.o",
        "data.a[0.0] + data.a[1u]",
        "data.a[1.5]",
        "data.a['x']",
        "data.a[-1]",
        "data.a == [1.0, 2u, 3, 2]",
        "data.b[0] < data.b[1] && 'x' in data.b",
        "null in data.c",
        "data.o.k.x",
        "data.n.x",
        "has(data.n.x)",
        "has(data.o.x)",
        "has(data.gone.x)",
        "data.a && true",
        "false && data.a",
        "data.n || false",
        "data.gone || true",
        "!data.n",
        "-data.b",
        "type(data.a) == list && type(data.o) == map && type(data.n) == null_type",
        "bytes('ab') + bytes('c') == bytes('abc')",
        "size(bytes('äb')) + size('äb') + size(data.a) + size(data.o)",
        "duration('1h') + duration('1m') > duration('1h')",
        "timestamp('2026-01-02T03:04:05Z').getHours()",
        "string(timestamp('2026-01-02T03:04:05Z') + duration('1h'))",
        "dyn(data.a)[0]",
        "9223372036854775807 + 1",
        "1 % 0",
        "data.a.contains(1)",
        "'abc'.contains('b') && 'abc'.startsWith('ab') && 'abc'.endsWith('bc') && 'abc'.matches('^a.c$') && matches('abc', 'b')",
    ] {
        agree(text, data, "{}").unwrap_or_else(|error| panic!("{error}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_expression_has_the_result_of_cel(text in expression(), a in hostile_json(), b in hostile_json()) {
        agree(&text, &format!(r#"{{"a":{a},"b":{b}}}"#), &format!(r#"{{"a":{b}}}"#))?;
    }

    #[test]
    fn a_small_budget_is_spent_or_changes_nothing(text in expression(), a in hostile_json(), work in 0..400_u64, bytes in 0..2_000_u64) {
        let data = format!(r#"{{"a":{a},"b":{a}}}"#);
        let budget = Budget::with_limits(work, bytes);
        let (small, full) = (ours(&text, &data, "{}", &budget), ours(&text, &data, "{}", &Budget::for_event()));
        prop_assert!(budget.spent_work() <= work && budget.spent_bytes() <= bytes);
        if !budget.is_spent() {
            prop_assert_eq!(small, full);
        }
    }
}
