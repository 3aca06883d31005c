//! Compiles the documents of all files into a [`Registry`].
//!
//! `effect` compiles one element of `effects`, `texts` its templates and expressions, and `loader`
//! the loaders. `fences` finds the keys that need the version of their event. Files are read in
//! [`document`](super::document).

mod effect;
mod fences;
mod loader;
mod texts;

use std::collections::{BTreeSet, HashSet};

use super::data_schema::{self, FileRoot};
use super::diagnostic::{Diagnostic, Report, Severity};
use super::document::{Document, EventDocument, Text};
use super::effect::RuleId;
use super::example::{self, Example};
use super::expression::TextPatterns;
use super::lint::{self, Reads};
use super::model::{EventDefinition, Pattern, Registry, RuleName, Validate};
use super::options::LoadOptions;
use super::tree::{Allowance, Node};
use loader::Loaders;
use texts::TextCompiler;

pub(super) use fences::family_of;
pub(super) use texts::Context;

/// A file that was read, with its problems so far.
#[derive(Debug)]
pub(super) struct File<'s> {
    pub(super) report: Report<'s>,
    pub(super) root: Option<Node>,
    pub(super) document: Document,
}

/// A registry as far as it could be compiled. It is not used if a problem is an error.
pub(super) struct Compiled {
    pub(super) registry: Registry,
    pub(super) examples: Vec<Example>,
    /// Problems in the order of files and lines.
    pub(super) problems: Vec<Diagnostic>,
}

/// Compiles files, which are in byte order of their paths.
pub(super) fn compile(
    files: Vec<File<'_>>,
    allowance: &mut Allowance,
    options: &LoadOptions,
    digest: String,
) -> Compiled {
    let mut reports: Vec<Report<'_>> = Vec::new();
    let mut documents = Vec::new();
    for file in files {
        reports.push(file.report);
        documents.push((file.document, file.root));
    }
    let mut patterns = TextPatterns::default();
    let mut loaders = Loaders::default();
    for (at, (document, _)) in documents.iter().enumerate() {
        for (name, loader) in &document.loaders {
            let mut compiler =
                TextCompiler { options, report: &mut reports[at], patterns: &mut patterns };
            loaders.declare(at, name, loader, &mut compiler);
        }
    }

    let mut sorted: Vec<(usize, &Text, &EventDocument)> = documents
        .iter()
        .enumerate()
        .flat_map(|(at, (document, _))| {
            document.events.iter().map(move |(name, definition)| (at, name, definition))
        })
        .collect();
    sorted.sort_by_key(|(file, name, _)| {
        (Pattern::is_pattern(&name.text), name.text.as_bytes(), *file)
    });
    let retired: HashSet<String> = sorted
        .iter()
        .filter(|(_, name, definition)| definition.retired && !Pattern::is_pattern(&name.text))
        .map(|(_, name, _)| name.text.clone())
        .collect();

    let mut registry = Registry {
        digest,
        definitions: Vec::new(),
        by_name: foldhash::HashMap::default(),
        patterns: Vec::new(),
        rules: Vec::new(),
        loaders: Vec::new(),
        routing_keys: Vec::new(),
        tables: Vec::new(),
        max_keys_per_event: options.max_keys_per_event,
        tag_prefix: options.tag_prefix.clone(),
    };
    let roots: Vec<Option<FileRoot<'_>>> =
        documents.iter().map(|(_, root)| root.as_ref().map(FileRoot::new)).collect();
    let mut schemas = data_schema::SchemaCompiler::new(allowance);
    let mut routing_keys = BTreeSet::new();
    let mut examples = Vec::new();
    for (file, name, document) in sorted {
        let defaults = &documents[file].0.defaults;
        let place = u32::try_from(registry.definitions.len()).unwrap_or(u32::MAX);
        let mut compiler =
            TextCompiler { options, report: &mut reports[file], patterns: &mut patterns };
        let problems = compiler.report.problems.len();
        let schema = match (&document.data, &roots[file]) {
            (Some(node), Some(root)) => schemas.compile(node, root, compiler.report),
            _ => None,
        };
        let reads = Reads::default();
        let context = Context {
            name,
            file,
            place,
            defaults: defaults.as_ref(),
            schema: schema.as_ref().map(|(_, json)| json),
            validate: document
                .validate
                .as_ref()
                .map_or(Validate::default(), |validate| validate.value),
            reads: &reads,
        };
        let definition = compile_definition(
            &context,
            document,
            &mut loaders,
            &mut registry.rules,
            &mut compiler,
        );
        // A definition that does not compile has no complete list of the fields that it reads.
        if !compiler.report.problems[problems..]
            .iter()
            .any(|problem| problem.severity == Severity::Error)
        {
            lint::check_definition(name, document, context.schema, &reads, compiler.report);
        }
        if !document.retired && retired.contains(&name.text) {
            lint::warn_of_retired(name, compiler.report);
        } else if !document.retired {
            let own = [name.clone()];
            for key in document.bind.as_deref().unwrap_or(&own) {
                lint::check_bind(key, &name.text, &retired, compiler.report);
                routing_keys.insert(key.text.clone());
                if !Pattern::parse(&name.text).matches(&key.text) {
                    registry.tables.push(Pattern::parse(&key.text));
                }
            }
        }
        for document in &document.examples {
            examples.extend(example::compile(&context, document, compiler.report));
        }
        if Pattern::is_pattern(&name.text) {
            registry.patterns.push((Pattern::parse(&name.text), place));
        } else {
            registry.by_name.entry(name.text.clone()).or_default().push(place);
        }
        registry
            .definitions
            .push(EventDefinition { schema: schema.map(|(schema, _)| schema), ..definition });
    }
    fences::find(&mut registry.definitions);
    registry.loaders = loaders.finish();
    registry.routing_keys = routing_keys.into_iter().collect();
    let problems = reports.into_iter().flat_map(|report| in_order(report.problems)).collect();
    Compiled { registry, examples, problems }
}

fn in_order(mut problems: Vec<Diagnostic>) -> Vec<Diagnostic> {
    problems.sort_by(|a, b| (a.line, a.column, &a.message).cmp(&(b.line, b.column, &b.message)));
    problems.dedup();
    problems
}

fn compile_definition(
    context: &Context<'_>,
    document: &EventDocument,
    loaders: &mut Loaders,
    rules: &mut Vec<RuleName>,
    compiler: &mut TextCompiler<'_, '_, '_>,
) -> EventDefinition {
    let file = compiler.report.source.path.clone();
    let mut names = Vec::new();
    let mut lets = Vec::new();
    for (name, text) in &document.lets {
        // A `let` that does not compile is still a known name, so that its users are not reported.
        if let Some(expression) = compiler.expression(text, context, &names, false) {
            lets.push((name.text.clone(), expression));
        }
        names.push(name.text.clone());
    }
    let version = document
        .version
        .as_ref()
        .and_then(|version| compiler.version(version, context, &names, false));
    let mut compiled = Vec::new();
    for (place, effect) in document.effects.iter().enumerate() {
        let id = RuleId(u32::try_from(rules.len()).unwrap_or(u32::MAX));
        rules.push(RuleName {
            name: format!("{file}#{}/{place}", context.name.text),
            verb: effect.verb,
            definition: context.place,
        });
        compiled.extend(effect::compile(
            id,
            effect,
            context,
            &names,
            version.as_ref(),
            loaders,
            compiler,
        ));
    }
    EventDefinition {
        name: context.name.text.clone(),
        file,
        retired: document.retired,
        schema: None,
        validate: context.validate,
        version,
        lets,
        rules: compiled,
        max_keys: document.max_keys,
    }
}
