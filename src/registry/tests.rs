//! Definitions that are built by hand, applied to events.

mod bounds;
mod meaning;
mod oracle;
mod properties;
mod texts;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::config::Vars;
use crate::event::{Event, Json};
use crate::reason::Reason;

fn event<'a>(event_type: &'a str, data: &'a str, previous: Option<&'a str>) -> Event<'a> {
    Event {
        id: "e-1".into(),
        event_type: event_type.into(),
        data_text: data.into(),
        previous_text: previous.map(Cow::Borrowed),
        time: Some("2026-01-02T03:04:05Z".into()),
        source: None,
        subject: None,
        position: Some(9),
        ..Event::default()
    }
}

struct Builder {
    registry: Registry,
    vars: Vars,
    lets: Vec<String>,
}

impl Builder {
    fn new() -> Self {
        let registry = Registry {
            digest: String::new(),
            definitions: Vec::new(),
            by_name: foldhash::HashMap::default(),
            patterns: Vec::new(),
            rules: Vec::new(),
            loaders: vec![Loader {
                name: "shop".to_owned(),
                url: "http://shop/api/".to_owned(),
                headers: LoaderHeaders::default(),
                timeout: None,
                concurrency: None,
                rate: None,
                max_bytes: None,
            }],
            routing_keys: Vec::new(),
            tables: Vec::new(),
            max_keys_per_event: 100,
            tag_prefix: "cache_tag:".to_owned(),
        };
        Self {
            registry,
            vars: Vars(BTreeMap::from([("REGION".to_owned(), "eu".to_owned())])),
            lets: Vec::new(),
        }
    }

    fn names(&self, in_each: bool) -> KnownNames<'_> {
        KnownNames { lets: &self.lets, in_each, vars: &self.vars }
    }

    fn entry(mut self, name: &str) -> Self {
        let at = u32::try_from(self.registry.definitions.len()).unwrap();
        if Pattern::is_pattern(name) {
            self.registry.patterns.push((Pattern::parse(name), at));
        } else {
            self.registry.by_name.entry(name.to_owned()).or_default().push(at);
        }
        self.registry.definitions.push(EventDefinition {
            name: name.to_owned(),
            file: "t.yaml".to_owned(),
            retired: false,
            schema: None,
            validate: Validate::Enforce,
            version: None,
            lets: Vec::new(),
            rules: Vec::new(),
            max_keys: None,
        });
        self.lets.clear();
        self
    }

    fn last(mut self, change: impl FnOnce(&mut EventDefinition)) -> Self {
        change(self.registry.definitions.last_mut().unwrap());
        self
    }

    fn let_(mut self, name: &str, text: &str) -> Self {
        let expression = Expression::compile(text, &self.names(false)).unwrap();
        self.lets.push(name.to_owned());
        self.last(|definition| definition.lets.push((name.to_owned(), expression)))
    }

    fn rule(
        mut self,
        targets: &[&str],
        each: Option<&str>,
        when: Option<&str>,
        body: impl FnOnce(&KnownNames<'_>) -> RuleBody,
    ) -> Self {
        let names = self.names(each.is_some());
        let body = body(&names);
        let id = RuleId(u32::try_from(self.registry.rules.len()).unwrap());
        let rule = Rule {
            id,
            each: each.map(|text| Expression::compile(text, &self.names(false)).unwrap()),
            when: when.map(|text| Expression::compile(text, &names).unwrap()),
            key_prefix: "p:".to_owned(),
            targets: targets.iter().map(|text| Template::parse(text, &names).unwrap()).collect(),
            body,
            written: Vec::new(),
            again: None,
        };
        let definition = self.registry.definitions.last_mut().unwrap();
        let name = format!("{}#{}/{}", definition.file, definition.name, definition.rules.len());
        let verb = rule.body.verb();
        definition.rules.push(rule);
        let definition = u32::try_from(self.registry.definitions.len() - 1).unwrap();
        self.registry.rules.push(RuleName { name, verb, definition });
        self
    }

    fn delete(self, target: &str) -> Self {
        self.rule(&[target], None, None, |_| RuleBody::Delete)
    }

    fn write(self, target: &str, value: &serde_json::Value, tags: &[&str]) -> Self {
        self.rule(&[target], None, None, |names| write_body(value, tags, names, Encoding::Json))
    }

    fn resolve(&self, data: &str) -> Resolution {
        self.registry.resolve(&event("user.updated", data, None))
    }
}

