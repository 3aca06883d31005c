//! Properties that hold for every event.

use proptest::prelude::*;

use super::super::expression::METHODS;
use super::*;
use crate::event::{Decoded, Message, Parsed, Reading, decode};

fn any_json(depth: u32) -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,6}".prop_map(Into::into),
    ];
    leaf.prop_recursive(depth, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Texts that libraries parse: times, durations, zones, formats and numbers, at and beyond their
/// limits.
const TEXTS: [&str; 24] = [
    "",
    "\u{0}ä💥",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z",
    "2016-12-31T23:59:60Z",
    "9999-12-31T23:59:59-23:59",
    "0000-01-01T00:00:00+23:59",
    "9223372036854775807ns",
    "-9223372036854775808ns",
    "--1e300h",
    "1e999h",
    "NaNs",
    "-infh",
    "-23:59",
    "23:60",
    "ä:é",
    "Europe/Berlin",
    "Pacific/Apia",
    "%255Y%99f%:::z",
    "%Q%é%",
    "-9223372036854775808",
    "18446744073709551615",
    "1e400",
    "{/a*,b:3}",
];

const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1.5",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "123456789012345678901234567890",
    "1e308",
    "1e400",
    "253402300799",
    "-62135596801",
    "9007199254740993",
];

pub(super) fn hostile_json() -> impl Strategy<Value = String> {
    let text = prop_oneof![prop::sample::select(&TEXTS[..]).prop_map(str::to_owned), ".{0,4}"];
    let leaf = prop_oneof![
        prop::sample::select(&NUMBERS[..]).prop_map(str::to_owned),
        text.prop_map(|text| json!(text).to_string()),
        Just("null".to_owned()),
    ];
    leaf.prop_recursive(2, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3)
                .prop_map(|elements| format!("[{}]", elements.join(","))),
            (inner.clone(), inner).prop_map(|(a, b)| format!(r#"{{"a":{a},"b":{b}}}"#)),
        ]
    })
}

