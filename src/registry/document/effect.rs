//! Reads one element of `effects`.

use std::time::Duration;

use super::super::code::Code;
use super::super::diagnostic::{Pos, Report, nearest};
use super::super::effect::{Only, Stale, Verb};
use super::super::model::Encoding;
use super::super::tree::{Content, Member, Node};
use super::fields::{Fields, duration, jitter, mapping, text, texts, ttl_or_substitute, word};
use super::{EffectDocument, FORMAT, Text, VersionDocument};

/// Options beside the verb, each with the verbs that take it.
pub(super) const OPTIONS: [(&str, &[Verb]); 14] = [
    ("each", &Verb::ALL),
    ("when", &Verb::ALL),
    ("prefix", &[Verb::Delete, Verb::BumpVersion, Verb::Expire, Verb::Write, Verb::Warm]),
    ("ttl", &[Verb::Expire, Verb::Write, Verb::Warm]),
    ("jitter", &[Verb::Expire, Verb::Write, Verb::Warm]),
    ("at", &[Verb::Expire, Verb::Write, Verb::Warm]),
    ("tags", &[Verb::Write, Verb::Warm]),
    ("value", &[Verb::Write]),
    ("encoding", &[Verb::Write]),
    ("version", &[Verb::Write]),
    ("from", &[Verb::Warm]),
    ("stale", &[Verb::Warm]),
    ("only", &[Verb::Warm]),
    ("again", &[Verb::Delete, Verb::InvalidateTags]),
];

pub(super) fn read_effect(node: &Node, report: &mut Report<'_>) -> Option<EffectDocument> {
    let members = mapping(node, "an effect", "such as delete: \"user:{id}\"", report)?;
    let verb = read_verb(node.at, members, report);
    for member in members {
        check_key(member, verb.as_ref().map(|(verb, _)| *verb), report);
    }
    let (verb, targets) = verb?;
    let fields = Fields::known(members);
    let effect = EffectDocument {
        at: node.at,
        verb,
        targets,
        _delete: (),
        _invalidate_tags: (),
        _bump_version: (),
        _expire: (),
        _write: (),
        _warm: (),
        each: fields.text("each", report),
        when: fields.text("when", report),
        prefix: fields.text("prefix", report),
        ttl: fields.node("ttl").map(|node| ttl_or_substitute(node, report)),
        jitter: fields.node("jitter").and_then(|node| jitter(node, report)),
        expires_at: fields.text("at", report),
        tags: fields.node("tags").map(|node| texts(node, "`tags`", report)).unwrap_or_default(),
        value: fields.node("value").cloned(),
        encoding: fields.node("encoding").and_then(|node| {
            word(node, "`encoding`", &[("json", Encoding::Json), ("raw", Encoding::Raw)], report)
        }),
        version: fields.node("version").and_then(|node| read_version(node, report)),
        from: fields.text("from", report),
        stale: fields.node("stale").and_then(|node| {
            word(node, "`stale`", &[("drop", Stale::Drop), ("serve", Stale::Serve)], report)
        }),
        only: fields.node("only").and_then(|node| {
            word(node, "`only`", &[("always", Only::Always), ("present", Only::Present)], report)
        }),
        again: fields.node("again").and_then(|node| read_again(node, report)),
    };
    check_together(verb, &fields, &effect, report);
    Some(effect)
}

fn read_verb(at: Pos, members: &[Member], report: &mut Report<'_>) -> Option<(Verb, Vec<Text>)> {
    let mut verbs = members.iter().filter_map(|member| {
        Some((Verb::ALL.into_iter().find(|verb| verb.as_str() == member.key)?, member))
    });
    let Some((verb, member)) = verbs.next() else {
        // An unknown key that resembles a verb is reported by `check_key`, once.
        if !members.iter().any(|member| likely_verb(&member.key).is_some()) {
            report.error_with_help(
                Code::NoVerb,
                at,
                "this effect has no verb",
                format!("add one of {}", Verb::ALL.map(Verb::as_str).join(", ")),
            );
        }
        return None;
    };
    for (_, second) in verbs {
        report.error_with_help(
            Code::SecondVerb,
            second.key_at,
            format!("`{}` is a second verb beside `{verb}`", second.key),
            "begin a new element of the list: each effect has one verb",
        );
    }
    let problems = report.problems.len();
    let targets = texts(&member.value, &format!("`{verb}`"), report);
    if targets.is_empty() && report.problems.len() == problems {
        report.error_with_help(
            Code::NoTarget,
            member.value.at,
            format!("`{verb}` has no target"),
            "write a template, or a list of templates",
        );
    }
    for target in targets.iter().filter(|target| target.text.is_empty()) {
        report.error(Code::NoTarget, target.at, format!("`{verb}` has an empty target"));
    }
    Some((verb, targets))
}

pub(super) fn known_keys() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().map(|(name, _)| *name).chain(Verb::ALL.iter().map(|verb| verb.as_str()))
}

/// Returns the verb that an unknown key probably means, by its spelling or by its meaning.
fn likely_verb(key: &str) -> Option<Verb> {
    if OPTIONS.iter().any(|(name, _)| *name == key) {
        return None;
    }
    verb_of_other_caches(key).or_else(|| {
        let name = nearest(key, known_keys())?;
        Verb::ALL.into_iter().find(|verb| verb.as_str() == name)
    })
}