fn write_body(
    value: &serde_json::Value,
    tags: &[&str],
    names: &KnownNames<'_>,
    encoding: Encoding,
) -> RuleBody {
    RuleBody::Write {
        value: value_template(value, names),
        encoding,
        expiry: ExpiryRule::After { ttl: Duration::from_secs(60), jitter: 0.1 },
        tags: tags.iter().map(|text| Template::parse(text, names).unwrap()).collect(),
        version: None,
    }
}

fn value_template(value: &serde_json::Value, names: &KnownNames<'_>) -> ValueTemplate {
    match value {
        serde_json::Value::Null => ValueTemplate::Null,
        serde_json::Value::Bool(bool) => ValueTemplate::Bool(*bool),
        serde_json::Value::Number(number) => ValueTemplate::Number(number.to_string()),
        serde_json::Value::String(text) => {
            ValueTemplate::Text(Template::parse(text, names).unwrap())
        }
        serde_json::Value::Array(elements) => ValueTemplate::Array(
            elements.iter().map(|value| value_template(value, names)).collect(),
        ),
        serde_json::Value::Object(members) => ValueTemplate::Object(
            members
                .iter()
                .map(|(name, value)| (name.clone(), value_template(value, names)))
                .collect(),
        ),
    }
}

/// Formats the effects as `delete p:user:7`, in order.
fn lines(resolution: &Resolution) -> Vec<String> {
    resolution
        .effects
        .iter()
        .map(|effect| format!("{} {}", effect.action.verb(), effect.target))
        .collect()
}

fn targets(template: &str, data: &str) -> (Vec<String>, Option<Reason>) {
    let resolution = Builder::new().entry("user.updated").delete(template).resolve(data);
    let keys =
        resolution.effects.iter().map(|effect| effect.target["p:".len()..].to_owned()).collect();
    (keys, resolution.failure.map(|failure| failure.reason))
}

#[test]
fn templates_are_filled_with_values_of_the_event() {
    let data = r#"{"id":42,"f":7.0,"e":1e3,"b":true,"s":"x y","n":null,"o":{"a b":{"c":["p",{"q":"r"}]}},"xs":[{"k":"a"},{"k":"b"}],
        "ys":[1,2],"nested":[{"in":[{"v":1},{"v":2}]},{"in":[]},{"in":[{"v":3}]}],"none":[],"some":[{"k":"a"},{"k":null},{}],"event":"ev","big":123456789012345678901234567890}"#;
    for (template, keys) in [
        ("user:{id}", vec!["user:42"]),
        ("user:{{{id}}}:x", vec!["user:{42}:x"]),
        ("{f}:{e}:{b}:{s}", vec!["7:1000:true:x y"]),
        ("{big}", vec!["123456789012345678901234567890"]),
        ("{o[\"a b\"].c[0]}-{o[\"a b\"].c[1].q}", vec!["p-r"]),
        ("{data.event}:{event.id}:{event.type}:{event.position}", vec!["ev:e-1:user.updated:9"]),
        ("{vars.REGION}:{id}", vec!["eu:42"]),
        ("{vars.NONE}:{id}", vec!["{vars.NONE}:42"]),
        ("{vars.NONE?}:{id}", vec![]),
        ("{xs[].k}", vec!["a", "b"]),
        ("{xs[].k}:{xs[].k}", vec!["a:a", "b:b"]),
        ("{xs[].k}:{data.xs[].k}", vec!["a:a", "b:b"]),
        ("{xs[].k}:{ys[]}", vec!["a:1", "a:2", "b:1", "b:2"]),
        ("{nested[].in[].v}", vec!["1", "2", "3"]),
        ("{none[]}:{xs[].k}", vec![]),
        ("{none[]}", vec![]),
        ("{some[].k?}", vec!["a"]),
        ("{absent?}:{id}", vec![]),
        ("{n?}", vec![]),
        ("{absent[].k?}", vec![]),
        ("{missing}:{absent?}", vec![]),
        ("{previous.id?}", vec![]),
    ] {
        assert_eq!(
            targets(template, data),
            (keys.into_iter().map(str::to_owned).collect(), None),
            "{template}"
        );
    }
}

