//! The cost of events that are made to be expensive: bounded work, bounded memory, and an error
//! that names the rule.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use unstale::config::Vars;
use unstale::event::Event;
use unstale::reason::Reason;
use unstale::registry::{Budget, LoadOptions, MissingVars, Registry, Resolution};

/// Maximum memory for one event at a time, in addition to the event itself.
const MAX_PEAK_BYTES: u64 = 48 * 1024 * 1024;

/// Maximum time of an event in an unoptimized build on a busy machine.
const MAX_TIME: Duration = Duration::from_secs(40);

fn registry(rules: &str) -> Registry {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), rules).unwrap();
    let options = LoadOptions {
        schemas: directory.path().to_owned(),
        key_prefix: "p:".to_owned(),
        tag_prefix: "cache_tag:".to_owned(),
        vars: Vars::default(),
        max_keys_per_event: 10_000,
        missing_vars: MissingVars::Refuse,
    };
    Registry::load(&options).unwrap_or_else(|problems| panic!("{problems}")).registry
}

/// Resolves a payload with one rule, within the limits of memory and time, and prints the cost.
#[expect(clippy::print_stdout, reason = "the figures, for a run with --nocapture")]
fn resolve(name: &str, definition: &str, data: &str, previous: Option<&str>) -> Resolution {
    let registry = registry(&format!("defaults: {{ ttl: 1h }}\nevents:\n  a.b:\n{definition}"));
    let event = Event {
        id: "1".into(),
        event_type: "a.b".into(),
        data_text: data.into(),
        previous_text: previous.map(Into::into),
        ..Event::default()
    };
    let budget = Budget::for_bytes(event.bytes());
    let mut resolution = Resolution::default();
    let start = Instant::now();
    let counted =
        allocation_counter::measure(|| resolution = registry.resolve_within(&event, &budget));
    let took = start.elapsed();
    println!(
        "{name:28} {:8} B  {took:9.1?}  work {:9}  bytes {:9}  peak {:5} KiB  effects {:6}  {:?}",
        event.bytes(),
        budget.spent_work(),
        budget.spent_bytes(),
        counted.bytes_max / 1024,
        resolution.effects.len(),
        resolution.failure,
    );
    assert!(counted.bytes_max <= MAX_PEAK_BYTES, "{name}: {} bytes", counted.bytes_max);
    assert!(took <= MAX_TIME, "{name}: {took:?}");
    assert!(!budget.is_spent() || resolution.effects.is_empty(), "{name}");
    resolution
}

/// Checks that an event over its budget has no effect, and has an error.
fn is_refused(name: &str, definition: &str, data: &Value, reason: Reason) {
    let resolution = resolve(name, definition, &data.to_string(), None);
    let failure = resolution.failure.unwrap_or_else(|| panic!("{name}: applied"));
    assert_eq!(
        (failure.reason, resolution.effects.len()),
        (reason, 0),
        "{name}: {}",
        failure.message
    );
    assert!(failure.message.starts_with("a.yaml#a.b"), "{name}: {}", failure.message);
}

/// Checks that a usual event is resolved completely.
fn is_applied(name: &str, definition: &str, data: &Value, effects: usize) {
    let resolution = resolve(name, definition, &data.to_string(), None);
    assert_eq!((resolution.effects.len(), resolution.failure), (effects, None), "{name}");
}

fn texts(count: usize, bytes: usize) -> Vec<String> {
    let padding = "0".repeat(bytes.saturating_sub(6));
    (0..count).map(|at| format!("{padding}{at:06}")).collect()
}

fn whens(expression: &str) -> String {
    format!("    effects: [{{ delete: k, when: '{}' }}]\n", expression.replace('\'', "''"))
}

fn lets(expression: &str) -> String {
    format!(
        "    let: {{ x: '{}' }}\n    effects: [{{ delete: 'k:{{let.x[0]}}' }}]\n",
        expression.replace('\'', "''")
    )
}

#[test]
fn long_fields_in_long_lists_exceed_the_byte_budget() {
    let fan = "    effects: [{ delete: 't:{tenant}:p:{ids[]}' }]\n";
    for (tenant, ids) in [(900_000, 9_000), (60_000, 9_900), (100_000, 9_000)] {
        let data = json!({"tenant": "x".repeat(tenant), "ids": (0..ids).collect::<Vec<_>>()});
        let resolution = resolve("key longer than any", fan, &data.to_string(), None);
        assert!(resolution.effects.is_empty() && resolution.failure.is_some());
    }
    let data = json!({"tenant": "x".repeat(5_000), "ids": (0..9_000).collect::<Vec<_>>()});
    is_refused("fan of long keys", fan, &data, Reason::BlastRadius);
    let tags = "    effects: [{ write: 'k:{ks[]}', value: 1, tags: ['t:{tenant}:{ts[]}'] }]\n";
    let data = json!({"tenant": "x".repeat(1_000), "ks": (0..900).collect::<Vec<_>>(), "ts": (0..900).collect::<Vec<_>>()});
    is_refused("tags of writes", tags, &data, Reason::BlastRadius);
    let values = "    effects: [{ write: 'k:{ks[]}', value: '{data}' }]\n";
    let data = json!({"ks": (0..100).collect::<Vec<_>>(), "text": "x".repeat(1_000_000)});
    is_refused("whole payload in each key", values, &data, Reason::BlastRadius);
    let url = "    effects: [{ warm: 'k:{ks[]}', from: 'http://h/{text}' }]\n";
    let data = json!({"ks": (0..100).collect::<Vec<_>>(), "text": "ä".repeat(100_000)});
    is_refused("long urls", url, &data, Reason::Unresolvable);
}

