//! Verdicts of schemas on payloads, their messages, and their costs.

use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::registry::budget::WORK_PER_EVENT;

fn judged(schema: &DataSchema, text: &str, budget: &Budget) -> (Verdict, Option<String>) {
    let data = Json::parse(text).unwrap();
    let members = data.members();
    let verdict = schema.verdict(data, &members, budget);
    (verdict, (verdict == Verdict::Invalid).then(|| schema.violation(data, &members)))
}

fn message(schema: &Value, text: &str) -> String {
    judged(&DataSchema::of_json(schema), text, &Budget::for_event()).1.unwrap_or_default()
}

#[test]
fn a_violation_names_place_and_keyword_but_no_payload_value() {
    let tree = json!({"oneOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#/$defs/tree"}}]});
    for (schema, text, expected) in [
        (json!({"required": ["id"]}), "{}", "the payload violates `/required`: id is missing"),
        (
            json!({"required": ["a\n\u{1b}[31m"]}),
            "{}",
            "the payload violates `/required`: a\\n\\u{1b}[31m is missing",
        ),
        (
            json!({"properties": {"id": {"type": "integer"}}}),
            r#"{"id":"secret"}"#,
            "the payload at `/id` violates `/properties/id/type`",
        ),
        (
            json!({"additionalProperties": {"type": "integer"}}),
            r#"{"ada@example.org\n":"secret"}"#,
            "the payload at `/*` violates `/additionalProperties/type`",
        ),
        (
            json!({"properties": {"of": {"additionalProperties": {"items": {"pattern": "^a"}}}}}),
            r#"{"of":{"4242":["a","b"]}}"#,
            "the payload at `/of/*/1` violates `/properties/of/additionalProperties/items/pattern`",
        ),
        (
            json!({"properties": {"v": {"pattern": "(?<!a)b+c"}}}),
            r#"{"v":"b"}"#,
            "the payload at `/v` violates `/properties/v/pattern`",
        ),
        (
            json!({"additionalProperties": false}),
            r#"{"secret":1}"#,
            "the payload at `/*` violates `/additionalProperties`",
        ),
        (
            json!({"propertyNames": {"maxLength": 2}}),
            r#"{"secret":1}"#,
            "the payload violates `/propertyNames/maxLength`",
        ),
        (
            json!({"properties": {"a": {"enum": [1, 2]}}}),
            r#"{"a":3}"#,
            "the payload at `/a` violates `/properties/a/enum`",
        ),
        (
            json!({"properties": {"a": {"uniqueItems": true}}}),
            r#"{"a":[3,3]}"#,
            "the payload at `/a` violates `/properties/a/uniqueItems`",
        ),
        (
            json!({"properties": {"a": {"contains": {"const": 1}}}}),
            r#"{"a":[3]}"#,
            "the payload at `/a` violates `/properties/a/contains`",
        ),
        (json!({"not": {"required": ["a"]}}), r#"{"a":[3]}"#, "the payload violates `/not`"),
        (
            json!({"properties": {"~/": {"type": "null"}}}),
            r#"{"~/":3}"#,
            "the payload at `/~0~1` violates `/properties/~0~1/type`",
        ),
        (
            json!({"$defs": {"tree": tree}, "properties": {"root": {"$ref": "#/$defs/tree"}}}),
            r#"{"root":[1,[2,["secret"]]]}"#,
            "the payload at `/root` violates `oneOf` of its schema",
        ),
    ] {
        assert_eq!(message(&schema, text), expected, "{schema}");
    }
}

/// Returns the CPU time of this thread, in nanoseconds.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

fn repeated(text: &str, bytes: usize) -> String {
    text.repeat(bytes / text.len())
}

fn array_of(element: &str, bytes: usize) -> String {
    let elements = repeated(&format!("{element},"), bytes);
    format!("[{}]", elements.trim_end_matches(','))
}

fn array(elements: impl Iterator<Item = String>) -> String {
    format!("[{}]", elements.collect::<Vec<_>>().join(","))
}

fn object(members: usize, name: impl Fn(usize) -> String) -> String {
    format!(
        "{{{}}}",
        (0..members).map(|at| format!("\"{}\":1", name(at))).collect::<Vec<_>>().join(",")
    )
}

