//! Finds the keys that need the version of their event: those that a versioned rule may write.

use std::collections::BTreeMap;

use super::super::key_shape::KeyShape;
use super::super::model::{EventDefinition, Family, Pattern, Rule, RuleBody, VersionRule};

use super::super::template::unbound_array;

/// Maximum number of shapes that a rule compares with a key of an event. A rule with more of them
/// fences all of its keys.
const MAX_SHAPES_PER_RULE: usize = 64;

/// Maximum number of steps for comparing the shapes of a registry, which take about 50 ms.
const MAX_COMPARISON_STEPS: u64 = 10_000_000;

/// The keys that one versioned rule writes, and the entity whose version orders them.
struct Written {
    keys: Vec<KeyShape>,
    /// `None` if the entity depends on the event's type.
    families: Option<KeyShape>,
}

/// Keys that versioned rules write, by entity. Most entities are one literal text.
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

    /// Returns the rules whose entity may be the given one. May return others too.
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

/// Gives each `delete` and `warm` the shapes of its keys that a versioned rule of the same entity
/// may write.
///
/// If that takes too many steps or shapes, all keys of the rule are fenced. An unnecessary fence
/// costs a key in Redis, and a missing one leaves a stale value.
pub(super) fn find(definitions: &mut [EventDefinition]) {
    let mut written = Index::default();
    definitions
        .iter()
        .filter(|definition| !definition.retired)
        .flat_map(written_by)
        .for_each(|rule| written.insert(rule));
    let mut steps = MAX_COMPARISON_STEPS;
    for definition in definitions.iter_mut() {
        let Some(version) = &definition.version else { continue };
        let families = families(version, &definition.name);
        for rule in &mut definition.rules {
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

/// Returns the shapes that versioned rules of an entity write and that a key of the rule may have.
/// Returns `None` if there are too many steps or shapes.
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
            if found.len() > MAX_SHAPES_PER_RULE {
                return None;
            }
        }
    }
    Some(found)
}

fn written_by(definition: &EventDefinition) -> impl Iterator<Item = Written> + '_ {
    definition.rules.iter().filter_map(|rule| {
        let RuleBody::Write { version, .. } = &rule.body else { return None };
        let version = version.as_ref().or(definition.version.as_ref())?;
        Some(Written { keys: keys(rule).collect(), families: families(version, &definition.name) })
    })
}

fn keys(rule: &Rule) -> impl Iterator<Item = KeyShape> + '_ {
    rule.targets.iter().map(|target| KeyShape::of_key(&rule.key_prefix, target))
}

/// Returns the entities that a version may belong to.
fn families(version: &VersionRule, definition: &str) -> Option<KeyShape> {
    match &version.family {
        Family::Entity(entity) => Some(KeyShape::of_key("", entity)),
        Family::EventType if Pattern::is_pattern(definition) => None,
        Family::EventType => Some(KeyShape::of_literal(family_of(definition))),
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

/// Returns the entity of an event whose rules name none: its type without the last word.
pub(in super::super) fn family_of(event_type: &str) -> &str {
    event_type.rsplit_once('.').map_or(event_type, |(family, _)| family)
}

/// Returns whether each key has one version: an array's version belongs to keys that name the same
/// array.
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

    /// Formats effects as `delete eu:post:7 @12 of post/1`, with the place last.
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
    fn deletions_of_keys_that_rules_write_carry_the_version_of_their_event() {
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
    fn a_deletion_without_a_version_takes_effect_and_reports_the_missing_version() {
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
    fn an_events_hash_depends_on_its_id() {
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
    fn a_delete_whose_keys_many_rules_may_write_is_always_fenced() {
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
        assert!(!fenced(super::MAX_SHAPES_PER_RULE), "no rule writes `q:z`");
        assert!(fenced(super::MAX_SHAPES_PER_RULE + 1));
    }
}
