//! Events as frameworks and connectors publish them, through `unstale plan`: which event
//! definitions match, and what rules can read.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Plans lines with one rule file. Returns a JSON object for each.
fn plan(rules: &str, lines: &[Value], settings: &[(&str, &str)]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), rules).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_unstale"))
        .args(["plan", "--json"])
        .env_clear()
        .env("UNSTALE_SCHEMAS", dir.path())
        .envs(settings.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().count(), lines.len(), "{}", String::from_utf8_lossy(&output.stderr));
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns `verb target` of each effect, or the reason of the dead letter.
fn effects(planned: &Value) -> Vec<String> {
    if let Some(reason) = planned["error"]["reason"].as_str() {
        return vec![format!("dead letter {reason}")];
    }
    let text = |effect: &Value, name: &str| effect[name].as_str().unwrap().to_owned();
    planned["effects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|effect| format!("{} {}", text(effect, "verb"), text(effect, "target")))
        .collect()
}

fn sql_server(database: &str) -> Value {
    let source = json!({ "connector": "sqlserver", "name": "server1", "ts_ms": 1, "db": database, "schema": "dbo", "table": "customers" });
    let row = json!({ "id": 1, "name": database });
    json!({
        "exchange": "events",
        "routing_key": format!("server1.{database}.dbo.customers"),
        "body": json!({ "op": "u", "before": row, "after": row, "source": source }).to_string(),
    })
}

#[test]
fn events_of_two_sql_server_databases_have_different_types() {
    let by_type =
        r#"events: { "server1.shopA.dbo.customers.*": { effects: [ { delete: "A:{id}" } ] } }"#;
    let planned =
        plan(by_type, &[sql_server("shopA"), sql_server("shopB")], &[("UNSTALE_UNKNOWN", "drop")]);
    assert_eq!(
        (effects(&planned[0]), effects(&planned[1])),
        (vec!["delete A:1".to_owned()], vec![])
    );
    let by_attribute = r##"
events:
  "server1.#":
    effects:
      - delete: "{event.db}:customer:{id}"
      - delete: "b:{id}"
        when: event.routing_key.startsWith("server1.shopB.")
"##;
    let planned = plan(by_attribute, &[sql_server("shopA"), sql_server("shopB")], &[]);
    assert_eq!(effects(&planned[0]), ["delete shopA:customer:1"]);
    assert_eq!(effects(&planned[1]), ["delete shopB:customer:1", "delete b:1"]);
}

#[test]
fn rules_read_cloudevents_attributes() {
    let rules = r#"
events:
  com.dapr.event.sent:
    effects:
      - delete: "product:{id}"
        when: event.topic == "products"
      - delete: "{event.tenant?}:product:{id}"
      - delete: "has-tenant:{id}"
        when: has(event.tenant)
      - delete: "exchange:{event.exchange}"
    examples:
      - data: { id: 7 }
        event: { exchange: e, attributes: { topic: products, tenant: acme } }
        expect: ["delete product:7", "delete acme:product:7", "delete has-tenant:7", "delete exchange:e"]
"#;
    let event = |more: Value| {
        let mut body = json!({ "specversion": "1.0", "id": "i", "source": "s", "type": "com.dapr.event.sent", "data": { "id": 7 } });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "exchange": "products", "routing_key": "", "body": body.to_string() })
    };
    let lines = [
        event(json!({ "topic": "products", "tenant": "acme" })),
        event(json!({ "topic": "orders" })),
    ];
    let planned = plan(rules, &lines, &[]);
    let all = [
        "delete product:7",
        "delete acme:product:7",
        "delete has-tenant:7",
        "delete exchange:products",
    ];
    assert_eq!(effects(&planned[0]), all);
    assert_eq!(effects(&planned[1]), ["delete exchange:products"]);
}

#[test]
fn a_misspelt_event_field_in_a_rule_is_an_error() {
    for (text, meant) in [
        ("{event.tpye}", "type"),
        ("{event.Time}", "time"),
        ("{event.sorce}", "source"),
        ("{event.routingkey}", "routing_key"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let rules = format!("events: {{ a.b: {{ effects: [ {{ delete: \"k:{text}\" }} ] }} }}");
        std::fs::write(dir.path().join("a.yaml"), rules).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_unstale"))
            .arg("check")
            .arg(dir.path())
            .env_clear()
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.code() == Some(64)
                && printed.contains(&format!("did you mean `{meant}`")),
            "{printed}"
        );
    }
}