const MIB: usize = 1 << 20;

/// Returns costly schemas with payloads of at most 1 MiB, whose value is under `v`.
fn attacks() -> Vec<(&'static str, Value, String)> {
    let of_v = |schema: Value| json!({"properties": {"v": schema}});
    let node = |kind: &str| json!({"type": "object", "required": ["type"], "properties": {"type": {"const": kind}, "children": {"items": {"$ref": "#/$defs/node"}}}});
    let rich = |keyword: &str| json!({"$ref": "#/$defs/node", "$defs": {"node": {keyword: [node("doc"), node("list"), node("item"), {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}]}}});
    let document = |depth: usize| {
        let mut text = r#"{"type":"text","text":1}"#.to_owned();
        for _ in 0..depth {
            text = format!(r#"{{"type":"list","children":[{text}]}}"#);
        }
        text
    };
    let doubled = {
        let mut definitions = json!({});
        for level in 0..11 {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            definitions[format!("d{level}")] = json!({"allOf": [next, next]});
        }
        definitions["d11"] = json!({});
        json!({"$defs": definitions, "properties": {"v": {"items": {"$ref": "#/$defs/d0"}}}})
    };
    let chain = {
        let mut definitions = json!({});
        for level in 0..100 {
            definitions[format!("d{level}")] = json!({"$ref": format!("#/$defs/d{}", level + 1)});
        }
        definitions["d100"] = json!({"items": {"$ref": "#/$defs/d0"}});
        json!({"$defs": definitions, "properties": {"v": {"$ref": "#/$defs/d0"}}})
    };
    let nested =
        |depth: usize, inner: &str| format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth));
    let v = |value: String| format!("{{\"v\":{value}}}");
    let text = |text: &str, bytes: usize| format!("\"{}\"", repeated(text, bytes));
    let many_patterns: serde_json::Map<String, Value> =
        (0..100).map(|at| (format!("x[ab]*{at}$"), json!({}))).collect();
    let many_properties: serde_json::Map<String, Value> =
        (0..1_000).map(|at| (format!("p{at}"), json!({"type": "integer"}))).collect();
    let mut attacks = vec![
        ("oneOf, few levels", rich("oneOf"), document(9)),
        ("oneOf, many levels", rich("oneOf"), document(40)),
        ("anyOf, many levels", rich("anyOf"), document(40)),
        ("look-behind", of_v(json!({"pattern": "(?<!a)b+c"})), v(text("b", 60_000))),
        ("look-behind, 1 MiB", of_v(json!({"pattern": "(?<!a)b+c"})), v(text("b", MIB))),
        ("look-behind, many texts", of_v(json!({"items": {"pattern": "(?<!a)b+c"}})), v(array_of(&text("b", 1_000), MIB))),
        ("backtracking without end", of_v(json!({"items": {"pattern": "^((?=a)a|(?=a)a)*c$"}})), v(array_of(&text("a", 30), MIB))),
        ("a pattern of many states", of_v(json!({"pattern": "[ab]*a[ab]{60}c"})), v(text("abaab", MIB))),
        ("patterns of many states", of_v(json!({"pattern": "[ab]*a[ab]{1000}c"})), v(text("abaab", MIB))),
        (
            "many patterns for one text",
            of_v(json!({"allOf": (0..64).map(|at| json!({"pattern": format!("[ab]*a[ab]{{{}}}c", at + 40)})).collect::<Vec<_>>()})),
            v(text("abaab", MIB)),
        ),
        ("names and patterns", of_v(json!({"patternProperties": many_patterns})), v(object(60_000, |at| format!("x{at}")))),
        ("names that backtrack", of_v(json!({"patternProperties": {"^((?=a)a|(?=a)a)*c$": {}}})), v(object(10_000, |at| format!("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{at}")))),
        ("a long name that backtracks", of_v(json!({"patternProperties": {"(?<!a)b+c": {}}})), v(object(1, |_| repeated("b", MIB)))),
        ("propertyNames", of_v(json!({"propertyNames": {"pattern": "(?<!a)b+c"}})), v(object(1, |_| repeated("b", MIB)))),
        ("properties and members", of_v(json!({"properties": many_properties})), v(object(100_000, |at| format!("q{at}")))),
        ("schemas that multiply", doubled, v(array_of("1", MIB))),
        ("a chain at each level", chain, v(nested(90, ""))),
        ("unique objects", of_v(json!({"uniqueItems": true})), v(array((0..70_000).map(|at| format!("{{\"a\":{at}}}"))))),
        ("unique numbers", of_v(json!({"uniqueItems": true})), v(array((0..50_000_u64).map(|at| (u64::MAX - at).to_string())))),
        ("unique arrays", of_v(json!({"uniqueItems": true, "items": {"uniqueItems": true}})), v(array_of("[1,[],{},[[]]]", MIB))),
        ("a long enum", of_v(json!({"items": {"enum": (0..1_000).map(|at| json!({"a": at})).collect::<Vec<_>>()}})), v(array_of("{\"a\":-1}", MIB))),
        ("a long text and a long enum", of_v(json!({"enum": (0..1_000).map(|at| json!([at, "x"])).collect::<Vec<_>>()})), v(array_of("\"\\u0041\"", MIB))),
        ("unevaluated members", json!({"unevaluatedProperties": {"type": "integer"}, "anyOf": [{"required": ["x"]}, {"properties": {"a": {}}}, {"patternProperties": {"^q1": {}}}]}), object(80_000, |at| format!("q{at}"))),
        ("unevaluated items", of_v(json!({"unevaluatedItems": {"type": "integer"}, "anyOf": [{"prefixItems": [{}]}, {"contains": {"const": 2}}]})), v(array_of("1", MIB))),
        ("a deep array", of_v(json!({"$ref": "#/$defs/a", "$defs": {}})).as_object().map(|_| json!({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}, "allOf": [{"minItems": 0}, {"uniqueItems": true}]}}, "properties": {"v": {"$ref": "#/$defs/a"}}})).unwrap(), v(nested(90, &array((0..90_000).map(|at| at.to_string()))))),
        ("a dynamic reference", json!({"$dynamicAnchor": "n", "additionalProperties": {"$dynamicRef": "#n"}, "items": {"$dynamicRef": "#n"}, "unevaluatedProperties": false}), v(nested(90, &array_of("{}", 500_000)))),
        ("many digits", of_v(json!({"multipleOf": 0.1, "maximum": 1e300})), v(repeated("7", MIB))),
        ("many digits, many times", of_v(json!({"items": {"multipleOf": 0.0001, "type": "integer"}})), v(array_of("1e400", MIB))),
        ("many levels of if", json!({"$ref": "#/$defs/n", "$defs": {"n": {"if": {"$ref": "#/$defs/m"}, "then": {"$ref": "#/$defs/m"}, "else": {"$ref": "#/$defs/m"}}, "m": {"type": ["array", "object"], "items": {"$ref": "#/$defs/n"}, "additionalProperties": {"$ref": "#/$defs/n"}}}}), v(nested(90, "1"))),
        ("contains", of_v(json!({"contains": {"required": ["x"]}, "maxContains": 3, "items": {"contains": {"const": 1}}})), v(array_of("[{\"y\":1}]", MIB))),
    ];
    for format in [
        "date-time",
        "date",
        "time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uri-reference",
        "iri",
        "iri-reference",
        "uuid",
        "uri-template",
        "json-pointer",
        "relative-json-pointer",
        "regex",
    ] {
        for (name, unit) in [
            ("a", "a"),
            ("dots", "a."),
            ("digits", "1"),
            ("colons", "1:"),
            ("open", "(["),
            ("escapes", "%41{"),
            ("quoted", "\\\"a@"),
        ] {
            let _ = name;
            attacks.push((format, of_v(json!({"format": format})), v(text(unit, MIB))));
        }
    }
    attacks
}

