use super::super::diagnostic::SourceFile;
use super::*;
use serde_json::json;

fn read(path: &str, text: &str) -> (Option<Node>, Vec<String>) {
    let source = SourceFile { path: path.into(), shown_path: path.into(), text: text.into() };
    let mut report = Report::new(&source);
    let node = parse(&mut report);
    let problems = report
        .problems
        .iter()
        .map(|p| format!("{}:{}: {} ({})", p.line, p.column, p.message, p.hint.as_deref().unwrap_or("")))
        .collect();
    (node, problems)
}

fn yaml(text: &str) -> Node {
    let (node, problems) = read("a.yaml", text);
    assert!(problems.is_empty(), "{problems:?}");
    node.unwrap()
}

#[test]
fn scratch() {
    for text in [
        "a: *x", "\"a\": 1\n*.deleted: {}\n", "a:\n  when: !has(data.x)\n", "a: !has b\n", "a: {x}\n", "a: {x}:page\n", "a: [user:{id}]\n",
        "a: {id}-{x}\n", "a:\n\t- b\n", "a: @x\n", "a: b: c\n", "a: 'x\n", "- a\n---\n- b\n", "", "# c\n", "a: &x [*x]\n", "a: !!str 5\n",
        "a: &x {b: 1}\nc:\n  <<: *x\n", "a: 1\na: 2\n", "? [a]\n: b\n", ": b\n", "{a}: b\n", "a: [1, 2\nb: 3\n", "a: .inf\n", "a:\nb:\n  c:\n", "a: \"\\q\"\n","%x\n",
    ] {
        let (node, problems) = read("a.yaml", text);
        eprintln!("{text:?}\n   {}\n   {problems:?}", node.map(|n| n.to_json().to_string()).unwrap_or_default());
    }
}
