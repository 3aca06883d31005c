use proptest::prelude::*;
use serde_json::json;

use super::super::diagnostic::SourceFile;
use super::super::diagnostic::{Pos, Report};
use super::build::MAX_DEPTH;
use super::*;

fn read(path: &str, text: &str) -> (Option<Node>, Vec<String>) {
    let source = SourceFile::new(path, path, text);
    let mut report = Report::new(&source);
    let node = parse(&mut report, &mut Allowance::default());
    let problems = report
        .problems
        .iter()
        .map(|p| {
            format!("{}:{}: {} ({})", p.line, p.column, p.message, p.help.as_deref().unwrap_or(""))
        })
        .collect();
    (node, problems)
}

fn well(path: &str, text: &str) -> Node {
    let (node, problems) = read(path, text);
    assert!(problems.is_empty(), "{problems:?}");
    node.unwrap()
}

fn only_problem(text: &str) -> String {
    let (_, problems) = read("a.yaml", text);
    assert_eq!(problems.len(), 1, "{text:?}: {problems:?}");
    problems.into_iter().next().unwrap()
}

#[test]
fn scalars_have_the_types_of_the_yaml_core_schema() {
    for (text, expected) in [
        ("", json!(null)),
        ("~", json!(null)),
        ("Null", json!(null)),
        ("nULL", json!("nULL")),
        ("true", json!(true)),
        ("FALSE", json!(false)),
        ("on", json!("on")),
        ("no", json!("no")),
        ("7", json!(7)),
        ("+7", json!(7)),
        ("-0", json!(-0.0)),
        ("0755", json!(755)),
        ("0o17", json!(15)),
        ("0x1F", json!(31)),
        ("1.50", json!(1.5)),
        (".5", json!(0.5)),
        ("5.", json!(5)),
        ("1e3", json!(1000.0)),
        ("1_000", json!("1_000")),
        ("12:30", json!("12:30")),
        ("2026-01-31", json!("2026-01-31")),
        ("'7'", json!("7")),
        ("\"true\"", json!("true")),
        ("user:{id}", json!("user:{id}")),
    ] {
        assert_eq!(
            well("a.yaml", &format!("a: {text}\n")).to_json(),
            json!({"a": expected}),
            "{text:?}"
        );
    }
    assert_eq!(
        only_problem("a: .inf\n"),
        "1:4: `.inf` is a number that JSON does not have (quote it to make it text)"
    );
}

#[test]
fn yaml_numbers_keep_their_text() {
    let node = well("a.yaml", "[1.50, 1e3, 12345678901234567890123, +07.50, -.5]");
    let mut out = String::new();
    node.write_json(&mut out);
    assert_eq!(out, "[1.50,1e3,12345678901234567890123,7.50,-0.5]");
}

#[test]
fn every_yaml_node_knows_its_place() {
    let node = well("a.yaml", "# é\na:\n  - {b: \"x\\ty\", 'c d': user}\n  - ü: plain text\n");
    let Content::Object(members) = &node.content else { panic!("{node:?}") };
    let Content::Array(items) = &members[0].value.content else { panic!("{node:?}") };
    assert_eq!(items[0].at, Pos { line: 3, column: 5 });
    let Content::Object(members) = &items[0].content else { panic!("{node:?}") };
    assert_eq!(
        (members[0].key_at, members[0].value.at),
        (Pos { line: 3, column: 6 }, Pos { line: 3, column: 9 })
    );
    assert_eq!(
        members[0].value.as_scalar().unwrap().verbatim_from,
        None,
        "an escape moves what follows"
    );
    assert_eq!(
        members[1].value.as_scalar().unwrap().verbatim_from,
        Some(Pos { line: 3, column: 24 })
    );
    let Content::Object(members) = &items[1].content else { panic!("{node:?}") };
    assert_eq!(
        members[0].value.as_scalar().unwrap().verbatim_from,
        Some(Pos { line: 4, column: 8 })
    );
    assert_eq!(node.nearest_to("/a/1/ü/no").at, Pos { line: 4, column: 8 });
    assert_eq!(node.nearest_to("/b").at, node.at);
}

