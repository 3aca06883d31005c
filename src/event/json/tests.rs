use super::*;
use proptest::prelude::*;

#[test]
fn json_members_keep_order_and_number_text() {
    let json = Json::parse(r#" { "b" : 1.50, "a\u00e9": [1e3, "x\"y"], "b": null } "#).unwrap();
    let members = json.members();
    assert_eq!(members[0].0, "b");
    assert_eq!(members[0].1.as_number(), Some("1.50"));
    assert_eq!(members[1].0, "aé");
    assert_eq!(members[1].1.elements()[1].as_str().unwrap(), "x\"y");
    assert!(json.get("b").unwrap().is_null(), "the last of two counts");
    assert!(json.get("c").is_none());
}

#[test]
fn compact_json_keeps_order_and_number_text() {
    let json =
        Json::parse("{ \"z\": 1.50, \"a\": { \"k\\u00e9\\u0001\\n\": [ 1 , 2e1 ] }, \"z\": 7.0 }")
            .unwrap();
    let mut out = String::new();
    json.write_compact(&mut out);
    assert_eq!(out, "{\"z\":7.0,\"a\":{\"ké\\u0001\\n\":[1,2e1]}}");
}

#[test]
fn json_depth_is_bounded() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(Json::parse(&nested(MAX_DEPTH)).is_ok());
    assert_eq!(Json::parse(&nested(MAX_DEPTH + 1)), Err(JsonError::TooDeep));
    assert_eq!(Json::parse(&nested(1_000_000)), Err(JsonError::TooDeep));
    assert!(
        Json::parse(&format!("\"{}\"", "[".repeat(1_000))).is_ok(),
        "brackets in a string are text"
    );
}

#[test]
fn a_json_error_has_its_position() {
    assert_eq!(Json::parse("{\"a\":\n tru}"), Err(JsonError::Syntax { line: 2, column: 5 }));
    for text in ["{}{}", "01", "\"\\x\"", "'a'", "{id:1}", "nulx"] {
        assert!(matches!(Json::parse(text), Err(JsonError::Syntax { .. })), "{text:?}");
        assert!(matches!(Json::parse_members(text), Err(JsonError::Syntax { .. })), "{text:?}");
    }
    for text in ["{", "[1", "{\"a\":", "{\"a\":\"b}", "\"", "nul"] {
        assert!(matches!(Json::parse(text), Err(JsonError::Unfinished { .. })), "{text:?}");
        assert!(matches!(Json::parse_members(text), Err(JsonError::Unfinished { .. })), "{text:?}");
    }
    for text in ["", " ", "\n\t"] {
        assert_eq!(Json::parse(text), Err(JsonError::Empty), "{text:?}");
        assert_eq!(Json::parse_members(text).err(), Some(JsonError::Empty), "{text:?}");
    }
}

#[test]
fn half_a_surrogate_pair_is_a_json_error() {
    for text in [r#""\ud800""#, r#"{"a":["\uDC00"]}"#, r#"{"\ud83d":1}"#] {
        assert_eq!(Json::parse(text), Err(JsonError::LoneSurrogate), "{text}");
    }
    assert_eq!(Json::parse(r#""\ud83d\ude00""#).unwrap().as_str().unwrap(), "😀");
    assert!(Json::parse(r#""\\ud800""#).is_ok(), "an escaped backslash before letters");
    assert_eq!(Json::parse_members(r#"{"\ud83d":1}"#), Err(JsonError::LoneSurrogate));
}

#[test]
fn an_object_with_many_members_is_written_in_linear_time() {
    let text =
        format!("{{{}}}", (0..100_000).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(","));
    let mut out = String::new();
    Json::parse(&text).unwrap().write_compact(&mut out);
    assert_eq!(out, text);
}

#[test]
fn a_number_beyond_a_double_is_clamped_as_value_and_kept_as_text() {
    let json = Json::parse(r#"{"n":[1e999,-1e999,1e-999],"s":"x"}"#).unwrap();
    assert_eq!(json.to_value(), serde_json::json!({"n": [f64::MAX, f64::MIN, 0.0], "s": "x"}));
    assert_eq!(json.get("n").unwrap().elements()[0].as_number(), Some("1e999"));
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::btree_map(any::<String>(), inner, 0..5)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn json_agrees_with_serde_json(value in any_json(), pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let json = Json::parse(&text).unwrap();
        prop_assert_eq!(Json::parse_members(&text), Ok((json, json.members())));
        prop_assert_eq!(json.to_value(), value.clone());
        let mut compact = String::new();
        json.write_compact(&mut compact);
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&compact).unwrap(), value);
    }

    #[test]
    fn compact_json_in_one_pass_equals_compact_json_by_level(text in r#"[{}\[\]:, "ab1\\nu0]{0,40}|(\{("(a|b|\\u0061|\\n)" ?: ?(1|"x\\/y"|\[1, \{"a":2\}\]),?){0,4}\})"#) {
        let text = text.replace(",}", "}");
        if let Ok(json) = Json::parse(&text) {
            let (mut once, mut levels) = (String::from("x"), String::from("x"));
            json.write_last(&mut levels);
            if json.write_unique(&mut once) {
                prop_assert_eq!(&once, &levels);
            } else {
                prop_assert_eq!(once, "x");
            }
            let mut either = String::from("x");
            json.write_compact(&mut either);
            prop_assert_eq!(either, levels);
        }
    }

    #[test]
    fn no_json_text_panics(text: String) {
        prop_assert_eq!(Json::parse_members(&text), Json::parse(&text).map(|json| (json, json.members())));
        if let Ok(json) = Json::parse(&text) {
            json.members();
            json.elements();
            json.write_compact(&mut String::new());
        }
    }
}
