//! Generates rule files: event definitions that all match one event, with `let`s, effects of every
//! verb, versions and schemas.

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::expressions::{Scope, Writer};
use super::schemas;

const PLACES: [&str; 22] = [
    "{t}",
    "{u}",
    "{id}",
    "{n}",
    "{t?}",
    "{xs[]}",
    "{ys[]}",
    "{ts[]}",
    "{ts[0]}",
    "{os[].k}",
    "{os[].xs[]}",
    "{os[].k?}",
    "{zs[][]}",
    "{zs[].x?}",
    "{root.type}",
    "{root.children[].type}",
    "{m.a.b.c[]}",
    "{previous.t?}",
    "{previous.xs[]}",
    "{event.id}",
    "{event.type}",
    "{data}",
];

/// Returns a rule file of one to three event definitions.
pub(crate) fn file(rng: &mut Rng) -> Value {
    let mut events = Map::new();
    for name in ["e.a", "e.*", "#", "e.b.c.updated"].into_iter().take(rng.usize(1..=4)) {
        events.insert(name.to_owned(), definition(rng));
    }
    json!({
        "defaults": { "ttl": "1h", "key_prefix": (["", "", "shop:", "unst"][rng.usize(..4)]) },
        "loaders": { "pages": { "url": "http://127.0.0.1:1" } },
        "events": events,
    })
}

fn definition(rng: &mut Rng) -> Value {
    let mut definition = Map::new();
    if rng.u8(..3) == 0 {
        definition.insert("data".to_owned(), schemas::object(rng));
        if rng.bool() {
            definition.insert("validate".to_owned(), json!("warn"));
        }
    }
    let lets = rng.usize(..4);
    if lets > 0 {
        let written = (0..lets).map(|n| {
            let depth = rng.usize(1..=4);
            (
                format!("l{n}"),
                json!(bounded(Writer::new(rng, Scope { lets: n, item: false }).list(depth))),
            )
        });
        definition.insert("let".to_owned(), Value::Object(written.collect()));
    }
    if rng.u8(..4) == 0 {
        let version = if rng.bool() {
            json!("{id}")
        } else {
            json!({ "of": "{id}", "entity": template(rng, lets, false) })
        };
        definition.insert("version".to_owned(), version);
    }
    let effects: Vec<Value> = (0..rng.usize(1..=4)).map(|_| effect(rng, lets)).collect();
    definition.insert("effects".to_owned(), json!(effects));
    Value::Object(definition)
}

fn effect(rng: &mut Rng, lets: usize) -> Value {
    let mut effect = Map::new();
    let is_each = rng.u8(..3) == 0;
    if is_each {
        let depth = rng.usize(..3);
        effect.insert(
            "each".to_owned(),
            json!(bounded(Writer::new(rng, Scope { lets, item: false }).list(depth))),
        );
    }
    if rng.u8(..3) == 0 {
        let depth = rng.usize(1..=4);
        effect.insert(
            "when".to_owned(),
            json!(bounded(Writer::new(rng, Scope { lets, item: is_each }).condition(depth))),
        );
    }
    let target = if rng.u8(..4) == 0 {
        json!((0..rng.usize(2..=5)).map(|_| template(rng, lets, is_each)).collect::<Vec<_>>())
    } else {
        json!(template(rng, lets, is_each))
    };
    let tags = |rng: &mut Rng| {
        json!((0..rng.usize(..4)).map(|_| template(rng, lets, is_each)).collect::<Vec<_>>())
    };
    match rng.u8(..10) {
        0..=3 => {
            effect.insert("delete".to_owned(), target);
            if rng.u8(..4) == 0 {
                effect.insert("again".to_owned(), json!("500ms"));
            }
        }
        4 => drop(effect.insert("invalidate_tags".to_owned(), target)),
        5 => drop(effect.insert("bump_version".to_owned(), target)),
        6 => {
            effect.insert("expire".to_owned(), target);
            effect.insert("ttl".to_owned(), json!("1s"));
        }
        7 | 8 => {
            effect.insert("write".to_owned(), target);
            effect.insert("tags".to_owned(), tags(rng));
            let value = match rng.u8(..4) {
                0 => json!("{data}"),
                1 => {
                    json!({ "a": "{data}", "b": ["{data}", "{previous?}"], "c": template(rng, lets, is_each) })
                }
                2 if lets > 0 => json!({ "l": format!("{{let.l{}}}", rng.usize(..lets)) }),
                _ => json!(template(rng, lets, is_each)),
            };
            effect.insert("value".to_owned(), value);
        }
        _ => {
            effect.insert("warm".to_owned(), target);
            effect.insert("tags".to_owned(), tags(rng));
            effect.insert(
                "from".to_owned(),
                json!(format!("pages:/{}", template(rng, lets, is_each))),
            );
        }
    }
    Value::Object(effect)
}

fn template(rng: &mut Rng, lets: usize, is_each: bool) -> String {
    let mut text = ["", "k:", "unstale:", "ale:", "{{"][rng.usize(..4)].to_owned();
    for _ in 0..rng.usize(1..=3) {
        match rng.u8(..8) {
            0 if is_each => {
                text.push_str(["{item}", "{item.k}", "{item[0]}", "{item.xs[]}"][rng.usize(..4)])
            }
            1 if lets > 0 => text.push_str(&format!("{{let.l{}[]}}", rng.usize(..lets))),
            2 => text.push_str("{t}{u}"),
            _ => text.push_str(PLACES[rng.usize(..PLACES.len())]),
        }
        text.push(':');
    }
    text
}

/// Limits an expression to the 4096 bytes that a rule file accepts.
fn bounded(expression: String) -> String {
    if expression.len() <= 4096 { expression } else { "data.xs".to_owned() }
}
