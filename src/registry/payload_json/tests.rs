use std::fmt::Write as _;

use jsonschema::{Draft, ValidationOptions};
use proptest::prelude::*;
use serde_json::json;

use super::super::budget::Budget;
use super::*;

/// Returns the failing places and keywords of a payload: read in place, and from a tree.
fn judged(schema: &Value, text: &str) -> [Vec<String>; 2] {
    let payload = Json::parse(text).unwrap();
    let members = payload.members();
    let budget = Budget::for_event();
    let meter = Meter::new(&budget, Costs::default());
    let node = PayloadNode::of(payload, &members, &meter);
    let in_place = jsonschema::options_for::<PayloadJson>()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true);
    let in_place = in_place.build(schema).unwrap();
    let tree: ValidationOptions<'_> =
        jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true);
    let (tree, value) = (tree.build(schema).unwrap(), payload.to_value());
    let told = |error: jsonschema::ValidationError<'_>| {
        format!("{} {}", error.instance_path(), error.schema_path())
    };
    let all = [
        in_place.iter_errors(node).map(told).collect::<Vec<_>>(),
        tree.iter_errors(&value).map(told).collect(),
    ];
    assert_eq!(
        [in_place.is_valid(node), tree.is_valid(&value)],
        [all[0].is_empty(), all[1].is_empty()],
        "{schema} {text}"
    );
    all
}

#[test]
fn schema_keywords_have_the_same_results_in_place_and_on_a_tree() {
    let is_valid = |schema: Value, text: &str| {
        let [in_place, tree] = judged(&schema, text);
        assert_eq!(in_place, tree, "{schema} {text}");
        in_place.is_empty()
    };
    for (schema, text, expected) in [
        (json!({"type": "integer"}), "1.0", true),
        (json!({"type": "integer"}), "123456789012345678901234567890", true),
        (json!({"type": "integer"}), "1e400", true),
        (json!({"type": "integer"}), "1.5", false),
        (json!({"maximum": 9_007_199_254_740_992_u64}), "9007199254740993", false),
        (json!({"exclusiveMinimum": 0}), "-0", false),
        (json!({"multipleOf": 0.1}), "0.3", true),
        (json!({"const": 1}), "1.0", true),
        (json!({"enum": ["a", null, true, {"a": [1]}]}), r#"{"a":[1.0]}"#, true),
        (json!({"enum": ["a"]}), r#""\u0061""#, true),
        (json!({"maxLength": 1}), r#""\ud83d\ude00""#, true),
        (json!({"uniqueItems": true}), r#"[1,{"a":1},{"a":1.0}]"#, false),
        (
            json!({"uniqueItems": true}),
            r#"[9007199254740993,9007199254740992,9007199254740994]"#,
            true,
        ),
        (json!({"uniqueItems": true}), r#"[[0],[-0.0]]"#, false),
        (json!({"uniqueItems": true}), r#"[{"a":1,"b":2},{"b":2,"a":0,"a":1}]"#, false),
        (json!({"const": {"a": [1], "b": null}}), r#"{"b":1,"b":null,"a":[1.0]}"#, true),
        (json!({"const": {"a": [1], "b": null}}), r#"{"a":[1],"b":null,"c":1}"#, false),
        (json!({"properties": {"a": {"type": "string"}}}), r#"{"a":1,"a":"x"}"#, true),
        (
            json!({"properties": {"n": {"properties": {"a": {"type": "string"}}}}}),
            r#"{"n":{"a":"x","a":1}}"#,
            false,
        ),
        (json!({"maxProperties": 1}), r#"{"a":1,"a":2}"#, true),
        (json!({"propertyNames": {"pattern": "^a"}}), r#"{"a":1,"b":2}"#, false),
        (json!({"propertyNames": {"$ref": "#"}, "allOf": [{"$ref": "#"}]}), r#"{"a":1}"#, true),
        (
            json!({"additionalProperties": false, "patternProperties": {"^a": {}}}),
            r#"{"ab":1,"\u0061c":2}"#,
            true,
        ),
        (
            json!({"unevaluatedProperties": false, "allOf": [{"properties": {"a": {}}}]}),
            r#"{"a":1,"b":2}"#,
            false,
        ),
        (json!({"contains": {"const": 2}, "maxContains": 1}), "[1,2,2]", false),
        (
            json!({"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}, "type": "object"}}}),
            r#"{"n":{"n":1}}"#,
            false,
        ),
    ] {
        assert_eq!(is_valid(schema.clone(), text), expected, "{schema} {text}");
    }
}

fn any_text() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        (-3_i32..300).prop_map(|number| number.to_string()),
        prop::sample::select(vec!["-0", "1.0", "2.5e1", "1E2", "18446744073709551616", "-1e999"])
            .prop_map(str::to_owned),
        prop::sample::select(vec![
            r#""a""#,
            r#""""#,
            r#""a@b.example""#,
            r#""\u0061\n""#,
            r#""é🦀""#
        ])
        .prop_map(str::to_owned),
    ];
    scalar.prop_recursive(3, 24, 5, |inner| {
        let member = (prop::sample::select(vec!["a", "b", r"\u0061", "é"]), inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..5)
                .prop_map(|elements| format!("[{}]", elements.join(","))),
            prop::collection::vec(member, 0..20).prop_map(|members| {
                let mut text = String::from("{");
                for (at, (name, value)) in members.iter().enumerate() {
                    let _ = write!(text, "{}\"{name}\" : {value}", if at > 0 { " , " } else { "" });
                }
                text + "}"
            }),
        ]
    })
}

fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop::sample::select(vec![
        json!({}),
        json!(false),
        json!({"type": "string", "minLength": 1}),
        json!({"type": ["integer", "null"]}),
        json!({"minimum": 0, "maximum": 25}),
        json!({"format": "email"}),
        json!({"enum": ["a", 1, null, [], {}]}),
        json!({"pattern": "^a"}),
        json!({"multipleOf": 5}),
    ]);
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone())
                .prop_map(|(a, b)| json!({"properties": {"a": a, "é": b}, "required": ["a"]})),
            inner.clone().prop_map(
                |of| json!({"additionalProperties": of, "minProperties": 1, "maxProperties": 2})
            ),
            inner.clone().prop_map(
                |of| json!({"patternProperties": {"^[ab]": of}, "propertyNames": {"maxLength": 1}})
            ),
            inner.clone().prop_map(|of| json!({"items": of, "uniqueItems": true})),
            inner.clone().prop_map(|of| json!({"prefixItems": [of], "minItems": 1})),
            inner.clone().prop_map(|of| json!({"contains": of})),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| json!({"anyOf": [a, b]})),
            (inner.clone(), inner.clone())
                .prop_map(|(a, b)| json!({"oneOf": [a, b], "unevaluatedProperties": false})),
            (inner.clone(), inner).prop_map(
                |(a, b)| json!({"if": a, "then": b, "else": {"not": {"type": "object"}}})
            ),
        ]
    })
}

proptest! {
    #[test]
    fn validation_in_place_equals_validation_of_a_tree(schema in any_schema(), text in any_text()) {
        let [mut in_place, mut tree] = judged(&schema, &text);
        // A tree has its members in another order.
        in_place.sort();
        tree.sort();
        prop_assert_eq!(in_place, tree);
    }
}
