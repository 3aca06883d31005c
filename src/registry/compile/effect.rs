//! Compiles one element of `effects` into a [`Rule`].

use std::time::Duration;

use super::super::code::Code;
use super::super::diagnostic::Pos;
use super::super::document::{EffectDocument, Ttl};
use super::super::effect::{Only, RuleId, Stale, Verb};
use super::super::lint::{self, Role};
use super::super::model::{Encoding, ExpiryRule, Family, Rule, RuleBody, VersionRule};
use super::super::path::Path;
use super::super::template::{Template, unbound_array};
use super::super::value_template::ValueTemplate;
use super::loader::Loaders;
use super::texts::{Context, TextCompiler};

/// Jitter of a ttl if neither the rule nor its file sets one.
const DEFAULT_JITTER: f64 = 0.1;

pub(super) fn compile(
    id: RuleId,
    document: &EffectDocument,
    context: &Context<'_>,
    lets: &[String],
    definition_version: Option<&VersionRule>,
    loaders: &mut Loaders,
    compiler: &mut TextCompiler<'_, '_, '_>,
) -> Option<Rule> {
    let in_each = document.each.is_some();
    let each = document.each.as_ref().map(|text| compiler.expression(text, context, lets, false));
    let when = document.when.as_ref().map(|text| compiler.expression(text, context, lets, in_each));
    let role = if document.verb == Verb::InvalidateTags { Role::Name } else { Role::Key };
    let targets: Vec<_> = document
        .targets
        .iter()
        .map(|text| compiler.template(text, context, lets, in_each, role))
        .collect();
    let targets: Option<Vec<_>> = targets.into_iter().collect();
    let tags: Vec<_> = document
        .tags
        .iter()
        .map(|text| compiler.template(text, context, lets, in_each, Role::Name))
        .collect();
    let tags: Option<Vec<_>> = tags.into_iter().collect();
    let key_prefix = key_prefix(document, context, compiler);
    if let (Some(targets), Some(prefix)) = (&targets, &key_prefix) {
        lint::check_reserved(
            document,
            targets,
            prefix,
            &compiler.options.tag_prefix,
            context.schema,
            compiler.report,
        );
    }
    let expiry = expiry(document, context, lets, in_each, compiler);
    let version =
        document.version.as_ref().map(|version| compiler.version(version, context, lets, in_each));
    let versions = match &version {
        Some(own) => Some(own.as_ref()),
        None => definition_version.map(Some),
    };
    lint::check_version(
        document,
        versions,
        targets.as_deref().unwrap_or_default(),
        compiler.report,
    );

    let body = match document.verb {
        Verb::Delete => RuleBody::Delete,
        Verb::InvalidateTags => RuleBody::InvalidateTags,
        Verb::BumpVersion => RuleBody::BumpVersion,
        Verb::Expire => RuleBody::Expire(expiry?),
        Verb::Write => {
            let node = document.value.as_ref();
            let value = node.and_then(|node| compiler.value(node, context, lets, in_each));
            let encoding =
                document.encoding.as_ref().map_or(Encoding::Json, |encoding| encoding.value);
            if let (Some(node), Some(value), Encoding::Raw) = (node, &value, encoding)
                && !matches!(value, ValueTemplate::Text(_))
            {
                compiler.report.error_with_help(
                    Code::InvalidValue,
                    node.at,
                    "`encoding: raw` needs a `value` that is text",
                    "quote the value, or remove `encoding`",
                );
            }
            let version = match version {
                Some(own) => Some(own?),
                None => definition_version.map(copy),
            };
            RuleBody::Write { value: value?, encoding, expiry: expiry?, tags: tags?, version }
        }
        Verb::Warm => {
            let from = document.from.as_ref()?;
            let (loader, path) = loaders.resolve(from, context, compiler)?;
            let url = compiler.url(&path, context, lets, in_each);
            RuleBody::Warm {
                loader,
                url: url?,
                expiry: expiry?,
                tags: tags?,
                stale: document.stale.as_ref().map_or(Stale::Drop, |stale| stale.value),
                only: document.only.as_ref().map_or(Only::Always, |only| only.value),
            }
        }
    };
    check_arrays(&body, targets.as_deref().unwrap_or_default(), document, compiler);
    Some(Rule {
        id,
        each: transposed(each)?,
        when: transposed(when)?,
        key_prefix: key_prefix?,
        targets: targets?,
        body,
        written: Vec::new(),
        again: document.again,
    })
}

