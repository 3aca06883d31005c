//! Variants of cases that once cost too much. Each kind is a rule and a payload with random sizes
//! and forms.

use fastrand::Rng;
use serde_json::{Value, json};

use super::corpus;
use super::cost::{Clock, LOAD_CPU, measure};
use super::round::load;

/// Rules, and the body of an event of type `e.a`.
type Variant = (Value, Value);

type Make = fn(&mut Rng) -> Variant;

const KINDS: [(&str, Make); 11] = [
    ("loops over lists", loops),
    ("comparisons of whole values", comparisons),
    ("texts that grow", growing_texts),
    ("patterns that backtrack", backtracking),
    ("patterns of many states", many_states),
    ("branches that multiply", branches),
    ("unique elements", unique_elements),
    ("long numbers", long_numbers),
    ("targets that multiply", targets),
    ("tags that multiply", tags),
    ("values of lets", lets),
];

/// Tries this many variants of each kind.
///
/// # Errors
/// A text with the problem and the place of the saved case.
pub(crate) fn play(seed: u64, variants: u64) -> Result<(), String> {
    let clock = Clock::of_this_thread();
    for (name, make) in KINDS {
        let mut loaded_count = 0;
        for variant in 0..variants {
            let mut rng = Rng::with_seed(seed.wrapping_add(variant));
            let (rules, body) = make(&mut rng);
            let failed = |problem: String| {
                let path = corpus::save_body(seed.wrapping_add(variant), &rules, &body);
                format!("{name}: {problem}; saved as {}", path.display())
            };
            let (loaded, cpu) = load(&clock, &rules);
            if cpu > LOAD_CPU {
                return Err(failed(format!("loading took {cpu:?} of CPU")));
            }
            let Ok(loaded) = loaded else { continue };
            loaded_count += 1;
            measure(&clock, &loaded.registry, &body.to_string().into_bytes()).map_err(failed)?;
        }
        if loaded_count * 2 < variants {
            return Err(format!("{name}: only {loaded_count} of {variants} rule files load"));
        }
    }
    Ok(())
}

fn rule(effect: Value) -> Value {
    json!({ "defaults": { "ttl": "1h" }, "events": { "e.a": { "effects": [effect] } } })
}

fn schema(of_v: Value) -> Value {
    json!({ "events": { "e.a": { "data": { "properties": { "v": of_v } }, "effects": [{ "delete": "k" }] } } })
}

/// Returns a number up to `most`, usually small.
fn count(rng: &mut Rng, most: usize) -> usize {
    rng.usize(1..=most).min(rng.usize(1..=most))
}

fn integers(rng: &mut Rng, most: usize) -> Value {
    let start = rng.u64(..1 << 60);
    (0..count(rng, most) as u64).map(|at| start + at).collect()
}

fn text(rng: &mut Rng, pieces: &[&str], most_bytes: usize) -> String {
    let piece = pieces[rng.usize(..pieces.len())];
    piece.repeat(count(rng, most_bytes) / piece.len() + 1)
}

fn one_of<'t>(rng: &mut Rng, texts: &[&'t str]) -> &'t str {
    texts[rng.usize(..texts.len())]
}

fn loops(rng: &mut Rng) -> Variant {
    let inner = one_of(
        rng,
        &[
            "x",
            "x in data.xs",
            "data.xs.exists(y, y == x)",
            "data.xs.filter(y, y > x)",
            "[x, data.xs]",
            "size(data.xs) > x",
        ],
    );
    let outer = one_of(rng, &["filter", "map", "all", "exists", "exists_one"]);
    let inner = if matches!(outer, "map" | "filter") || inner.contains("==") {
        inner
    } else {
        "x in data.xs"
    };
    let each = match outer {
        "map" => format!("data.xs.map(x, {inner})"),
        "filter" => "data.xs.filter(x, x in data.xs) + data.xs".to_owned(),
        other => format!("data.xs.{other}(x, {inner}) ? data.xs : []"),
    };
    (rule(json!({ "each": each, "delete": "k:{item}" })), json!({ "xs": integers(rng, 100_000) }))
}

fn comparisons(rng: &mut Rng) -> Variant {
    let when = one_of(
        rng,
        &[
            "data.os.exists(o, o == data)",
            "data.os.all(o, o in data.os)",
            "data == data && data.os == data.os",
            "changed(\"os\")",
        ],
    );
    let members = count(rng, 200);
    let object: serde_json::Map<String, Value> =
        (0..members).map(|at| (format!("m{at}"), json!(at))).collect();
    let data = json!({ "os": vec![Value::Object(object); count(rng, 60_000 / members)] });
    (
        rule(json!({ "delete": "k", "when": when })),
        json!({ "type": "e.a", "data": data, "previous": data }),
    )
}

fn growing_texts(rng: &mut Rng) -> Variant {
    let mut expression = "data.t".to_owned();
    for _ in 0..rng.usize(1..12) {
        expression = match rng.u8(..5) {
            0 => format!("upper({expression})"),
            1 => format!("urlencode({expression})"),
            _ if expression.len() < 1_500 => format!("({expression} + {expression})"),
            _ => format!("sha256({expression})"),
        };
    }
    (
        rule(json!({ "delete": "k:{id}", "when": format!("size({expression}) > 1") })),
        json!({ "id": 1, "t": text(rng, &["a", "\u{fdfa}", "%", "ŉ"], 200_000) }),
    )
}

