//! Rules and events that multiply: keys, tags, values, schemas, patterns and expressions.

use std::fmt::Write as _;

use lapin::BasicProperties;

use super::{Victim, list};

/// Event definition, and one event that makes the most of it.
struct Attack {
    name: &'static str,
    /// Text below the event's type.
    definition: &'static str,
    body: String,
    /// True if the event must be refused. The others may be applied if that costs little.
    refused: bool,
}

fn refused(name: &'static str, definition: &'static str, body: String) -> Attack {
    Attack { name, definition, body, refused: true }
}

fn bounded(name: &'static str, definition: &'static str, body: String) -> Attack {
    Attack { name, definition, body, refused: false }
}

fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn ids(count: usize) -> String {
    list(count, |n| n.to_string())
}

fn texts(count: usize, bytes: usize) -> String {
    list(count, |n| {
        let n = n.to_string();
        format!(r#""{}{n}""#, "0".repeat(bytes.saturating_sub(n.len())))
    })
}

/// Returns attacks in which a few bytes of an event become many bytes in Redis.
fn targets() -> Vec<Attack> {
    let tenant = |bytes, count| format!(r#"{{"tenant":"{}","ids":{}}}"#, text(bytes), ids(count));
    vec![
        refused(
            "key-long-and-many",
            r#"{ effects: [ { delete: "t:{tenant}:p:{ids[]}" } ] }"#,
            tenant(900_000, 9_000),
        ),
        refused(
            "key-60k-and-many",
            r#"{ effects: [ { delete: "t:{tenant}:p:{ids[]}" } ] }"#,
            tenant(60_000, 9_900),
        ),
        refused(
            "key-3k-and-many",
            r#"{ effects: [ { delete: "t:{tenant}:p:{ids[]}" } ] }"#,
            tenant(3_900, 9_900),
        ),
        refused("key-alone", r#"{ effects: [ { delete: "t:{tenant}" } ] }"#, tenant(900_000, 1)),
        refused(
            "expire",
            r#"{ effects: [ { expire: "t:{tenant}:{ids[]}", ttl: 1s } ] }"#,
            tenant(60_000, 9_900),
        ),
        refused(
            "bump",
            r#"{ effects: [ { bump_version: "t:{tenant}:{ids[]}" } ] }"#,
            tenant(60_000, 9_900),
        ),
        refused(
            "tag-long-and-many",
            r#"{ effects: [ { invalidate_tags: "t:{tenant}:{ids[]}" } ] }"#,
            tenant(60_000, 9_900),
        ),
        refused(
            "tags-times-tags",
            r#"{ effects: [ { invalidate_tags: "{a[]}:{b[]}" } ] }"#,
            format!(r#"{{"a":{0},"b":{0}}}"#, ids(3_000)),
        ),
        refused(
            "keys-times-tags",
            r#"{ effects: [ { write: "k:{ks[]}", value: "v", ttl: 1h, tags: ["t:{tenant}:{ts[]}"] } ] }"#,
            format!(r#"{{"tenant":"{}","ks":{1},"ts":{1}}}"#, text(1_000), ids(900)),
        ),
        refused(
            "keys-times-short-tags",
            r#"{ effects: [ { write: "k:{ks[]}", value: "v", ttl: 1h, tags: ["{ts[]}", "a{ts[]}", "b{ts[]}"] } ] }"#,
            format!(r#"{{"ks":{0},"ts":{0}}}"#, ids(3_000)),
        ),
        refused(
            "keys-times-value",
            r#"{ effects: [ { write: "k:{ids[]}", value: "{data}", ttl: 1h } ] }"#,
            tenant(100_000, 9_000),
        ),
        refused(
            "each-times-value",
            r#"{ let: { all: "data.ids.map(x, data.tenant)" }, effects: [ { each: data.ids, write: "k:{item}", value: { a: "{let.all}", b: "{let.all}" }, ttl: 1h } ] }"#,
            tenant(1_000, 3_000),
        ),
        refused(
            "each-times-let",
            r#"{ let: { big: "data.tenant + data.tenant" }, effects: [ { each: data.ids, delete: "k:{let.big}:{item}" } ] }"#,
            tenant(100_000, 9_000),
        ),
        refused(
            "rules-times-keys",
            r#"{ effects: [ { delete: ["a{ids[]}{tenant}", "b{ids[]}{tenant}", "c{ids[]}{tenant}", "d{ids[]}{tenant}"] }, { delete: ["e{ids[]}{tenant}", "f{ids[]}{tenant}"] } ] }"#,
            tenant(3_000, 3_000),
        ),
        refused(
            "entities",
            r#"{ version: { of: "1", entity: "post:{tenant}" }, effects: [ { write: "k:{ids[]}", value: "v", ttl: 1h }, { delete: "k:{ids[]}" } ] }"#,
            tenant(100_000, 4_000),
        ),
        refused(
            "addresses",
            r#"{ effects: [ { warm: "k:{ids[]}", from: "http://127.0.0.1:1/{tenant}/{ids[]}", ttl: 1h } ] }"#,
            tenant(60_000, 9_900),
        ),
        refused(
            "encoded-addresses",
            r#"{ effects: [ { warm: "k:{ids[]}", from: "http://127.0.0.1:1/{tenant}", ttl: 1h } ] }"#,
            format!(r#"{{"tenant":"{}","ids":{}}}"#, "\u{fdfa}".repeat(30_000), ids(4_000)),
        ),
        refused(
            "nested-lists",
            r#"{ effects: [ { delete: "{tenant}:{a[].b[].c}" } ] }"#,
            format!(
                r#"{{"tenant":"{}","a":{}}}"#,
                text(3_000),
                list(95, |_| format!(r#"{{"b":{}}}"#, list(100, |n| format!(r#"{{"c":{n}}}"#))))
            ),
        ),
        refused(
            "three-lists",
            r#"{ effects: [ { delete: "{a[]}:{b[]}:{c[]}" } ] }"#,
            format!(r#"{{"a":{0},"b":{0},"c":{0}}}"#, ids(1_000)),
        ),
        bounded(
            "every-one-absent",
            r#"{ effects: [ { delete: "{a[].x?}:{b[].x?}" } ] }"#,
            format!(r#"{{"a":{0},"b":{0}}}"#, list(9_000, |_| "{}".to_owned())),
        ),
    ]
}

/// Returns attacks with documents that a schema must check again and again.
fn schemas() -> Vec<Attack> {
    let leaf = |value: &str, depth: usize| {
        let mut document = value.to_owned();
        for _ in 0..depth {
            document = format!(r#"{{"type":"a","children":[{document}]}}"#);
        }
        format!(r#"{{"id":1,"root":{document}}}"#)
    };
    let definition = r##"{ data: { type: object, $defs: { node: { oneOf: [
        { properties: { type: { const: a }, children: { type: array, items: { $ref: "#/$defs/node" } } }, required: [type] },
        { properties: { type: { const: b }, children: { type: array, items: { $ref: "#/$defs/node" } } }, required: [type] },
        { properties: { type: { const: c }, children: { type: array, items: { $ref: "#/$defs/node" } } }, required: [type] },
        { properties: { type: { const: d } }, required: [type] } ] } },
        properties: { id: { type: integer }, root: { $ref: "#/$defs/node" } } }, effects: [ { delete: "node:{id}" } ] }"##;
    let any = r##"{ data: { type: object, $defs: { node: { anyOf: [
        { type: object, properties: { children: { type: array, items: { $ref: "#/$defs/node" } } }, required: [children] },
        { type: object, properties: { children: { type: array, items: { $ref: "#/$defs/node" } } }, required: [children, x] },
        { type: integer } ] } },
        properties: { id: { type: integer }, root: { $ref: "#/$defs/node" } } }, validate: warn, effects: [ { delete: "node:{id}" } ] }"##;
    let wrong = leaf(r#"{"type":"z"}"#, 9);
    vec![
        refused("one-of-9", definition, wrong),
        refused("one-of-40", definition, leaf(r#"{"type":"z"}"#, 40)),
        bounded("one-of-valid", definition, leaf(r#"{"type":"d"}"#, 45)),
        bounded("any-of-45", any, leaf(r#""wrong""#, 45)),
        bounded(
            "dependent-double",
            r##"{ data: { $defs: { n: { allOf: [ { properties: { a: { $ref: "#/$defs/n" } } }, { properties: { a: { $ref: "#/$defs/n" } } } ] } }, $ref: "#/$defs/n" }, effects: [ { delete: "a" } ] }"##,
            format!("{}1{}", r#"{"a":"#.repeat(60), "}".repeat(60)),
        ),
        bounded(
            "unique-items",
            r#"{ data: { properties: { a: { uniqueItems: true } } }, effects: [ { delete: "a" } ] }"#,
            format!(r#"{{"a":{}}}"#, list(60_000, |n| format!(r#"{{"k":{n}}}"#))),
        ),
        bounded(
            "unique-lists",
            r#"{ data: { properties: { a: { uniqueItems: true } } }, effects: [ { delete: "a" } ] }"#,
            format!(r#"{{"a":{}}}"#, list(900, |n| format!("[{}{n}]", "1,".repeat(500)))),
        ),
        bounded(
            "contains",
            r#"{ data: { properties: { a: { items: { contains: { const: 7 }, minContains: 0, maxContains: 3 } } } }, effects: [ { delete: "a" } ] }"#,
            format!(r#"{{"a":{}}}"#, list(1_000, |_| ids(250))),
        ),
        bounded(
            "names-and-patterns",
            r#"{ data: { propertyNames: { pattern: "^(a|ab)*c?$", maxLength: 60 }, patternProperties: { "^a+b": { type: integer }, "b+$": { type: integer } } }, effects: [ { delete: "a" } ] }"#,
            format!(
                "{{{}}}",
                (0..20_000)
                    .map(|n| format!(r#""{}{n}":1"#, "ab".repeat(15)))
                    .collect::<Vec<_>>()
                    .join(",")
            ),
        ),
        bounded(
            "look-behind",
            r#"{ data: { properties: { a: { pattern: "(?<!a)b+c" } } }, effects: [ { delete: "a" } ] }"#,
            format!(r#"{{"a":"{}"}}"#, "b".repeat(900_000)),
        ),
        bounded(
            "back-reference",
            r#"{ data: { properties: { a: { pattern: "^(a+)+\\1$" } } }, effects: [ { delete: "a" } ] }"#,
            format!(r#"{{"a":"{}!"}}"#, "a".repeat(300)),
        ),
        bounded(
            "formats",
            r#"{ data: { properties: { a: { format: email }, b: { format: uri }, c: { format: ipv6 }, d: { format: hostname }, e: { format: regex }, f: { format: date-time } } }, effects: [ { delete: "a" } ] }"#,
            format!(
                r#"{{"a":"{0}@{1}","b":"http://{1}/{0}","c":"{2}","d":"{1}","e":"{3}","f":"{0}"}}"#,
                text(150_000),
                "a.".repeat(70_000),
                "1:".repeat(70_000),
                "(a".repeat(40_000)
            ),
        ),
        bounded(
            "enumeration",
            r#"{ data: { properties: { a: { items: { enum: [ [1], [2], { a: [1,2,3] }, "x", 1.5 ] } } } }, effects: [ { delete: "a" } ] }"#,
            format!(r#"{{"a":{}}}"#, list(30_000, |n| format!(r#"{{"a":[1,2,{n}]}}"#))),
        ),
    ]
}

/// Returns attacks with expressions that copy, compare and build.
fn expressions() -> Vec<Attack> {
    let pattern = r#"{ let: { xs: 'data.a.filter(x, x.matches("^[\\w.-]{1,64}$"))' }, effects: [ { delete: "k:{let.xs[]}" } ] }"#;
    let pair = |a: String, b: String| format!(r#"{{"a":{a},"b":{b},"id":1}}"#);
    let mut doubling = "{ let: {".to_owned();
    for n in 1..=24 {
        let before = if n == 1 { "data.t".to_owned() } else { format!("lets.l{}", n - 1) };
        let _ = write!(doubling, "l{n}: \"{before} + {before}\", ");
    }
    doubling.push_str(r#"}, effects: [ { delete: "k:{let.l24}" } ] }"#);
    vec![
        bounded("matches-1000", pattern, format!(r#"{{"a":{}}}"#, texts(1_000, 5))),
        bounded("matches-4000", pattern, format!(r#"{{"a":{}}}"#, texts(4_000, 5))),
        bounded("matches-long", pattern, format!(r#"{{"a":{}}}"#, texts(10, 90_000))),
        bounded(
            "matches-when",
            r#"{ effects: [ { each: data.a, when: 'item.matches("([a-z0-9]+-?){1,30}x")', delete: "k:{item}" } ] }"#,
            format!(r#"{{"a":{}}}"#, texts(9_000, 60)),
        ),
        bounded(
            "map-map-join",
            r#"{ let: { l: "data.a.map(x, data.b.map(y, x + y))" }, effects: [ { delete: "k:{id}", when: "size(lets.l) > 0" } ] }"#,
            pair(texts(990, 500), texts(990, 500)),
        ),
        bounded(
            "map-map-map",
            r#"{ let: { l: "data.a.map(x, data.b.map(y, data.a.map(z, x + y + z)))" }, effects: [ { delete: "k:{id}", when: "size(lets.l) > 0" } ] }"#,
            pair(texts(95, 3_400), texts(95, 3_400)),
        ),
        bounded(
            "map-sha",
            r#"{ let: { l: "data.a.map(x, data.b.map(y, sha256(x)))" }, effects: [ { delete: "k:{id}", when: "size(lets.l) > 0" } ] }"#,
            pair(texts(5, 100_000), ids(100_000)),
        ),
        bounded(
            "map-self",
            r#"{ let: { l: "data.a.map(x, data.a)" }, effects: [ { delete: "k:{id}", when: "size(lets.l) > 0" } ] }"#,
            pair(ids(3_900), ids(1)),
        ),
        bounded(
            "filter-quadratic",
            r#"{ let: { l: "data.a.filter(x, x > 3)" }, effects: [ { delete: "k:{id}", when: "size(lets.l) > 0" } ] }"#,
            pair(ids(150_000), ids(1)),
        ),
        bounded(
            "all-exists",
            r#"{ effects: [ { delete: "k:{id}", when: "data.a.all(x, data.b.exists(y, y == x))" } ] }"#,
            pair(ids(3_000), ids(3_000)),
        ),
        bounded(
            "in",
            r#"{ effects: [ { delete: "k:{id}", when: "data.a.all(x, x in data.b)" } ] }"#,
            pair(texts(9_000, 40), texts(9_000, 40)),
        ),
        bounded(
            "equal-objects",
            r#"{ effects: [ { delete: "k:{id}", when: "data.a.all(x, data.b == data.b)" } ] }"#,
            pair(ids(9_000), texts(9_000, 40)),
        ),
        bounded(
            "equal-roots",
            r#"{ effects: [ { each: data.a, delete: "k:{item}", when: "data == data" } ] }"#,
            pair(ids(9_000), texts(9_000, 40)),
        ),
        bounded(
            "index",
            r#"{ effects: [ { delete: "k:{id}", when: "data.a.all(x, data.b[x] == data.b[8999])" } ] }"#,
            pair(ids(9_000), texts(9_000, 40)),
        ),
        bounded(
            "texts",
            r#"{ effects: [ { each: data.a, delete: "k:{item}", when: 'data.t.contains("xyz") || data.t.endsWith("y") || size(upper(lower(trim(data.t)))) == 3' } ] }"#,
            format!(r#"{{"t":"{}","a":{}}}"#, text(900_000), ids(9_000)),
        ),
        bounded(
            "urlencode",
            r#"{ let: { l: "data.a.map(x, urlencode(data.t))" }, effects: [ { delete: "k:{let.l[]}" } ] }"#,
            format!(r#"{{"t":"{}","a":{}}}"#, "\u{fdfa}".repeat(100_000), ids(3_000)),
        ),
        bounded(
            "dates",
            r#"{ let: { l: 'data.a.map(x, date(x, "%A %B %Y-%m-%dT%H:%M:%S %Z %A %B %A %B %A %B", "Europe/Zurich"))' }, effects: [ { delete: "k:{id}", when: "size(lets.l) > 0" } ] }"#,
            pair(ids(100_000), ids(1)),
        ),
        bounded(
            "times",
            r#"{ effects: [ { delete: "k:{id}", when: 'data.a.all(x, timestamp(x).getHours("Europe/Zurich") == 1)' } ] }"#,
            pair(list(30_000, |_| r#""2026-01-01T00:00:00Z""#.to_owned()), ids(1)),
        ),
        bounded(
            "numbers",
            r#"{ effects: [ { delete: "k:{id}", when: "data.a.all(x, size(string(double(x))) > 0)" } ] }"#,
            pair(texts(3_000, 300), ids(1)),
        ),
        refused(
            "doubling",
            Box::leak(doubling.into_boxed_str()),
            format!(r#"{{"t":"{}"}}"#, text(1_000)),
        ),
        bounded(
            "changed",
            r#"{ effects: [ { each: data.a, delete: "k:{item}", when: 'changed("b") && changed("a")' } ] }"#,
            format!(
                r#"{{"type":"attack.changed","id":"1","data":{0},"previous":{0}}}"#,
                pair(ids(9_000), list(30_000, |n| format!(r#"{{"k":{n}}}"#)))
            ),
        ),
        bounded(
            "changed-members",
            r#"{ effects: [ { delete: "k:{id}", when: 'changed("o")' } ] }"#,
            {
                let member = |turned: bool| {
                    let at = |n: usize| if turned { 39_999 - n } else { n };
                    format!(
                        "{{{}}}",
                        (0..40_000)
                            .map(|n| format!(r#""k{0}":{0}"#, at(n)))
                            .collect::<Vec<_>>()
                            .join(",")
                    )
                };
                format!(
                    r#"{{"type":"attack.changed-members","id":"1","data":{{"id":1,"o":{}}},"previous":{{"id":1,"o":{}}}}}"#,
                    member(false),
                    member(true)
                )
            },
        ),
        bounded(
            "members",
            r#"{ effects: [ { each: data.a, delete: "k:{item}", when: 'has(data.zz) && data.zy == 1' } ] }"#,
            {
                let members: Vec<String> = (0..60_000).map(|n| format!(r#""m{n}":1"#)).collect();
                format!(r#"{{"a":{},{},"zz":1,"zy":1}}"#, ids(5_000), members.join(","))
            },
        ),
    ]
}

async fn attack(attacks: Vec<Attack>) {
    let files: Vec<(String, String)> = attacks
        .iter()
        .map(|attack| {
            (
                format!("{}.yaml", attack.name),
                format!("events:\n  attack.{}: {}\n", attack.name, attack.definition),
            )
        })
        .collect();
    let files: Vec<(&str, &str)> =
        files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let victim = Victim::new(&files, &[("UNSTALE_MAX_BODY_BYTES", "2MiB")]).await;
    let mut verdicts = Vec::new();
    for Attack { name, body, refused, .. } in &attacks {
        let routing_key = format!("attack.{name}");
        let cost =
            victim.suffers(name, &routing_key, BasicProperties::default(), body.as_bytes()).await;
        verdicts.extend(cost.verdict(name).err());
        let letters = victim.dead_letters().await;
        if letters.is_empty() && *refused {
            verdicts.push(format!("{name}: it was not refused"));
        }
        for letter in letters {
            let (reason, error) = (
                letter.header("unstale-reason").unwrap_or_default(),
                letter.header("unstale-error").unwrap_or_default(),
            );
            let spent = [
                "blast_radius",
                "unresolvable",
                "invalid_data",
                "attempts_exhausted",
                "loader_refused",
            ]
            .contains(&reason.as_str());
            if !spent || !error.contains(name) {
                verdicts.push(format!("{name}: {reason}: {error}"));
            }
        }
    }
    assert!(verdicts.is_empty(), "out of bounds:\n{}", verdicts.join("\n"));
    victim.survived().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_multiplies_targets_costs_little() {
    attack(targets()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_schema_looks_at_again_and_again_costs_little() {
    attack(schemas()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_expression_copies_and_compares_costs_little() {
    attack(expressions()).await;
}

/// With large bodies allowed, the budget grows with the body as `plan` shows it. Two copies of a
/// large page are written, not refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_has_the_larger_budget_of_its_size() {
    let rules = r#"
defaults: { ttl: 1h }
events:
  page.changed: { effects: [ { write: "page:{id}", value: "{data}" }, { write: "copy:{id}", value: "{data}" } ] }
"#;
    let victim =
        Victim::new(&[("rules.yaml", rules)], &[("UNSTALE_MAX_BODY_BYTES", "16MiB")]).await;
    let body = format!(r#"{{"id":1,"text":"{}"}}"#, "a".repeat(10_000_000));
    victim
        .suffers("a large page", "page.changed", BasicProperties::default(), body.as_bytes())
        .await;
    let letters = victim.dead_letters().await;
    assert_eq!(letters.len(), 0, "{:?}", letters[0].header("unstale-error"));
    assert!(victim.stage.exists("page:1").await && victim.stage.exists("copy:1").await);
    victim.survived().await;
}