/// Reports values, URLs, times and versions that read many elements for one key.
fn check_arrays(
    body: &RuleBody,
    targets: &[Template],
    document: &EffectDocument,
    compiler: &mut TextCompiler<'_, '_, '_>,
) {
    let mut check = |at: Pos, path: Option<&Path>| {
        if let Some(path) = path {
            compiler.report.error_with_help(
                Code::ManyValues,
                at,
                format!("`{path}` has many values here, and each key takes one"),
                "name the same array in the key, such as product:{items[].id}, or use `each`",
            );
        }
    };
    let (expiry, version) = match body {
        RuleBody::Delete | RuleBody::InvalidateTags | RuleBody::BumpVersion => return,
        RuleBody::Expire(expiry) => (expiry, None),
        RuleBody::Write { value, expiry, version, .. } => {
            check(
                document.value.as_ref().map_or(document.at, |node| node.at),
                unbound_array(targets, value.paths()),
            );
            (expiry, version.as_ref())
        }
        RuleBody::Warm { url, expiry, .. } => {
            check(
                document.from.as_ref().map_or(document.at, |from| from.at),
                unbound_array(targets, url.paths()),
            );
            (expiry, None)
        }
    };
    if let ExpiryRule::At(template) = expiry {
        check(
            document.expires_at.as_ref().map_or(document.at, |at| at.at),
            unbound_array(targets, template.paths()),
        );
    }
    if let Some(VersionRule { of, family }) = version {
        let at = document.version.as_ref().map_or(document.at, |version| version.of.at);
        check(at, unbound_array(targets, of.paths()));
        if let Family::Entity(entity) = family {
            check(at, unbound_array(targets, entity.paths()));
        }
    }
}

/// Turns an optional text that does not compile into `None`.
fn transposed<T>(compiled: Option<Option<T>>) -> Option<Option<T>> {
    match compiled {
        Some(Some(expression)) => Some(Some(expression)),
        Some(None) => None,
        None => Some(None),
    }
}

fn key_prefix(
    document: &EffectDocument,
    context: &Context<'_>,
    compiler: &mut TextCompiler<'_, '_, '_>,
) -> Option<String> {
    if document.verb == Verb::InvalidateTags {
        return Some(String::new());
    }
    let own = document.prefix.as_ref().or_else(|| context.defaults?.key_prefix.as_ref());
    let own = match own {
        Some(text) => compiler.literal(text, "a prefix", false)?,
        None => String::new(),
    };
    Some(format!("{}{own}", compiler.options.key_prefix))
}

fn expiry(
    document: &EffectDocument,
    context: &Context<'_>,
    lets: &[String],
    in_each: bool,
    compiler: &mut TextCompiler<'_, '_, '_>,
) -> Option<ExpiryRule> {
    if !matches!(document.verb, Verb::Expire | Verb::Write | Verb::Warm) {
        return Some(ExpiryRule::Never);
    }
    if let Some(at) = &document.expires_at {
        return compiler.template(at, context, lets, in_each, Role::Other).map(ExpiryRule::At);
    }
    let is_expire = document.verb == Verb::Expire;
    let default_ttl =
        context.defaults.and_then(|defaults| defaults.ttl.as_ref()).filter(|_| !is_expire);
    let jitter = document
        .jitter
        .as_ref()
        .or_else(|| context.defaults?.jitter.as_ref())
        .map_or(DEFAULT_JITTER, |jitter| jitter.value.0);
    match document.ttl.as_ref().or(default_ttl).map(|ttl| ttl.value) {
        Some(Ttl::For(ttl)) => Some(after(ttl, jitter)),
        Some(Ttl::Never) if is_expire => {
            let at = document.ttl.as_ref().map_or(document.at, |ttl| ttl.at);
            compiler.report.error_with_help(
                Code::InvalidValue,
                at,
                "`expire` cannot use `ttl: none`: it only shortens a time to live",
                "set a `ttl`, or remove the effect",
            );
            None
        }
        Some(Ttl::Never) => Some(ExpiryRule::Never),
        None if is_expire => None,
        None => {
            let message = format!("`{}` needs a `ttl`, here or in `defaults`", document.verb);
            compiler.report.error_with_help(
                Code::MissingKey,
                document.at,
                message,
                "`ttl: none` keeps the value for ever",
            );
            None
        }
    }
}

const fn after(ttl: Duration, jitter: f64) -> ExpiryRule {
    ExpiryRule::After { ttl, jitter }
}

fn copy(version: &VersionRule) -> VersionRule {
    let family = match &version.family {
        Family::EventType => Family::EventType,
        Family::Entity(entity) => Family::Entity(entity.clone()),
    };
    VersionRule { of: version.of.clone(), family }
}