fn backtracking(rng: &mut Rng) -> Variant {
    let pattern = one_of(
        rng,
        &[
            "(?<!a)b+c",
            r"^(a+)+\1$",
            "^((?=a)a|(?=a)a)*c$",
            "(?!x)(a|aa)+$",
            "^(?=.*b)(?=.*c).*d$",
            r"(a*)*\1b",
            "(?<=a)b{1,50}c",
        ],
    );
    let piece = ["a", "b", "ab", "aab"];
    let texts: Value = (0..count(rng, 1_000)).map(|_| text(rng, &piece, 600)).collect();
    match rng.u8(..3) {
        0 => (schema(json!({ "pattern": pattern })), json!({ "v": text(rng, &piece, 900_000) })),
        1 => (schema(json!({ "items": { "pattern": pattern } })), json!({ "v": texts })),
        _ => (
            schema(json!({ "patternProperties": { pattern: {} } })),
            json!({ "v": { text(rng, &piece, 900_000): 1 } }),
        ),
    }
}

fn many_states(rng: &mut Rng) -> Variant {
    let (few, many) = (rng.usize(1..20), rng.usize(1..800));
    let pattern = match rng.u8(..5) {
        0 => format!("[ab]*a[ab]{{{many}}}c"),
        1 => format!("^([ab]{{1,{few}}}-){{1,{few}}}$"),
        2 => format!("(a|b|ab){{{few}}}c$"),
        3 => format!(r"\p{{L}}{{1,{few}}}x"),
        _ => format!("(.*a){{{few}}}"),
    };
    let t = text(rng, &["ab", "abaab", "b", "éa"], 900_000);
    if rng.bool() {
        return (schema(json!({ "pattern": pattern })), json!({ "v": t }));
    }
    let when = format!("data.v.matches({})", json!(pattern));
    (rule(json!({ "delete": "k", "when": when })), json!({ "v": t }))
}

fn branches(rng: &mut Rng) -> Variant {
    let keyword = one_of(rng, &["oneOf", "anyOf", "allOf"]);
    let branch = |at: usize| {
        let kind = ["a", "b", "c", "d"][at % 4];
        json!({ "properties": { "type": { "const": kind }, "children": { "items": { "$ref": "#/$defs/n" } } }, "required": ["type"] })
    };
    let of: Vec<Value> = (0..rng.usize(1..6)).map(branch).collect();
    let data = json!({ "$ref": "#/$defs/n", "$defs": { "n": { keyword: of } } });
    let mut tree = json!({ "type": one_of(rng, &["a", "d", "z"]) });
    for _ in 0..rng.usize(1..45) {
        let width = if rng.u8(..8) == 0 { 3 } else { 1 };
        tree = json!({ "type": one_of(rng, &["a", "b"]), "children": vec![tree; width] });
        if tree.to_string().len() > 900_000 {
            break;
        }
    }
    (json!({ "events": { "e.a": { "data": data, "effects": [{ "delete": "k" }] } } }), tree)
}

fn unique_elements(rng: &mut Rng) -> Variant {
    let length = count(rng, 60_000);
    let element = |at: usize| match length % 5 {
        0 => json!(at),
        1 => json!({ "a": at, "b": [at] }),
        2 => json!([[at], {}]),
        3 => json!(format!("t{at}")),
        _ => json!({ "a": {} }),
    };
    let elements: Value = (0..length).map(element).collect();
    (
        schema(json!({ "uniqueItems": true, "items": { "uniqueItems": true } })),
        json!({ "v": elements }),
    )
}

fn long_numbers(rng: &mut Rng) -> Variant {
    let keyword = one_of(rng, &["multipleOf", "minimum", "exclusiveMaximum", "const"]);
    let limit = if keyword == "multipleOf" { json!(3) } else { json!(rng.u64(..)) };
    let digits = text(rng, &["9", "10", "123456789"], 800_000);
    let number: Value = serde_json::from_str(&digits[..digits.len().min(300)]).unwrap_or_default();
    let numbers = vec![number; count(rng, 3_000)];
    (
        schema(
            json!({ "items": { keyword: limit, "type": "integer" }, "uniqueItems": rng.bool() }),
        ),
        json!({ "v": numbers }),
    )
}

fn targets(rng: &mut Rng) -> Variant {
    let target = one_of(
        rng,
        &["k:{xs[]}:{ys[]}", "k:{xs[]}:{xs[]}:{ys[]}", "{ys[]}-{zs[].a[]}", "k:{zs[].a[]}:{xs[]}"],
    );
    let zs = vec![json!({ "a": integers(rng, 300) }); count(rng, 100)];
    (
        rule(json!({ "delete": target })),
        json!({ "xs": integers(rng, 20_000), "ys": integers(rng, 20_000), "zs": zs }),
    )
}

fn tags(rng: &mut Rng) -> Variant {
    let tag = one_of(rng, &["t:{ys[]}", "t:{ys[]}:{xs[]}", "t:{t}"]);
    let effect = json!({ "write": "k:{xs[]}", "value": "{data}", "tags": [tag, "all"] });
    (
        rule(effect),
        json!({ "xs": integers(rng, 20_000), "ys": integers(rng, 2_000), "t": text(rng, &["t"], 7_000) }),
    )
}

fn lets(rng: &mut Rng) -> Variant {
    let first = one_of(
        rng,
        &[
            "data.xs.map(x, x)",
            "data.xs + data.xs",
            "data.xs.filter(x, x > 0)",
            "[data.xs, data.xs]",
        ],
    );
    let reads = vec!["{let.b[]}"; rng.usize(1..6)].join(":");
    let definition = json!({ "let": { "a": first, "b": one_of(rng, &["lets.a + lets.a", "lets.a.map(x, [x, lets.a])", "lets.a"]) }, "effects": [{ "delete": format!("k:{reads}") }] });
    (json!({ "events": { "e.a": definition } }), json!({ "xs": integers(rng, 60_000) }))
}
