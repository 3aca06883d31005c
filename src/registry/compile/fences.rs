//! Which keys need a version's order: those that a versioned rule may write.

use std::collections::BTreeMap;

use super::super::key_shape::KeyShape;
use super::super::model::{Entry, Family, Pattern, Rule, RuleBody, VersionRule};

use super::super::template::unbound_array;

/// Shapes that one rule compares with its keys, for each event. Above it, all of the rule's keys
/// are fenced.
const SHAPES_MAX: usize = 64;

/// Steps that comparing the shapes of a registry may take: some 50 ms.
const STEPS_MAX: u64 = 10_000_000;

/// What one versioned rule writes, and whose version orders it.
struct Written {
    keys: Vec<KeyShape>,
    /// `None`: whatever the event's type is.
    families: Option<KeyShape>,
}

/// What versioned rules write, by family where that is one text: most are.
#[derive(Default)]
struct Index {
    of_literal: BTreeMap<String, Vec<Written>>,
    of_any: Vec<Written>,
}

impl Index {
    fn insert(&mut self, written: Written) {
        match written.families.as_ref().and_then(KeyShape::as_literal).map(str::to_owned) {
            Some(family) => self.of_literal.entry(family).or_default().push(written),
            None => self.of_any.push(written),
        }
    }

    /// Returns what may be of a family, and perhaps more.
    fn find<'i>(
        &'i self,
        families: &Option<KeyShape>,
    ) -> Box<dyn Iterator<Item = &'i Written> + 'i> {
        match families.as_ref().and_then(KeyShape::as_literal) {
            Some(family) => {
                Box::new(self.of_literal.get(family).into_iter().flatten().chain(&self.of_any))
            }
            None => Box::new(self.of_literal.values().flatten().chain(&self.of_any)),
        }
    }
}

/// Sets for each `delete` and `warm` which of its keys a versioned rule of the same family may
/// write. Where that takes too long to find, or too many shapes, it is all of them: a fence too
/// many costs a key in Redis, and a fence too few leaves a stale value.
pub(super) fn find(entries: &mut [Entry]) {
    let mut written = Index::default();
    entries
        .iter()
        .filter(|entry| !entry.retired)
        .flat_map(written_by)
        .for_each(|rule| written.insert(rule));
    let mut steps = STEPS_MAX;
    for entry in entries.iter_mut() {
        let Some(version) = &entry.version else { continue };
        let families = families(version, &entry.name);
        for rule in &mut entry.rules {
            if !matches!(rule.body, RuleBody::Delete | RuleBody::Warm { .. })
                || !has_one_version(rule, version)
            {
                continue;
            }
            let found = written_keys(rule, &written, &families, &mut steps);
            rule.written = found.unwrap_or_else(|| vec![KeyShape::any()]);
        }
    }
}

/// Returns what versioned rules of a family write that may be a key of the rule's. `None`: it is
/// too much.
fn written_keys(
    rule: &Rule,
    written: &Index,
    families: &Option<KeyShape>,
    steps: &mut u64,
) -> Option<Vec<KeyShape>> {
    let own: Vec<KeyShape> = keys(rule).collect();
    let mut found: Vec<KeyShape> = Vec::new();
    for written in written.find(families) {
        if !may_be_one(&written.families, families, steps)? {
            continue;
        }
        for shape in &written.keys {
            for own in &own {
                if own.meets(shape, steps)? {
                    if !found.contains(shape) {
                        found.push(shape.clone());
                    }
                    break;
                }
            }
            if found.len() > SHAPES_MAX {
                return None;
            }
        }
    }
    Some(found)
}

fn written_by(entry: &Entry) -> impl Iterator<Item = Written> + '_ {
    entry.rules.iter().filter_map(|rule| {
        let RuleBody::Write { version, .. } = &rule.body else { return None };
        let version = version.as_ref().or(entry.version.as_ref())?;
        Some(Written { keys: keys(rule).collect(), families: families(version, &entry.name) })
    })
}

fn keys(rule: &Rule) -> impl Iterator<Item = KeyShape> + '_ {
    rule.targets.iter().map(|target| KeyShape::of_key(&rule.key_prefix, target))
}