#[test]
fn values_that_cannot_be_part_of_a_key_are_unresolvable() {
    let data = r#"{"empty":"","ctl":"a\nb","del":"\u007f","frac":1.5,"o":{},"a":[1],"n":null,"huge":1e999,"s":"x"}"#;
    for template in [
        "{empty}",
        "{ctl}",
        "{del}",
        "{frac}",
        "{o}",
        "{a}",
        "{n}",
        "{huge}",
        "{absent}",
        "{s[].x}",
        "{previous.x}",
        "{empty?}",
        "{a[3]}",
    ] {
        assert_eq!(targets(template, data), (vec![], Some(Reason::Unresolvable)), "{template}");
    }
}

#[test]
fn an_unresolvable_effect_does_not_stop_other_effects() {
    let builder = Builder::new()
        .entry("user.updated")
        .delete("a:{id}")
        .delete("b:{gone}")
        .delete("c:{xs[].k}")
        .delete("d:{id}");
    let resolution = builder.resolve(r#"{"id":1,"xs":[{"k":"x"},{},{"k":"z"}]}"#);
    assert_eq!(
        lines(&resolution),
        ["delete p:a:1", "delete p:c:x", "delete p:c:z", "delete p:d:1"]
    );
    let failure = resolution.failure.unwrap();
    assert_eq!((failure.reason, failure.at), (Reason::Unresolvable, 1));
    assert_eq!(failure.message, "t.yaml#user.updated/1: target: `gone` is absent");
}

#[test]
fn the_rules_that_may_have_asked_for_a_second_delete_are_found_by_its_target() {
    let again = |definition: &mut EventDefinition| {
        definition.rules.last_mut().unwrap().again = Some(Duration::from_secs(1));
    };
    let built = Builder::new()
        .entry("post.updated")
        .delete("post:{id}")
        .last(again)
        .delete("post:{id}:plain")
        .rule(&["list", "post:{id}"], None, None, |_| RuleBody::InvalidateTags)
        .last(again);
    let rules = |verb, target| built.registry.rules_of_second_delete(verb, target);
    assert_eq!(rules(Verb::Delete, "p:post:7"), ["t.yaml#post.updated/0"]);
    assert_eq!(rules(Verb::Delete, "p:user:7"), [""; 0]);
    assert_eq!(rules(Verb::InvalidateTags, "list"), ["t.yaml#post.updated/2"]);
}

#[test]
fn exact_names_precede_patterns_and_retired_definitions_win() {
    let builder = Builder::new()
        .entry("user.updated")
        .delete("a")
        .entry("user.*")
        .delete("b")
        .entry("#")
        .delete("c");
    let resolution = builder.resolve("{}");
    assert_eq!(lines(&resolution), ["delete p:a", "delete p:b", "delete p:c"]);
    assert_eq!(resolution.matched, Matched::Definition(0));
    assert_eq!(builder.registry.resolve(&event("x", "{}", None)).matched, Matched::Definition(2));

    let retired = Builder::new()
        .entry("user.updated")
        .last(|definition| definition.retired = true)
        .entry("user.*")
        .delete("b");
    assert_eq!(retired.resolve("{}").matched, Matched::Retired(0));
    assert!(retired.resolve("{}").effects.is_empty());
    assert_eq!(Builder::new().resolve("{}").matched, Matched::Unknown);
}

#[test]
fn a_definition_whose_schema_fails_has_no_effects() {
    let schema = || {
        let schema = json!({"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}});
        Some(DataSchema::of_json(&schema))
    };
    let builder = Builder::new()
        .entry("user.updated")
        .delete("a")
        .last(|definition| definition.schema = schema())
        .entry("user.*")
        .delete("b");
    let resolution = builder.resolve(r#"{"id":"secret"}"#);
    assert_eq!(lines(&resolution), ["delete p:b"]);
    let failure = resolution.failure.unwrap();
    assert_eq!((failure.reason, failure.at), (Reason::InvalidData, 0));
    assert_eq!(
        failure.message,
        "t.yaml#user.updated: the payload at `/id` violates `/properties/id/type`"
    );
    assert!(builder.resolve(r#"{"id":1}"#).failure.is_none());

    let builder = builder.last(|definition| {
        definition.schema = schema();
        definition.validate = Validate::Warn;
    });
    let resolution = builder.resolve("{}");
    assert_eq!((resolution.violations, lines(&resolution)), (1, vec!["delete p:b".to_owned()]));
}

#[test]
fn a_condition_without_an_answer_takes_the_safe_side() {
    for (when, previous, holds, dead) in [
        ("data.a == 1", None, true, false),
        ("data.a == 2", None, false, false),
        ("data.gone == 1", None, true, false),
        ("data.n.x == 1", None, true, false),
        ("data.n > 1", None, true, false),
        ("data.xs[5] == 1", None, true, false),
        ("data.a + 1 == 2", None, true, false),
        ("data.s + 1 == 2", None, true, true),
        ("data.s", None, true, true),
        ("data.flag", None, true, false),
        ("!data.flag", None, false, false),
        ("data.gone", None, true, false),
        ("int(data.s) == 1", None, true, true),
        ("has(previous.a)", None, false, false),
        ("previous.a == 1", None, true, false),
        ("previous == null", None, true, false),
        ("null == previous", None, true, false),
        ("previous != null", None, false, false),
        ("changed(\"a\")", None, true, false),
        ("changed(\"a\")", Some(r#"{"a":1.0}"#), false, false),
        ("changed(\"a\")", Some(r#"{"a":2}"#), true, false),
        ("changed('xs[]')", Some(r#"{"xs":[1]}"#), true, false),
        ("changed('gone')", Some("{}"), false, false),
        ("previous.a == 1", Some(r#"{"a":1}"#), true, false),
        ("previous != null && data.a != previous.a", Some(r#"{"a":1}"#), false, false),
        ("event.position == 9 && event.type.startsWith('user.')", None, true, false),
        ("data.big > 9223372036854775807u", None, true, false),
        ("data.o == {'k': 1}", None, true, false),
        ("{'k': 1} == data.o", None, true, false),
        ("data[\"in\"] == 3", None, true, false),
        ("'k' in data.o && size(data.o) == 1 && data.xs.exists(x, x == 1)", None, true, false),
        ("vars.REGION == 'eu'", None, true, false),
        ("vars.NONE == 'eu'", None, true, true),
        ("9223372036854775807 + data.a > 0", None, true, true),
        ("data.a / 0 == 1", None, true, true),
    ] {
        let builder = Builder::new()
            .entry("user.updated")
            .rule(&["k"], None, Some(when), |_| RuleBody::Delete);
        let builder = builder.rule(&["w"], None, Some(when), |names| {
            write_body(&json!({}), &[], names, Encoding::Json)
        });
        let data = r#"{"a":1,"n":null,"xs":[1,2],"s":"x","flag":true,"o":{"k":1},"in":3,"big":9223372036854775808}"#;
        let resolution = builder.registry.resolve(&event("user.updated", data, previous));
        let failed = resolution.failure.is_some();
        assert_eq!(
            (lines(&resolution).contains(&"delete p:k".to_owned()), failed),
            (holds, dead),
            "{when} {previous:?} {resolution:?}"
        );
        let in_doubt = lines(&resolution).contains(&"delete p:w".to_owned());
        let written = lines(&resolution).contains(&"write p:w".to_owned());
        assert_eq!(in_doubt || written, holds, "{when}");
        if failed {
            assert!(in_doubt, "{when}");
        }
    }
}

#[test]
fn functions_of_expressions_return_their_documented_results() {
    for (expression, answer) in [
        ("lower('ÀB')", "àb"),
        ("upper('ab')", "AB"),
        ("trim('  a ')", "a"),
        ("md5('a')", "0cc175b9c0f1b6a831c399e269772661"),
        ("sha1('a')", "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8"),
        ("sha256('a')", "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"),
        ("urlencode('a b/ä~')", "a%20b%2F%C3%A4~"),
        ("date('2026-07-01T23:30:00Z', '%Y-%m-%d', 'Europe/Berlin')", "2026-07-02"),
        ("date(timestamp('2026-07-01T23:30:00Z'), '%H', 'UTC')", "23"),
        ("date(0, '%Y', 'America/New_York')", "1969"),
        ("date(data.at, '%S', 'UTC')", "07"),
        ("sha1('/p/' + string(data.id))", "9cf2113ee63319a5a60a094f3b4f8190ca6b2576"),
    ] {
        let builder = Builder::new().entry("user.updated").let_("x", expression).delete("{let.x}");
        let resolution = builder.resolve(r#"{"at":7,"id":7}"#);
        assert_eq!(lines(&resolution), [format!("delete p:{answer}")], "{expression}");
    }
    for expression in [
        "date('x', '%Y', 'UTC')",
        "date(0, '%Y', data.zone)",
        "date(0, data.format, 'UTC')",
        "date(9223372036854775807, '%Y', 'UTC')",
    ] {
        let resolution =
            Builder::new().entry("user.updated").let_("x", expression).delete("{let.x}");
        let resolution = resolution.resolve(r#"{"zone":"Mars/Base","format":"%!"}"#);
        assert_eq!(
            resolution.failure.map(|failure| failure.reason),
            Some(Reason::Unresolvable),
            "{expression}"
        );
    }
}

#[test]
fn a_failing_let_affects_only_the_effects_that_read_it() {
    let builder = Builder::new()
        .entry("user.updated")
        .let_("bad", "data.gone + 1")
        .let_("good", "data.id")
        .let_("sum", "lets.good + 1");
    let builder = builder
        .delete("a:{let.good}:{let.sum}")
        .delete("b:{let.bad}")
        .delete("c:{let.bad?}")
        .delete("d");
    let resolution = builder.resolve(r#"{"id":7}"#);
    assert_eq!(lines(&resolution), ["delete p:a:7:8", "delete p:d"]);
    assert_eq!(resolution.failure.unwrap().at, 1);
}

#[test]
fn numbers_in_expressions_keep_their_digits_or_fail() {
    let delete = |_: &KnownNames<'_>| RuleBody::Delete;
    let data = r#"{"ids":[123456789012345678901234567890,18446744073709551615,7.0]}"#;
    let plain = Builder::new()
        .entry("user.updated")
        .rule(&["{item}"], Some("data.ids"), None, delete)
        .resolve(data);
    assert_eq!(
        lines(&plain),
        ["delete p:123456789012345678901234567890", "delete p:18446744073709551615", "delete p:7"]
    );
    let filtered = Builder::new()
        .entry("user.updated")
        .rule(&["{item}"], Some("data.ids.filter(i, true)"), None, delete)
        .resolve(data);
    assert_eq!(
        (lines(&filtered).len(), filtered.failure.map(|failure| failure.reason)),
        (0, Some(Reason::Unresolvable))
    );
}

#[test]
fn an_expression_lists_the_paths_that_it_reads() {
    let names = KnownNames { lets: &[], in_each: true, vars: &Vars::default() };
    let expression = Expression::compile(
        "data.a.b[0] == item.c && has(previous.d) && changed('e') && data.xs.all(x, x.y > 0)",
        &names,
    )
    .unwrap();
    let paths: Vec<_> =
        expression.paths().iter().map(|path| (path.to_string(), path.is_optional())).collect();
    let expected = [
        ("data.a.b[0]", false),
        ("item.c", false),
        ("previous.d", true),
        ("e", true),
        ("data.xs", false),
    ];
    assert_eq!(paths, expected.map(|(path, optional)| (path.to_owned(), optional)));
}

#[test]
fn each_runs_a_rule_for_every_element() {
    let body = |_: &KnownNames<'_>| RuleBody::Delete;
    let builder = Builder::new().entry("user.updated");
    let builder = builder.rule(
        &["price:{item.list}:{id}", "x:{item.n}"],
        Some("data.prices.filter(p, p.changed)"),
        Some("item.list != 'no'"),
        body,
    );
    let data = r#"{"id":1,"prices":[{"list":"a","changed":true,"n":1e2},{"list":"b","changed":false},{"list":"no","changed":true},{"list":"c","changed":true,"n":2}]}"#;
    let resolution = builder.resolve(data);
    assert_eq!(
        lines(&resolution),
        ["delete p:price:a:1", "delete p:x:100", "delete p:price:c:1", "delete p:x:2"]
    );
    for data in ["{}", r#"{"prices":3}"#, r#"{"prices":null}"#] {
        let resolution = builder.resolve(data);
        assert_eq!(
            (lines(&resolution).len(), resolution.failure.map(|failure| failure.reason)),
            (0, Some(Reason::Unresolvable)),
            "{data}"
        );
    }
}

fn written(value: &serde_json::Value, data: &str) -> Option<String> {
    let resolution = Builder::new().entry("user.updated").write("k", value, &[]).resolve(data);
    match &resolution.effects[0].action {
        Action::Write(write) => Some(write.value.clone()),
        _ => None,
    }
}

#[test]
fn values_of_writes_keep_types_and_number_texts() {
    let data = r#"{ "z" : 1.50, "a": {"y": 1e3, "x": [true, null]}, "n": null, "s": "q\"\n" }"#;
    for (value, text) in [
        (json!("{data}"), Some(r#"{"z":1.50,"a":{"y":1e3,"x":[true,null]},"n":null,"s":"q\"\n"}"#)),
        (json!({"p": "{z}"}), Some(r#"{"p":1.50}"#)),
        (
            json!({"p": "{a}", "q": "v{a.y}"}),
            Some(r#"{"p":{"y":1e3,"x":[true,null]},"q":"v1000"}"#),
        ),
        (json!({"p": "{n}"}), Some(r#"{"p":null}"#)),
        (
            json!({"a": 1, "p": "{n?}", "q": "{gone?}", "r": "x{gone?}", "z": true}),
            Some(r#"{"a":1,"z":true}"#),
        ),
        (json!(["{gone?}", "{s}", "{n?}"]), Some(r#"["q\"\n"]"#)),
        (json!({"p": "{gone}"}), None),
        (json!("{gone?}"), None),
        (json!("{event.position}"), Some("9")),
        (json!("{{x}}"), Some(r#""{x}""#)),
    ] {
        assert_eq!(written(&value, data).as_deref(), text, "{value}");
    }
}

#[test]
fn one_key_never_gets_two_values() {
    let names = KnownNames { lets: &[], in_each: false, vars: &Vars::default() };
    let template = |text: &str| Template::parse(text, &names).unwrap();
    let unbound = |target: &str, used: &str| {
        unbound_array(&[template(target)], template(used).paths()).map(ToString::to_string)
    };
    assert_eq!(unbound("{xs[].a}", "{data.xs[].b}"), None);
    assert_eq!(unbound("{xs[].a[].b}", "{xs[].c}"), None);
    assert_eq!(unbound("k", "{id}{xs[].b}"), Some("xs[].b".to_owned()));
    assert_eq!(unbound("{xs[].c}", "{xs[].a[].b}"), Some("xs[].a[].b".to_owned()));
}

#[test]
fn a_write_in_doubt_becomes_a_delete() {
    let resolution =
        Builder::new().entry("user.updated").write("k", &json!({"a": "{gone}"}), &[]).resolve("{}");
    assert_eq!(lines(&resolution), ["delete p:k"]);
    assert_eq!(
        resolution.failure.map(|failure| (failure.reason, failure.at)),
        Some((Reason::Unresolvable, 0))
    );

    let resolution =
        Builder::new().entry("user.updated").write("k", &json!({}), &["t:{gone}"]).resolve("{}");
    assert_eq!(
        (lines(&resolution), resolution.failure.is_some()),
        (vec!["delete p:k".to_owned()], true)
    );

    let resolution = Builder::new().entry("user.updated").write(
        "k:{xs[].k}",
        &json!({"k": "{xs[].k}"}),
        &["x:{xs[].k}", "t:{ts[]}", "o:{gone?}"],
    );
    let resolution = resolution.resolve(r#"{"xs":[{"k":"a"},{"k":"b"}],"ts":[1,2]}"#);
    let Action::Write(second) = &resolution.effects[1].action else { panic!("{resolution:?}") };
    assert_eq!(
        (second.value.as_str(), &*second.tags),
        (r#"{"k":"b"}"#, &["x:b".to_owned(), "t:1".to_owned(), "t:2".to_owned()][..])
    );
}

#[test]
fn versions_are_read_with_their_entities() {
    let build = |of: &str| {
        let builder = Builder::new().entry("user.updated").write("k", &json!({}), &[]);
        let of = Template::parse(of, &builder.names(false)).unwrap();
        builder.last(|definition| {
            definition.version = Some(VersionRule { of, family: Family::EventType })
        })
    };
    for (data, digits) in [
        (r#"{"rev":12}"#, Some("12")),
        (r#"{"rev":"007"}"#, Some("7")),
        (r#"{"rev":"1970-01-01T00:00:01Z"}"#, Some("1000000000")),
        (r#"{"rev":9223372036854775807}"#, Some("9223372036854775807")),
        (r#"{"rev":9223372036854775808}"#, None),
        (r#"{"rev":-1}"#, None),
        (r#"{"rev":1.5}"#, None),
        (r#"{"rev":"1969-12-31T23:59:59Z"}"#, None),
        ("{}", None),
    ] {
        let resolution = build("{rev}").resolve(data);
        match (&resolution.effects[0].action, digits) {
            (Action::Write(_), Some(digits)) => {
                let version = resolution.effects[0].version.as_deref().unwrap();
                assert_eq!(
                    (&*version.family, &*version.digits, version.place),
                    ("user", digits, 1),
                    "{data}"
                );
            }
            (Action::Delete, None) => {
                assert_eq!(resolution.failure.unwrap().reason, Reason::Unresolvable)
            }
            other => panic!("{data} {other:?}"),
        }
    }
}

#[test]
fn the_url_of_a_warm_stays_within_its_loader() {
    let build = |url: &str| {
        Builder::new().entry("user.updated").rule(&["k"], None, None, |names| RuleBody::Warm {
            loader: LoaderId(0),
            url: UrlTemplate::parse(url, names).unwrap(),
            expiry: ExpiryRule::Never,
            tags: vec![],
            stale: Stale::Drop,
            only: Only::Always,
        })
    };
    let url = |url: &str, data: &str| match &build(url).resolve(data).effects[0].action {
        Action::Warm(warm) => Some(warm.url.clone()),
        _ => None,
    };
    assert_eq!(
        url("/p/{id}?q={id}", r#"{"id":"a/ä ?#&"}"#).unwrap(),
        "http://shop/api/p/a%2F%C3%A4%20%3F%23%26?q=a%2F%C3%A4%20%3F%23%26"
    );
    for value in [".", "..", "../x", "a/../b", "%2e%2E", "%252e", "..;x", "a\\..\\b"] {
        assert_eq!(url("/p/{id}", &json!({"id": value}).to_string()), None, "{value}");
    }
    assert_eq!(url("/p?q={id}", r#"{"id":".."}"#).unwrap(), "http://shop/api/p?q=..");
    assert_eq!(url("/p.{id}", r#"{"id":"."}"#).unwrap(), "http://shop/api/p..");
    let names = KnownNames { lets: &[], in_each: false, vars: &Vars::default() };
    for text in [
        "p",
        "//../x",
        "/a/../b",
        "/a/%2e%2E/b",
        "/a b",
        "/a#b",
        "/a/./{id}",
        "/ä",
        "/%zz",
        "/{{x}}",
    ] {
        assert!(UrlTemplate::parse(text, &names).is_err(), "{text}");
    }
}

#[test]
fn limits_of_keys_per_event_are_enforced() {
    let keys = |count: usize| {
        serde_json::to_string(&json!({"xs": (0..count).collect::<Vec<_>>()})).unwrap()
    };
    let builder = Builder::new()
        .entry("user.*")
        .delete("first")
        .delete("{xs[]}:{gone}")
        .entry("#")
        .delete("{xs[]}");
    let whole = builder.resolve(&keys(99));
    assert_eq!(whole.effects.len(), 100);
    assert_eq!(whole.failure.unwrap().at, 1);
    let radius = builder.resolve(&keys(100));
    assert_eq!(
        (radius.effects.len(), radius.failure.map(|failure| (failure.reason, failure.at))),
        (0, Some((Reason::BlastRadius, 0)))
    );

    let builder = Builder::new()
        .entry("user.updated")
        .delete("a")
        .entry("user.*")
        .delete("{xs[]}")
        .last(|definition| definition.max_keys = Some(3))
        .entry("#")
        .delete("z");
    assert_eq!(builder.resolve(&keys(3)).effects.len(), 5);
    let limited = builder.resolve(&keys(1000));
    assert_eq!(lines(&limited), ["delete p:a", "delete p:z"]);
    assert_eq!(
        limited.failure.map(|failure| (failure.reason, failure.at)),
        Some((Reason::BlastRadius, 1))
    );

    let product = Builder::new().entry("user.updated").delete("{xs[]}:{data.ys[]}:{zs[].a?}");
    let many = (0..2000).collect::<Vec<_>>();
    let resolution = product.resolve(&json!({"xs": many, "ys": many, "zs": [{}]}).to_string());
    assert_eq!(resolution.failure.map(|failure| failure.reason), Some(Reason::Unresolvable));
    assert!(resolution.effects.is_empty());
}

#[test]
fn an_explanation_names_the_reason_of_each_skipped_rule() {
    let builder = Builder::new()
        .entry("user.updated")
        .rule(&["a"], None, Some("data.id == 2"), |_| RuleBody::Delete)
        .delete("b:{gone?}");
    let builder = builder.rule(&["c"], None, Some("data.gone == 2"), |_| RuleBody::Delete);
    let explanation = builder.registry.explain(&event("user.updated", r#"{"id":1}"#, None));
    assert_eq!(explanation.resolution, builder.resolve(r#"{"id":1}"#));
    let messages: Vec<_> =
        explanation.notes.iter().map(|note| (note.rule.0, note.message.as_str())).collect();
    assert_eq!(
        messages,
        [
            (0, "condition is false: data.id == 2"),
            (1, "target is dropped: an optional value is absent"),
            (
                2,
                "condition has no answer (`data.gone` is absent), so the rule takes the safe side: data.gone == 2"
            ),
        ]
    );
}