/// Maximum CPU time of one validation. A test build takes about ten times as long as a release
/// build.
const MAX_CPU_NS: u64 = 5_000_000_000;

const MAX_PEAK_BYTES: u64 = 64 * 1024 * 1024;

#[test]
#[expect(clippy::print_stderr, reason = "a table for people")]
fn no_validation_costs_more_than_the_budget_of_an_event() {
    let mut table = String::new();
    for (name, schema, text) in attacks() {
        let schema = DataSchema::of_json(&schema);
        let budget = Budget::for_event();
        let start = cpu_ns();
        let mut verdict = Verdict::Valid;
        let mut message = None;
        let memory =
            allocation_counter::measure(|| (verdict, message) = judged(&schema, &text, &budget));
        let cpu = cpu_ns() - start;
        let peak = memory.bytes_max;
        let _ = writeln!(
            table,
            "{name:32} {verdict:?} {:>6} ms, {:>9} units, {:>5} ns a unit, {:>6} KiB {}",
            cpu / 1_000_000,
            budget.spent_work(),
            cpu / budget.spent_work().max(1),
            peak / 1024,
            message.unwrap_or_default()
        );
        assert!(
            cpu < MAX_CPU_NS && peak < MAX_PEAK_BYTES && budget.spent_work() <= WORK_PER_EVENT,
            "{name}: {cpu} ns, {peak} bytes\n{table}"
        );
    }
    eprintln!("{table}");
}

