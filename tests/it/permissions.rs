//! Least privileges: those in `docs/reference` suffice for everything the worker does, and one less
//! does not.

mod commands;
mod lost;
mod rabbitmq;
mod redis_acl;
mod stage;

const RABBITMQ: &str = include_str!("../../docs/reference/rabbitmq-permissions.md");
pub(crate) const REDIS: &str = include_str!("../../docs/reference/redis-permissions.md");

/// Returns the permissions (configure, write, read) on the line below `comment`, as a shell would
/// give them to `rabbitmqctl`.
fn documented_permissions(comment: &str) -> [&'static str; 3] {
    let mut lines = RABBITMQ.lines().skip_while(|line| !line.starts_with(comment)).skip(1);
    let command = lines.next().unwrap_or_else(|| panic!("no line follows `{comment}`"));
    assert!(command.starts_with("rabbitmqctl set_permissions "), "{command}");
    let quoted: Vec<&str> = command.split('\'').skip(1).step_by(2).collect();
    quoted
        .try_into()
        .unwrap_or_else(|quoted| panic!("three quoted expressions are expected: {quoted:?}"))
}

/// Returns the rules of the documented `ACL SETUSER` for a user with that password.
///
/// Its keys begin with `keys` instead of the documented `shop:`.
pub(crate) fn documented_acl(password: &str, keys: &str) -> Vec<String> {
    let line = REDIS
        .lines()
        .find_map(|line| line.strip_prefix("ACL SETUSER unstale "))
        .expect("the page names the ACL");
    let rules = line.split_whitespace().map(|rule| match rule {
        ">PASSWORD" => format!(">{password}"),
        "~shop:*" => format!("~{keys}*"),
        rule => rule.to_owned(),
    });
    rules.collect()
}

/// Returns the rules that the page adds in the row that begins so.
fn documented_row(row: &str) -> Vec<String> {
    let row = REDIS.lines().find(|line| line.starts_with(row)).expect("the page has a row for it");
    let rules =
        row.split(" | ").nth(1).expect("a second cell").split('`').nth(1).expect("the rules");
    rules.replace("\\|", "|").split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_demonstration_has_the_documented_permissions() {
    const DEFINITIONS: &str = include_str!("../../demo/rabbitmq/definitions.json");
    const USERS: &str = include_str!("../../demo/redis/users.acl");
    let definitions: serde_json::Value = serde_json::from_str(DEFINITIONS).unwrap();
    for (user, comment) in [
        ("unstale", "# UNSTALE_DECLARE=all"),
        ("shop", "# a publisher"),
        ("operator", "# a person with `unstale dlq` and `unstale status`"),
    ] {
        let [configure, write, read] = documented_permissions(comment);
        let documented = serde_json::json!({ "user": user, "vhost": "/", "configure": configure, "write": write, "read": read });
        let permissions = definitions["permissions"].as_array().unwrap();
        assert!(
            permissions.contains(&documented),
            "{documented} is not in demo/rabbitmq/definitions.json"
        );
    }
    let rules = documented_acl("unstale-demo", "shop:").join(" ");
    // The rules that `again` needs come after it.
    assert!(
        USERS.contains(&format!("user unstale {rules}")),
        "demo/redis/users.acl has not: {rules}"
    );
}