/// Generates expressions that compile, with every operator and function.
pub(super) fn expression() -> impl Strategy<Value = String> {
    let values = [
        "data.a",
        "data.b",
        "data.b.a",
        "data['a'][0]",
        "previous.a",
        "data",
        "event.position",
        "event.time",
        "1",
        "-1",
        "0u",
        "1e308",
    ];
    let literals = [
        "9223372036854775807",
        "-9223372036854775808",
        "18446744073709551615u",
        "[]",
        "{}",
        "{'a': 1}",
        "b'\\xff'",
        "null",
        "true",
    ];
    let texts = TEXTS.map(|text| json!(text).to_string());
    let leaf = prop_oneof![4 => prop::sample::select(values.map(str::to_owned).to_vec()), 1 => prop::sample::select(literals.map(str::to_owned).to_vec()),
        2 => prop::sample::select(texts.to_vec())];
    let binary = ["+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "in", "&&", "||"];
    let functions = [
        "!",
        "-",
        "bool",
        "bytes",
        "double",
        "duration",
        "dyn",
        "int",
        "size",
        "string",
        "timestamp",
        "type",
        "uint",
        "lower",
        "upper",
        "trim",
        "md5",
        "sha1",
        "sha256",
        "urlencode",
    ];
    let times = METHODS.into_iter().filter(|method| method.starts_with("get")).collect::<Vec<_>>();
    let macros = ["all", "exists", "exists_one", "map", "filter"];
    leaf.prop_recursive(3, 16, 3, move |inner| {
        let e = || inner.clone();
        prop_oneof![
            (e(), prop::sample::select(binary.to_vec()), e())
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            (prop::sample::select(functions.to_vec()), e()).prop_map(|(f, a)| format!("{f}({a})")),
            (e(), prop::sample::select(times.clone()), prop::option::of(e())).prop_map(
                |(a, f, zone)| format!("timestamp({a}).{f}({})", zone.unwrap_or_default())
            ),
            (e(), prop::sample::select(vec!["+", "-"]), e())
                .prop_map(|(a, op, b)| format!("(timestamp({a}) {op} duration({b}))")),
            (e(), e(), e()).prop_map(|(a, b, c)| format!("date({a}, {b}, {c})")),
            (e(), prop::sample::select(macros.to_vec()), e())
                .prop_map(|(a, f, b)| format!("({a}).{f}(x, {b})")),
            (e(), e()).prop_map(|(a, b)| format!("({a})[{b}]")),
            (e(), e()).prop_map(|(a, b)| format!("(true ? {a} : {b})")),
        ]
    })
}

proptest! {
    #[test]
    fn no_generated_expression_panics(when in expression(), x in expression(), data in prop::collection::vec((hostile_json(), hostile_json()), 4)) {
        let names = KnownNames { lets: &[], in_each: false, vars: &Vars::default() };
        // A literal format or time zone may be invalid.
        prop_assume!([&when, &x].into_iter().all(|text| Expression::compile(text, &names).is_ok()));
        let builder = Builder::new().entry("user.updated").let_("x", &x).rule(&["k:{let.x}"], None, Some(&when), |_| RuleBody::Delete);
        for (a, b) in data {
            let (data, previous) = (format!(r#"{{"a":{a},"b":{b}}}"#), format!(r#"{{"a":{b}}}"#));
            let resolution = builder.registry.resolve(&event("user.updated", &data, Some(&previous)));
            prop_assert!(resolution.effects.len() <= 1);
        }
    }

    #[test]
    fn no_generated_event_panics(data in prop::collection::btree_map("[a-d]", any_json(3), 0..4), previous in any_json(2)) {
        let builder = Builder::new().entry("user.updated").let_("x", "data.a + 1").let_("y", "data.b");
        let builder = builder.delete("{a}:{b[].c}:{c[0].d?}:{let.x}").delete("{let.y.a}:{let.y[].b}");
        let builder = builder.rule(&["{item}", "{item.a?}"], Some("data.c.map(x, x)"), Some("item.a > 1 || changed('b')"), |_| RuleBody::Delete);
        let builder = builder.write("k:{a}", &json!({"a": "{a}", "b": "{b?}", "c": "x{c}"}), &["{d[]}"]);
        let builder = builder.rule(&["w"], None, Some("size(data.d) > 0 && -data.a < 3 && data.b % data.c == 0"), |_| RuleBody::Delete);
        let data = serde_json::to_string(&data).unwrap();
        let previous = previous.to_string();
        let event = event("user.updated", &data, Some(&previous));
        let explanation = builder.registry.explain(&event);
        prop_assert_eq!(&explanation.resolution, &builder.registry.resolve(&event));
        if let Some(failure) = explanation.resolution.failure {
            prop_assert!(failure.at as usize <= explanation.resolution.effects.len());
        }
    }

    #[test]
    fn a_key_holds_exactly_the_string_or_is_unresolvable(value in "\\PC{0,12}|.{0,6}|[\\x00-\\x1f{}\\[\\]\".]{0,6}") {
        let data = json!({"v": value}).to_string();
        let (keys, reason) = targets("a:{v}:b", &data);
        if value.is_empty() || value.chars().any(char::is_control) {
            prop_assert_eq!((keys.len(), reason), (0, Some(Reason::Unresolvable)));
        } else {
            prop_assert_eq!((keys, reason), (vec![format!("a:{value}:b")], None));
        }
    }

    #[test]
    fn different_arrays_multiply_and_one_array_advances_together(xs in prop::collection::vec(0..50_u32, 0..6), ys in prop::collection::vec(0..50_u32, 0..6)) {
        let data = json!({"xs": xs, "ys": ys}).to_string();
        let (keys, _) = targets("{xs[]}:{ys[]}:{xs[]}", &data);
        let expected: Vec<_> = xs.iter().flat_map(|x| ys.iter().map(move |y| format!("{x}:{y}:{x}"))).collect();
        prop_assert_eq!(keys, expected);
    }

    #[test]
    fn no_text_panics_the_compilers(text in ".{0,24}|[{}a-c.\\[\\]\"?0-9]{0,16}|[a-c.()+&|!=<>\" ]{0,16}") {
        let names = KnownNames { lets: &[], in_each: true, vars: &Vars::default() };
        let _ = Template::parse(&text, &names);
        let _ = UrlTemplate::parse(&text, &names);
        if let Err(problem) = Expression::compile(&text, &names) {
            prop_assert!(problem.at <= text.len());
        }
    }
}

#[test]
fn an_event_that_gets_another_payload_is_resolved_by_that() {
    let registry = Builder::new().entry("user.updated").delete("user:{data.id}").registry;
    let message = Message {
        routing_key: "user.updated",
        body: br#"{"id":1}"#,
        exchange: "events",
        ..Message::default()
    };
    let Ok(Decoded::Event(event)) = decode(&message, Reading::default()) else {
        panic!("an event")
    };
    assert_eq!(lines(&registry.resolve(&event)), ["delete p:user:1"]);
    let other = Event { data_text: r#"{"id":2}"#.into(), ..event.clone() };
    assert_eq!(lines(&registry.resolve(&other)), ["delete p:user:2"]);
    assert_eq!(lines(&registry.resolve(&event.into_owned())), ["delete p:user:1"]);
}

proptest! {
    #[test]
    fn members_parsed_by_decoding_are_those_of_the_payload(
        members in prop::collection::vec((
            prop::sample::select(vec!["id", "a", r"\u0061", "b", r"\n", "ids"]),
            prop::sample::select(vec!["1", r#""x""#, "null", "[2, 3]", " 4 ", "{}"]),
        ), 0..11),
    ) {
        let members = members.iter().map(|(name, value)| format!("\"{name}\":{value}"));
        let body = format!(" {{{}}}", members.collect::<Vec<_>>().join(", "));
        let registry = Builder::new()
            .entry("user.updated")
            .delete("id:{data.id}")
            .delete("a:{data.a?}:{data.b?}")
            .delete("ids:{data.ids[]}")
            .registry;
        let message = Message {
            routing_key: "user.updated",
            body: body.as_bytes(),
            exchange: "events",
            ..Message::default()
        };
        let Ok(Decoded::Event(event)) = decode(&message, Reading::default()) else {
            panic!("an event: {body}")
        };
        let unparsed = Event { parsed: Parsed::default(), ..event.clone() };
        prop_assert_eq!(registry.resolve(&event), registry.resolve(&unparsed));
    }
}