#[test]
fn an_empty_body_is_an_event_unless_its_type_is_a_debezium_table() {
    let rules = r#"
events:
  home.changed: { effects: [ { delete: home } ] }
  "shop.public.users.*": { bind: shop.public.users, effects: [ { delete: "user:{id}" } ] }
  "shop.#": { effects: [ { invalidate_tags: shop } ] }
"#;
    let empty = |routing_key: &str, body: &str| json!({ "exchange": "events", "routing_key": routing_key, "body": body });
    let lines = [
        empty("home.changed", ""),
        empty("home.changed", "default"),
        empty("shop.public.users", ""),
        empty("shop.public.users", "default"),
        empty("shop.closed", ""),
        empty("unknown.type", ""),
    ];
    let planned = plan(rules, &lines, &[]);
    let planned: Vec<_> = planned.iter().map(effects).collect();
    assert_eq!(planned[0], ["delete home"]);
    assert_eq!(planned[1], ["delete home"]);
    assert_eq!(planned[2], [""; 0], "the tombstone of a row");
    assert_eq!(planned[3], [""; 0]);
    assert_eq!(planned[4], ["invalidate_tags shop"]);
    assert_eq!(planned[5], [""; 0]);
}

#[test]
fn type_from_finds_the_event_type_in_a_header_or_the_body() {
    let rules = r#"events: { Acme.ProductUpdated: { effects: [ { delete: "product:{id}" } ] } }"#;
    let in_header = json!({ "exchange": "e", "routing_key": "", "headers": { "rbs2-msg-type": "Acme.ProductUpdated, Acme" }, "body": "{\"id\":7}" });
    let in_body = json!({ "exchange": "e", "routing_key": "", "body": "{\"id\":7,\"meta\":{\"name\":\"Acme.ProductUpdated\"}}" });
    for (line, setting) in [(&in_header, "header:rbs2-msg-type"), (&in_body, "body:meta.name")] {
        let without = plan(rules, std::slice::from_ref(line), &[]);
        assert_eq!(effects(&without[0]), ["dead letter malformed"]);
        let with = plan(rules, std::slice::from_ref(line), &[("UNSTALE_TYPE_FROM", setting)]);
        assert_eq!(effects(&with[0]), ["delete product:7"], "{setting}");
    }
}

#[test]
fn a_rule_function_reads_json_in_a_text_of_the_payload() {
    let rules = r#"
events:
  outbox.order.created:
    let: { payload: json(data.payload) }
    effects:
      - delete: "order:{let.payload.id}"
      - each: json(data.lines)
        delete: "sku:{item.sku}"
        when: lets.payload.total > 1.0
      - write: "copy:{aggregateid}"
        value: "{let.payload}"
        ttl: 1h
"#;
    let line = |payload: Value| {
        let lines = json!([{ "sku": "A" }, { "sku": "B" }]).to_string();
        let body = json!({ "aggregateid": "7", "payload": payload, "lines": lines });
        json!({ "exchange": "events", "routing_key": "outbox.order.created", "body": body.to_string() })
    };
    let text = line(json!(r#" {"id": 7, "total": 19.90} "#));
    let object = line(json!({ "id": 8, "total": 0.5 }));
    let no_json = line(json!("{\"id\":"));
    let planned = plan(rules, &[text, object, no_json], &[]);
    assert_eq!(
        effects(&planned[0]),
        ["delete order:7", "delete sku:A", "delete sku:B", "write copy:7"]
    );
    assert_eq!(
        planned[0]["effects"][3]["value"].to_string().replace([' ', '\\', '"'], ""),
        "{id:7,total:19.90}",
        "as published"
    );
    assert_eq!(effects(&planned[1]), ["delete order:8", "write copy:7"]);
    assert_eq!(effects(&planned[2]), ["dead letter unresolvable"]);
}

#[test]
fn a_version_with_an_epoch_survives_a_mysql_failover() {
    let rules = r#"
events:
  "shop.inventory.products.*":
    bind: shop.inventory.products
    let: { version: "int(vars.EPOCH) * 4503599627370496 + int(event.position)" }
    version: "{let.version}"
    effects:
      - write: "product:{id}"
        value: { price: "{price}" }
        ttl: 1h
"#;
    let change = |file: &str, position: u32| {
        let source = json!({ "connector": "mysql", "name": "shop", "ts_ms": 1, "db": "inventory", "table": "products", "file": file, "pos": position });
        let body = json!({ "op": "u", "before": null, "after": { "id": 7, "price": 1 }, "source": source });
        json!({ "exchange": "events", "routing_key": "shop.inventory.products", "body": body.to_string() })
    };
    let version = |line: Value, epoch: &str| {
        let planned = plan(rules, &[line], &[("UNSTALE_VAR_EPOCH", epoch)]);
        assert_eq!(effects(&planned[0]), ["write product:7"]);
        planned[0]["effects"][0]["version"]["digits"].as_str().unwrap().parse::<u64>().unwrap()
    };
    let before = version(change("mysql-bin.000120", 4000), "1");
    assert!(version(change("mysql-bin.000003", 157), "1") < before, "the numbers went back");
    assert!(version(change("mysql-bin.000003", 157), "2") > before);
}
