//! A directory of schema files → [`Loaded`]: whole, or every reason why not.

mod files;

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::compile::{self, File};
use super::diagnostic::{Problem, Problems, Report, Severity, SourceFile, nearest};
use super::document::{self, Document};
use super::example::Example;
use super::model::{Entry, Loader, Registry, RuleName};
use super::tree::{self, Aliases};
use crate::config::{RegistryConfig, Vars};
use files::ReadFile;

pub use files::FileList;

/// What to load, and what stands around it.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The directory, read recursively.
    pub schemas: PathBuf,
    /// `UNSTALE_KEY_PREFIX`
    pub key_prefix: String,
    /// `UNSTALE_TAG_PREFIX`
    pub tag_prefix: String,
    /// What `{vars.NAME}` reads.
    pub vars: Vars,
    /// `UNSTALE_MAX_KEYS_PER_EVENT`
    pub max_keys_per_event: usize,
    /// What a variable without a value means.
    pub missing_vars: MissingVars,
}

impl LoadOptions {
    /// What the worker loads: a variable without a value is refused.
    pub fn for_run(config: &RegistryConfig) -> Self {
        Self {
            schemas: config.schemas.clone(),
            key_prefix: config.key_prefix.clone(),
            tag_prefix: config.tag_prefix.clone(),
            vars: config.vars.clone(),
            max_keys_per_event: config.max_keys_per_event,
            missing_vars: MissingVars::Refuse,
        }
    }
}

/// What a variable without a value means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingVars {
    /// The registry does not load (`run`).
    Refuse,
    /// A warning; the placeholder is left as written (`check`, `plan`).
    Warn,
}

/// A registry, and what came with it.
#[derive(Debug)]
pub struct Loaded {
    /// Ready to resolve events.
    pub registry: Registry,
    /// What is legal and surely wrong.
    pub warnings: Vec<Problem>,
    /// For [`run_examples`](super::run_examples).
    pub examples: Vec<Example>,
    /// `UNSTALE_KEY_PREFIX`, which stands before every key and which examples leave out.
    pub(super) key_prefix: String,
}

impl Registry {
    /// See [`Registry::digest`](field@Registry::digest).
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What to bind, without duplicates, in byte order.
    pub fn routing_keys(&self) -> &[String] {
        &self.routing_keys
    }

    /// The name of each rule, by [`RuleId`](super::RuleId).
    pub fn rules(&self) -> &[RuleName] {
        &self.rules
    }

    /// In the order in which effects add up.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the event definition's type that a person most likely meant by an unknown one.
    pub fn nearest_type(&self, event_type: &str) -> Option<String> {
        let types = self
            .entries
            .iter()
            .map(|entry| entry.name.as_str())
            .filter(|name| !name.contains(['*', '#']));
        nearest(event_type, types).map(str::to_owned)
    }

    /// Whether some rule asks for a second pass.
    pub fn has_second_passes(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| !entry.retired && entry.rules.iter().any(|rule| rule.again.is_some()))
    }

    /// By [`LoaderId`](super::LoaderId).
    pub fn loaders(&self) -> &[Loader] {
        &self.loaders
    }

    /// Reads and compiles every `*.yaml`, `*.yml` and `*.json` file below the directory. Names that
    /// begin with a dot are skipped: Kubernetes keeps a mounted ConfigMap in `..data`, and links to
    /// it from beside.
    ///
    /// # Errors
    /// Every problem of every file at once, warnings included; of syntax errors the first of each
    /// file.
    pub fn load(options: &LoadOptions) -> Result<Loaded, Problems> {
        let (files, digest) = read_all(options)?;
        let mut problems = Vec::new();
        let mut sources = Vec::with_capacity(files.len());
        for ReadFile { path, shown_path, bytes } in files {
            match String::from_utf8(bytes) {
                Ok(text) => sources.push(SourceFile::new(path, shown_path, text)),
                Err(error) => problems.push(not_utf8(&shown_path, &error)),
            }
        }
        compile_sources(&sources, options, digest, problems)
    }
}

/// Returns the digest that the registry in this directory would have, without compiling it.
///
/// # Errors
/// What cannot be read.
pub fn digest_of(options: &LoadOptions) -> Result<String, Problems> {
    read_all(options).map(|(_, digest)| digest)
}

/// Lists the registry's files without reading them: the list of an unchanged registry is equal to
/// the one before.
///
/// # Errors
/// What cannot be listed, and links that lead out of the directory.
pub fn list_files(options: &LoadOptions) -> Result<FileList, Problems> {
    files::list(&options.schemas)
}

/// Two bytes over the variables' names and values, which decide along with the files what an event
/// does. No more of them: the digest is shown, and a variable may be a secret that somebody could
/// then guess at.
fn checksum(vars: &Vars) -> [u8; 2] {
    let mut all = Sha256::new();
    for part in vars.0.iter().flat_map(|(name, value)| [name, value]) {
        all.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        all.update(part);
    }
    let all = all.finalize();
    [all[0], all[1]]
}

/// How often the files are listed anew because a listed one was gone: a swap of a ConfigMap is over
/// by then.
const MAX_LISTINGS: usize = 3;

/// Reads the files of a directory, in byte order of their paths, and makes the digest over them.
fn read_all(options: &LoadOptions) -> Result<(Vec<ReadFile>, String), Problems> {
    let mut listings = 1;
    let files = loop {
        match files::read(files::list(&options.schemas)?) {
            Ok(files) => break files,
            Err(error) if error.is_gone && listings < MAX_LISTINGS => listings += 1,
            Err(error) => return Err(Problems(error.problems)),
        }
    };
    let mut digest = Sha256::new();
    for ReadFile { path, bytes, .. } in &files {
        for part in [path.as_bytes(), bytes] {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(part);
        }
    }
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(checksum(&options.vars));
    Ok((files, digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Compiles files that stand in byte order of their paths.
pub(super) fn compile_sources(
    sources: &[SourceFile],
    options: &LoadOptions,
    digest: String,
    mut problems: Vec<Problem>,
) -> Result<Loaded, Problems> {
    let mut aliases = Aliases::default();
    let files = sources.iter().map(|source| read(source, &mut aliases)).collect();
    let compiled = compile::compile(files, &mut aliases, options, digest);
    problems.extend(compiled.problems);
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(Problems(problems));
    }
    Ok(Loaded {
        registry: compiled.registry,
        warnings: problems,
        examples: compiled.examples,
        key_prefix: options.key_prefix.clone(),
    })
}

fn read<'s>(source: &'s SourceFile, aliases: &mut Aliases) -> File<'s> {
    let mut report = Report::new(source);
    let root = tree::parse(&mut report, aliases);
    let document =
        root.as_ref().map_or_else(Document::default, |root| document::read(root, &mut report));
    File { report, root, document }
}

fn not_utf8(shown_path: &str, error: &std::string::FromUtf8Error) -> Problem {
    let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
    let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column =
        String::from_utf8_lossy(valid.rsplit(|&byte| byte == b'\n').next().unwrap_or_default())
            .chars()
            .count()
            + 1;
    let mut problem = Problem::of_path(shown_path, "the file is not UTF-8", "save it as UTF-8");
    problem.line = u32::try_from(line).unwrap_or(u32::MAX);
    problem.column = u32::try_from(column).unwrap_or(u32::MAX);
    problem
}

#[cfg(test)]
mod tests;