#[test]
fn the_search_for_a_violation_is_cheap_when_branches_multiply() {
    let (_, schema, text) =
        attacks().into_iter().find(|(name, _, _)| *name == "oneOf, few levels").unwrap();
    let schema = DataSchema::of_json(&schema);
    let mut found = String::new();
    let memory = allocation_counter::measure(|| {
        found = judged(&schema, &text, &Budget::for_event()).1.unwrap()
    });
    assert_eq!(found, "the payload violates `oneOf` of its schema");
    assert!(memory.bytes_max < 256 * 1024, "{} bytes", memory.bytes_max);
}

#[test]
fn schemas_that_multiply_by_references_are_refused() {
    let chain = |length: usize, next: &dyn Fn(Value) -> Value| {
        let mut definitions = json!({});
        for level in 0..length {
            definitions[format!("d{level}")] =
                next(json!({"$ref": format!("#/$defs/d{}", level + 1)}));
        }
        definitions[format!("d{length}")] = json!(true);
        json!({"$defs": definitions, "$ref": "#/$defs/d0"})
    };
    for (schema, says) in [
        (chain(30, &|next| json!({"allOf": [next, next]})), "`allOf`, `anyOf` and `$ref` multiply"),
        (chain(200, &|next| next), "nested schemas"),
        (chain(5_000, &|next| json!({"not": next})), "nested schemas"),
    ] {
        assert!(bounds::schemas_per_value(&schema).unwrap_err().contains(says));
    }
    assert_eq!(bounds::schemas_per_value(&json!({"$ref": "#"})), Ok(1));
    assert!(bounds::schemas_per_value(&chain(20, &|next| next)).unwrap() < 30);
}