#[test]
fn patterns_are_compiled_once_and_charged_by_text_length() {
    let rule = whens(r"data.a.filter(x, x.matches('^[\\w.-]{1,64}$')).size() > 0");
    is_applied("pattern, short texts", &rule, &json!({"a": texts(200_000, 2)}), 1);
    is_applied("pattern, long texts", &rule, &json!({"a": texts(1_000, 1_000)}), 0);
    let rule = whens("data.a.filter(x, x.matches('(a|b|ab)*c')).size() > 0");
    is_applied("pattern, one text", &rule, &json!({"a": ["ab".repeat(500_000)]}), 0);
    let rule = whens("data.a.filter(x, x.matches('[a-z0-9-]+')).size() > 0");
    is_applied("class, many texts", &rule, &json!({"a": texts(200_000, 50)}), 1);
}

#[test]
fn byte_literals_are_charged_to_the_budget() {
    let rule = whens(&format!("size(data.a.map(x, b\"{}\")) > 0", "x".repeat(3_900)));
    is_refused("literal of bytes", &rule, &json!({"a": vec![1; 300_000]}), Reason::BlastRadius);
    is_applied("type", &whens("data.a.all(x, type(x) == int)"), &json!({"a": vec![1; 5_000]}), 1);
}

#[test]
fn patterns_are_charged_by_pattern_size() {
    let bits: String = (0_u32..20_000)
        .map(|n| if n.wrapping_mul(2_654_435_761) & 0x8000 == 0 { '0' } else { '1' })
        .collect();
    let rule = whens("data.a.matches('1[01]{2000}[^01]')");
    is_refused("pattern of many states", &rule, &json!({"a": bits}), Reason::Unresolvable);
    let rule = whens("data.a.matches('[a-z].{0,200}[0-9].{0,200}[A-Z]')");
    is_refused(
        "pattern of many ways",
        &rule,
        &json!({"a": "a1".repeat(50_000)}),
        Reason::Unresolvable,
    );
    is_applied("pattern of many ways, short", &rule, &json!({"a": "a1".repeat(50)}), 0);
}

#[test]
fn nested_loops_end_at_the_budget() {
    let long =
        json!({"a": texts(990, 500), "b": texts(990, 500), "xs": (0..3_900).collect::<Vec<_>>()});
    is_refused("x + y", &lets("data.a.map(x, data.b.map(y, x + y))"), &long, Reason::BlastRadius);
    is_refused("xs.map(x, xs)", &lets("data.xs.map(x, data.xs)"), &long, Reason::BlastRadius);
    let three = json!({"a": texts(95, 3_400), "b": texts(95, 3_400), "c": texts(95, 3_400)});
    is_refused(
        "x + y + z",
        &lets("data.a.map(x, data.b.map(y, data.c.map(z, x + y + z)))"),
        &three,
        Reason::BlastRadius,
    );
    let hashed = json!({"a": texts(5, 100_000), "b": texts(100_000, 1)});
    is_refused(
        "sha256 in a loop",
        &lets("data.a.map(x, data.b.map(y, sha256(x)))"),
        &hashed,
        Reason::Unresolvable,
    );
    let many = json!({"a": texts(60_000, 4), "b": texts(60_000, 4)});
    is_refused(
        "all within all",
        &whens("data.a.all(x, data.b.all(y, x != y + 'z'))"),
        &many,
        Reason::BlastRadius,
    );
    is_refused(
        "exists within all",
        &whens("data.a.all(x, !data.b.exists(y, y == 'z'))"),
        &many,
        Reason::Unresolvable,
    );
    is_refused(
        "in within filter",
        &whens("data.a.filter(x, !(x + 'z' in data.b)).size() > 0"),
        &many,
        Reason::Unresolvable,
    );
    is_refused(
        "an error in each",
        &whens("data.a.all(x, data.b.all(y, x.gone))"),
        &many,
        Reason::Unresolvable,
    );
    let doubled = format!("['x']{}", ".map(x, x + x)".repeat(40));
    is_refused("doubling", &lets(&doubled), &json!({}), Reason::BlastRadius);
    let objects: Vec<Value> =
        (0..4_000).map(|at| json!({"id": at, "n": {"a": at, "b": [1, 2]}})).collect();
    let objects = json!({"a": objects, "b": objects});
    is_refused(
        "objects compared",
        &whens("data.a.all(x, data.b.exists(y, x == y))"),
        &objects,
        Reason::Unresolvable,
    );
    let table: serde_json::Map<String, Value> =
        (0..40_000).map(|at| (format!("k{at}"), json!(at))).collect();
    let keys: Vec<String> = (0..40_000).map(|at| format!("k{at}")).collect();
    is_applied(
        "look-ups in a long object",
        &whens("data.a.all(x, data.t[x] >= 0)"),
        &json!({"a": keys, "t": table}),
        1,
    );
    is_refused(
        "each times a list",
        "    effects: [{ each: data.a, when: \"data.b.exists(y, y == 'z')\", delete: '{item}' }]\n",
        &many,
        Reason::Unresolvable,
    );
}

