//! A directory of schema files → [`Loaded`]: whole, or every reason why not.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::compile::{self, File};
use super::diagnostic::{Problem, Problems, Report, Severity, SourceFile};
use super::document::{self, Document};
use super::example::Example;
use super::model::{Entry, Loader, Registry, RuleName};
use super::tree;
use crate::config::{RegistryConfig, Vars};

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

    /// Whether some rule asks for a second pass.
    pub fn has_second_passes(&self) -> bool {
        self.entries.iter().any(|entry| !entry.retired && entry.rules.iter().any(|rule| rule.again.is_some()))
    }

    /// By [`LoaderId`](super::LoaderId).
    pub fn loaders(&self) -> &[Loader] {
        &self.loaders
    }

    /// Reads and compiles every `*.yaml`, `*.yml` and `*.json` file below the directory. Names that begin with a dot are passed over: Kubernetes
    /// keeps a mounted ConfigMap in `..data`, and links to it from beside.
    ///
    /// # Errors
    /// Every problem of every file at once, warnings included; of syntax errors the first of each file.
    pub fn load(options: &LoadOptions) -> Result<Loaded, Problems> {
        let mut problems = Vec::new();
        let (files, digest) = read_all(&options.schemas, &options.vars, &mut problems)?;
        let mut sources = Vec::with_capacity(files.len());
        for (path, shown_path, bytes) in files {
            match String::from_utf8(bytes) {
                Ok(text) => sources.push(SourceFile { path, shown_path, text }),
                Err(error) => problems.push(not_utf8(&shown_path, &error)),
            }
        }
        compile_sources(&sources, options, digest, problems)
    }
}

/// The digest that the registry in this directory would have, without compiling it.
///
/// # Errors
/// What cannot be read.
pub fn digest_of(options: &LoadOptions) -> Result<String, Problems> {
    let mut problems = Vec::new();
    let (_, digest) = read_all(&options.schemas, &options.vars, &mut problems)?;
    if problems.is_empty() { Ok(digest) } else { Err(Problems(problems)) }
}

/// Two bytes over the variables' names and values, which decide along with the files what an event does. No more of them: the digest is shown,
/// and a variable may be a secret that somebody could then guess at.
fn checksum(vars: &Vars) -> [u8; 2] {
    let mut all = Sha256::new();
    for part in vars.0.iter().flat_map(|(name, value)| [name, value]) {
        all.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        all.update(part);
    }
    let all = all.finalize();
    [all[0], all[1]]
}

/// A file's path below the directory, the path to show, and its bytes.
type ReadFile = (String, String, Vec<u8>);

/// The files of a directory in byte order of their paths, and the digest over them.
fn read_all(schemas: &Path, vars: &Vars, problems: &mut Vec<Problem>) -> Result<(Vec<ReadFile>, String), Problems> {
    let shown_root = schemas.display().to_string();
    if let Err(error) = std::fs::metadata(schemas) {
        let hint = "UNSTALE_SCHEMAS names the directory of schema files";
        return Err(Problems(vec![Problem::of_path(shown_root, format!("the registry cannot be read: {}", reason(&error)), hint)]));
    }
    let mut found = BTreeMap::new();
    collect(schemas, "", 0, &mut found, problems);
    if found.is_empty() && problems.is_empty() {
        let hint = "put *.yaml, *.yml or *.json files there, or name another directory in UNSTALE_SCHEMAS";
        problems.push(Problem::of_path(shown_root, "the registry is empty: no schema file stands in this directory", hint));
    }
    let mut digest = Sha256::new();
    let mut files = Vec::with_capacity(found.len());
    for (path, file) in found {
        let shown_path = file.display().to_string();
        match std::fs::read(&file) {
            Ok(bytes) => {
                for part in [path.as_bytes(), &bytes] {
                    digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
                    digest.update(part);
                }
                files.push((path, shown_path, bytes));
            }
            Err(error) => problems.push(Problem::of_path(shown_path, format!("the file cannot be read: {}", reason(&error)), "")),
        }
    }
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(checksum(vars));
    Ok((files, digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Compiles files that stand in byte order of their paths.
pub(super) fn compile_sources(
    sources: &[SourceFile],
    options: &LoadOptions,
    digest: String,
    mut problems: Vec<Problem>,
) -> Result<Loaded, Problems> {
    let compiled = compile::compile(sources.iter().map(read).collect(), options, digest);
    problems.extend(compiled.problems);
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(Problems(problems));
    }
    Ok(Loaded { registry: compiled.registry, warnings: problems, examples: compiled.examples, key_prefix: options.key_prefix.clone() })
}

fn read(source: &SourceFile) -> File<'_> {
    let mut report = Report::new(source);
    let root = tree::parse(&mut report);
    let document = root.as_ref().map_or_else(Document::default, |root| document::read(root, &mut report));
    File { source, root, document, problems: report.problems }
}

/// A link may lead back up.
const MAX_DIRECTORY_DEPTH: usize = 16;

fn collect(directory: &Path, below: &str, depth: usize, found: &mut BTreeMap<String, PathBuf>, problems: &mut Vec<Problem>) {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            problems.push(unlisted(directory, &error));
            return;
        }
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                problems.push(unlisted(directory, &error));
                return;
            }
        };
        let Some(name) = path.file_name() else { continue };
        let Some(name) = name.to_str() else {
            problems.push(Problem::of_path(path.display().to_string(), "the name is not UTF-8", "rename the file"));
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        let relative = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        let is_schema = [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending));
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() && depth == MAX_DIRECTORY_DEPTH => problems.push(Problem::of_path(
                path.display().to_string(),
                format!("directories are nested deeper than {MAX_DIRECTORY_DEPTH}"),
                "does a link lead back up?",
            )),
            Ok(metadata) if metadata.is_dir() => collect(&path, &relative, depth + 1, found, problems),
            Ok(metadata) if is_schema && metadata.is_file() => {
                found.insert(relative, path);
            }
            Ok(_) if is_schema => problems.push(Problem::of_path(path.display().to_string(), "this is no regular file", "")),
            Err(error) if is_schema => {
                problems.push(Problem::of_path(path.display().to_string(), format!("the file cannot be read: {}", reason(&error)), ""));
            }
            Ok(_) | Err(_) => {}
        }
    }
}

fn unlisted(directory: &Path, error: &io::Error) -> Problem {
    let is_file = error.kind() == io::ErrorKind::NotADirectory;
    let hint = if is_file { "give the directory that it is in: a registry is all the schema files of a directory" } else { "" };
    Problem::of_path(directory.display().to_string(), format!("the directory cannot be read: {}", reason(error)), hint)
}

fn not_utf8(shown_path: &str, error: &std::string::FromUtf8Error) -> Problem {
    let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
    let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = String::from_utf8_lossy(valid.rsplit(|&byte| byte == b'\n').next().unwrap_or_default()).chars().count() + 1;
    let mut problem = Problem::of_path(shown_path, "the file is not UTF-8", "save it as UTF-8");
    problem.line = u32::try_from(line).unwrap_or(u32::MAX);
    problem.column = u32::try_from(column).unwrap_or(u32::MAX);
    problem
}

/// What an error of the file system means, without its number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotADirectory => "it is not a directory".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