#[test]
fn schema_keywords_compare_numbers_by_all_their_digits() {
    for (schema, valid, invalid) in [
        (
            json!({"const": 9_007_199_254_740_993_u64}),
            &["9007199254740993.0", "90071992547409930e-1"][..],
            &["9007199254740992", "9007199254740993.5"][..],
        ),
        (
            json!({"const": {"a": [0.1]}}),
            &[r#"{"a":[0.10]}"#, r#"{"a":[1e-1]}"#],
            &[r#"{"a":[0.10000000000000000001]}"#],
        ),
        (
            json!({"enum": ["a", 18_446_744_073_709_551_615_u64]}),
            &["18446744073709551615", "\"a\""],
            &["18446744073709551616", "1"],
        ),
        (
            json!({"minimum": 18_446_744_073_709_551_615_u64}),
            &["18446744073709551615.5", "1e400"],
            &["18446744073709551614.9"],
        ),
        (
            json!({"exclusiveMinimum": 9_007_199_254_740_992_u64}),
            &["9007199254740992.5"],
            &["9007199254740992", "-1e400"],
        ),
        (
            json!({"maximum": 9_007_199_254_740_992_u64}),
            &["9007199254740992.0", "-1e400", "\"9\""],
            &["9007199254740993", "1e400"],
        ),
        (json!({"exclusiveMaximum": 0}), &["-1e-400"], &["0", "-0.0", "1e-400"]),
        (
            json!({"multipleOf": 0.01}),
            &["19.99", "1e400", "9007199254740993.01"],
            &["19.999", "9007199254740993.001"],
        ),
        (json!({"multipleOf": 3}), &["36893488147419103233"], &["36893488147419103234", "0.1"]),
        (
            json!({"type": "integer"}),
            &["9007199254740993.0", "1e400"],
            &["9007199254740993.5", "1.00000000000000000001"],
        ),
        (
            json!({"uniqueItems": true}),
            &["[9007199254740992,9007199254740993]", "[0.1,0.10000000000000000001]"],
            &["[1,1.0]", "[0,-0.0]", "[1e400,10e399]"],
        ),
    ] {
        let compiled = DataSchema::of_json(&json!({"properties": {"v": schema}}));
        let is_valid = |value: &str| {
            judged(&compiled, &format!("{{\"v\":{value}}}"), &Budget::for_event()).0
                == Verdict::Valid
        };
        assert!(valid.iter().all(|value| is_valid(value)), "{schema} {valid:?}");
        assert!(!invalid.iter().any(|value| is_valid(value)), "{schema} {invalid:?}");
    }
    assert_eq!(
        message(&json!({"properties": {"v": {"maximum": 1}}}), r#"{"v":2}"#),
        "the payload at `/v` violates `/properties/v/maximum`"
    );
}

#[test]
fn a_megabyte_of_addresses_fits_the_budget_of_an_event() {
    let mail = r"^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$";
    let url = r"^(https?|ftp)://[\w.-]+(:\d{1,5})?(/[\w./?%&=~#-]*)?$";
    let uuid = "^[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$";
    for (pattern, element) in [
        (mail, "\"ada.lovelace@mail.example.org\""),
        (url, "\"https://shop.example.org:8443/a/b.html?c=d\""),
        (uuid, "\"3f2504e0-4f89-41d3-9a0c-0305e82c3301\""),
    ] {
        let schema = DataSchema::of_json(
            &json!({"properties": {"v": {"items": {"type": "string", "minLength": 3, "pattern": pattern}}}}),
        );
        let text = format!("{{\"v\":{}}}", array_of(element, MIB - 100));
        let budget = Budget::for_bytes(text.len());
        assert_eq!(judged(&schema, &text, &budget), (Verdict::Valid, None), "{pattern}");
        assert!(
            budget.spent_work() < budget.work_limit() / 2,
            "{pattern}: {}",
            budget.spent_work()
        );
    }
}

#[test]
fn deep_validations_end_before_the_stack_overflows() {
    let (_, schema, text) =
        attacks().into_iter().find(|(name, _, _)| *name == "a chain at each level").unwrap();
    let schema = DataSchema::of_json(&schema);
    let judge = move || judged(&schema, &text, &Budget::for_event()).0;
    let verdict =
        std::thread::Builder::new().stack_size(2 * MIB).spawn(judge).unwrap().join().unwrap();
    assert_ne!(verdict, Verdict::Invalid);
}

#[test]
fn an_unfinished_pattern_match_spends_the_budget() {
    let schema =
        DataSchema::of_json(&json!({"properties": {"v": {"pattern": "^((?=a)a|(?=a)a)*c$"}}}));
    for (length, expected) in [(5, Verdict::Invalid), (60, Verdict::Spent)] {
        let budget = Budget::for_event();
        assert_eq!(
            judged(&schema, &format!("{{\"v\":\"{}\"}}", "a".repeat(length)), &budget).0,
            expected,
            "{length}"
        );
        assert_eq!(budget.is_spent(), expected == Verdict::Spent);
    }
    assert_eq!(judged(&schema, r#"{"v":"aaac"}"#, &Budget::for_event()).0, Verdict::Valid);
}

#[test]
fn a_text_beyond_max_length_is_not_matched_with_its_pattern() {
    let schema = DataSchema::of_json(
        &json!({"properties": {"v": {"pattern": "(?<!a)b+c", "maxLength": 100}}}),
    );
    let text = format!("{{\"v\":\"{}\"}}", "b".repeat(MIB));
    let (verdict, message) = judged(&schema, &text, &Budget::for_event());
    assert_eq!(
        (verdict, &*message.unwrap()),
        (Verdict::Invalid, "the payload at `/v` violates `/properties/v/maxLength`")
    );
}

fn any_payload() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        (-3_i32..30).prop_map(|number| number.to_string()),
        prop::sample::select(vec![
            "1.0",
            "9007199254740993",
            "-1e999",
            r#""a""#,
            r#""xab""#,
            r#""\u0061""#,
            r#""é""#
        ])
        .prop_map(str::to_owned),
    ];
    let value = scalar.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|elements| format!("[{}]", elements.join(","))),
            any_members(inner),
        ]
    });
    any_members(value)
}

