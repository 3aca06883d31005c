//! Problems of texts of a rule file, with their places.

use super::*;

#[test]
fn text_problems_have_a_message_and_a_place() {
    let (vars, lets) = (Vars::default(), ["page".to_owned()]);
    let names = KnownNames { lets: &lets, in_each: false, vars: &vars };
    for (text, at) in [
        ("a}b", 1),
        ("a{", 2),
        ("a{id", 4),
        ("{}", 1),
        ("{ id }", 1),
        ("{a..b}", 3),
        ("{a[x]}", 3),
        ("{a[\"x}", 4),
        ("{item.x}", 1),
        ("{let.nope}", 5),
        ("{event}", 1),
        ("{event.tpye}", 7),
        ("{vars}", 1),
        ("{a-b}", 2),
        ("{0}", 1),
    ] {
        assert_eq!(Template::parse(text, &names).map_err(|problem| problem.at), Err(at), "{text}");
    }
    for (text, at) in [
        ("", 0),
        ("nope.x == 1", 0),
        ("data.a == 1 && nope", 15),
        ("foo(data.a)", 3),
        ("data.a.lower()", 12),
        ("lets.nope == 1", 4),
        ("item.a", 0),
        ("data.a.matches(data.b)", 14),
    ] {
        assert_eq!(
            Expression::compile(text, &names).map_err(|problem| problem.at).err(),
            Some(at),
            "{text}"
        );
    }
    for text in [
        "let.page == 1",
        "data.in == 1",
        "data.a ==",
        "a b",
        "\u{0}",
        &"(".repeat(3000),
        &"-".repeat(3000),
        &vec!["1"; 2000].join("+"),
    ] {
        assert!(Expression::compile(text, &names).is_err(), "{text}");
    }
    assert!(
        Expression::compile("let.page == 1", &names).unwrap_err().help.unwrap().contains("lets")
    );
}