/// Returns the verb for a word that other caches use for it.
fn verb_of_other_caches(key: &str) -> Option<Verb> {
    Some(match key.to_ascii_lowercase().as_str() {
        "del" | "unlink" | "remove" | "evict" | "invalidate" | "purge" | "forget" | "key"
        | "keys" => Verb::Delete,
        "tag" | "invalidate_tag" | "purge_tags" | "flush_tags" => Verb::InvalidateTags,
        "set" | "put" | "store" | "update" | "cache" => Verb::Write,
        "bump" | "incr" | "increment" => Verb::BumpVersion,
        "touch" | "ttl" => Verb::Expire,
        "load" | "reload" | "refresh" | "fetch" | "prefetch" => Verb::Warm,
        _ => return None,
    })
}

fn is_verb(key: &str) -> bool {
    Verb::ALL.iter().any(|verb| verb.as_str() == key)
}

fn check_key(member: &Member, verb: Option<Verb>, report: &mut Report<'_>) {
    let key = member.key.as_str();
    if key.starts_with("x-") || is_verb(key) {
        return;
    }
    let Some((_, verbs)) = OPTIONS.iter().find(|(name, _)| *name == key) else {
        let meant = likely_verb(key).filter(|_| verb.is_none());
        let help = match (meant, nearest(key, known_keys())) {
            (Some(meant), _) => format!(
                "did you mean `{meant}`? The verbs are {}",
                Verb::ALL.map(Verb::as_str).join(", ")
            ),
            (None, Some(name)) => format!("did you mean `{name}`?"),
            (None, None) => "keys that begin with x- are ignored".to_owned(),
        };
        report.error_with_help(
            Code::UnknownKey,
            member.key_at,
            format!("an effect has no key `{key}` in format {FORMAT}"),
            help,
        );
        return;
    };
    if let Some(verb) = verb
        && !verbs.contains(&verb)
    {
        let names: Vec<&str> = verbs.iter().map(|verb| verb.as_str()).collect();
        report.error_with_help(
            Code::MisplacedKey,
            member.key_at,
            format!("`{key}` has no meaning beside `{verb}`"),
            format!("use it with {}", names.join(", ")),
        );
    }
}

fn check_together(
    verb: Verb,
    fields: &Fields<'_>,
    effect: &EffectDocument,
    report: &mut Report<'_>,
) {
    if let (Some(_), Some(at)) = (&effect.ttl, fields.member("at")) {
        report.error_with_help(
            Code::MisplacedKey,
            at.key_at,
            "`at` and `ttl` cannot be used together",
            "keep one of them",
        );
    }
    if let (Some(_), Some(jitter)) = (fields.member("at"), fields.member("jitter")) {
        report.error_with_help(
            Code::MisplacedKey,
            jitter.key_at,
            "`jitter` has no meaning beside `at`",
            "remove `jitter`: the time of `at` is exact",
        );
    }
    match verb {
        Verb::Expire if fields.member("ttl").is_none() && fields.member("at").is_none() => {
            report.error_with_help(
                Code::MissingKey,
                effect.at,
                "`expire` needs its own `ttl` or `at`",
                "add one: the `ttl` of `defaults` is for stored values only",
            );
        }
        Verb::Write if fields.member("value").is_none() => {
            report.error_with_help(
                Code::MissingKey,
                effect.at,
                "`write` needs a `value`",
                "add `value: \"{data}\"` to store the whole payload",
            );
        }
        Verb::Warm if fields.member("from").is_none() => {
            report.error_with_help(
                Code::MissingKey,
                effect.at,
                "`warm` needs a `from`",
                "add `from: loader:/path`, or an absolute URL",
            );
        }
        _ => {}
    }
}

/// Maximum delay of a second delete. A value loaded before the first delete is stored by then.
pub(crate) const MAX_SECOND_DELETE_DELAY: Duration = Duration::from_secs(3_600);

fn read_again(node: &Node, report: &mut Report<'_>) -> Option<Duration> {
    let again = duration(node, "`again`", report)?;
    if again > MAX_SECOND_DELETE_DELAY {
        report.error_with_help(
            Code::InvalidValue,
            node.at,
            "`again` is longer than 1h",
            "use the time in which readers load and store a value, such as 500ms or 5s",
        );
        return None;
    }
    Some(again)
}

/// Reads `version: "{rev}"`, or `version: {of: "{rev}", entity: "post:{id}"}`.
pub(super) fn read_version(node: &Node, report: &mut Report<'_>) -> Option<VersionDocument> {
    let is_long_form = mapping_has(node, "of") || mapping_has(node, "entity");
    if !is_long_form {
        return Some(VersionDocument { of: text(node, "`version`", report)?, entity: None });
    }
    let fields = Fields::open(node, "`version`", &["of", "entity"], report)?;
    let of: Option<Text> = fields.text("of", report);
    if fields.member("of").is_none() {
        report.error_with_help(
            Code::MissingKey,
            node.at,
            "`version` needs `of`",
            "such as version: {of: \"{rev}\", entity: \"post:{id}\"}",
        );
    }
    Some(VersionDocument { of: of?, entity: fields.text("entity", report) })
}

fn mapping_has(node: &Node, key: &str) -> bool {
    match &node.content {
        Content::Object(members) => members
            .iter()
            .any(|member| member.key == key && !(members.len() == 1 && member.value.is_null())),
        _ => false,
    }
}