fn any_members(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "ab", "type"]);
    prop::collection::vec((name, value), 0..4).prop_map(|members| {
        let members: Vec<String> =
            members.into_iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", members.join(", "))
    })
}

fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop::sample::select(vec![
        json!({}),
        json!(false),
        json!({"type": ["string", "object"]}),
        json!({"type": "array", "minItems": 1}),
        json!({"enum": ["a", 1, null, [], {}]}),
        json!({"const": {"a": 1}}),
        json!({"pattern": "^a"}),
        json!({"pattern": "(?<!x)a"}),
        json!({"pattern": "^([ab]{1,40}){1,40}$"}),
        json!({"uniqueItems": true, "maxProperties": 2}),
        json!({"$ref": "#"}),
        json!({"$ref": "#/$defs/d"}),
    ]);
    leaf.prop_recursive(4, 24, 3, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            two.clone()
                .prop_map(|(a, b)| json!({"properties": {"a": a, "type": b}, "required": ["a"]})),
            two.clone().prop_map(
                |(a, b)| json!({"additionalProperties": a, "patternProperties": {"^(?!a)": b}})
            ),
            two.clone().prop_map(|(a, b)| json!({"items": a, "prefixItems": [b]})),
            two.clone().prop_map(|(a, b)| json!({"anyOf": [a, b]})),
            two.clone().prop_map(
                |(a, b)| json!({"oneOf": [a, b, {"type": "null"}], "unevaluatedProperties": false})
            ),
            two.clone().prop_map(|(a, b)| json!({"allOf": [a, {"not": b}]})),
            two.clone().prop_map(|(a, b)| json!({"if": a, "then": b})),
            two.prop_map(|(a, b)| json!({"contains": a, "unevaluatedItems": b})),
            inner.prop_map(|of| json!({"propertyNames": of, "dependentRequired": {"a": ["b"]}})),
        ]
    })
}

proptest! {
    #[test]
    fn verdicts_equal_those_of_the_library_and_each_violation_has_a_message(schema in any_schema(), within in any_schema(), text in any_payload()) {
        let mut schema = json!({"allOf": [schema]});
        schema["$defs"] = json!({"d": within});
        let plain = jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true).build(&schema).unwrap();
        let expected = plain.is_valid(&Json::parse(&text).unwrap().to_value());
        let (verdict, message) = judged(&DataSchema::of_json(&schema), &text, &Budget::for_event());
        prop_assert_eq!(verdict, if expected { Verdict::Valid } else { Verdict::Invalid });
        prop_assert_eq!(message.is_some(), !expected);
        prop_assert!(message.is_none_or(|message| message.starts_with("the payload") && !message.contains("xab")));
    }

    #[test]
    fn a_small_budget_ends_every_validation(schema in any_schema(), text in any_payload(), work in 0_u64..60) {
        let schema = DataSchema::of_json(&json!({"allOf": [schema], "$defs": {"d": {"type": "object"}}}));
        let full = Budget::for_event();
        let expected = judged(&schema, &text, &full).0;
        let small = Budget::with_limits(work, 0);
        let verdict = judged(&schema, &text, &small).0;
        prop_assert_eq!(verdict, if full.spent_work() <= work { expected } else { Verdict::Spent });
    }
}