/// The families that a version may belong to.
fn families(version: &VersionRule, entry: &str) -> Option<KeyShape> {
    match &version.family {
        Family::Entity(entity) => Some(KeyShape::of_key("", entity)),
        Family::EventType if Pattern::is_pattern(entry) => None,
        Family::EventType => Some(KeyShape::of_literal(family_of(entry))),
    }
}

fn may_be_one(
    first: &Option<KeyShape>,
    second: &Option<KeyShape>,
    steps: &mut u64,
) -> Option<bool> {
    match (first, second) {
        (Some(first), Some(second)) => first.meets(second, steps),
        _ => Some(true),
    }
}

/// The family of an event whose rules name none: its type without the last word.
pub(in super::super) fn family_of(event_type: &str) -> &str {
    event_type.rsplit_once('.').map_or(event_type, |(family, _)| family)
}

/// A version of an array's elements belongs to a key only where the key names the same array.
fn has_one_version(rule: &Rule, version: &VersionRule) -> bool {
    let entity = match &version.family {
        Family::Entity(entity) => Some(entity),
        Family::EventType => None,
    };
    unbound_array(
        &rule.targets,
        version.of.paths().chain(entity.into_iter().flat_map(|entity| entity.paths())),
    )
    .is_none()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::super::diagnostic::SourceFile;
    use super::super::super::load::compile_sources;
    use crate::config::Vars;
    use crate::event::Event;
    use crate::reason::Reason;
    use crate::registry::{LoadOptions, MissingVars, Registry, Resolution};

    fn registry(text: &str) -> Registry {
        let options = LoadOptions {
            schemas: PathBuf::new(),
            key_prefix: "eu:".to_owned(),
            vars: Vars::default(),
            tag_prefix: "cache_tag:".to_owned(),
            max_keys_per_event: 10,
            missing_vars: MissingVars::Refuse,
        };
        let source = SourceFile::new("a.yaml", "a.yaml", text);
        compile_sources(&[source], &options, String::new(), Vec::new())
            .unwrap_or_else(|problems| panic!("{problems}"))
            .registry
    }

    fn resolve(registry: &Registry, event_type: &str, id: &str, data: &str) -> Resolution {
        let event = Event {
            id: id.to_owned().into(),
            event_type: event_type.to_owned().into(),
            data_text: data.to_owned().into(),
            ..Event::default()
        };
        registry.resolve(&event)
    }

    /// `delete eu:post:7 @12 of post/1`, the place last.
    fn lines(resolution: &Resolution) -> Vec<String> {
        let line = |effect: &crate::registry::Effect| {
            let order = effect.version.as_ref().map(|version| {
                format!(" @{} of {}/{}", version.digits, version.family, version.place)
            });
            format!("{} {}{}", effect.action.verb(), effect.target, order.unwrap_or_default())
        };
        resolution.effects.iter().map(line).collect()
    }

    const POSTS: &str = r#"
defaults: { ttl: 1h }
loaders: { l: { url: "http://l" } }
events:
  post.updated:
    version: "{rev}"
    effects:
      - write: "post:{id}:summary"
        value: "{data}"
      - write: "post:{id}:draft"
        value: "{gone}"
      - delete: "list:{id}"
  post.deleted:
    version: "{rev}"
    effects:
      - delete: ["post:{id}", "post:{id}:summary", "post:{id}:draft", "post:{id}:page"]
      - warm: "post:{key}"
        from: "l:/{key}"
      - expire: "post:{id}:summary"
        ttl: 1s
      - bump_version: "post:{id}:summary"
  post.maybe:
    version: "{rev?}"
    effects: [ { delete: "post:{id}:summary" } ]
  post.unordered:
    effects: [ { delete: "post:{id}:summary" } ]
  author.renamed:
    version: "{rev}"
    effects: [ { delete: "post:{id}:summary" } ]
  author.moved:
    version: { of: "{rev}", entity: "{kind}" }
    effects: [ { delete: "post:{id}:summary" } ]
  "*.gone":
    version: "{rev}"
    effects: [ { delete: "{kind}:{id}:summary" } ]
"#;

    #[test]
    fn deletions_of_what_some_rule_writes_have_their_events_version() {
        let registry = registry(POSTS);
        for (event_type, data, expected) in [
            (
                "post.updated",
                r#"{"id": 7, "rev": 12}"#,
                vec![
                    "write eu:post:7:summary @12 of post/1",
                    "delete eu:post:7:draft @12 of post/2",
                    "delete eu:list:7",
                ],
            ),
            (
                "post.deleted",
                r#"{"id": 7, "rev": 13, "key": "8:summary"}"#,
                vec![
                    "delete eu:post:7",
                    "delete eu:post:7:summary @13 of post/2",
                    "delete eu:post:7:draft @13 of post/3",
                    "delete eu:post:7:page",
                    "warm eu:post:8:summary @13 of post/5",
                    "expire eu:post:7:summary",
                    "bump_version eu:post:7:summary",
                ],
            ),
            ("post.maybe", r#"{"id": 7}"#, vec!["delete eu:post:7:summary"]),
            ("post.maybe", r#"{"id": 7, "rev": 1}"#, vec!["delete eu:post:7:summary @1 of post/1"]),
            ("post.unordered", r#"{"id": 7, "rev": 1}"#, vec!["delete eu:post:7:summary"]),
            ("author.renamed", r#"{"id": 7, "rev": 1}"#, vec!["delete eu:post:7:summary"]),
            (
                "author.moved",
                r#"{"id": 7, "rev": 1, "kind": "post"}"#,
                vec!["delete eu:post:7:summary @1 of post/1"],
            ),
            (
                "post.gone",
                r#"{"id": 7, "rev": 1, "kind": "post"}"#,
                vec!["delete eu:post:7:summary @1 of post/1"],
            ),
            (
                "post.gone",
                r#"{"id": 7, "rev": 1, "kind": "user"}"#,
                vec!["delete eu:user:7:summary"],
            ),
        ] {
            assert_eq!(
                lines(&resolve(&registry, event_type, "e", data)),
                expected,
                "{event_type} {data}"
            );
        }
    }

    #[test]
    fn a_deletion_takes_hold_whatever_its_version_and_says_that_it_had_none() {
        let resolution = resolve(&registry(POSTS), "post.deleted", "e", r#"{"id": 7, "key": "k"}"#);
        assert_eq!(lines(&resolution).len(), 7);
        assert!(resolution.effects.iter().all(|effect| effect.version.is_none()));
        let failure = resolution.failure.unwrap();
        assert_eq!(
            (failure.reason, &*failure.message),
            (Reason::Unresolvable, "a.yaml#post.deleted/0: version: `rev` is absent")
        );
    }

    #[test]
    fn an_event_is_known_by_id_and_source() {
        let registry = registry(POSTS);
        let hash = |id: &str| {
            let resolution = resolve(&registry, "post.updated", id, r#"{"id": 7, "rev": 12}"#);
            let hashes: Vec<u64> = resolution
                .effects
                .iter()
                .filter_map(|effect| Some(effect.version.as_ref()?.event))
                .collect();
            assert_eq!(hashes[0], hashes[1]);
            hashes[0]
        };
        assert_eq!(hash("e"), hash("e"));
        assert_ne!(hash("e"), hash("f"));
    }

    #[test]
    fn a_delete_that_many_rules_may_write_is_fenced_whatever_its_key() {
        let fenced = |writes: usize| {
            let writes: String = (0..writes)
                .map(|at| format!("      - {{ write: 'w{at}:{{id}}', value: {{}} }}\n"))
                .collect();
            let text = format!(
                "defaults: {{ ttl: 1h }}\nevents:\n  a.set:\n    version: '{{rev}}'\n    effects:\n{writes}  \
                 a.gone: {{ version: '{{rev}}', effects: [{{ delete: '{{id}}:{{kind}}' }}] }}\n"
            );
            let data = r#"{"rev":1,"id":"q","kind":"z"}"#;
            resolve(&registry(&text), "a.gone", "1", data).effects[0].version.is_some()
        };
        assert!(!fenced(super::SHAPES_MAX), "no rule writes `q:z`");
        assert!(fenced(super::SHAPES_MAX + 1));
    }
}