#[test]
fn yaml_pitfalls_are_explained() {
    for (text, place, says) in [
        ("a: *x\n", "1:4:", "`*` begins an alias"),
        ("a: 1\n*.deleted: {}\n", "2:1:", "`*` begins an alias"),
        ("a:\n  - *.deleted\n", "2:5:", "`*` begins an alias"),
        ("a:\n  when: !has(data.x)\n", "2:9:", "quote the whole text"),
        ("a: !has b\n", "1:4:", "quote the whole text"),
        ("a: !!str 5\n", "1:4:", "remove the tag"),
        ("a: {x}:page\n", "1:4:", "begins with `{` must be quoted"),
        ("a: {id}-{x}\n", "1:4:", "begins with `{` must be quoted"),
        ("a: [user:{id}]\n", "1:10:", "a template inside"),
        ("{a}: b\n", "1:1:", "must be quoted"),
        ("a:\n\t- b\n", "2:2:", "with spaces"),
        ("a: @x\n", "1:4:", "must be quoted"),
        ("a: b: c\n", "1:5:", "holds `: ` must be quoted"),
        ("a: 'x\n", "1:4:", "end of stream"),
        ("a: 1\n---\nb: 2\n", "2:1:", "a second document"),
        ("", "1:1:", "the file is empty"),
        ("# c\n", "1:1:", "the file is empty"),
        ("a: &x [*x]\n", "1:8:", "inside its own anchor"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "3:3:", "merge"),
        ("a: 1\nb: 1\na: 2\n", "3:1:", "the first is at line 1"),
        ("{\"a\": 1, \"a\": 2}\n", "1:10:", "duplicate key"),
        ("? [a]\n: b\n", "1:3:", "a key cannot be a list"),
        (": b\n", "1:1:", "a key is missing"),
    ] {
        let problem = only_problem(text);
        assert!(problem.starts_with(place) && problem.contains(says), "{text:?}: {problem}");
    }
}

#[test]
fn anchors_are_resolved_and_alias_bombs_are_refused() {
    assert_eq!(
        well("a.yaml", "a: &x [1, {b: c}]\nd: *x\n*x : 1\n".split("*x :").next().unwrap())
            .to_json(),
        json!({"a": [1, {"b": "c"}], "d": [1, {"b": "c"}]})
    );
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = level - 1;
        bomb.push_str(&format!(
            "a{level}: &a{level} [{}]\n",
            vec![format!("*a{below}"); 10].join(", ")
        ));
    }
    assert!(only_problem(&bomb).contains("aliases add more than"));
}

#[test]
fn nesting_depth_of_a_file_is_bounded() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(read("a.yaml", &nested(MAX_DEPTH)).1.is_empty());
    assert!(only_problem(&nested(MAX_DEPTH + 1)).contains("deeper"));
    let mut tower = "a0: &a0 [x]\n".to_owned();
    for level in 1..=MAX_DEPTH {
        tower.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(only_problem(&tower).contains("deeper"));
}

#[test]
fn json_files_are_read_with_tabs_and_surrogate_pairs() {
    let text = "{\n\t\"a\": \"x\\ty\\/\\u00e9\\ud83d\\ude00\\n\\\"\",\n\t\"b\":\t[1,2.50,true,null],\n\t\"c\":{\"d\":{}}\n}";
    assert_eq!(
        well("a.json", text).to_json(),
        serde_json::from_str::<serde_json::Value>(text).unwrap()
    );
    assert_eq!(well("a.json", "\u{feff}{\"a\":1}").to_json(), json!({"a": 1}));
    let node = well("a.json", "{\n\t\"a\":\t\"user\"\n}");
    assert_eq!(node.nearest_to("/a").at, Pos { line: 2, column: 7 });
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
        "[ -~]{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map("[a-z{}*!é\\\\\"]{1,6}", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn json_files_are_read_as_serde_json_reads_them(value in any_json(), pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let (node, problems) = read("a.json", &text);
        prop_assert!(problems.is_empty(), "{text}: {problems:?}");
        prop_assert_eq!(node.unwrap().to_json(), value);
    }

    #[test]
    fn no_text_panics_the_yaml_reader(text: String, yaml in "([a-c]: |- |\\[|\\]|\\{|\\}|\\*|&a |!|\"|'|\n|  |\t|#|,|x|1|<<|---\n){0,24}") {
        for text in [&text, &yaml] {
            read("a.yaml", text);
            read("a.json", text);
        }
    }
}
