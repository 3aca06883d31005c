//! What holds for every event.

use proptest::prelude::*;

use super::*;

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
            prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_event_panics(data in prop::collection::btree_map("[a-d]", any_json(3), 0..4), previous in any_json(2)) {
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
    fn different_arrays_multiply_and_one_goes_in_step(xs in prop::collection::vec(0..50_u32, 0..6), ys in prop::collection::vec(0..50_u32, 0..6)) {
        let data = json!({"xs": xs, "ys": ys}).to_string();
        let (keys, _) = targets("{xs[]}:{ys[]}:{xs[]}", &data);
        let expected: Vec<_> = xs.iter().flat_map(|x| ys.iter().map(move |y| format!("{x}:{y}:{x}"))).collect();
        prop_assert_eq!(keys, expected);
    }

    #[test]
    fn no_text_panics_the_compilers(text in ".{0,24}|[{}a-c.\\[\\]\"?0-9]{0,16}|[a-c.()+&|!=<>\" ]{0,16}") {
        let names = Names { lets: &[], in_each: true, vars: &Vars::default() };
        let _ = Template::parse(&text, &names);
        let _ = UrlTemplate::parse(&text, &names);
        if let Err(problem) = Expression::compile(&text, &names) {
            prop_assert!(problem.at <= text.len());
        }
    }
}