#[test]
fn long_lists_are_filtered_and_mapped_in_linear_time() {
    let prices: Vec<Value> = (0..9_999)
        .map(|at| json!({"list": at, "changed": true, "price": {"amount": at, "currency": "EUR"}}))
        .collect();
    let rule = "    effects: [{ each: 'data.prices.filter(p, p.changed)', delete: 'price:{item.list}' }]\n";
    is_applied("documented filter", rule, &json!({"prices": prices}), 9_999);
    let rule = "    effects: [{ each: 'data.xs.filter(p, p > 30100)', delete: 'k:{item}' }]\n";
    is_applied("filter of 40,000", rule, &json!({"xs": (0..40_000).collect::<Vec<_>>()}), 9_899);
    let rule = whens("data.xs.map(x, x * 2).filter(x, x % 3 == 0).size() > 100");
    is_applied("map of 150,000", &rule, &json!({"xs": (0..150_000).collect::<Vec<_>>()}), 1);
    let rule = whens("data.a.filter(x, x.startsWith('0') && lower(x) != 'q').size() > 100");
    is_applied("functions of 20,000", &rule, &json!({"a": texts(20_000, 12)}), 1);
}

#[test]
fn a_full_body_of_smallest_elements_fits_the_budget() {
    for (name, element) in [
        ("ones", "1"),
        ("empty objects", "{}"),
        ("empty lists", "[]"),
        ("empty texts", "\"\""),
        ("escapes", r#""\n""#),
    ] {
        let count = 1_000_000 / (element.len() + 1);
        let mut data = String::from("{\"a\":[");
        for at in 0..count {
            write!(data, "{}{element}", if at > 0 { "," } else { "" }).unwrap();
        }
        data.push_str("]}");
        for expression in [
            "size(data.a) > 0",
            "data.a.all(x, x != 7)",
            "data.a.map(x, [x]) == data.a",
            "data.a.filter(x, x == x) == data.a",
        ] {
            resolve(&format!("{name}: {expression}"), &whens(expression), &data, Some(&data));
        }
        resolve(
            &format!("{name}: changed"),
            &whens("changed('a[].b')"),
            &data,
            Some(&data.replace("]}", ",7]}")),
        );
        resolve(
            &format!("{name}: each"),
            "    effects: [{ each: data.a, delete: '{item.b?}' }]\n",
            &data,
            None,
        );
        resolve(&format!("{name}: fan"), "    effects: [{ delete: 'k:{a[].b?}' }]\n", &data, None);
        resolve(
            &format!("{name}: write"),
            "    effects: [{ write: k, value: '{data}' }]\n",
            &data,
            None,
        );
    }
}

#[test]
fn deep_and_wide_values_end_at_the_budget() {
    let mut deep = "1".to_owned();
    for at in 0..45 {
        deep = format!(r#"{{"k{at}":[{deep}],"p{at}":"{}"}}"#, "x".repeat(10_000));
    }
    let data = format!(r#"{{"a":{deep},"b":[1,2,3,4,5,6,7,8,9,10]}}"#);
    let other = data.replace(":[1]", ":[2]");
    resolve("deep: changed", &whens("changed('a')"), &data, Some(&other));
    resolve("deep: equal", &whens("data.a == previous.a"), &data, Some(&other));
    resolve("deep: write", "    effects: [{ write: 'k:{b[]}', value: '{a}' }]\n", &data, None);
    let mut wide = String::from("{\"a\":{");
    for at in 0..140_000 {
        write!(wide, "{}\"\":{at}", if at > 0 { "," } else { "" }).unwrap();
    }
    wide.push_str("}}");
    resolve("one name: changed", &whens("changed('a.x')"), &wide, Some(&wide.replace("0,", "1,")));
    resolve(
        "one name: equal",
        &whens("data.a == previous.a"),
        &wide,
        Some(&wide.replace("0,", "1,")),
    );
    resolve("one name: size", &whens("size(data.a) == 1"), &wide, None);
    resolve("one name: write", "    effects: [{ write: k, value: '{data}' }]\n", &wide, None);
    resolve(
        "date",
        &whens("date(0, data.f, 'UTC') == ''"),
        &json!({"f": "%255Y".repeat(200_000)}).to_string(),
        None,
    );
    resolve(
        "digits",
        &whens("data.n > 1.0"),
        &format!(r#"{{"n":{}}}"#, "9".repeat(1_000_000)),
        None,
    );
}
